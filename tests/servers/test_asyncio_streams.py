"""Servers on asyncio streams: the contract in several styles of handler and in both loops, and what is special."""

from __future__ import annotations

import asyncio
import gc
import itertools
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from registry_drain.clock import Deadline
from registry_drain.errors import ConfigurationError, ServerError
from registry_drain.phases import Phase
from registry_drain.servers.asyncio_streams import AsyncioServer
from registry_drain.servers.base import DrainableServer
from registry_drain.servers.current_request import mark_request, name_request, served, time_left
from registry_drain.servers.in_flight import InFlight, InFlightRequest
from registry_drain.service import Service
from registry_drain.shutdown.budget import StopBudget
from registry_drain.testing.bench import Call
from registry_drain.testing.server_contract import ContractClient, ServerContract
from tests.servers.application_loop import InApplicationsLoop
from tests.servers.test_socket_server import LineClient
from tests.support.processes import eventually, free_port
from tests.support.tls_files import TlsFiles

TIMEOUT = 10.0
Serve = Callable[[bytes], bytes]
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def answer_to(serve: Serve, line: bytes) -> bytes:
    """Return what ``serve`` says to a line. It may block: then in a thread, as an application would do it."""
    payload = line.rstrip(b"\n")
    if payload == b"inside":
        return serve(payload) + b"\n"
    return await asyncio.to_thread(serve, payload) + b"\n"


def by_lines(serve: Serve) -> Handler:
    """One line in, one line out."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async for line in reader:
            writer.write(await answer_to(serve, line))
            await writer.drain()
        writer.close()

    return echo


def by_chunks(serve: Serve) -> Handler:
    """The same by ``read``, with a buffer of the handler's own, and with time limits."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pending = b""
        while data := await asyncio.wait_for(reader.read(65536), 60):
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                writer.writelines([await answer_to(serve, line)])
                await writer.drain()
        writer.close()
        await writer.wait_closed()

    return echo


def by_marks(serve: Serve) -> Handler:
    """Says itself what a request is, and what it is called."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            with mark_request("marked"):
                writer.write(await answer_to(serve, line))
                await writer.drain()
        writer.close()

    return handle


class LineContract(ServerContract):
    """The contract on lines."""

    request_name = "echo"
    handler = staticmethod(by_lines)

    def new_server(self, serve: Serve) -> DrainableServer:
        """Return the adapter."""
        return AsyncioServer(self.handler(serve), "127.0.0.1", 0)

    def connect(self, address: tuple[str, int]) -> ContractClient:
        """Return a client."""
        return LineClient(address)


class TestLines(LineContract):
    """The usual handler, in a loop of the adapter's own."""


class TestChunks(LineContract):
    """A handler with a buffer of its own."""

    handler = staticmethod(by_chunks)


class TestMarks(LineContract):
    """A handler that marks its requests."""

    handler = staticmethod(by_marks)
    request_name = "marked"


class TestApplicationsLoop(LineContract):
    """The application's loop, as serve_async gives it."""

    def new_server(self, serve: Serve) -> DrainableServer:
        """Return the adapter."""
        return InApplicationsLoop(AsyncioServer(by_lines(serve), "127.0.0.1", 0))


class TestUvloop(LineContract):
    """A loop of another make, where it is installed."""

    def new_server(self, serve: Serve) -> DrainableServer:
        """Return the adapter."""
        uvloop: Any = pytest.importorskip("uvloop")
        return InApplicationsLoop(AsyncioServer(by_lines(serve), "127.0.0.1", 0), uvloop.new_event_loop())


class TlsLineClient(LineClient):
    """The same behind TLS."""

    def __init__(self, address: tuple[str, int], context: ssl.SSLContext) -> None:
        """Connect and shake hands."""
        super().__init__(address)
        self._file.close()
        self.sock = context.wrap_socket(self.sock, server_hostname="localhost")
        self._file = self.sock.makefile("rb")


class TestTls(LineContract):
    """TLS, which knows no half-close."""

    tls: TlsFiles

    @pytest.fixture(autouse=True)
    def _files(self, tls_files: TlsFiles) -> None:
        self.tls = tls_files

    def new_server(self, serve: Serve) -> DrainableServer:
        """Return the adapter."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.tls.server_cert, self.tls.server_key)
        return AsyncioServer(by_lines(serve), "127.0.0.1", 0, ssl=context)

    def connect(self, address: tuple[str, int]) -> ContractClient:
        """Return a client."""
        return TlsLineClient(address, ssl.create_default_context(cafile=str(self.tls.ca)))


def test_handshakes_that_fail_are_forgotten(tls_files: TlsFiles) -> None:
    """Asyncio tells nobody of them: a port scanner, or a load balancer's look, must not fill the memory."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tls_files.server_cert, tls_files.server_key)
    server = AsyncioServer(by_lines(bytes), "127.0.0.1", 0, ssl=context)
    address = server.start()
    try:
        clients = [socket.create_connection(address) for _ in range(3)]
        eventually(lambda: len(server.connections) == 3)
        for client in clients:
            client.sendall(b"no handshake\r\n")
            client.close()
        eventually(lambda: gc.collect() >= 0 and len(server.connections) == 0)
    finally:
        server.cut_off()


def test_tls_ends_when_everything_has_been_sent(tls_files: TlsFiles) -> None:
    """A client that reads slowly gets its whole answer, and no end before: the transport still has most of it."""
    answer, may_answer = b"x" * 60_000, threading.Event()

    def serve(_payload: bytes) -> bytes:
        may_answer.wait(TIMEOUT)
        return answer

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tls_files.server_cert, tls_files.server_key)
    server = AsyncioServer(by_lines(serve), "127.0.0.1", 0, ssl=context)
    client = TlsLineClient(server.start(), ssl.create_default_context(cafile=str(tls_files.ca)))
    try:
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        eventually(lambda: len(server.connections._open) == 1)
        [connection] = server.connections._open
        eventually(lambda: connection.transport is not None, because="the server's part of the handshake has ended")
        transport = connection.transport
        assert transport is not None
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        client.send(b"more than fits")
        eventually(lambda: server.in_flight.total == 1)
        draining = drained(server)
        eventually(lambda: server.connections.is_draining)
        may_answer.set()
        eventually(lambda: connection.is_half_closed)
        with pytest.raises(AssertionError):
            eventually(lambda: not len(server.connections), timeout=0.2)
        assert client.receive() == answer
        with pytest.raises(EOFError):
            client.receive()
        assert draining.result(TIMEOUT, "drain")
    finally:
        may_answer.set()
        client.close()
        stop(server)


# --- what is special ------------------------------------------------------------------------------------------------


def test_a_stop_that_overtakes_the_start_closes_it_afterwards() -> None:
    """The listener that was being opened refuses, and the one who started it is told."""
    loop = asyncio.new_event_loop()
    gate = threading.Event()
    loop.call_soon(gate.wait, TIMEOUT)  # a loop that is busy: the start takes a while
    thread = threading.Thread(target=loop.run_forever, name="application")
    thread.start()
    port = free_port()
    server = AsyncioServer(by_lines(bytes), "127.0.0.1", port)
    server.use_loop(loop)
    start = Call(server.start)
    eventually(lambda: server._is_started)
    assert server.close_listener(Deadline.after(TIMEOUT)).method == "never started"
    gate.set()
    with pytest.raises(ServerError, match="stopped while it was starting"):
        start.result(TIMEOUT, "start")
    with pytest.raises(ConnectionRefusedError):
        LineClient(("127.0.0.1", port))
    assert server.cut_off() == ()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def stop(server: AsyncioServer) -> tuple[InFlightRequest, ...]:
    """Stop a server, and return what was cut off."""
    server.close_listener(Deadline.after(TIMEOUT))
    server.drain(Deadline.after(TIMEOUT))
    return server.cut_off()


def drained(server: AsyncioServer) -> Call[bool]:
    """Close the listener, and begin to drain."""
    server.close_listener(Deadline.after(TIMEOUT))
    return Call(lambda: server.drain(Deadline.after(TIMEOUT)))


def test_each_line_of_one_segment_is_a_request() -> None:
    """What the reader holds at a boundary begins the next one."""
    server = AsyncioServer(by_lines(bytes), "127.0.0.1", 0)
    client = LineClient(server.start())
    client.sock.sendall(b"one\ntwo\nthree\n")
    assert [client.receive() for _ in range(3)] == [b"one", b"two", b"three"]
    assert server.in_flight.total == 3
    assert stop(server) == ()
    client.close()


def test_a_request_that_has_only_begun_is_waited_for() -> None:
    """Half a line is in flight: the drain lets the rest come."""
    server = AsyncioServer(by_lines(bytes), "127.0.0.1", 0)
    client = LineClient(server.start())
    client.sock.sendall(b"half a ")
    eventually(lambda: server.in_flight.count == 1)
    draining = drained(server)
    client.sock.sendall(b"line\n")
    assert client.receive() == b"half a line"
    assert draining.result(TIMEOUT, "drain")
    assert server.cut_off() == ()
    client.close()


def test_a_greeting_is_no_answer() -> None:
    """What is written before a request does not end it."""

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"welcome\n")
        command = await reader.readline()
        body = await reader.readline()
        writer.write(command.strip() + b" " + body)
        writer.close()

    server = AsyncioServer(greet, "127.0.0.1", 0)
    client = LineClient(server.start())
    assert client.receive() == b"welcome"
    client.send(b"put")
    eventually(lambda: server.in_flight.count == 1)
    draining = drained(server)
    client.send(b"body")
    assert client.receive() == b"put body"
    assert draining.result(TIMEOUT, "drain")
    assert server.in_flight.total == 1
    assert server.cut_off() == ()
    client.close()


def test_a_goodbye_at_the_end_of_file_is_thrown_away_quietly() -> None:
    """Behind our FIN nothing can be written; the handler is not to blame."""
    unhandled: list[object] = []
    left = threading.Event()

    async def polite(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: unhandled.append(context))
        while line := await reader.readline():
            writer.write(line)
        writer.write(b"goodbye\n")
        writer.writelines([b"and ", b"well\n"])
        writer.write_eof()
        await writer.drain()
        writer.close()
        left.set()

    server = AsyncioServer(polite, "127.0.0.1", 0)
    client = LineClient(server.start())
    client.send(b"hello")
    assert client.receive() == b"hello"
    draining = drained(server)
    with pytest.raises(EOFError):
        client.receive()
    assert draining.result(TIMEOUT, "drain")
    assert left.is_set()
    assert unhandled == []
    assert server.cut_off() == ()
    client.close()


def test_a_handler_that_raises_ends_its_connection_and_is_told_to_the_loop() -> None:
    """Its client must not wait for it, and neither must the drain."""
    told: list[dict[str, Any]] = []

    async def fail(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: told.append(context))
        await reader.readline()
        raise RuntimeError("disk full")

    server = AsyncioServer(fail, "127.0.0.1", 0)
    client = LineClient(server.start())
    client.send(b"hello")
    with pytest.raises(EOFError):
        client.receive()
    assert stop(server) == ()
    assert [str(context["exception"]) for context in told] == ["disk full"]
    client.close()


def test_a_callback_that_is_no_coroutine_is_served_and_cut_off() -> None:
    """The task that reads is known by its reading."""
    asks = threading.Event()
    was_open: list[bool] = []
    tasks: list[asyncio.Task[None]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asks.set()
        await reader.readline()
        name_request("stuck")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            was_open.append(not writer.is_closing())
            raise

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.append(asyncio.get_running_loop().create_task(serve(reader, writer)))
        tasks[0].add_done_callback(lambda _: writer.close())

    server = AsyncioServer(connected, "127.0.0.1", 0)
    client = LineClient(server.start())
    assert asks.wait(TIMEOUT)  # It reads before there is anything.
    client.send(b"hello")
    eventually(lambda: [request.name for request in server.in_flight.snapshot()] == ["stuck"])
    server.close_listener(Deadline.after(TIMEOUT))
    assert not server.drain(Deadline.after(0.1))
    assert [str(request).partition(" from ")[0] for request in server.cut_off()] == ["stuck"]
    assert was_open == [True], "it is cancelled while it can still say so"
    client.close()


def test_a_client_that_never_pauses_is_left_behind_an_answer() -> None:
    """It is never quiet, so it is closed right behind an answer."""
    server = AsyncioServer(by_lines(bytes), "127.0.0.1", 0)
    client = LineClient(server.start())
    draining: list[Call[bool]] = []

    def ask_all_the_time() -> None:
        for turn in itertools.count():
            client.send(b"more")
            assert client.receive() == b"more"
            if turn == 10:
                draining.append(drained(server))

    with pytest.raises((EOFError, OSError)):  # as the case may be, it has just sent the next one
        ask_all_the_time()
    assert draining[0].result(TIMEOUT, "drain")
    assert server.cut_off() == ()
    client.close()


def test_a_handler_that_is_cut_off_has_a_last_word() -> None:
    """It is cancelled and awaited, in the application's loop, before its connection is closed."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0.01)
            writer.write(b"sorry\n")
            raise

    server = InApplicationsLoop(AsyncioServer(serve, "127.0.0.1", 0))
    client = LineClient(server.start())
    client.send(b"hello")
    eventually(lambda: server.in_flight.count == 1)
    assert [request.name for request in server.cut_off()] == ["serve"]
    assert client.receive() == b"sorry"
    client.close()


def test_a_unix_socket_drains(tmp_path: Path) -> None:
    """Idle and busy connections, and the path refuses afterwards."""
    path = str(tmp_path / "socket")
    gate = threading.Event()
    server = AsyncioServer(by_lines(lambda line: line if line == b"idle" else line * gate.wait(TIMEOUT)), path=path)
    assert server.start() == (path, 0)
    clients: list[socket.socket] = []
    for line in (b"idle\n", b"busy\n"):
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(TIMEOUT)
        client.connect(path)
        client.sendall(line)
        clients.append(client)
    idle, busy = clients
    assert idle.recv(10) == b"idle\n"
    eventually(lambda: server.in_flight.count == 1)
    draining = drained(server)
    assert idle.recv(1) == b""
    gate.set()
    assert busy.recv(10) == b"busy\n"
    assert busy.recv(1) == b""
    assert draining.result(TIMEOUT, "drain")
    assert server.cut_off() == ()
    with socket.socket(socket.AF_UNIX) as late, pytest.raises(OSError, match=r"refused|No such file"):
        late.connect(path)
    for client in clients:
        client.close()


def test_a_handler_may_stop_the_service_from_a_thread_it_awaits() -> None:
    """With serve(), too, where the loop is one of ours: it does not wait for itself."""
    phases: list[Phase] = []

    async def stop_it(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = await reader.readline()
        phases.append((await asyncio.to_thread(service.stop)).phase)
        writer.write(line)
        writer.close()

    budget = StopBudget(grace_period=60, closing=10)
    service = Service(AsyncioServer(stop_it, "127.0.0.1", 0), handle_signals=False, budget=budget)
    running = Call(service.run)
    assert service.started.wait(TIMEOUT)
    assert service.bound is not None
    client = LineClient(service.bound)
    client.send(b"hello")
    assert client.receive() == b"hello"
    assert running.result(TIMEOUT, "run").is_clean
    assert Phase.STOPPED not in phases
    client.close()


@pytest.mark.parametrize("where", [{}, {"port": 0, "path": "/tmp/x"}])
def test_where_to_listen_must_be_said_once(where: dict[str, Any]) -> None:
    """One clear line."""
    with pytest.raises(ConfigurationError, match="give one"):
        AsyncioServer(by_lines(bytes), "127.0.0.1", **where)


def test_its_own_stop_resets_what_waits_and_loses_what_is_in_flight() -> None:
    """What this adapter is for: asyncio's own close(), on the same server. If this fails, asyncio has got better."""

    async def serve() -> tuple[int, int]:
        gate = asyncio.Event()

        async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.readline())
            await gate.wait()
            writer.close()

        server = await asyncio.start_server(wait, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        clients = [LineClient(address) for _ in range(20)]  # without a turn of the loop
        for client in clients:
            client.send(b"queued")
        server.close()
        await asyncio.sleep(0.1)
        gate.set()
        outcomes = await asyncio.gather(*(asyncio.to_thread(_outcome, client) for client in clients))
        for client in clients:
            client.close()
        return outcomes.count("answered"), outcomes.count("lost")

    answered, lost = asyncio.run(serve())
    assert (answered, lost) == (0, 20)


def _outcome(client: LineClient) -> str:
    try:
        return "answered" if client.receive() == b"queued" else "garbled"
    except (OSError, EOFError):
        return "lost"


def test_coroutines_in_one_thread_know_their_own_request() -> None:
    """served() is for coroutines as it is: what each names, and sees of the stop, is its own."""
    in_flight = InFlight()

    async def request(name: str) -> float | None:
        with served(in_flight, peer=name):
            began_all.append(name)
            await gate.wait()
            name_request(name)
            await asyncio.sleep(0)
            names.update({each.peer: each.name for each in in_flight.snapshot()})
            return time_left()

    gate: asyncio.Event
    began_all: list[str] = []
    names: dict[str, str] = {}

    async def main() -> None:
        nonlocal gate
        gate = asyncio.Event()
        tasks = [asyncio.ensure_future(request(name)) for name in ("add", "divide")]
        while len(began_all) < 2:  # noqa: ASYNC110 - two turns of the loop
            await asyncio.sleep(0)
        assert in_flight.count == 2
        assert time_left() is None
        in_flight.stop_state.enter(Phase.DRAINING, in_flight.now() + 60)
        gate.set()
        for left in await asyncio.gather(*tasks):
            assert left is not None
            assert 0 < left <= 60

    asyncio.run(main())
    assert names == {"add": "add", "divide": "divide"}
    assert in_flight.count == 0
