"""Runs hypercorn and drains it: the adapter for programs that start their server themselves.

Hypercorn's own command line cannot be drained from inside the application, unless it runs without worker processes:
``docs/hypercorn.md`` says why, and what was measured.
"""

from __future__ import annotations

import inspect
import socket
from typing import Any

from hypercorn.config import Config, Sockets

from registry_drain.clock import SYSTEM_CLOCK, Clock
from registry_drain.errors import ConfigurationError
from registry_drain.servers.asgi_adapter import ASGIAdapter
from registry_drain.servers.connections import IDLE_QUIET
from registry_drain.servers.http.asgi import ASGIMiddleware
from registry_drain.servers.http.asgi_types import ASGIApplication
from registry_drain.servers.hypercorn_server.running import RunningHypercorn, send_last


class HypercornServer(ASGIAdapter):
    """Makes hypercorn drainable. Thread-safe.

    Args:
        app: the ASGI application.
        config: hypercorn's own: ``bind``, ``certfile``, … Its ``graceful_timeout`` and ``shutdown_timeout`` have no
            part in the stop: the budget has.
        clock: for the instants of requests.
        idle_quiet: seconds without a byte before an idle connection is closed by the drain.
        middleware: options of :class:`~registry_drain.servers.http.ASGIMiddleware`: ``health_check_paths``,
            ``readiness_path``, …

    Raises:
        ConfigurationError: not an ASGI application, or settings that belong to hypercorn's own command line (workers,
            use_reloader, max_requests), or QUIC.
    """

    def __init__(
        self,
        app: ASGIApplication,
        config: Config,
        *,
        clock: Clock = SYSTEM_CLOCK,
        idle_quiet: float = IDLE_QUIET,
        **middleware: Any,
    ) -> None:
        super().__init__("hypercorn", clock)
        if not (inspect.iscoroutinefunction(app) or inspect.iscoroutinefunction(getattr(app, "__call__", None))):  # noqa: B004
            raise ConfigurationError(
                f"{app!r} is no ASGI application: wrap a WSGI one with hypercorn.middleware.AsyncioWSGIMiddleware"
            )
        for setting, is_set in (
            ("workers", config.workers > 1),
            ("use_reloader", config.use_reloader),
            ("max_requests", config.max_requests is not None),
        ):
            if is_set:
                raise ConfigurationError(
                    f"hypercorn's {setting} belongs to a supervisor, and this process has none: leave it out, and start"
                    " several instances, each with a port of its own"
                )
        if config.quic_bind:
            raise ConfigurationError("quic_bind cannot be drained: serve HTTP/3 by a proxy in front")
        self._config = config
        self._middleware = ASGIMiddleware(app, self._in_flight, farewell=send_last, **middleware)
        self._idle_quiet = idle_quiet
        self._sockets = Sockets([], [], [])

    def _bind(self) -> list[socket.socket]:
        self._sockets = self._config.create_sockets()
        return [*self._sockets.secure_sockets, *self._sockets.insecure_sockets]

    async def _start(self, sockets: list[socket.socket]) -> RunningHypercorn:  # noqa: ARG002 - by kind, as bound
        running = RunningHypercorn(self._middleware, self._config, idle_quiet=self._idle_quiet)
        await running.start(self._sockets)
        return running

    def __repr__(self) -> str:
        """Show the addresses and the count."""
        return f"<HypercornServer {' '.join(self._config.bind)} in_flight={self._in_flight.count}>"
