"""The adapter: a :class:`~registry_drain.servers.socket_server.SocketServer` whose handlers know their protocol."""

from __future__ import annotations

import socketserver
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from registry_drain.clock import SYSTEM_CLOCK, Clock
from registry_drain.servers.connections import IDLE_QUIET, LINGER, SPREAD, Connection
from registry_drain.servers.current_request import serving
from registry_drain.servers.http.policy import RequestPolicy
from registry_drain.servers.http_server.handler import be_attentive, drainable_class
from registry_drain.servers.http_server.tracked_file import HttpSocket, HttpTlsSocket
from registry_drain.servers.socket_server import HANDSHAKE_TIMEOUT, SocketServer


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
        self._plain_class, self._tls_class = HttpSocket, HttpTlsSocket
        policy = RequestPolicy(
            self.in_flight.stop_state,
            health_check_paths=health_check_paths,
            readiness_path=readiness_path,
            refuses_when_sealed=refuses_when_sealed,
            retry_after=retry_after,
        )
        linger = LINGER if isinstance(server, socketserver.ThreadingMixIn) else 0.0
        server.RequestHandlerClass, drainable = drainable_class(server.RequestHandlerClass, policy, linger)
        if policy.health_check_paths:
            be_attentive(drainable)
        else:
            self.in_flight.stop_state.watch(lambda _phase: be_attentive(drainable))
        dispatch = getattr(server, "_dispatch", None)
        if dispatch is not None:
            server._dispatch = partial(_named_dispatch, dispatch)  # type: ignore[attr-defined]  # noqa: SLF001

    def __repr__(self) -> str:
        """Show the wrapped server's kind and the counts."""
        return super().__repr__().replace("SocketServer", "HttpServer", 1)


def _named_dispatch(dispatch: Callable[[str, Any], Any], method: str, params: Any) -> Any:
    connection = serving.get()
    if isinstance(connection, Connection):
        connection.name = method
    return dispatch(method, params)
