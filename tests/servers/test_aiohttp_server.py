"""The aiohttp adapter: the server contract, and what is aiohttp's own."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from aiohttp import web
from websockets.exceptions import ConnectionClosedOK
from websockets.sync.client import ClientConnection, connect

from registry_drain.async_service import AsyncService
from registry_drain.clock import Deadline
from registry_drain.errors import ConfigurationError, ServerError
from registry_drain.hosted.aiohttp import run_app
from registry_drain.phases import Phase
from registry_drain.servers.aiohttp_server import AiohttpServer
from registry_drain.servers.base import DrainableServer
from registry_drain.servers.current_request import is_draining, name_request
from registry_drain.shutdown.budget import StopBudget
from registry_drain.testing.bench import Call
from registry_drain.testing.server_contract import ContractClient, ServerContract
from tests.servers.http_echo import HttpClient
from tests.support.processes import eventually

PATIENCE = 20.0
Serve = Callable[[bytes], bytes]


def echo_app(serve: Serve) -> web.Application:
    """Return an application that answers a POST with ``serve(body)``, which may block if the body is ``wait``."""

    async def echo(request: web.Request) -> web.Response:
        body = await request.read()
        if body == b"wait":
            return web.Response(body=await asyncio.to_thread(serve, body))
        return web.Response(body=serve(body))

    app = web.Application()
    app.router.add_post("/", echo)
    return app


class TestAiohttp(ServerContract):
    """HTTP/1.1."""

    request_name = "POST /"
    patience = PATIENCE

    def new_server(self, serve: Serve) -> DrainableServer:
        """Return the adapter."""
        return AiohttpServer(echo_app(serve), "127.0.0.1", 0, access_log=None)

    def connect(self, address: tuple[str, int]) -> ContractClient:
        """Return a client."""
        return HttpClient(address)


# ------------------------------------------------------------------------------------------------- what is aiohttp's


class Running:
    """An adapter that serves, and its clients."""

    def __init__(self, app: web.Application, **settings: Any) -> None:
        """Start it."""
        self.adapter = AiohttpServer(app, "127.0.0.1", 0, access_log=None, **settings)
        self.address = self.adapter.start()
        self.clients: list[HttpClient] = []
        self.exits = contextlib.ExitStack()

    def client(self) -> HttpClient:
        """Return a connected client."""
        self.clients.append(HttpClient(self.address))
        return self.clients[-1]

    def websocket(self, path: str) -> ClientConnection:
        """Return a connected WebSocket."""
        return self.exits.enter_context(connect(f"ws://127.0.0.1:{self.address[1]}{path}"))

    def enter(self, phase: Phase, seconds: float = PATIENCE) -> None:
        """Do what the stop routine does first."""
        self.adapter.in_flight.stop_state.enter(phase, Deadline.after(seconds).at)

    def draining(self, seconds: float = PATIENCE) -> Call[bool]:
        """Close the listener and begin to drain."""
        self.adapter.close_listener(Deadline.after(PATIENCE))
        return Call(lambda: self.adapter.drain(Deadline.after(seconds)))

    def names(self) -> list[str]:
        """Return the names of what is in flight."""
        return [request.name for request in self.adapter.in_flight.snapshot()]


@pytest.fixture
def run() -> Iterator[Callable[..., Running]]:
    """Return a function that runs an application until the end of the test."""
    running: list[Running] = []

    def start(app: web.Application, **settings: Any) -> Running:
        running.append(Running(app, **settings))
        return running[-1]

    yield start
    for each in running:
        for client in each.clients:
            client.close()
        each.exits.close()
        each.adapter.cut_off()


def test_clients_are_told_to_close_once_delisted(run: Any) -> None:
    """Each answer says so from the propagation wait on, errors and streams included; before, none does."""

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"streamed")
        return response

    app = echo_app(bytes)
    app.router.add_get("/stream", stream)
    running = run(app)
    client, other, third = running.client(), running.client(), running.client()
    assert client.call(b"one") == b"one"
    assert client.request("GET", "/nowhere")[0] == "HTTP/1.1 404 Not Found"
    running.enter(Phase.DEREGISTERING)
    assert client.call(b"still listed") == b"still listed"
    assert not client.is_closed()
    running.enter(Phase.PROPAGATING)
    assert client.call(b"last") == b"last"
    assert client.is_told_to_close
    assert client.sock.recv(1) == b""
    status, headers, _ = other.request("GET", "/nowhere")
    assert (status, headers["connection"]) == ("HTTP/1.1 404 Not Found", "close")
    _, headers, body = third.request("GET", "/stream")
    assert (headers["connection"], body) == ("close", b"streamed")
    eventually(lambda: running.adapter.in_flight.count == 0)
    assert running.adapter.in_flight.total == 6


def test_a_request_that_a_middleware_has_cloned_is_still_that_request(run: Any) -> None:
    """The answer is prepared for the clone; and whatever is noted on either, aiohttp allows in development mode."""
    unknown: list[set[str]] = []

    @web.middleware
    async def cloning(request: web.Request, handler: Any) -> web.StreamResponse:
        clone = request.clone(method=request.method)
        clone._match_info = request._match_info
        response: web.StreamResponse = await handler(clone)
        unknown.append((set(vars(request)) | set(vars(clone))) - set(request.ATTRS))
        return response

    async def stream(request: web.Request) -> web.StreamResponse:
        name_request("cloned")
        unknown.append(set(running.names()) - {"cloned"})
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"streamed")
        return response

    app = web.Application(middlewares=[cloning])
    app.router.add_get("/stream", stream)
    running = run(app)
    running.enter(Phase.PROPAGATING)
    _, headers, body = running.client().request("GET", "/stream")
    assert (headers["connection"], body) == ("close", b"streamed")
    assert unknown == [set(), set()]
    assert running.adapter.in_flight.total == 1


def test_health_checks_and_readiness(run: Any) -> None:
    """The one is served and does not count, the other is answered by the adapter; both without their query."""
    app = echo_app(bytes)

    async def health(_: web.Request) -> web.Response:
        return web.Response(text="fine")

    app.router.add_get("/health", health)
    running = run(app, health_check_paths=["/health"], readiness_path="/ready", retry_after=3)
    client = running.client()
    assert client.request("GET", "/health?full=1")[2] == b"fine"
    assert client.request("GET", "/ready")[0::2] == ("HTTP/1.1 200 OK", b"ready\n")
    assert running.adapter.in_flight.total == 0
    running.enter(Phase.DEREGISTERING)
    status, headers, _ = client.request("GET", "/ready")
    assert (status, headers["retry-after"]) == ("HTTP/1.1 503 Service Unavailable", "3")
    assert running.client().request("GET", "/health")[0] == "HTTP/1.1 200 OK"


def test_late_requests(run: Any) -> None:
    """They are served while there is time, and refused after; with ``refuses_when_sealed`` from the listener's end."""
    running = run(echo_app(bytes))
    early, late = running.client(), running.client()
    assert early.call(b"known") == late.call(b"known") == b"known"
    running.enter(Phase.DRAINING)
    assert early.call(b"served") == b"served"
    running.adapter.in_flight.stop_state.hurry(Deadline.after(0).at)
    status, headers, _ = late.request("POST", "/", b"too late")
    assert (status, headers["connection"]) == ("HTTP/1.1 503 Service Unavailable", "close")
    strict = run(echo_app(bytes), refuses_when_sealed=True)
    client = strict.client()
    assert client.call(b"known") == b"known"
    strict.enter(Phase.DRAINING)
    assert client.request("POST", "/", b"x")[0] == "HTTP/1.1 503 Service Unavailable"


def websocket_app(gate: threading.Event, entered: threading.Event, told: list[object]) -> web.Application:
    """Return an application that echoes messages; one that is ``busy`` waits for the gate first."""

    async def serve(request: web.Request) -> web.WebSocketResponse:
        websocket = web.WebSocketResponse()
        await websocket.prepare(request)
        async for message in websocket:
            if message.data == "busy":
                entered.set()
                await asyncio.to_thread(gate.wait, PATIENCE)
            await websocket.send_str(message.data)
        told.append(is_draining())
        return websocket

    app = web.Application()
    app.router.add_get("/ws", serve)
    return app


def test_a_request_is_in_flight_until_its_answer_is_written(run: Any) -> None:
    """The framework writes it when the application's middlewares are through."""
    answering = threading.Event()

    def serve(_: bytes) -> bytes:
        answering.set()
        return b"x" * (32 << 20)  # more than any socket buffer

    running = run(echo_app(serve))
    client = running.client()
    client.send(b"large")
    assert answering.wait(PATIENCE)
    assert client.sock.recv(1, socket.MSG_PEEK)  # it is being written
    assert running.names() == ["POST /"]
    assert len(client.receive()) == 32 << 20
    eventually(lambda: running.adapter.in_flight.count == 0)


def test_websockets_are_closed_with_1001_once_they_have_answered(run: Any) -> None:
    """An idle one at once, a busy one behind its answer; handlers see their loop end."""
    gate, entered, told = threading.Event(), threading.Event(), []  # type: ignore[var-annotated]
    running = run(websocket_app(gate, entered, told))
    idle, busy = running.websocket("/ws"), running.websocket("/ws")
    idle.send("hello")
    assert idle.recv(PATIENCE) == "hello"
    assert running.names() == ["GET /ws", "GET /ws"]
    busy.send("busy")
    assert entered.wait(PATIENCE)
    draining = running.draining()
    with pytest.raises(ConnectionClosedOK) as closed:
        idle.recv(PATIENCE)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1001
    assert draining.is_alive()
    gate.set()
    assert busy.recv(PATIENCE) == "busy"
    with pytest.raises(ConnectionClosedOK) as closed:
        busy.recv(PATIENCE)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1001
    assert draining.result(PATIENCE, "drain")
    assert told == [True, True]


def test_a_websocket_that_never_asks_is_closed_at_half_of_the_time(run: Any) -> None:
    """A handler that only pushes has no moment at which it waits for a message."""

    async def push(request: web.Request) -> web.WebSocketResponse:
        websocket = web.WebSocketResponse()
        await websocket.prepare(request)
        with contextlib.suppress(ConnectionError):
            while True:
                await websocket.send_str("tick")
                await asyncio.sleep(0.01)
        return websocket

    app = web.Application()
    app.router.add_get("/push", push)
    running = run(app)
    pushed = running.websocket("/push")
    assert pushed.recv(PATIENCE) == "tick"
    draining = running.draining(8.0)  # so that half of it stands a busy machine
    for _ in pushed:
        pass
    assert pushed.protocol.close_code == 1001
    assert draining.result(PATIENCE, "drain")


def test_what_is_cut_off_is_cancelled_awaited_and_answered(run: Any) -> None:
    """Before its answer has begun a request gets 503; a stream ends where it is. Both are named."""
    ended: list[str] = []

    async def stuck(_: web.Request) -> web.Response:
        try:
            await asyncio.sleep(PATIENCE)
        finally:
            await asyncio.sleep(0.05)  # tidying up, which is awaited
            ended.append("stuck")
        return web.Response()

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(b"more")
                await asyncio.sleep(0.01)
        finally:
            ended.append("endless")

    app = web.Application()
    app.router.add_post("/stuck", stuck)
    app.router.add_get("/endless", endless)
    running = run(app)
    first, second = running.client(), running.client()
    first.sock.sendall(b"POST /stuck HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
    eventually(lambda: running.names() == ["POST /stuck"])
    second.sock.sendall(b"GET /endless HTTP/1.1\r\nHost: x\r\n\r\n")
    eventually(lambda: len(running.names()) == 2)
    assert not running.draining(0.2).result(PATIENCE, "drain")
    assert [request.name for request in running.adapter.cut_off()] == ["POST /stuck", "GET /endless"]
    assert sorted(ended) == ["endless", "stuck"]
    with pytest.raises(OSError, match="503"):
        first.receive()
    with pytest.raises((EOFError, OSError)) as end:
        second.receive()
    assert not isinstance(end.value, TimeoutError), "it must not hang"


def test_the_hooks_run_in_aiohttps_order_each_once(run: Any) -> None:
    """``on_startup``, ``on_shutdown`` with requests still in flight, ``on_cleanup`` when nothing is."""
    order: list[tuple[str, int]] = []
    entered, gate = threading.Event(), threading.Event()

    def serve(body: bytes) -> bytes:
        entered.set()
        gate.wait(PATIENCE)
        return body

    app = echo_app(serve)

    def hook(name: str) -> Callable[[web.Application], Awaitable[None]]:
        async def note(_: web.Application) -> None:
            order.append((name, running.adapter.in_flight.count if name != "startup" else 0))

        return note

    app.on_startup.append(hook("startup"))
    app.on_shutdown.append(hook("shutdown"))
    app.on_cleanup.append(hook("cleanup"))
    running = run(app)
    client = running.client()
    client.send(b"wait")
    assert entered.wait(PATIENCE)
    draining = running.draining()
    eventually(lambda: len(order) == 2)
    gate.set()
    assert client.receive() == b"wait"
    assert draining.result(PATIENCE, "drain")
    assert running.adapter.cut_off() == ()
    assert order == [("startup", 0), ("shutdown", 1), ("cleanup", 0)]


def test_hooks_that_fail_are_said_and_stop_nothing(run: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A failing ``on_shutdown`` is logged; the drain goes on."""
    app = echo_app(bytes)

    async def fail(_: web.Application) -> None:
        raise RuntimeError("no good")

    app.on_shutdown.append(fail)
    running = run(app)
    assert running.draining().result(PATIENCE, "drain")
    assert "on_shutdown of the application failed" in caplog.text


def test_a_startup_that_fails_is_an_error_that_leaves_nothing() -> None:
    """``start`` raises, with what went wrong."""
    app = web.Application()
    cleaned: list[bool] = []

    async def fail(_: web.Application) -> None:
        raise RuntimeError("no database")

    async def resource(_: web.Application) -> AsyncIterator[None]:
        yield
        cleaned.append(True)

    app.cleanup_ctx.append(resource)
    app.on_startup.append(fail)
    before = set(threading.enumerate())
    with pytest.raises(ServerError, match="no database"):
        AiohttpServer(app, "127.0.0.1", 0).start()
    eventually(lambda: set(threading.enumerate()) <= before)
    assert cleaned == [True]


def test_bad_settings_are_refused() -> None:
    """In one line that says what to do."""
    app = web.Application()
    with pytest.raises(ConfigurationError, match="shutdown_timeout"):
        AiohttpServer(app, shutdown_timeout=5)
    app.freeze()
    with pytest.raises(ConfigurationError, match="run before"):
        AiohttpServer(app)


def test_a_unix_socket(tmp_path: Path) -> None:
    """Its path is removed with the listener, and a predecessor's is replaced."""
    path = tmp_path / "http.sock"
    with socket.socket(socket.AF_UNIX) as predecessor:
        predecessor.bind(str(path))
    adapter = AiohttpServer(echo_app(bytes), path=str(path), access_log=None)
    assert adapter.start() == (str(path), 0)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi")
        assert client.recv(4096).endswith(b"hi")
        adapter.close_listener(Deadline.after(PATIENCE))
        assert not path.exists()
        assert adapter.drain(Deadline.after(PATIENCE))
    assert adapter.cut_off() == ()


def test_tls() -> None:
    """HTTPS is drained like HTTP."""
    authority = trustme.CA()
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(server_side)
    client_side = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(client_side)
    adapter = AiohttpServer(echo_app(bytes), "127.0.0.1", 0, ssl_context=server_side, access_log=None)
    host, port = adapter.start()
    raw = socket.create_connection((host, port), timeout=PATIENCE)
    with client_side.wrap_socket(raw, server_hostname="localhost") as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi")
        assert client.recv(4096).endswith(b"hi")
        adapter.close_listener(Deadline.after(PATIENCE))
        draining = Call(lambda: adapter.drain(Deadline.after(PATIENCE)))
        assert client.recv(1) == b""
    assert draining.result(PATIENCE, "drain")
    assert adapter.cut_off() == ()


def test_it_serves_in_the_applications_own_loop() -> None:
    """With ``serve_async`` no other loop and no other thread serves."""
    threads: set[int] = set()

    def serve(body: bytes) -> bytes:
        threads.add(threading.get_ident())
        return body

    async def main() -> None:
        server = AiohttpServer(echo_app(serve), "127.0.0.1", 0, access_log=None)
        service = AsyncService(server, handle_signals=False, budget=StopBudget(grace_period=60, closing=10))
        running = asyncio.ensure_future(service.run())
        await service.wait_until_started()
        assert service.bound is not None
        client = await asyncio.to_thread(HttpClient, service.bound)
        assert await asyncio.to_thread(client.call, b"hello") == b"hello"
        service.request_stop("enough")
        assert (await running).is_clean
        client.close()

    asyncio.run(main())
    assert threads == {threading.get_ident()}


@pytest.mark.parametrize(
    "options",
    [{"sock": object()}, {"loop": object()}, {"reuse_port": True}, {"host": ["a", "b"]}, {"handle_signals": True}],
)
def test_run_app_says_what_it_cannot_take_over(options: dict[str, Any]) -> None:
    """Before anything is bound."""
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        run_app(web.Application(), port=0, **options)
