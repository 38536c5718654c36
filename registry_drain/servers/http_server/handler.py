"""What the adapter puts in front of the user's handler class.

Theory of operation: handlers need no guess, because here the protocol is known. The user's handler class gets a
subclass, in which ``handle_one_request`` marks where a request ends. When the stop begins that class becomes an
*attentive* one, for its handlers, too, that are at work: there ``parse_request`` refuses what can no longer be served,
and ``end_headers`` adds ``Connection: close`` once the instance is delisted. So most clients have left, without a
failure, before the drain closes what is idle.

Rules:

1. No ``Connection: close`` while bytes of a pipelined request are there already: nobody may process what was sent
   behind it (RFC 9112, 9.6), so it is said in the last answer.
2. After saying it, our FIN goes out and what still comes is read for a moment: closing at once would send a reset,
   which can overtake the answer (ibid.). Only in servers with threads; without, every other client would wait for that.
"""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler
from typing import Any

from registry_drain.errors import ConfigurationError
from registry_drain.servers.connections import Connection, pending_bytes, unacknowledged_bytes
from registry_drain.servers.http.policy import READY, REFUSAL, STOPPING, RequestPolicy, Verdict
from registry_drain.servers.http_server.tracked_file import TrackedFile, read_ahead
from registry_drain.servers.socket_server import TrackedTlsSocket


class DrainableHandler(BaseHTTPRequestHandler):
    """Put in front of the user's handler class."""

    drained_policy: RequestPolicy
    drained_linger: float
    raw_requestline: bytes | None = None

    def __init__(self, *args: Any, **keywords: Any) -> None:
        # Not the class', which costs ten times as much where the instance has its own.
        self._drained_says_goodbye = False
        self._drained_connection: Connection | None = None
        self._drained_raw: TrackedFile | None = None
        self._drained_reader: Any = None
        self._drained_last: bytes | None = None
        super().__init__(*args, **keywords)

    def setup(self) -> None:
        """Prepare the connection."""
        self.request.connection.namer = self._drained_name
        super().setup()

    def handle_one_request(self) -> None:
        """Serve one request, and say where it ends."""
        connection = self._drained_connection
        if connection is None:
            connection = self._drained_begin()
        super().handle_one_request()
        raw = self._drained_raw
        if raw is None:
            connection.leftover = read_ahead(self.rfile, connection)
        elif raw.is_lone_head:
            connection.leftover = 0
        else:
            # What read_ahead() does, without its questions.
            raw.is_looked_at = True
            connection.leftover = len(self._drained_reader.peek(1))
            raw.is_looked_at = False
        self._drained_last = self.raw_requestline
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
        self._drained_raw = (
            raw if isinstance(raw, TrackedFile) and not isinstance(self.request, TrackedTlsSocket) else None
        )
        self._drained_connection, self._drained_reader = connection, reader
        return connection

    def _drained_name(self) -> str:
        """Return what the request in flight is called; from any thread. Empty until its first line is read."""
        if self.raw_requestline is self._drained_last:
            return ""
        command, path = getattr(self, "command", None), getattr(self, "path", "")
        return f"{command} {path.partition('?')[0]}" if command else ""


class AttentiveHandler(DrainableHandler):
    """The same, with a look at each request and each answer."""

    def parse_request(self) -> bool:
        """Read the request's head, and decide what becomes of it."""
        if not super().parse_request():
            return False
        path = self.path.partition("?")[0]
        policy = self.drained_policy
        if path in policy.health_check_paths:
            self.request.connection.identify(f"{self.command} {path}", is_health_check=True)
        elif not policy.stop_state.is_stopping:
            return True
        verdict = policy.verdict(path)
        if verdict is Verdict.SERVE:
            return True
        if verdict is Verdict.REFUSE:
            self._drained_answer(503, REFUSAL)
        elif policy.stop_state.is_stopping:
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


def drainable_class(handler: Any, policy: RequestPolicy, linger: float) -> tuple[Any, type[DrainableHandler]]:
    """Return what the server is to make its handlers of, and the class that they are of.

    The latter is a subclass of the user's handler class, or of the one in a ``functools.partial``.
    """
    if isinstance(handler, partial):
        factory, drainable = drainable_class(handler.func, policy, linger)
        return partial(factory, *handler.args, **handler.keywords), drainable
    if not (isinstance(handler, type) and issubclass(handler, BaseHTTPRequestHandler)):
        raise ConfigurationError(
            f"{handler!r} is not a class derived from http.server.BaseHTTPRequestHandler: "
            "give the server such a class, or use SocketServer"
        )
    members = {"drained_policy": policy, "drained_linger": linger, "__doc__": handler.__doc__}
    drainable = type(handler.__name__, (DrainableHandler, handler), {**members, "__module__": handler.__module__})
    return drainable, drainable


def be_attentive(drainable: type[DrainableHandler]) -> None:
    """Have the handlers of a class look at each request from now on. Idempotent."""
    if not issubclass(drainable, AttentiveHandler):
        drainable.__bases__ = (AttentiveHandler, *drainable.__bases__[1:])


def _is_final(headers: list[bytes]) -> bool:
    """Whether an answer's head is there, and no 1xx: those are no answers yet, or no longer HTTP."""
    status = headers[0].split()[1:2] if headers else []
    return bool(status) and not status[0].startswith(b"1")


def _has_more(connection: Connection, rfile: Any) -> bool:
    """Whether bytes have come that are not part of what was read; be it the next request or an unread body."""
    return bool(read_ahead(rfile, connection) or pending_bytes(connection.sock))


def _linger(connection: Connection, seconds: float) -> None:
    if not connection.is_half_closed:
        connection.half_close()
    connection.is_waiting = True  # not busy any more
    until = time.monotonic() + seconds
    with suppress(OSError):  # reset
        # Not before the client has the answer: a reset would cost it the rest. The drain, or the cut-off, wakes us.
        while (left := until - time.monotonic()) > 0 or unacknowledged_bytes(connection.sock):
            connection.sock.settimeout(left if left > 0 else seconds)
            with suppress(TimeoutError):
                # The base class' recv: this is about the wire, not about the contents.
                if not socket.socket.recv(connection.sock, 65536):
                    return
