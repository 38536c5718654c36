"""The adapter of RPyC's servers."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest
import rpyc
import rpyc.utils.authenticators
from rpyc.utils.authenticators import SSLAuthenticator
from rpyc.utils.server import ForkingServer, OneShotServer, ThreadedServer, ThreadPoolServer

from registry_drain import Deadline
from registry_drain.errors import ConfigurationError
from registry_drain.servers.base import DrainableServer
from registry_drain.servers.current_request import name_request
from registry_drain.servers.rpyc_server import RpycServer
from registry_drain.testing.bench import Call
from registry_drain.testing.server_contract import ServerContract
from tests.support.processes import eventually
from tests.support.tls_files import TlsFiles

PATIENCE = 20.0

# RPyC names its polling thread by a method that Python has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:setName:DeprecationWarning")


@pytest.fixture(autouse=True)
def _uncompressed(monkeypatch: pytest.MonkeyPatch) -> None:
    # Large answers are to be large on the wire, too.
    monkeypatch.setattr(rpyc.Channel, "COMPRESSION_THRESHOLD", 1 << 30)


def service_of(serve: Callable[[bytes], bytes]) -> Any:
    """Return a service with one method."""

    class EchoService(rpyc.Service):  # type: ignore[misc]  # rpyc is not annotated
        def exposed_call(self, payload: bytes) -> bytes:
            return serve(payload)

        def exposed_call_back(self, function: Any, argument: Any) -> Any:
            return function(argument)

    return EchoService()


class RpycClient:
    """One connection, as a :class:`~registry_drain.testing.server_contract.ContractClient`."""

    def __init__(self, address: tuple[str, int]) -> None:
        """Connect."""
        sock = socket.create_connection(address, timeout=PATIENCE)
        sock.settimeout(None)
        self._sock = sock
        stream = rpyc.SocketStream(sock)
        self.connection: Any = rpyc.connect_stream(stream, config={"sync_request_timeout": PATIENCE})
        self._call: Any = None
        self._answers: list[Any] = []

    def send(self, payload: bytes) -> None:
        """Send one request; the first one looks the method up."""
        if self._call is None:
            self._call = rpyc.async_(self.connection.root.call)
        self._answers.append(self._call(payload))

    def receive(self) -> bytes:
        """Return the next answer."""
        if self._answers:
            answer = self._answers.pop(0)
            answer.set_expiry(PATIENCE)
            try:
                return bytes(answer.value)
            except EOFError as error:
                raise ConnectionAbortedError("the connection ended before the answer") from error
        if not select.select([self._sock], [], [], PATIENCE)[0]:
            raise TimeoutError("no end")
        if data := self._sock.recv(1, socket.MSG_PEEK):
            raise AssertionError(f"{data!r} instead of an end")
        raise EOFError

    def is_closed(self) -> bool:
        """Whether the server has ended the connection; behind it may be answers that nobody waits for."""
        try:
            self.connection.poll_all()
        except EOFError:
            return True
        return bool(self.connection.closed)

    def close(self) -> None:
        """Hang up, without a word."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(EOFError, OSError):
            self.connection.close()


class _Contract(ServerContract):
    patience = PATIENCE
    request_name = "call"
    kind: Any = None
    settings: dict[str, Any] = {}  # noqa: RUF012 - of a class of tests

    def new_server(self, serve: Callable[[bytes], bytes]) -> DrainableServer:
        """Make an echo server."""
        return RpycServer(self.kind(service_of(serve), hostname="127.0.0.1", port=0, **self.settings))

    def connect(self, address: tuple[str, int]) -> RpycClient:
        """Connect."""
        return RpycClient(address)


class TestThreaded(_Contract):
    """ThreadedServer."""

    kind = ThreadedServer


class TestThreadPool(_Contract):
    """ThreadPoolServer."""

    kind = ThreadPoolServer
    settings = {"nbThreads": 24}  # noqa: RUF012


def soon() -> Deadline:
    """Return a deadline that nothing here comes near."""
    return Deadline.after(PATIENCE)


def echo(payload: bytes) -> bytes:
    """Serve."""
    return payload


@pytest.mark.parametrize("kind", [ThreadedServer, ThreadPoolServer])
def test_a_client_that_calls_while_it_drains_is_closed_behind_a_call_and_never_behind_a_lookup(kind: Any) -> None:
    """One call is a lookup and a call: ended between the two, the call would be lost."""
    # A client that is not scheduled for a moment must not pass for idle: only what happens behind calls is meant.
    server = RpycServer(kind(service_of(echo), hostname="127.0.0.1", port=0), idle_quiet=PATIENCE)
    client = RpycClient(server.start())
    try:
        assert client.connection.root.call(b"1") == b"1"
        server.close_listener(soon())
        draining: Call[bool] | None = None
        answered, is_over = 0, False
        while not is_over:
            assert client.connection.root.call(b"again") == b"again"
            answered += 1
            # In the midst of calls: a client that pauses may be closed as idle just when it goes on.
            draining = draining or Call(lambda: server.drain(soon()))
            is_over = client.is_closed()
        assert answered >= 2
        assert draining is not None
        assert draining.result(PATIENCE, "drain")
        assert server.cut_off() == ()
    finally:
        client.close()
        server.cut_off()


def test_a_client_that_says_goodbye_does_not_take_the_next_one_along() -> None:
    """Its descriptor belongs to the next client before the pool has forgotten it."""
    is_leaving, may_leave = threading.Event(), threading.Event()

    def leave(_connection: object) -> None:
        is_leaving.set()
        may_leave.wait(PATIENCE)

    service = service_of(echo)
    service.on_disconnect = leave
    pool = ThreadPoolServer(service, hostname="127.0.0.1", port=0)
    server = RpycServer(pool)
    first = RpycClient(server.start())
    others = [socket.socket(), socket.socket()]
    fillers: list[int] = []
    try:
        assert first.connection.root.call(b"1") == b"1"
        [descriptor] = pool.fd_to_conn
        first.connection.close()
        assert is_leaving.wait(PATIENCE)
        while not fillers or fillers[-1] < descriptor:
            fillers.append(os.open(os.devnull, os.O_RDONLY))
        assert fillers[-1] == descriptor, "it is free again"
        os.close(fillers.pop())
        # The first of them takes the one that accept() has waited with.
        for each in others:
            each.connect(pool.listener.getsockname())
        eventually(lambda: getattr(pool.fd_to_conn.get(descriptor), "closed", True) is False)
        may_leave.set()
        second = rpyc.connect_stream(rpyc.SocketStream(others[1]))
        for _ in range(20):
            assert second.root.call(b"2") == b"2"
        second.close()
    finally:
        may_leave.set()
        for each in others:
            each.close()
        for filler in fillers:
            os.close(filler)
        server.cut_off()


def test_a_callback_into_the_client_is_finished() -> None:
    """While the client's own function is called the connection is busy, whoever's message is on its way."""
    server = RpycServer(ThreadedServer(service_of(echo), hostname="127.0.0.1", port=0))
    client = RpycClient(server.start())
    try:
        draining: list[Call[bool]] = []

        def function(argument: int) -> int:
            server.close_listener(soon())
            draining.append(Call(lambda: server.drain(soon())))
            eventually(lambda: server.in_flight.stop_state.is_draining)
            names = [request.name for request in server.in_flight.snapshot()]
            assert names == ["call_back"]
            return argument + 1

        assert client.connection.root.call_back(function, 1) == 2
        eventually(client.is_closed)  # the function is let go, then comes the end
        assert draining[0].result(PATIENCE, "drain")
    finally:
        client.close()
        server.cut_off()


def test_only_calls_are_arrivals() -> None:
    """A client that pings, looks up and lets go keeps nobody waiting for a quiet period."""
    server = RpycServer(ThreadedServer(service_of(echo), hostname="127.0.0.1", port=0))
    client = RpycClient(server.start())
    try:
        client.connection.ping()
        method = client.connection.root.call
        assert server.in_flight.total == 0
        assert server.in_flight.last_arrival_at is None
        assert method(b"1") == b"1"
        assert server.in_flight.total == 1
        assert server.in_flight.last_arrival_at is not None
    finally:
        client.close()
        server.cut_off()


def test_what_is_no_call_is_named_by_what_is_done() -> None:
    """An attribute may be a property, which takes its time; a call inside of it would have its own name."""
    may_answer = threading.Event()

    class SlowService(rpyc.Service):  # type: ignore[misc]  # rpyc is not annotated
        @property
        def exposed_slow(self) -> int:
            may_answer.wait(PATIENCE)
            return 1

    server = RpycServer(ThreadedServer(SlowService(), hostname="127.0.0.1", port=0))
    client = RpycClient(server.start())
    try:
        looking = Call(lambda: client.connection.root.slow)
        eventually(lambda: [request.name for request in server.in_flight.snapshot()] == ["getattr"])
        may_answer.set()
        assert looking.result(PATIENCE, "a lookup") == 1
        eventually(lambda: not server.in_flight.count)
        assert server.in_flight.total == 0
    finally:
        may_answer.set()
        client.close()
        server.cut_off()


@pytest.mark.parametrize("kind", [ThreadedServer, ThreadPoolServer])
def test_a_handler_may_name_what_it_serves(kind: Any) -> None:
    """In whatever thread it runs."""
    may_answer = threading.Event()

    def serve(payload: bytes) -> bytes:
        name_request("mine")
        may_answer.wait(PATIENCE)
        return payload

    server = RpycServer(kind(service_of(serve), hostname="127.0.0.1", port=0))
    client = RpycClient(server.start())
    try:
        client.send(b"1")
        eventually(lambda: [request.name for request in server.in_flight.snapshot()] == ["mine"])
        may_answer.set()
        assert client.receive() == b"1"
    finally:
        may_answer.set()
        client.close()
        server.cut_off()


@pytest.mark.parametrize("kind", [ThreadedServer, ThreadPoolServer])
def test_what_crosses_our_end_is_not_served(kind: Any) -> None:
    """Its answer could not be sent: the client sends it again, elsewhere, and it must not have been done here."""
    served: list[bytes] = []

    def serve(payload: bytes) -> bytes:
        served.append(payload)
        return payload

    server = RpycServer(kind(service_of(serve), hostname="127.0.0.1", port=0))
    client = RpycClient(server.start())
    try:
        client.send(b"1")
        assert client.receive() == b"1"
        [connection] = server.connections._open
        eventually(lambda: not connection.is_busy)
        received = connection.received
        connection.half_close()
        client.send(b"2")
        eventually(lambda: connection.received > received)
        connection.end_lingering()
        eventually(lambda: not len(server.connections))
        assert served == [b"1"]
    finally:
        client.close()
        server.cut_off()


def test_a_service_class_is_not_changed() -> None:
    """It may serve elsewhere, or be a client's."""

    class EchoService(rpyc.Service):  # type: ignore[misc]  # rpyc is not annotated
        def exposed_call(self, payload: bytes) -> bytes:
            return payload

    before = EchoService._protocol
    server = RpycServer(ThreadedServer(EchoService, hostname="127.0.0.1", port=0))
    client = RpycClient(server.start())
    try:
        assert client.connection.root.call(b"1") == b"1"
        assert server.in_flight.total == 1
        assert EchoService._protocol is before
        assert client.connection.root.get_service_name() == "ECHO"
    finally:
        client.close()
        server.cut_off()


def test_one_shot() -> None:
    """Its one client is served to its end; then nobody listens."""
    server = RpycServer(OneShotServer(service_of(echo), hostname="127.0.0.1", port=0))
    address = server.start()
    client = RpycClient(address)
    try:
        assert client.connection.root.call(b"1") == b"1"
        client.close()
        eventually(lambda: not len(server.connections))

        def is_refused() -> bool:
            try:
                RpycClient(address).close()
            except ConnectionRefusedError:
                return True
            return False

        eventually(is_refused)
        assert server.drain(soon())
    finally:
        assert server.cut_off() == ()


def test_an_authenticator_that_refuses_leaves_nothing_behind() -> None:
    """Neither with a thread for each connection nor with a pool."""

    def refuse(_sock: Any) -> Any:
        raise rpyc.utils.authenticators.AuthenticationError("no")

    for kind in (ThreadedServer, ThreadPoolServer):
        server = RpycServer(kind(service_of(echo), hostname="127.0.0.1", port=0, authenticator=refuse))
        address = server.start()
        try:
            with socket.create_connection(address, timeout=PATIENCE) as sock:
                assert sock.recv(1) == b""
            eventually(lambda server=server: not len(server.connections))  # type: ignore[misc]  # bound now
        finally:
            assert server.cut_off() == ()


def test_tls(tls_files: TlsFiles) -> None:
    """The authenticator's TLS socket takes the place of the accepted one."""
    authenticator = SSLAuthenticator(str(tls_files.server_key), str(tls_files.server_cert))
    rpyc_server = ThreadedServer(service_of(echo), hostname="127.0.0.1", port=0, authenticator=authenticator)
    server = RpycServer(rpyc_server)
    host, port = server.start()
    connection = rpyc.ssl_connect(host, port, ca_certs=str(tls_files.ca))
    try:
        assert connection.root.call(b"1") == b"1"
        server.close_listener(soon())
        assert server.drain(soon())
        with pytest.raises(EOFError):
            connection.root.call(b"2")
    finally:
        connection.close()
        server.cut_off()


def test_what_cannot_be_drained_is_refused() -> None:
    """In one line."""
    forking = ForkingServer(service_of(echo), hostname="127.0.0.1", port=0)
    try:
        with pytest.raises(ConfigurationError, match=r"serves in child processes.*use ThreadedServer"):
            RpycServer(forking)
    finally:
        forking.close()
    threaded = ThreadedServer(service_of(echo), hostname="127.0.0.1", port=0, protocol_config={"bind_threads": True})
    try:
        with pytest.raises(ConfigurationError, match="bind_threads"):
            RpycServer(threaded)
    finally:
        threaded.close()
