"""``socketserver`` servers: the contract in four styles of handler, and what has to be guessed about each."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from registry_drain.clock import Deadline
from registry_drain.errors import ConfigurationError
from registry_drain.servers.base import DrainableServer
from registry_drain.servers.current_request import is_draining, mark_request, name_request
from registry_drain.servers.listener import hold_off, hold_off_by_decoy
from registry_drain.servers.socket_server import SocketServer
from registry_drain.testing.bench import Call
from registry_drain.testing.server_contract import ContractClient, ServerContract
from tests.support.processes import eventually
from tests.support.tls_files import TlsFiles

TIMEOUT = 10.0
Serve = Callable[[bytes], bytes]


class LineHandler(socketserver.StreamRequestHandler):
    """One line in, one line out, through ``rfile``."""

    def handle(self) -> None:
        """Serve until the client leaves."""
        for line in self.rfile:
            self.wfile.write(cast("Any", self.server).serve(line.rstrip(b"\n")) + b"\n")


class BufferedLineHandler(LineHandler):
    """The same with buffered writing, in several pieces."""

    wbufsize = -1

    def handle(self) -> None:
        """Serve until the client leaves."""
        while line := self.rfile.readline():
            self.wfile.write(cast("Any", self.server).serve(line.rstrip(b"\n")))
            self.wfile.write(b"\n")
            self.wfile.flush()


class RecvHandler(socketserver.BaseRequestHandler):
    """The same by ``recv``, with a buffer of the handler's own."""

    def handle(self) -> None:
        """Serve until the client leaves."""
        pending = b""
        while data := self.request.recv(65536):
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                self.request.sendall(cast("Any", self.server).serve(line) + b"\n")


class MarkingHandler(socketserver.StreamRequestHandler):
    """Says itself what a request is, and what it is called."""

    def handle(self) -> None:
        """Serve until the client leaves."""
        for line in self.rfile:
            with mark_request("marked"):
                self.wfile.write(cast("Any", self.server).serve(line.rstrip(b"\n")) + b"\n")


class LineServer(socketserver.ThreadingTCPServer):
    """Serves lines, one thread per connection."""

    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, handler: type[socketserver.BaseRequestHandler], serve: Serve) -> None:
        """Bind a free port."""
        self.serve = serve
        self.cleaned_up = 0
        super().__init__(("127.0.0.1", 0), handler)

    def server_close(self) -> None:
        """Count how often it is cleaned up."""
        self.cleaned_up += 1
        super().server_close()


class SerialLineServer(socketserver.TCPServer):
    """Serves lines, one connection after the other."""

    request_queue_size = 64

    def __init__(self, handler: type[socketserver.BaseRequestHandler], serve: Serve) -> None:
        """Bind a free port."""
        self.serve = serve
        super().__init__(("127.0.0.1", 0), handler)


class LineClient:
    """One connection: a :class:`~registry_drain.testing.server_contract.ContractClient`."""

    def __init__(self, address: tuple[str, int]) -> None:
        """Connect."""
        self.sock = socket.create_connection(address, timeout=TIMEOUT)
        self._file = self.sock.makefile("rb")

    def send(self, payload: bytes) -> None:
        """Send one line."""
        self.sock.sendall(payload + b"\n")

    def receive(self) -> bytes:
        """Return the next line, or raise EOFError."""
        line = self._file.readline()
        if not line.endswith(b"\n"):
            raise EOFError
        return line[:-1]

    def close(self) -> None:
        """Hang up."""
        self._file.close()
        self.sock.close()


class LineContract(ServerContract):
    """The contract on lines."""

    handler: type[socketserver.BaseRequestHandler] = LineHandler

    def new_server(self, serve: Serve) -> DrainableServer:
        """Return the adapter."""
        return SocketServer(LineServer(self.handler, serve))

    def connect(self, address: tuple[str, int]) -> ContractClient:
        """Return a client."""
        return LineClient(address)


class TlsLineClient(LineClient):
    """The same over TLS."""

    def __init__(self, address: tuple[str, int], authority: Path, *, suppresses_ragged_eofs: bool = True) -> None:
        """Connect and shake hands."""
        super().__init__(address)
        self._file.close()
        self.sock = ssl.create_default_context(cafile=str(authority)).wrap_socket(
            self.sock, server_hostname="127.0.0.1", suppress_ragged_eofs=suppresses_ragged_eofs
        )
        self._file = self.sock.makefile("rb")


def secured(server: LineServer, tls: TlsFiles) -> LineServer:
    """Return ``server`` with its listening socket wrapped."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls.server_cert, tls.server_key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    return server


class TestTls(LineContract):
    """Over TLS, whose bytes on the wire are not those that are read."""

    @pytest.fixture(autouse=True)
    def _certificates(self, tls_files: TlsFiles) -> None:
        self._tls = tls_files

    def new_server(self, serve: Serve) -> DrainableServer:
        """Return the adapter."""
        return SocketServer(secured(LineServer(self.handler, serve), self._tls))

    def connect(self, address: tuple[str, int]) -> ContractClient:
        """Return a client."""
        return TlsLineClient(address, self._tls.ca)


class TestRecvTls(TestTls):
    """The same with a handler that reads by ``recv``."""

    handler = RecvHandler


class TestLines(LineContract):
    """Through ``rfile`` and ``wfile``."""


class TestBufferedLines(LineContract):
    """With answers that are flushed."""

    handler = BufferedLineHandler


class TestRecv(LineContract):
    """By ``recv`` and ``sendall``."""

    handler = RecvHandler


class TestMarked(LineContract):
    """With requests that the handler marks."""

    handler = MarkingHandler
    request_name = "marked"


class TestSerial(LineContract):
    """Without threads."""

    is_concurrent = False

    def new_server(self, serve: Serve) -> DrainableServer:
        """Return the adapter."""
        return SocketServer(SerialLineServer(self.handler, serve))


class TestDaemonThreads(LineContract):
    """Whose threads socketserver forgets."""

    def new_server(self, serve: Serve) -> DrainableServer:
        """Return the adapter."""
        server = LineServer(self.handler, serve)
        server.daemon_threads = True
        return SocketServer(server)


@contextlib.contextmanager
def serving(handler: type[socketserver.BaseRequestHandler], serve: Serve = bytes) -> Iterator[tuple[Any, LineClient]]:
    """Give an adapter that serves, and a client of it."""
    server = SocketServer(LineServer(handler, serve))
    client = LineClient(server.start())
    try:
        yield server, client
    finally:
        client.close()
        server.cut_off()


def drain(server: SocketServer, seconds: float = TIMEOUT) -> Call[bool]:
    """Close the listener, and begin to drain."""
    server.close_listener(Deadline.after(TIMEOUT))
    return Call(lambda: server.drain(Deadline.after(seconds)))


def test_half_a_line_is_a_request() -> None:
    """A message of which only the beginning has come is waited for, and answered."""
    with serving(LineHandler) as (server, client):
        client.sock.sendall(b"fir")
        eventually(lambda: server.in_flight.total == 1)
        draining = drain(server)
        draining.join(0.1)
        assert draining.is_alive()
        assert server.in_flight.count == 1
        client.sock.sendall(b"st\n")
        assert client.receive() == b"first"
        assert draining.result(TIMEOUT, "drain")


def test_half_a_line_behind_a_whole_one_is_a_request() -> None:
    """The beginning of a message that was read ahead, with the end of the one before, is not taken for idle."""
    with serving(LineHandler) as (server, client):
        client.sock.sendall(b"first\nsec")
        assert client.receive() == b"first"
        eventually(lambda: server.in_flight.total == 2)
        draining = drain(server)
        draining.join(0.1)
        assert draining.is_alive()
        client.sock.sendall(b"ond\n")
        assert client.receive() == b"second"
        assert draining.result(TIMEOUT, "drain")


def test_each_line_read_ahead_counts() -> None:
    """Lines that came in one segment are requests of their own."""
    with serving(LineHandler) as (server, client):
        client.sock.sendall(b"a\nb\nc\n")
        assert [client.receive() for _ in range(3)] == [b"a", b"b", b"c"]
        assert server.in_flight.total == 3
        eventually(lambda: server.in_flight.count == 0)


def test_a_greeting_is_no_answer() -> None:
    """What a handler writes before it is asked does not make a request, and the connection is idle behind it."""

    class Greeting(LineHandler):
        def handle(self) -> None:
            self.wfile.write(b"hello\n")
            super().handle()

    with serving(Greeting) as (server, client):
        assert client.receive() == b"hello"
        eventually(lambda: server.in_flight.count == 0)
        assert server.in_flight.total == 0
        for part in (b"in ", b"three ", b"parts\n"):
            client.sock.sendall(part)
            eventually(lambda: server.in_flight.total == 1)
        assert client.receive() == b"in three parts"
        eventually(lambda: server.in_flight.count == 0)
        assert server.in_flight.total == 1
        assert drain(server).result(TIMEOUT, "drain")
        with pytest.raises(EOFError):
            client.receive()


def test_a_handler_that_speaks_first_is_busy() -> None:
    """A connection whose handler has not asked for anything yet is not idle: it may be at work."""
    may_speak = threading.Event()

    class Slow(LineHandler):
        def handle(self) -> None:
            may_speak.wait(TIMEOUT)
            self.wfile.write(b"at last\n")

    with serving(Slow) as (server, client):
        eventually(lambda: server.in_flight.count == 1)
        draining = drain(server)
        draining.join(0.1)
        assert draining.is_alive()
        may_speak.set()
        assert client.receive() == b"at last"
        assert draining.result(TIMEOUT, "drain")


def test_a_handler_that_stops_waiting_is_busy() -> None:
    """One whose read timed out may be at work on its own account, although nothing was asked."""
    timed_out, may_speak = threading.Event(), threading.Event()

    class Impatient(LineHandler):
        timeout = 0.05

        def handle(self) -> None:
            try:
                self.rfile.readline()
            except TimeoutError:
                timed_out.set()
                may_speak.wait(TIMEOUT)
                self.wfile.write(b"too slow\n")

    with serving(Impatient) as (server, client):
        assert timed_out.wait(TIMEOUT)
        draining = drain(server)
        draining.join(0.1)
        assert draining.is_alive()
        may_speak.set()
        assert client.receive() == b"too slow"
        assert draining.result(TIMEOUT, "drain")


def test_a_sink_drains_when_it_marks_its_requests() -> None:
    """A protocol without answers has no boundary to be seen; marks tell."""
    stored: list[bytes] = []

    class Sink(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            for line in self.rfile:
                with mark_request("store"):
                    stored.append(line)

    with serving(Sink) as (server, client):
        client.sock.sendall(b"a\nb\n")
        eventually(lambda: len(stored) == 2)
        eventually(lambda: server.in_flight.count == 0)
        assert server.in_flight.total == 2
        assert drain(server).result(TIMEOUT, "drain")


def test_a_mark_may_hold_a_dialogue() -> None:
    """What is written and read inside a mark does not end the request."""

    class Dialogue(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            for line in self.rfile:
                with mark_request("dialogue"):
                    self.wfile.write(b"sure?\n")
                    self.wfile.write(line.strip() + b" " + self.rfile.readline())

    with serving(Dialogue) as (server, client):
        client.send(b"delete")
        assert client.receive() == b"sure?"
        draining = drain(server)
        draining.join(0.1)
        assert draining.is_alive()
        assert [request.name for request in server.in_flight.snapshot()] == ["dialogue"]
        client.send(b"yes")
        assert client.receive() == b"delete yes"
        assert draining.result(TIMEOUT, "drain")
        assert server.in_flight.total == 1


def test_a_request_is_named_and_a_health_check_does_not_count() -> None:
    """A handler names what it serves, and says what is no sign of a caller."""
    gate = threading.Event()

    def serve(payload: bytes) -> bytes:
        name_request(payload.decode(), is_health_check=payload == b"ping")
        gate.wait(TIMEOUT)
        return payload

    with serving(LineHandler, serve) as (server, client):
        client.send(b"ping")
        eventually(lambda: [request.name for request in server.in_flight.snapshot()] == ["ping"])
        assert server.in_flight.total == 0
        gate.set()
        assert client.receive() == b"ping"
        client.send(b"work")
        assert client.receive() == b"work"
        assert server.in_flight.total == 1


def test_handlers_see_the_drain() -> None:
    """A handler that streams may ask whether it should come to an end."""
    seen: list[bool] = []
    entered, gate = threading.Event(), threading.Event()

    def serve(payload: bytes) -> bytes:
        seen.append(is_draining())
        entered.set()
        gate.wait(TIMEOUT)
        seen.append(is_draining())
        return payload

    with serving(LineHandler, serve) as (server, client):
        client.send(b"stream")
        assert entered.wait(TIMEOUT)
        draining = drain(server)
        eventually(lambda: server.connections.is_draining)
        gate.set()
        assert client.receive() == b"stream"
        assert draining.result(TIMEOUT, "drain")
    assert seen == [False, True]


def test_outside_a_server_handlers_need_no_adapter() -> None:
    """The functions for handlers do nothing when nobody serves."""
    name_request("nothing")
    with mark_request("nothing"):
        assert not is_draining()


def test_the_users_clean_up_runs_once_and_last() -> None:
    """``server_close`` is called by the first ``cut_off`` after which nothing is left."""
    server = LineServer(LineHandler, bytes)
    adapter = SocketServer(server)
    adapter.start()
    adapter.close_listener(Deadline.after(TIMEOUT))
    assert adapter.drain(Deadline.after(TIMEOUT))
    assert server.cleaned_up == 0
    adapter.cut_off()
    adapter.cut_off()
    assert server.cleaned_up == 1


def test_a_server_that_is_not_bound_yet_is_bound() -> None:
    """``bind_and_activate=False`` leaves binding to start."""
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), LineHandler, bind_and_activate=False)
    adapter = SocketServer(server)
    address = adapter.start()
    assert address == server.server_address
    LineClient(address).close()
    adapter.cut_off()


def test_an_address_in_use_is_said() -> None:
    """Start raises what bind raised, and leaves no socket."""
    with LineServer(LineHandler, bytes) as other:
        server = socketserver.TCPServer(("127.0.0.1", 0), LineHandler, bind_and_activate=False)
        server.server_address = other.server_address
        adapter = SocketServer(server)
        with pytest.raises(OSError, match="in use"):
            adapter.start()
        adapter.cut_off()


@pytest.mark.parametrize("kind", [socketserver.UDPServer, socketserver.ForkingTCPServer])
def test_servers_that_cannot_be_drained_are_refused(kind: type[socketserver.TCPServer]) -> None:
    """At construction, and in words."""
    with kind(("127.0.0.1", 0), LineHandler) as server, pytest.raises(ConfigurationError, match=kind.__name__):
        SocketServer(server)


def test_sockets_that_are_more_than_sockets_are_refused(caplog: pytest.LogCaptureFixture) -> None:
    """A TLS socket would lose its TLS: its connection is closed, and the log says why."""

    class Special(socket.socket):
        pass

    class SpecialServer(LineServer):
        def get_request(self) -> tuple[socket.socket, Any]:
            sock, address = super().get_request()
            return Special(fileno=sock.detach()), address

    adapter = SocketServer(SpecialServer(LineHandler, bytes))
    with contextlib.closing(LineClient(adapter.start())) as client, pytest.raises((EOFError, ConnectionResetError)):
        client.receive()
    adapter.cut_off()
    assert "Special is not supported" in caplog.text


@pytest.mark.parametrize("handler", [LineHandler, RecvHandler])
def test_what_cannot_be_answered_is_not_served(handler: type[socketserver.BaseRequestHandler]) -> None:
    """A line that comes behind our end of the connection has no effect: its client may send it elsewhere."""
    served: list[bytes] = []

    def serve(payload: bytes) -> bytes:
        served.append(payload)
        return payload

    with serving(handler, serve) as (server, client):
        server.connections._linger = TIMEOUT  # for as long as that the end is still read from
        client.send(b"in time")
        assert client.receive() == b"in time"
        draining = drain(server)
        with pytest.raises(EOFError):
            client.receive()
        client.send(b"too late")
        client.sock.shutdown(socket.SHUT_WR)
        assert draining.result(TIMEOUT, "drain")
    assert served == [b"in time"]


def test_a_client_that_resets_harms_nobody() -> None:
    """A connection that is reset while idle, or while busy, is gone, and the drain finishes."""
    gate = threading.Event()

    def serve(payload: bytes) -> bytes:
        if payload == b"wait":
            gate.wait(TIMEOUT)
        return payload

    with serving(LineHandler, serve) as (server, idle):
        busy = LineClient(("127.0.0.1", idle.sock.getpeername()[1]))
        idle.send(b"hello")
        assert idle.receive() == b"hello"
        busy.send(b"wait")
        eventually(lambda: server.in_flight.total == 2)
        for client in (idle, busy):
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
        gate.set()
        assert drain(server).result(TIMEOUT, "drain")


def test_the_repr_shows_kind_and_counts() -> None:
    """What a log line or a debugger wants to know."""
    with serving(LineHandler) as (server, client):
        client.send(b"hello")
        client.receive()
        eventually(lambda: repr(server) == "<SocketServer LineServer connections=1 in_flight=0>")


class UnixLineServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Serves lines on a Unix socket."""

    daemon_threads = True
    removes_file = False

    def serve(self, payload: bytes) -> bytes:
        """Answer."""
        return payload

    def server_close(self) -> None:
        """Clean up as some users do, who count on the file being there."""
        super().server_close()
        if self.removes_file:
            Path(str(self.server_address)).unlink()


@pytest.mark.parametrize("removes_file", [False, True])
def test_a_unix_socket_is_drained_and_its_file_removed(tmp_path: Path, removes_file: bool) -> None:
    """By us, or in the user's own ``server_close``; and a successor can bind it."""
    path = str(tmp_path / "lines")
    wrapped = UnixLineServer(path, LineHandler, bind_and_activate=False)
    wrapped.removes_file = removes_file
    server = SocketServer(wrapped)
    assert server.start() == (path, 0)
    with socket.socket(socket.AF_UNIX) as client, socket.socket(socket.AF_UNIX) as waiting:
        client.settimeout(TIMEOUT)
        client.connect(path)
        client.sendall(b"hello\n")
        assert client.recv(16) == b"hello\n"
        waiting.connect(path)
        assert server.close_listener(Deadline.after(TIMEOUT)).method == "shutdown(SHUT_RD)"
        assert drain(server).result(TIMEOUT, "drain")
        assert client.recv(16) == waiting.recv(16) == b""
    assert server.cut_off() == ()
    with UnixLineServer(path, LineHandler):
        assert server.cut_off() == ()
        assert Path(path).exists()


def test_a_server_that_we_bind_allows_a_decoy() -> None:
    """Also while connections are open: ``allow_reuse_address`` is off by default in socketserver."""
    wrapped = socketserver.TCPServer(("127.0.0.1", 0), LineHandler, bind_and_activate=False)
    server = SocketServer(wrapped)
    address = server.start()
    try:
        with LineClient(address).sock:
            held = hold_off(wrapped.socket, [hold_off_by_decoy])
            assert held.method == "decoy"
            held.close()
    finally:
        server.close_listener(Deadline.after(TIMEOUT))
        server.cut_off()


def test_a_silent_tls_client_holds_up_nobody(tls_files: TlsFiles) -> None:
    """One that connects and never shakes hands: the next one is served, and the stop takes no longer."""
    server = SocketServer(secured(LineServer(LineHandler, bytes), tls_files))
    address = server.start()
    try:
        with contextlib.closing(LineClient(address)) as silent:
            eventually(lambda: len(server.connections) == 1)
            with contextlib.closing(TlsLineClient(address, tls_files.ca)) as client:
                client.send(b"hello")
                assert client.receive() == b"hello"
                assert drain(server).result(TIMEOUT, "drain")
            with pytest.raises(EOFError):
                silent.receive()
    finally:
        server.cut_off()


def test_a_tls_handshake_has_a_limit(tls_files: TlsFiles, caplog: pytest.LogCaptureFixture) -> None:
    """A client that says nothing is hung up on, and so is one that speaks no TLS; nothing was a request."""
    server = SocketServer(secured(LineServer(LineHandler, bytes), tls_files), handshake_timeout=0.2)
    address = server.start()
    try:
        with contextlib.closing(LineClient(address)) as silent, pytest.raises(EOFError):
            silent.receive()
        with contextlib.closing(LineClient(address)) as plain:
            plain.send(b"no TLS at all" * 10)
            with pytest.raises((EOFError, OSError)):
                plain.receive()
        eventually(lambda: caplog.text.count("no TLS with 127.0.0.1") == 2)
        assert server.in_flight.total == 0
    finally:
        server.cut_off()
    with LineServer(LineHandler, bytes) as bare, pytest.raises(ConfigurationError, match="handshake_timeout is 0"):
        SocketServer(bare, handshake_timeout=0)


def test_tls_ends_with_close_notify(tls_files: TlsFiles) -> None:
    """A handler that returns says so within TLS, so that its client can tell an end from an attack."""

    class OnceHandler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(self.rfile.readline())

    server = SocketServer(secured(LineServer(OnceHandler, bytes), tls_files))
    address = server.start()
    try:
        client = TlsLineClient(address, tls_files.ca, suppresses_ragged_eofs=False)
        with contextlib.closing(client):
            client.send(b"hello")
            assert client.receive() == b"hello"
            with pytest.raises(EOFError):  # and no SSLEOFError
                client.receive()
    finally:
        server.cut_off()
