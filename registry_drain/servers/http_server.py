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

import socket
import socketserver
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler
from typing import Any

from registry_drain.clock import SYSTEM_CLOCK, Clock
from registry_drain.errors import ConfigurationError
from registry_drain.servers.connections import IDLE_QUIET, LINGER, Connection, pending_bytes
from registry_drain.servers.current_request import name_request
from registry_drain.servers.http.policy import READY, REFUSAL, STOPPING, RequestPolicy, Verdict
from registry_drain.servers.socket_server import SocketServer


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
    ) -> None:
        super().__init__(server, clock=clock, idle_quiet=idle_quiet)
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
    _drained_status = 0
    _drained_says_goodbye = False

    def handle_one_request(self) -> None:
        """Serve one request, and say where it ends."""
        connection: Connection = self.request.connection
        connection.is_marked = True  # Nothing is to be guessed: Expect: 100-continue reads again after having written.
        super().handle_one_request()
        connection.end_request()
        if self._drained_says_goodbye and self.drained_linger:
            _linger(connection, self.drained_linger)

    def parse_request(self) -> bool:
        """Read the request's head, name the request, and decide what becomes of it."""
        if not super().parse_request():
            return False
        path = self.path.partition("?")[0]
        policy = self.drained_policy
        name_request(f"{self.command} {path}", is_health_check=path in policy.health_check_paths)
        verdict = policy.verdict(path)
        if verdict is Verdict.SERVE:
            return True
        is_stopping = self.request.connection.stop_state.is_stopping
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

    def send_response_only(self, code: int, message: str | None = None) -> None:
        """Begin an answer."""
        self._drained_status = int(code)
        super().send_response_only(code, message)

    def end_headers(self) -> None:
        """End an answer's head, with ``Connection: close`` if that is due."""
        connection: Connection = self.request.connection
        # 1xx are no answers yet, or no longer HTTP.
        if connection.stop_state.is_delisted and self._drained_status >= 200 and not _has_more(connection):
            headers = getattr(self, "_headers_buffer", [])
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


def _has_more(connection: Connection) -> bool:
    """Whether bytes have come that are not part of what was read; be it the next request or an unread body."""
    return bool(connection.leftover or pending_bytes(connection.sock))


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
