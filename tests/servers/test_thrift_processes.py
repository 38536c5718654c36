"""Thrift servers that serve in child processes: the contract on both kinds, and what is special about processes."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from thrift.protocol.TBinaryProtocol import TBinaryProtocolFactory
from thrift.protocol.TCompactProtocol import TCompactProtocolFactory
from thrift.server.TProcessPoolServer import TProcessPoolServer
from thrift.server.TServer import TForkingServer, TThreadedServer
from thrift.transport.TSocket import TServerSocket
from thrift.transport.TSSLSocket import TSSLServerSocket
from thrift.transport.TTransport import TBufferedTransportFactory, TFramedTransportFactory

from registry_drain import Deadline, open_registry
from registry_drain.errors import ConfigurationError, ServerError
from registry_drain.phases import Phase
from registry_drain.servers.base import DrainableServer
from registry_drain.servers.listener import listening_sockets
from registry_drain.servers.listener.activation import ListeningSockets
from registry_drain.servers.stop_state import StopState
from registry_drain.servers.thrift_server import ThriftProcessServer, ThriftServer, child, processes, supervisor
from registry_drain.servers.thrift_server.shared_table import SharedStopState, SharedTable
from registry_drain.servers.thrift_server.supervisor import STOP_SIGNALS
from registry_drain.testing.server_contract import ContractClient, ServerContract
from tests.servers.thrift_echo import EchoClient, EchoProcessor, TlsEchoClient
from tests.support.processes import ManagedProcess, eventually
from tests.support.tls_files import TlsFiles

TIMEOUT = 20.0
FRAMED = TFramedTransportFactory()
TICK = 0.050
"""Of the kernel's clock, at the most."""

# Forking while a test runner has threads of its own: the warning is right, and the one fork of the adapter stands it.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


class ForkingContract(ServerContract):
    """The contract on a TForkingServer, buffered and binary."""

    request_name = "call"
    serves_in_processes = True
    patience = TIMEOUT
    transports: Any = TBufferedTransportFactory()
    protocols: Any = TBinaryProtocolFactory()

    def new_tserver(self, serve: Callable[[bytes], bytes]) -> Any:
        """Return the bare server."""
        return TForkingServer(*self.parts(serve))

    def parts(self, serve: Callable[[bytes], bytes]) -> tuple[Any, ...]:
        """Return what every TServer is made of."""
        return EchoProcessor(serve), TServerSocket("127.0.0.1", 0), self.transports, self.protocols

    def new_server(self, serve: Callable[[bytes], bytes]) -> DrainableServer:
        """Return the adapter."""
        return ThriftProcessServer(self.new_tserver(serve))

    def connect(self, address: tuple[str, int]) -> ContractClient:
        """Return a client."""
        return EchoClient(address, self.transports, self.protocols, timeout=TIMEOUT)


class TestForkingBuffered(ForkingContract):
    """A process for each connection."""


class TestForkingFramed(ForkingContract):
    """Frames, the compact protocol."""

    transports = FRAMED
    protocols = TCompactProtocolFactory()


class TestForkingTls(ForkingContract):
    """Over TLS: the handshake is the child's."""

    @pytest.fixture(autouse=True)
    def _certificates(self, tls_files: TlsFiles) -> None:
        self._tls = tls_files

    def parts(self, serve: Callable[[bytes], bytes]) -> tuple[Any, ...]:
        """Return what every TServer is made of."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._tls.server_cert, self._tls.server_key)
        transport = TSSLServerSocket("127.0.0.1", 0, ssl_context=context)
        return EchoProcessor(serve), transport, self.transports, self.protocols

    def connect(self, address: tuple[str, int]) -> ContractClient:
        """Return a client."""
        return TlsEchoClient(address, self._tls.ca, timeout=TIMEOUT)


class TestProcessPool(ForkingContract):
    """A pool with fewer processes than connections."""

    transports = FRAMED

    def new_tserver(self, serve: Callable[[bytes], bytes]) -> Any:
        """Return the bare server."""
        server = TProcessPoolServer(*self.parts(serve))
        server.setNumWorkers(5)
        return server


class TestProcessPoolOfOne(ForkingContract):
    """A pool in which everybody waits for everybody."""

    is_concurrent = False

    def new_tserver(self, serve: Callable[[bytes], bytes]) -> Any:
        """Return the bare server."""
        server = TProcessPoolServer(*self.parts(serve))
        server.setNumWorkers(1)
        return server


def new_adapter(serve: Callable[[bytes], bytes], kind: Any = TForkingServer, **options: Any) -> ThriftProcessServer:
    """Return an adapter around a framed server."""
    parts = EchoProcessor(serve), TServerSocket("127.0.0.1", 0), FRAMED, TBinaryProtocolFactory()
    return ThriftProcessServer(kind(*parts), **options)


@contextlib.contextmanager
def serving(
    serve: Callable[[bytes], bytes], kind: Any = TForkingServer, **options: Any
) -> Iterator[tuple[ThriftProcessServer, EchoClient]]:
    """Give an adapter that serves, and a client."""
    server = new_adapter(serve, kind, **options)
    try:
        with contextlib.closing(EchoClient(server.start(), FRAMED, timeout=TIMEOUT)) as client:
            yield server, client
    finally:
        server.cut_off()


def kill_myself(payload: bytes) -> bytes:
    """Die, if asked to."""
    if payload == b"die":
        os.kill(os.getpid(), signal.SIGKILL)
    return payload


def test_a_child_that_dies_leaves_nothing_in_flight() -> None:
    """Its client reads an end, its request is in flight no more, and the others are served."""
    with serving(kill_myself) as (server, client):
        client.send(b"die")
        address = client.sock.getpeername()
        with pytest.raises((EOFError, OSError)) as end:
            client.receive()
        assert not isinstance(end.value, TimeoutError), "it must not hang"
        eventually(lambda: not server.connection_count)
        assert server.in_flight.count == 0
        with contextlib.closing(EchoClient(address, FRAMED, timeout=TIMEOUT)) as other:
            other.send(b"alive")
            assert other.receive() == b"alive"
        assert server.in_flight.total == 2


def test_when_serving_has_ended_clients_are_refused(caplog: pytest.LogCaptureFixture) -> None:
    """The process that forks is killed by somebody: that is said, nobody hangs in a backlog, and its children end."""
    with serving(lambda payload: str(os.getppid()).encode() + payload) as (server, client):
        client.send(b"")
        os.kill(int(client.receive()), signal.SIGKILL)
        eventually(lambda: "nothing is served any more" in caplog.text)
        assert "SIGKILL" in caplog.text
        address = client.sock.getpeername()
        with pytest.raises(EOFError):
            client.receive()
        with pytest.raises(ConnectionRefusedError):
            EchoClient(address, FRAMED)
        assert server.drain(Deadline.after(TIMEOUT))


@pytest.mark.parametrize("kind", [TForkingServer, TProcessPoolServer])
def test_signals_that_mean_a_stop_do_nothing_where_is_served(kind: Any) -> None:
    """A terminal sends Ctrl-C to all of them, a supervisor SIGTERM: what they mean, the service's process says."""
    with serving(lambda _: f"{os.getpid()} {os.getppid()}".encode(), kind) as (_, client):
        client.send(b"")
        pids = client.receive()
        for pid in pids.split():
            for number in STOP_SIGNALS:
                os.kill(int(pid), number)
        client.send(b"")
        assert client.receive() == pids, "both are there, as they were"
        with contextlib.closing(EchoClient(client.sock.getpeername(), FRAMED, timeout=TIMEOUT)) as other:
            other.send(b"")
            assert other.receive().split()[1] == pids.split()[1], "and it still forks"


@pytest.mark.parametrize("kind", [TForkingServer, TProcessPoolServer])
def test_a_socket_that_somebody_keeps_is_left_to_them(kind: Any) -> None:
    """As in a hand-over: who connects afterwards is the other process' client, whoever waited in accept here."""
    with ListeningSockets({}).open("127.0.0.1", 0, name="rpc", backlog=16) as shared:
        others = shared.dup()
        parts = EchoProcessor(bytes), TServerSocket("127.0.0.1", 0), FRAMED, TBinaryProtocolFactory()
        parts[1].handle = shared
        bare = kind(*parts)
        bare.numWorkers = 2  # of a pool
        server = ThriftProcessServer(bare)
        address = server.start()
        try:
            with contextlib.closing(EchoClient(address, FRAMED, timeout=TIMEOUT)) as client:
                client.send(b"served here")
                assert client.receive() == b"served here"
            shared.keep_for("another process")
            if kind is TProcessPoolServer:
                eventually(lambda: sum(slot.is_accepting for slot in server._table.used()) == 2)
            closure = server.close_listener(Deadline.after(TIMEOUT))
            assert (closure.method, closure.is_clean) == ("another process", True)
            with contextlib.closing(EchoClient(address, FRAMED, timeout=TIMEOUT)) as client:
                client.send(b"not for you")
                assert server.drain(Deadline.after(TIMEOUT))
                assert server.in_flight.total == 1
                others.settimeout(TIMEOUT)
                others.accept()[0].close()
        finally:
            server.cut_off()
            others.close()


def test_more_clients_than_children_wait() -> None:
    """Nobody is refused: a place becomes free when a child has exited."""
    with serving(bytes, max_children=1) as (_, client):
        client.send(b"first")
        assert client.receive() == b"first"
        with contextlib.closing(EchoClient(client.sock.getpeername(), FRAMED, timeout=TIMEOUT)) as second:
            second.send(b"second")
            client.close()
            assert second.receive() == b"second"


def test_who_waits_for_a_child_at_the_end_is_told_of() -> None:
    """By an address that can be copied, of IPv6 too."""
    parts = EchoProcessor(hang), TServerSocket("::1", 0), FRAMED, TBinaryProtocolFactory()
    server = ThriftProcessServer(TForkingServer(*parts), max_children=1)
    address = server.start()
    try:
        first, second = (EchoClient(address, FRAMED, timeout=TIMEOUT, family=socket.AF_INET6) for _ in range(2))
        with contextlib.closing(first), contextlib.closing(second):
            first.send(b"first")
            eventually(lambda: server.in_flight.count == 1)
            second.send(b"second")
            server.close_listener(Deadline.after(TIMEOUT))
            assert not server.drain(Deadline.after(0.0))
            cut = {str(request) for request in server.cut_off()}
            peers = [f"[::1]:{client.sock.getsockname()[1]}" for client in (first, second)]
            assert cut == {f"call from {peers[0]}", f"(not yet read) from {peers[1]}"}
    finally:
        server.cut_off()


def hang(payload: bytes) -> bytes:
    """Serve for ever."""
    signal.pause()
    return payload


def count_listeners(port: bytes) -> bytes:
    """Return how many sockets of this process listen there."""
    found = listening_sockets(int(port))
    for each in found:
        each.close()
    return str(len(found)).encode()


def test_a_child_of_one_connection_does_not_keep_the_port() -> None:
    """Or clients would connect to it, and hang, after all others have gone."""
    with serving(count_listeners) as (_, client):
        client.send(str(client.sock.getpeername()[1]).encode())
        assert client.receive() == b"0"


def test_health_checks_are_no_arrivals() -> None:
    """Of whatever process."""
    with serving(bytes, health_check_methods={"ping"}) as (server, client):
        client.send(b"up?", name="ping")
        assert client.receive() == b"up?"
        assert (server.in_flight.total, server.in_flight.last_arrival_at) == (0, None)


def test_when_the_last_call_came_is_known_though_nobody_looked_then() -> None:
    """The child asks the kernel once a second: a stop does not wait for callers who have long gone."""
    with serving(bytes) as (server, client):
        client.send(b"hello")
        assert client.receive() == b"hello"
        at = time.monotonic()
        eventually(lambda: any(slot.served == slot.noted == 1 for slot in server._table.used()))
        assert 0.0 < (server.in_flight.last_arrival_at or 0.0) < at + TICK


def test_during_the_stop_a_child_asks_more_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the stop would wait for up to a second too long."""
    monkeypatch.setattr(child, "LOOK_EVERY", 3600.0)
    with serving(bytes) as (server, client):
        server.in_flight.stop_state.enter(Phase.PROPAGATING, 0.0)
        with contextlib.closing(EchoClient(client.sock.getpeername(), FRAMED, timeout=TIMEOUT)) as late:
            late.send(b"hello")
            assert late.receive() == b"hello"
            eventually(lambda: any(slot.served == slot.noted == 1 for slot in server._table.used()))


@pytest.mark.parametrize("kind", [TForkingServer, TProcessPoolServer])
def test_when_the_last_call_of_a_closed_connection_came_is_known(kind: Any) -> None:
    """Though the child may have exited before it asked for the second time."""
    with serving(bytes, kind) as (server, client):
        client.send(b"hello")
        assert client.receive() == b"hello"
        at = time.monotonic()
        client.close()
        eventually(lambda: not server.connection_count)
        time.sleep(2 * TICK)  # or it might have come now
        assert 0.0 < (server.in_flight.last_arrival_at or 0.0) < at + TICK


def test_when_a_call_came_that_is_cut_off_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though nobody has looked since."""
    # It is the child that says when; on a busy machine it must not be killed first.
    monkeypatch.setattr(supervisor, "_LAST_WORDS_S", TIMEOUT)
    monkeypatch.setattr(processes, "_END_LIMIT_S", TIMEOUT)
    with serving(hang) as (server, client):
        client.send(b"never")
        eventually(lambda: any(slot.served for slot in server._table.used()))
        at = time.monotonic()
        time.sleep(2 * TICK)
        (request,) = server.cut_off()
        assert request.started_at < at + TICK


def test_until_the_child_has_asked_a_call_came_when_it_was_first_seen() -> None:
    """That is later than it was, and stays the same."""
    table = SharedTable(2)
    table.head.slots_used = 2
    slot = table.slots[1]
    slot.open("client")
    assert (table.total, table.last_arrival_at, table.requests()) == (0, None, [])
    slot.served = 1
    at = time.monotonic()
    (request,) = table.requests()
    assert (table.total, table.last_arrival_at) == (1, request.started_at)
    assert request.started_at >= at
    assert table.requests() == [request]
    slot.note(at - 5.0, 1)
    assert (table.last_arrival_at, table.requests()[0].started_at) == (at - 5.0, at - 5.0)
    slot.rest()
    slot.served = 2
    assert (table.last_arrival_at or 0.0) >= at, "what was noted is of the call before"
    slot.note(at - 1.0, 2)
    slot.note(at - 5.0, 1)
    assert table.last_arrival_at == at - 1.0, "a thread that was slower knows less"


def test_a_child_cannot_stop_the_server() -> None:
    """Its copy of the adapter refuses: the port and the registration are the parent's."""
    adapters: list[ThriftProcessServer] = []

    def stop(_payload: bytes) -> bytes:
        try:
            adapters[0].close_listener(Deadline.after(0))
        except ServerError as error:
            return str(error).encode()
        return b"closed"

    server = new_adapter(stop)
    adapters.append(server)
    try:
        with contextlib.closing(EchoClient(server.start(), FRAMED, timeout=TIMEOUT)) as client:
            client.send(b"stop")
            assert b"can only be stopped in process" in client.receive()
    finally:
        server.cut_off()


def test_servers_that_do_not_fork_are_refused() -> None:
    """At construction, and in words."""
    transport = TServerSocket("127.0.0.1", 0)
    with pytest.raises(ConfigurationError, match=r"use ThriftServer\(TThreadedServer"):
        ThriftProcessServer(TThreadedServer(EchoProcessor(bytes), transport))
    with pytest.raises(ConfigurationError, match=r"use ThriftProcessServer\(TForkingServer"):
        ThriftServer(TForkingServer(EchoProcessor(bytes), transport))
    with pytest.raises(ConfigurationError, match="at least one child"):
        ThriftProcessServer(TForkingServer(EchoProcessor(bytes), transport), max_children=0)


def processes_of_session(leader: int) -> list[int]:
    """Return the processes of a session that run."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = status.read_text().rpartition(")")[2].split()
            if int(fields[3]) == leader and fields[0] != "Z":
                found.append(int(status.parent.name))
    return found


def registered(registry: str) -> tuple[tuple[str, int], ...]:
    """Return where the service is registered."""
    with contextlib.closing(open_registry(registry)) as opened:
        entries = opened.entries("echo", Deadline.after(TIMEOUT))
        return tuple((entry.address, entry.port) for entry in entries)


@pytest.fixture(params=["forking", "pool"])
def program(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[ManagedProcess, str, tuple[str, int]]]:
    """Give a service in processes of its own, its registry, and its address."""
    registry = f"local://{tmp_path}/registry"
    arguments = ["-m", "tests.servers.thrift_process_program", registry, request.param]
    with ManagedProcess.python(*arguments, log=tmp_path / "log") as process:
        process.wait_output("registered")
        (address,) = registered(registry)
        yield process, registry, address


def test_a_signal_to_the_whole_group_stops_once(program: tuple[ManagedProcess, str, tuple[str, int]]) -> None:
    """As a supervisor sends it: the call is finished, the service deregisters once, and no process is left."""
    process, registry, address = program
    with contextlib.closing(EchoClient(address, FRAMED, timeout=TIMEOUT)) as client:
        client.send(b"until draining")
        process.wait_output("serving")
        os.killpg(process.pid, signal.SIGTERM)
        assert client.receive() == b"was draining"
        with pytest.raises(EOFError):
            client.receive()
    assert process.wait() == 0, process.output()
    eventually(lambda: not processes_of_session(process.pid), because="every process has ended")
    assert registered(registry) == ()
    assert process.output().count("DEREGISTERING: completed") == 1


def test_nothing_outlives_a_parent_that_is_killed(program: tuple[ManagedProcess, str, tuple[str, int]]) -> None:
    """No orphan serves or listens."""
    process, _, address = program
    with contextlib.closing(EchoClient(address, FRAMED, timeout=TIMEOUT)) as client:
        client.send(b"hello")
        assert client.receive() == b"hello"
        process.signal(signal.SIGKILL)
        with pytest.raises((EOFError, OSError)) as end:
            client.receive()
        assert not isinstance(end.value, TimeoutError), "it must not hang"
    eventually(lambda: not processes_of_session(process.pid), because="every process has ended")
    with pytest.raises(ConnectionRefusedError):
        EchoClient(address, FRAMED)
    process.wait()


def test_a_child_sees_each_phase_that_the_parent_enters() -> None:
    """It reads what the parent writes; nobody calls anything in it."""
    table = SharedTable(1)
    parent, child = StopState(time.monotonic), SharedStopState(table.head, time.monotonic)
    parent.watch(lambda _phase: table.tell(parent))
    assert child.time_left() is None
    for phase in Phase:
        parent.enter(phase, time.monotonic() + 60.0)
        seen = child.phase, child.is_stopping, child.is_delisted, child.is_draining
        assert seen == (phase, parent.is_stopping, parent.is_delisted, parent.is_draining)
    assert child.time_left() is not None
