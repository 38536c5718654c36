"""What the Consul tests share: registries that are put away again, and an agent that lies."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType

from registry_drain.clock import Deadline
from registry_drain.instance import ServiceInstance, format_endpoint
from registry_drain.registries.base import RegistryEntry
from registry_drain.registries.consul import ConsulRegistry
from registry_drain.registries.consul.registration import ConsulRegistration
from registry_drain.registries.url import parse_registry_url
from tests.support.consul_process import ConsulAgent

FAST_TTL = 21.0
"""Seconds; no other test has it. So long that no check turns critical on a machine that stalls for a while."""
FAST_PAUSE = 1 / 3
FAST = f"?ttl_s={FAST_TTL:g}&timeout_s=10"
"""Heartbeats every third of a second (see conftest): tests need not wait long to see that none comes any more."""
BEATS = 1.5
"""Seconds in which FAST would have renewed or registered several times."""


def soon(seconds: float = 10.0) -> Deadline:
    """Return a deadline that a working agent never reaches."""
    return Deadline.after(seconds)


def instance(service: str, port: int = 9090, instance_id: str = "one") -> ServiceInstance:
    """Return a small instance."""
    return ServiceInstance(service, "192.0.2.7", port, id=instance_id)


class Members:
    """Registries and registrations of one test: all are stopped and closed at its end."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Members:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put everything away."""
        self._stack.close()

    def registry(self, url: str, token: str | None = None) -> ConsulRegistry:
        """Return a registry of ``url``."""
        registry = ConsulRegistry(parse_registry_url(url), token=token)
        self._stack.callback(registry.close)
        return registry

    def new(self, url: str, what: ServiceInstance, token: str | None = None) -> ConsulRegistration:
        """Return a registration that has not registered."""
        registration = self.registry(url, token).registration(what)
        assert isinstance(registration, ConsulRegistration)
        self._stack.callback(lambda: registration.on_shutdown(soon(0.5)))
        return registration

    def registered(self, url: str, what: ServiceInstance, token: str | None = None) -> ConsulRegistration:
        """Return a registration that has registered."""
        registration = self.new(url, what, token)
        registration.register(soon())
        return registration


def proxied(agent: ConsulAgent, address: str, options: str = FAST) -> str:
    """Return the URL of ``agent`` behind a proxy at ``address``."""
    assert not agent.tls
    return f"consul://{address}{options}"


def entry_of(registry: ConsulRegistry, service: str) -> RegistryEntry:
    """Return the only entry of ``service``."""
    (entry,) = registry.entries(service, soon())
    return entry


def put_service(agent: ConsulAgent, service: str, consul_id: str, **more: object) -> None:
    """Register somebody else's service with its agent."""
    agent.put("/v1/agent/service/register", {"ID": consul_id, "Name": service, "Port": 80, **more})


def put_ghost(
    agent: ConsulAgent, service: str, consul_id: str, node: str, address: str = "192.0.2.9", **more: object
) -> None:
    """Write a service of a node without an agent into the catalog."""
    what = {"ID": consul_id, "Service": service, "Port": 80, **more}
    agent.put("/v1/catalog/register", {"Node": node, "Address": address, "Service": what})


def never(happens: Callable[[], object], seconds: float) -> None:
    """Fail if ``happens`` is true at any look during ``seconds``: the only way to see that something does not come."""
    ends_at = time.monotonic() + seconds
    while time.monotonic() < ends_at:
        seen = happens()
        assert not seen, f"it happened: {seen!r}"
        threading.Event().wait(0.02)


Lie = tuple[int, bytes] | tuple[int, bytes, int]
"""Status, body and perhaps X-Consul-Index to answer with, instead of asking the agent."""


class Liar:
    """An HTTP server in front of an agent (or of nothing): forwards, records, and lies where told to.

    ``lie`` gets method and path, and returns what to answer, or None to forward. ``requests`` are the method, path and
    token header of each.
    """

    def __init__(
        self,
        agent: ConsulAgent | None,
        lie: Callable[[str, str], Lie | None] = lambda *_: None,
        at: tuple[str, int] = ("127.0.0.1", 0),
    ) -> None:
        outer = self
        self.requests: list[tuple[str, str, str]] = []

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _answer(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length)
                token = self.headers.get("X-Consul-Token", "")
                outer.requests.append((self.command, self.path, token))
                said = lie(self.command, self.path) or _forward(agent, self.command, self.path, body, token)
                status, answer = said[0], said[1]
                self.send_response(status)
                self.send_header("Content-Length", str(len(answer)))
                for index in said[2:]:
                    self.send_header("X-Consul-Index", str(index))
                if 300 <= status < 400:
                    self.send_header("Location", "/v1/elsewhere")
                self.end_headers()
                self.wfile.write(answer)

            do_GET = do_PUT = do_POST = do_DELETE = _answer  # noqa: N815 -- http.server's names

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False
            address_family = socket.AF_INET6 if ":" in at[0] else socket.AF_INET

        self._server = Server(at, Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), name="liar", daemon=True)
        self._thread.start()
        self.port: int = self._server.server_port
        self.address = format_endpoint(at[0], self.port)

    def __enter__(self) -> Liar:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)


def _forward(agent: ConsulAgent | None, method: str, path: str, body: bytes, token: str) -> Lie:
    assert agent is not None, f"nobody to forward {method} {path} to"
    connection = http.client.HTTPConnection("127.0.0.1", agent.http_port, timeout=30)
    try:
        connection.request(method, path, body, {"X-Consul-Token": token} if token else {})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


@contextlib.contextmanager
def dripping(pause: float) -> Iterator[str]:
    """Serve an endless answer, one header byte every ``pause`` seconds: the address."""
    ended = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.05)

    def serve() -> None:
        while not ended.is_set():
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            with connection, contextlib.suppress(OSError):
                connection.sendall(b"HTTP/1.1 200 OK\r\nX-Drip: ")
                while not ended.wait(pause):
                    connection.sendall(b"x")

    thread = threading.Thread(target=serve, name="dripping", daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        ended.set()
        thread.join(10)
        listener.close()
