"""Drains ``http.server``, and what is built on it: ``xmlrpc.server``, ``wsgiref``, JSON-RPC services, Werkzeug's.

Theory of operation: a :class:`~registry_drain.servers.socket_server.SocketServer` whose handlers need no guess, because
here the protocol is known. The user's handler class gets a subclass, in which ``handle_one_request`` marks where a
request ends, ``parse_request`` names it, and ``end_headers`` adds ``Connection: close`` once the instance is delisted.
So most clients have left, without a failure, before the drain closes what is idle.

Rules:

1. No ``Connection: close`` while bytes of a pipelined request are there already: nobody may process what was sent
   behind it (RFC 9112, 9.6), so it is said in the last answer.
2. After saying it, our FIN goes out and what still comes is read for a moment: closing at once would send a reset,
   which can overtake the answer (ibid.). Only in servers with threads; without, every other client would wait for that.
"""

from __future__ import annotations

import io
import socket
import socketserver
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any

from registry_drain.clock import SYSTEM_CLOCK, Clock
from registry_drain.errors import ConfigurationError
from registry_drain.servers.connections import IDLE_QUIET, LINGER, SPREAD, Connection, pending_bytes
from registry_drain.servers.current_request import name_request
from registry_drain.servers.http.policy import READY, REFUSAL, STOPPING, RequestPolicy, Verdict
from registry_drain.servers.socket_server import HANDSHAKE_TIMEOUT, SocketServer, TrackedSocket, TrackedTlsSocket

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


class HttpServer(SocketServer):
    """Makes an ``http.server`` server (with threads or without, HTTP/1.0 or 1.1) drainable. Thread-safe.

    Give it the server object before anybody runs it; see :class:`SocketServer`. XML-RPC calls are named by their method
    in reports, all others ``"GET /path"``.

    Args:
        server: the user's own.
        health_check_paths: exact paths that are no sign of callers.
        readiness_path: is answered here, 200 or 503; see :class:`~registry_drain.servers.http.policy.RequestPolicy`.
        refuses_when_sealed: refuse what comes once the listener is closed; see there.
        retry_after: seconds; see there.
        clock: for the instants of requests.
        idle_quiet: seconds without a byte before an idle connection is closed by the drain.
        spread: seconds over which idle connections are closed; see :class:`SocketServer`.
        handshake_timeout: seconds for a TLS handshake; see :class:`SocketServer`.

    Raises:
        ConfigurationError: a kind of server that this adapter cannot drain, or a bad path.
    """

    def __init__(
        self,
        server: socketserver.TCPServer,
        *,
        health_check_paths: Iterable[str] = (),
        readiness_path: str = "",
        refuses_when_sealed: bool = False,
        retry_after: int = 1,
        clock: Clock = SYSTEM_CLOCK,
        idle_quiet: float = IDLE_QUIET,
        spread: float = SPREAD,
        handshake_timeout: float = HANDSHAKE_TIMEOUT,
    ) -> None:
        super().__init__(server, clock=clock, idle_quiet=idle_quiet, spread=spread, handshake_timeout=handshake_timeout)
        self._plain_class, self._tls_class = _HttpSocket, _HttpTlsSocket
        policy = RequestPolicy(
            self.in_flight.stop_state,
            health_check_paths=health_check_paths,
            readiness_path=readiness_path,
            refuses_when_sealed=refuses_when_sealed,
            retry_after=retry_after,
        )
        linger = LINGER if isinstance(server, socketserver.ThreadingMixIn) else 0.0
        server.RequestHandlerClass = _drainable(server.RequestHandlerClass, policy, linger)
        dispatch = getattr(server, "_dispatch", None)
        if dispatch is not None:
            server._dispatch = partial(_named_dispatch, dispatch)  # type: ignore[attr-defined]  # noqa: SLF001

    def __repr__(self) -> str:
        """Show the wrapped server's kind and the counts."""
        return super().__repr__().replace("SocketServer", "HttpServer", 1)


class _DrainableHandler(BaseHTTPRequestHandler):
    """Put in front of the user's handler class."""

    drained_policy: RequestPolicy
    drained_linger: float

    def __init__(self, *args: Any, **keywords: Any) -> None:
        # Not the class', which costs ten times as much where the instance has its own.
        self._drained_says_goodbye = False
        self._drained_connection: Connection | None = None
        self._drained_raw: _Raw | None = None
        self._drained_reader: Any = None
        super().__init__(*args, **keywords)

    def handle_one_request(self) -> None:
        """Serve one request, and say where it ends."""
        connection = self._drained_connection
        if connection is None:
            connection = self._drained_begin()
        super().handle_one_request()
        raw = self._drained_raw
        if raw is None:
            connection.leftover = _read_ahead(self.rfile, connection)
        elif raw.is_lone_head:
            connection.leftover = 0
        else:
            # What _read_ahead() does, without its questions.
            raw.is_looked_at = True
            connection.leftover = len(self._drained_reader.peek(1))
            raw.is_looked_at = False
        if not self._drained_says_goodbye:
            connection.end_request()
            return
        if isinstance(self.request, TrackedTlsSocket):
            self.request.say_goodbye()  # before our FIN
        connection.end_request()
        if self.drained_linger:
            _linger(connection, self.drained_linger)

    def _drained_begin(self) -> Connection:
        """Prepare the connection's first request."""
        connection: Connection = self.request.connection
        connection.is_marked = True  # Nothing is to be guessed: Expect: 100-continue reads on behind what it wrote.
        self.request.guess_no_more()
        reader: Any = self.rfile
        raw = getattr(reader, "raw", None)
        self._drained_raw = raw if isinstance(raw, _Raw) and not isinstance(self.request, TrackedTlsSocket) else None
        self._drained_connection, self._drained_reader = connection, reader
        return connection

    def parse_request(self) -> bool:
        """Read the request's head, name the request, and decide what becomes of it."""
        if not super().parse_request():
            return False
        path = self.path
        if "?" in path:
            path = path.partition("?")[0]
        policy = self.drained_policy
        connection: Connection = self.request.connection
        if policy.health_check_paths and path in policy.health_check_paths:
            connection.identify(f"{self.command} {path}", is_health_check=True)
        else:
            connection.name = f"{self.command} {path}"
        if not (policy.stop_state.is_stopping or policy.readiness_path):
            return True
        verdict = policy.verdict(path)
        if verdict is Verdict.SERVE:
            return True
        is_stopping = policy.stop_state.is_stopping
        if verdict is Verdict.REFUSE:
            self._drained_answer(503, REFUSAL)
        elif is_stopping:
            self._drained_answer(503, STOPPING)
        else:
            self._drained_answer(200, READY)
        return False

    def _drained_answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        if status == 503:
            self.send_header("Retry-After", self.drained_policy.retry_after)
            self.send_header("Connection", "close")
            self._drained_says_goodbye = True
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()

    def end_headers(self) -> None:
        """End an answer's head, with ``Connection: close`` if that is due."""
        state = self.drained_policy.stop_state
        if state.is_delisted:
            headers: list[bytes] = getattr(self, "_headers_buffer", [])
            if _is_final(headers) and not _has_more(self.request.connection, self.rfile):
                headers[:] = [line for line in headers if not line.lower().startswith(b"connection:")]
                self.send_header("Connection", "close")
                self._drained_says_goodbye = True
        super().end_headers()


def _drainable(handler: Any, policy: RequestPolicy, linger: float) -> Any:
    """Return a subclass of the user's handler class, or of the one in a ``functools.partial``."""
    if isinstance(handler, partial):
        return partial(_drainable(handler.func, policy, linger), *handler.args, **handler.keywords)
    if not (isinstance(handler, type) and issubclass(handler, BaseHTTPRequestHandler)):
        raise ConfigurationError(
            f"{handler!r} is not a class derived from http.server.BaseHTTPRequestHandler: "
            "give the server such a class, or use SocketServer"
        )
    members = {"drained_policy": policy, "drained_linger": linger, "__doc__": handler.__doc__}
    return type(handler.__name__, (_DrainableHandler, handler), {**members, "__module__": handler.__module__})


def _named_dispatch(dispatch: Callable[[str, Any], Any], method: str, params: Any) -> Any:
    name_request(method)
    return dispatch(method, params)


class _HttpSocket(TrackedSocket):
    """The handler's socket: cheaper than one that has to guess, since handlers of ours say where a request ends."""

    def guess_no_more(self) -> None:
        """Let the handler write without anybody noting that it did; what is noted there serves only to guess."""
        self.send = super(TrackedSocket, self).send  # type: ignore[method-assign]
        self.sendall = super(TrackedSocket, self).sendall  # type: ignore[method-assign]

    def makefile(self, mode: str = "r", buffering: int | None = None, **text: Any) -> Any:
        """Make a file; the handler's ``rfile`` is the interpreter's own reader, around a :class:`_Raw`."""
        if mode not in {"rb", "br"} or buffering == 0:
            return super().makefile(mode, buffering, **text)
        size = io.DEFAULT_BUFFER_SIZE if buffering is None or buffering < 0 else buffering
        self._io_refs += 1  # type: ignore[attr-defined]  # as socket.makefile does; SocketIO.close takes it back
        return io.BufferedReader(_Raw(self), size)


class _HttpTlsSocket(_HttpSocket, TrackedTlsSocket):  # type: ignore[misc]  # typeshed names parameters differently
    """The same over TLS."""


class _Raw(socket.SocketIO):
    """What ``rfile`` reads from; while somebody looks how much it has read ahead, there is nothing.

    Attributes:
        is_looked_at: somebody does.
        is_lone_head: whether only one whole head has come since the last request: to look what was read ahead takes
            longer.
    """

    # An instance of a class from io has a dict that the interpreter's fast paths know nothing of.
    __slots__ = ("_connection", "_receive_into", "is_lone_head", "is_looked_at")

    def __init__(self, sock: _HttpSocket) -> None:
        super().__init__(sock, "r")
        self.is_looked_at = self.is_lone_head = False
        self._connection = sock.connection
        self._receive_into = super(TrackedSocket, sock).recv_into  # past what a socket that guesses does besides

    def readinto(self, buffer: WriteableBuffer, /) -> int | None:
        if self.is_looked_at:
            return None
        connection = self._connection
        is_over: bool = connection.is_half_closed
        if is_over or not connection.is_marked or connection.received != connection.boundary:
            self.is_lone_head = False
            return super().readinto(buffer)
        connection.is_waiting = True
        try:
            received = self._receive_into(buffer)
        finally:
            connection.is_waiting = False
        if received:
            connection.received += received
            if connection.is_half_closed and not connection.may_serve():
                connection.discard_input()
                return 0
            connection.begin_request()
            contents: Any = buffer  # a buffered reader's is a memoryview
            self.is_lone_head = received > 3 and bytes(contents[:received]).find(b"\r\n\r\n") == received - 4
        return received


def _read_ahead(rfile: Any, connection: Connection) -> int:
    """Return how many bytes ``rfile`` has that nobody has taken; a reader that is not ours keeps count by itself."""
    raw = getattr(rfile, "raw", None)
    if not isinstance(raw, _Raw):
        return connection.leftover
    sock = connection.sock
    decrypted = sock.read_ahead() if isinstance(sock, TrackedTlsSocket) else 0
    raw.is_looked_at = True
    try:
        return len(rfile.peek(1)) + decrypted
    finally:
        raw.is_looked_at = False


def _is_final(headers: list[bytes]) -> bool:
    """Whether an answer's head is there, and no 1xx: those are no answers yet, or no longer HTTP."""
    status = headers[0].split()[1:2] if headers else []
    return bool(status) and not status[0].startswith(b"1")


def _has_more(connection: Connection, rfile: Any) -> bool:
    """Whether bytes have come that are not part of what was read; be it the next request or an unread body."""
    return bool(_read_ahead(rfile, connection) or pending_bytes(connection.sock))


def _linger(connection: Connection, seconds: float) -> None:
    if not connection.is_half_closed:
        connection.half_close()
    connection.is_waiting = True  # not busy any more
    until = time.monotonic() + seconds
    with suppress(OSError):  # out of time, or reset
        while (left := until - time.monotonic()) > 0:
            connection.sock.settimeout(left)
            # The base class' recv: this is about the wire, not about the contents.
            if not socket.socket.recv(connection.sock, 65536):
                return
