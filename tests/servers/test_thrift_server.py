"""Thrift servers: the contract on every kind, transport and protocol, and what is Thrift's own."""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from thrift.protocol.TBinaryProtocol import TBinaryProtocolAcceleratedFactory, TBinaryProtocolFactory
from thrift.protocol.TCompactProtocol import TCompactProtocolFactory
from thrift.protocol.THeaderProtocol import THeaderProtocolFactory
from thrift.server.TServer import TForkingServer, TSimpleServer, TThreadedServer, TThreadPoolServer
from thrift.Thrift import TMessageType
from thrift.transport.TSocket import TServerSocket
from thrift.transport.TSSLSocket import TSSLServerSocket
from thrift.transport.TTransport import TBufferedTransportFactory, TFramedTransportFactory, TTransportFactoryBase

from registry_drain.clock import Deadline
from registry_drain.errors import ConfigurationError
from registry_drain.servers.base import DrainableServer
from registry_drain.servers.connections import IDLE_QUIET
from registry_drain.servers.connections import connection as connection_module
from registry_drain.servers.thrift_server import ThriftServer
from registry_drain.testing.bench import Call
from registry_drain.testing.server_contract import ContractClient, ServerContract, outcome_of_one_call
from tests.servers.thrift_echo import EchoClient, EchoProcessor, TlsEchoClient, encoded
from tests.support.processes import eventually
from tests.support.tls_files import TlsFiles

TIMEOUT = 10.0


class ThriftContract(ServerContract):
    """The contract on a TThreadedServer, buffered and binary."""

    request_name = "call"
    transports: Any = TBufferedTransportFactory()
    protocols: Any = TBinaryProtocolFactory()

    def new_tserver(self, serve: Callable[[bytes], bytes]) -> Any:
        """Return the bare server."""
        return TThreadedServer(*self.parts(serve))

    def parts(self, serve: Callable[[bytes], bytes]) -> tuple[Any, ...]:
        """Return what every TServer is made of."""
        return EchoProcessor(serve), TServerSocket("127.0.0.1", 0), self.transports, self.protocols

    def new_server(self, serve: Callable[[bytes], bytes]) -> DrainableServer:
        """Return the adapter."""
        return ThriftServer(self.new_tserver(serve))

    def connect(self, address: tuple[str, int]) -> ContractClient:
        """Return a client."""
        return EchoClient(address, self.transports, self.protocols)


class TestThreadedBuffered(ThriftContract):
    """The common case."""


class TestThreadedFramed(ThriftContract):
    """Frames, the compact protocol."""

    transports = TFramedTransportFactory()
    protocols = TCompactProtocolFactory()


class TestThreadedUnbuffered(ThriftContract):
    """Straight from the socket."""

    transports = TTransportFactoryBase()
    protocols = TBinaryProtocolAcceleratedFactory()


class TestThreadedHeader(ThriftContract):
    """The header protocol, whose server loop asks for the factory's type."""

    transports = TTransportFactoryBase()
    protocols = THeaderProtocolFactory()


class TestThreadPool(ThriftContract):
    """A pool with fewer threads than connections."""

    def new_tserver(self, serve: Callable[[bytes], bytes]) -> Any:
        """Return the bare server."""
        server = TThreadPoolServer(*self.parts(serve))
        server.setNumThreads(5)
        return server


class TestThreadPoolOfOne(ThriftContract):
    """A pool in which everybody waits for everybody."""

    is_concurrent = False

    def new_tserver(self, serve: Callable[[bytes], bytes]) -> Any:
        """Return the bare server."""
        server = TThreadPoolServer(*self.parts(serve), daemon=True)
        server.setNumThreads(1)
        return server


class TestSimple(ThriftContract):
    """One thread that accepts and serves."""

    is_concurrent = False

    def new_tserver(self, serve: Callable[[bytes], bytes]) -> Any:
        """Return the bare server."""
        return TSimpleServer(*self.parts(serve))


class TestThreadedTls(ThriftContract):
    """Over TLS, whose bytes on the wire are not those that are read."""

    @pytest.fixture(autouse=True)
    def _certificates(self, tls_files: TlsFiles) -> None:
        self._tls = tls_files

    def parts(self, serve: Callable[[bytes], bytes]) -> tuple[Any, ...]:
        """Return what every TServer is made of."""
        transport = TSSLServerSocket("127.0.0.1", 0, ssl_context=tls_context(self._tls))
        return EchoProcessor(serve), transport, self.transports, self.protocols

    def connect(self, address: tuple[str, int]) -> ContractClient:
        """Return a client."""
        return TlsEchoClient(address, self._tls.ca)


FRAMED = TFramedTransportFactory()


def tls_context(tls: TlsFiles, *, wants_certificate: bool = False) -> ssl.SSLContext:
    """Return a server's context."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls.server_cert, tls.server_key)
    if wants_certificate:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(tls.ca)
    return context


def test_a_silent_tls_client_holds_up_nobody(tls_files: TlsFiles) -> None:
    """One that connects and never shakes hands: the next one is served, and the stop takes no longer."""
    transport = TSSLServerSocket("127.0.0.1", 0, ssl_context=tls_context(tls_files))
    server = ThriftServer(TThreadedServer(EchoProcessor(bytes), transport, FRAMED, TBinaryProtocolFactory()))
    address = server.start()
    try:
        with contextlib.closing(EchoClient(address)) as silent:
            eventually(lambda: len(server.connections) == 1)
            with contextlib.closing(TlsEchoClient(address, tls_files.ca, transports=FRAMED)) as client:
                client.send(b"hello")
                assert client.receive() == b"hello"
                assert drain(server).result(TIMEOUT, "drain")
            with pytest.raises(EOFError):
                silent.receive()
    finally:
        server.cut_off()


def test_a_tls_client_that_fails_ends_its_connection_only(
    tls_files: TlsFiles, caplog: pytest.LogCaptureFixture
) -> None:
    """One that speaks no TLS, and one whose certificate the user's own check refuses: said in a line each."""

    def refuse(_certificate: object, _address: str) -> None:
        raise ValueError("not one of ours")

    context = tls_context(tls_files, wants_certificate=True)
    transport = TSSLServerSocket("127.0.0.1", 0, ssl_context=context, validate_callback=refuse)
    server = ThriftServer(TThreadedServer(EchoProcessor(bytes), transport, FRAMED, TBinaryProtocolFactory()))
    address = server.start()
    try:
        with contextlib.closing(EchoClient(address)) as plain:
            plain.sock.sendall(b"no TLS at all" * 10)
            with pytest.raises((EOFError, OSError)):
                plain.receive()
        certificate = tls_files.client_cert, tls_files.client_key
        client = TlsEchoClient(address, tls_files.ca, certificate=certificate)
        with contextlib.closing(client), pytest.raises((EOFError, OSError)):
            client.receive()
        eventually(lambda: caplog.text.count("no TLS with 127.0.0.1") == 2)
        assert "not one of ours" in caplog.text
        assert server.in_flight.total == 0
    finally:
        server.cut_off()


def threaded(serve: Callable[[bytes], bytes], transports: Any = None, port: int = 0, host: str = "127.0.0.1") -> Any:
    """Return a bare server."""
    transports = transports or TBufferedTransportFactory()
    return TThreadedServer(EchoProcessor(serve), TServerSocket(host, port), transports, TBinaryProtocolFactory())


@contextlib.contextmanager
def serving(serve: Callable[[bytes], bytes] = bytes, transports: Any = None, **options: Any) -> Iterator[Any]:
    """Give an adapter that serves, with its address as ``address``."""
    server: Any = ThriftServer(threaded(serve, transports), **options)
    server.address = server.start()
    try:
        yield server
    finally:
        server.cut_off()


def drain(server: ThriftServer, seconds: float = TIMEOUT) -> Call[bool]:
    """Close the listener, and begin to drain."""
    server.close_listener(Deadline.after(TIMEOUT))
    return Call(lambda: server.drain(Deadline.after(seconds)))


class Gate:
    """A handler that can be held."""

    def __init__(self) -> None:
        """Begin closed."""
        self.entered = threading.Semaphore(0)
        self.opened = threading.Event()

    def __call__(self, payload: bytes) -> bytes:
        """Wait for the gate, unless told otherwise."""
        if payload != b"pass":
            self.entered.release()
            self.opened.wait(TIMEOUT)
        return payload


def test_oneway_calls_are_drained() -> None:
    """A call without an answer is in flight until its handler returns, and the connection is idle behind it."""
    gate = Gate()
    with serving(gate) as server, contextlib.closing(EchoClient(server.address)) as client:
        client.send(b"note", name="note", kind=TMessageType.ONEWAY)
        assert gate.entered.acquire(timeout=TIMEOUT)
        assert [request.name for request in server.in_flight.snapshot()] == ["note"]
        draining = drain(server)
        draining.join(0.1)
        assert draining.is_alive()
        gate.opened.set()
        assert draining.result(TIMEOUT, "drain")
        with pytest.raises(EOFError):
            client.receive()


@pytest.mark.parametrize("transports", [TBufferedTransportFactory(), TTransportFactoryBase()])
@pytest.mark.parametrize("cut_at", [1, 4, 10, 20])
def test_half_a_message_is_waited_for(transports: Any, cut_at: int) -> None:
    """A request of which only the beginning has come is in flight, and is answered, wherever it was cut."""
    with serving(bytes, transports) as server, contextlib.closing(EchoClient(server.address, transports)) as client:
        message = encoded(b"in two parts")
        client.sock.sendall(message[:cut_at])
        eventually(lambda: server.in_flight.count == 1)
        draining = drain(server)
        draining.join(0.1)
        assert draining.is_alive()
        client.sock.sendall(message[cut_at:])
        assert client.receive() == b"in two parts"
        assert draining.result(TIMEOUT, "drain")


def test_half_a_message_that_is_never_completed_is_cut_off() -> None:
    """It is named for what it is, and its client does not hang."""
    with serving() as server, contextlib.closing(EchoClient(server.address)) as client:
        client.sock.sendall(encoded(b"never completed")[:10])
        eventually(lambda: server.in_flight.count == 1)
        assert not drain(server, 0.05).result(TIMEOUT, "drain")
        assert [request.name for request in server.cut_off()] == ["(unnamed)"]
        with pytest.raises(EOFError):
            client.receive()


def test_half_a_message_behind_a_whole_one_is_waited_for() -> None:
    """What a buffered transport read ahead while draining is a request, though the socket is silent."""
    gate = Gate()
    with serving(gate) as server, contextlib.closing(EchoClient(server.address)) as client:
        second = encoded(b"pass")
        client.sock.sendall(encoded(b"first") + second[:10])
        assert gate.entered.acquire(timeout=TIMEOUT)
        draining = drain(server)
        eventually(lambda: server.connections.is_draining)
        gate.opened.set()
        assert client.receive() == b"first"
        draining.join(2 * connection_module.UNSURE_QUIET)
        assert draining.is_alive()
        client.sock.sendall(second[10:])
        assert client.receive() == b"pass"
        assert draining.result(TIMEOUT, "drain")


def test_half_a_message_read_ahead_just_before_the_drain_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the drain nobody looks for what was read ahead, so for as long as it may be late it is waited for."""
    monkeypatch.setattr(connection_module, "UNSURE_QUIET", TIMEOUT)
    with serving() as server, contextlib.closing(EchoClient(server.address)) as client:
        second = encoded(b"second")
        client.sock.sendall(encoded(b"first") + second[:10])
        assert client.receive() == b"first"
        draining = drain(server)
        draining.join(5 * IDLE_QUIET)
        client.sock.sendall(second[10:])
        assert client.receive() == b"second"
        assert draining.result(TIMEOUT, "drain")


@pytest.mark.parametrize("was_idle", [True, False])
def test_what_cannot_be_answered_is_not_served(*, was_idle: bool) -> None:
    """A request that comes behind our end of the connection has no effect: its client may send it elsewhere."""
    gate, served = Gate(), []

    def serve(payload: bytes) -> bytes:
        served.append(payload)
        return gate(payload)

    with serving(serve) as server, contextlib.closing(EchoClient(server.address)) as client:
        server.connections._linger = TIMEOUT  # for as long as that the end is still read from
        if was_idle:
            client.send(b"pass")
            assert client.receive() == b"pass"
            draining = drain(server)
        else:
            client.send(b"wait")
            assert gate.entered.acquire(timeout=TIMEOUT)
            draining = drain(server)
            eventually(lambda: server.connections.is_draining)
            gate.opened.set()
            assert client.receive() == b"wait"
        with pytest.raises(EOFError):
            client.receive()
        client.send(b"too late")
        client.sock.shutdown(socket.SHUT_WR)
        assert draining.result(TIMEOUT, "drain")
        assert len(served) == 1


@pytest.mark.parametrize("options", [{}, {"health_check_methods": {"ping"}}])
def test_arrivals_are_timed(options: dict[str, Any]) -> None:
    """The last arrival is known for open connections and for closed ones, whether the kernel or we keep the time."""
    with serving(**options) as server:
        for is_asked_while_open in (True, False):
            before = Deadline.after(0).at
            client = EchoClient(server.address)
            client.send(b"hello")
            assert client.receive() == b"hello"
            if is_asked_while_open:
                assert before - 0.01 <= server.in_flight.last_arrival_at <= Deadline.after(0).at + 0.01
            client.close()
            eventually(lambda: not len(server.connections))
            assert before - 0.01 <= server.in_flight.last_arrival_at <= Deadline.after(0).at + 0.01
        assert server.in_flight.total == 2


def test_health_checks_are_no_arrivals() -> None:
    """Their calls are served, and are no sign that callers still know this instance."""
    with serving(health_check_methods={"ping"}) as server, contextlib.closing(EchoClient(server.address)) as client:
        client.send(b"up?", name="ping")
        assert client.receive() == b"up?"
        assert server.in_flight.total == 0
        assert server.in_flight.last_arrival_at is None
        client.send(b"work")
        assert client.receive() == b"work"
        assert server.in_flight.total == 1


def call_until_told(client: EchoClient, is_draining: threading.Event) -> str:
    """Call without a pause, looking for the end before each call; return how it ended."""
    while True:
        if is_draining.is_set() and select.select([client.sock], [], [], 0)[0]:
            return "told"
        client.send(b"again")
        try:
            client.receive()
        except (EOFError, OSError) as error:
            return repr(error)


def test_answer_and_end_are_one() -> None:
    """While draining a client never sees an answer without seeing that it is the last: there is no moment to err in."""
    # A client that is not scheduled for a moment must not pass for idle: only what happens behind answers is meant.
    with serving(transports=FRAMED, idle_quiet=TIMEOUT) as server, contextlib.ExitStack() as stack:
        clients = [EchoClient(server.address, FRAMED) for _ in range(20)]
        for client in clients:
            stack.callback(client.close)
            client.send(b"hello")
            assert client.receive() == b"hello"
        server.close_listener(Deadline.after(TIMEOUT))
        is_draining = threading.Event()
        calls = [Call(partial(call_until_told, client, is_draining)) for client in clients]
        is_draining.set()
        assert server.drain(Deadline.after(TIMEOUT))
        assert [call.result(TIMEOUT, "a client") for call in calls] == ["told"] * 20


class Follower:
    """A client that makes calls, a connection each or all on one, until the registry no longer lists the server."""

    def __init__(self, address: tuple[str, int], *, is_persistent: bool, delisted: threading.Event) -> None:
        """Begin."""
        self._address, self._is_persistent, self._delisted = address, is_persistent, delisted
        self.answered = 0
        self._call = Call(self._run)

    def _run(self) -> None:
        while not self._delisted.is_set():
            try:
                client = EchoClient(self._address)
            except ConnectionRefusedError:
                # Delisted between our look and our connect: in a cluster the propagation wait is for that.
                assert self._delisted.is_set()
                return
            with contextlib.closing(client):
                while True:
                    client.send(b"call")
                    assert client.receive() == b"call"
                    self.answered += 1
                    if not self._is_persistent or self._delisted.is_set():
                        break

    def end(self) -> int:
        """Wait for the end; return how many calls were answered, or raise what went wrong."""
        self._call.result(TIMEOUT, "a client")
        return self.answered


def test_no_request_is_lost_by_clients_that_leave_in_time() -> None:
    """Short and persistent connections under load, ten stops: whoever follows the registry loses nothing."""
    for _ in range(10):
        # Whoever this machine keeps from sending must not pass for idle; all of them leave by themselves.
        with serving(idle_quiet=TIMEOUT) as server:
            delisted = threading.Event()
            followers = [
                Follower(server.address, is_persistent=number % 2 == 0, delisted=delisted) for number in range(6)
            ]
            eventually(partial(_all_have_begun, followers), interval=0.001)
            delisted.set()  # Whatever they are in the middle of must be served.
            assert drain(server).result(TIMEOUT, "drain")
            answered = sum(follower.end() for follower in followers)
            assert server.in_flight.total == answered


def _all_have_begun(followers: list[Follower]) -> bool:
    return all(follower.answered > 5 for follower in followers)


def test_clients_that_stay_are_refused_cleanly() -> None:
    """Clients with connections of one call each, that ignore the registry: answered, or refused; never reset."""
    answered: list[None] = []  # in which, unlike in a count, no two threads can lose one
    with serving() as server:

        def hammer() -> str:
            while (outcome := outcome_of_one_call(EchoClient, server.address)) == "answered":
                answered.append(None)
            return outcome

        calls = [Call(hammer) for _ in range(8)]
        eventually(lambda: len(answered) > 100, interval=0.001)
        closure = server.close_listener(Deadline.after(TIMEOUT))
        assert server.drain(Deadline.after(TIMEOUT))
        ends = [call.result(TIMEOUT, "a client") for call in calls]
        errors = [end for end in ends if end not in {"refused", "late"}]
        assert len(errors) <= (4 if closure.method == "listen(0)" else 1), ends


def test_a_pools_queue_is_cut_off_too() -> None:
    """Clients that no worker got to are told apart: those that had asked are named, and nobody hangs."""
    gate = Gate()
    bare = TThreadPoolServer(EchoProcessor(gate), TServerSocket("127.0.0.1", 0), FRAMED, TBinaryProtocolFactory())
    bare.setNumThreads(1)
    server = ThriftServer(bare)
    address = server.start()
    stuck, asking, silent = (EchoClient(address, FRAMED) for _ in range(3))
    try:
        stuck.send(b"stuck")
        assert gate.entered.acquire(timeout=TIMEOUT)
        asking.send(b"unread")
        eventually(lambda: len(server.connections) == 3)
        assert not drain(server, 0.05).result(TIMEOUT, "drain")
        assert sorted(request.name for request in server.cut_off()) == ["(not yet read)", "call"]
        for client in (stuck, asking, silent):
            with pytest.raises((EOFError, OSError)) as end:
                client.receive()
            assert not isinstance(end.value, TimeoutError), "nobody hangs"
    finally:
        gate.opened.set()
        for client in (stuck, asking, silent):
            client.close()


def test_a_pools_queue_is_closed_behind_its_answers() -> None:
    """A connection that is served for the first time while draining ends with its answer, like any other."""
    gate = Gate()
    bare = TThreadPoolServer(EchoProcessor(gate), TServerSocket("127.0.0.1", 0), FRAMED, TBinaryProtocolFactory())
    bare.setNumThreads(1)
    server = ThriftServer(bare)
    address = server.start()
    with (
        contextlib.closing(EchoClient(address, FRAMED)) as busy,
        contextlib.closing(EchoClient(address, FRAMED)) as next_,
    ):
        busy.send(b"wait")
        assert gate.entered.acquire(timeout=TIMEOUT)
        next_.send(b"pass")
        draining = drain(server)
        eventually(lambda: server.connections.is_draining)
        gate.opened.set()
        assert next_.receive() == b"pass"
        assert select.select([next_.sock], [], [], 0)[0], "the end came with the answer"
        assert draining.result(TIMEOUT, "drain")
    server.cut_off()


def test_a_failing_handler_ends_its_connection_only() -> None:
    """As without the adapter; and nothing stays in flight."""

    def fail(payload: bytes) -> bytes:
        if payload == b"fail":
            raise RuntimeError("on purpose")
        return payload

    logging.getLogger("thrift.server.TServer").disabled = True
    try:
        with serving(fail) as server, contextlib.closing(EchoClient(server.address)) as client:
            client.send(b"fail")
            with pytest.raises(EOFError):
                client.receive()
            eventually(lambda: server.in_flight.count == 0)
            with contextlib.closing(EchoClient(server.address)) as other:
                other.send(b"fine")
                assert other.receive() == b"fine"
    finally:
        logging.getLogger("thrift.server.TServer").disabled = False


def test_the_users_factories_stay_as_they_are() -> None:
    """They may be shared with clients and other servers: only the server's own references are replaced."""
    protocols = TBinaryProtocolFactory()
    bare = TThreadedServer(EchoProcessor(bytes), TServerSocket("127.0.0.1", 0), TBufferedTransportFactory(), protocols)
    server = ThriftServer(bare)
    address = server.start()
    assert vars(protocols).get("getProtocol") is None
    with contextlib.closing(EchoClient(address, protocols=protocols)) as client:
        client.send(b"hello")
        assert client.receive() == b"hello"
        assert server.in_flight.total == 1
    server.cut_off()


def test_an_address_in_use_is_said() -> None:
    """Start raises what bind raised, and may be tried again."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        server = ThriftServer(threaded(bytes, port=other.getsockname()[1]))
        with pytest.raises(OSError, match="in use"):
            server.start()
        taken = other.getsockname()
    assert server.start() == taken
    EchoClient(taken).close()
    server.cut_off()


def test_ipv6_is_served_and_drained() -> None:
    """The listener is sealed, connections are watched, and peers are written, as in IPv4."""
    server = ThriftServer(threaded(bytes, host="::1"))
    host, port = server.start()
    with contextlib.closing(EchoClient((host, port), family=socket.AF_INET6)) as client:
        client.send(b"hello")
        assert client.receive() == b"hello"
        assert drain(server).result(TIMEOUT, "drain")
        with pytest.raises(EOFError):
            client.receive()
    with pytest.raises(ConnectionRefusedError):
        EchoClient((host, port), family=socket.AF_INET6)
    server.cut_off()


def test_servers_that_cannot_be_drained_are_refused() -> None:
    """At construction, and in words."""
    bare = TForkingServer(EchoProcessor(bytes), TServerSocket("127.0.0.1", 0))
    with pytest.raises(ConfigurationError, match="TForkingServer"):
        ThriftServer(bare)
    with pytest.raises(ConfigurationError, match="no listening socket"):
        ThriftServer(TThreadedServer(EchoProcessor(bytes), object()))


def test_a_missing_thrift_names_the_extra() -> None:
    """Whoever has not installed it is told what to install."""
    program = """
import sys
sys.modules["thrift"] = None
from registry_drain.errors import MissingExtraError
try:
    import registry_drain.servers.thrift_server
except MissingExtraError as error:
    print(error)
"""
    said = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60
    ).stdout
    assert "pip install 'registry-drain[thrift]'" in said


def test_a_connection_outside_a_serving_thread_stays_unwatched() -> None:
    """The processor may be used elsewhere: the factories of a running server work there, too."""
    with serving() as server:
        transport = server._server.inputTransportFactory.getTransport(object())
        assert server._server.inputProtocolFactory.getProtocol(transport)


def test_the_repr_shows_kind_and_counts() -> None:
    """What a log line or a debugger wants to know."""
    with serving() as server, contextlib.closing(EchoClient(server.address)) as client:
        client.send(b"hello")
        client.receive()
        eventually(lambda: repr(server) == "<ThriftServer TThreadedServer connections=1 in_flight=0>")
