"""Runs an aiohttp application and drains it: the adapter for programs that start their server themselves.

Theory of operation: in place of ``web.run_app(app)`` stands ``serve(AiohttpServer(app, …), …)``, or ``await
serve_async(…)`` in an application's own loop. aiohttp's own runner sets the application up (``on_startup``,
``cleanup_ctx``) and cleans up; the listeners are ours to close, and so are the signals.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Iterable
from typing import Any

from aiohttp import web

from registry_drain.clock import SYSTEM_CLOCK, Clock
from registry_drain.errors import ConfigurationError, ServerError
from registry_drain.servers.aiohttp_server.binding import bind, bind_path
from registry_drain.servers.aiohttp_server.running import Runner, RunningAiohttp
from registry_drain.servers.aiohttp_server.tracking import Tracking
from registry_drain.servers.asgi_adapter import ASGIAdapter
from registry_drain.servers.connections import IDLE_QUIET
from registry_drain.servers.http.policy import RequestPolicy
from registry_drain.servers.listener import BoundPath

_BACKLOG = 128
"""aiohttp's own default."""


class AiohttpServer(ASGIAdapter):
    """Makes an aiohttp application drainable. Thread-safe.

    Args:
        app: not run before.
        host: what to bind; empty: every address.
        port: 0 for any; ``in_flight`` and reports do not need it.
        path: a Unix socket's path, instead of host and port.
        ssl_context: for HTTPS.
        backlog: connections that wait to be accepted.
        health_check_paths: exact paths that are no sign of callers.
        readiness_path: is answered here, 200 or 503; see :class:`~registry_drain.servers.http.policy.RequestPolicy`.
        refuses_when_sealed: refuse what comes once the listener is closed; see there.
        retry_after: seconds; see there.
        clock: for the instants of requests.
        idle_quiet: seconds without a request before an idle connection is closed by the drain.
        runner: options of ``web.AppRunner``: ``access_log``, ``keepalive_timeout``, ``handler_cancellation``, …

    Raises:
        ConfigurationError: the application was run before, or a setting cannot work.
    """

    def __init__(
        self,
        app: web.Application,
        host: str = "",
        port: int = 8080,
        *,
        path: str = "",
        ssl_context: ssl.SSLContext | None = None,
        backlog: int = _BACKLOG,
        health_check_paths: Iterable[str] = (),
        readiness_path: str = "",
        refuses_when_sealed: bool = False,
        retry_after: int = 1,
        clock: Clock = SYSTEM_CLOCK,
        idle_quiet: float = IDLE_QUIET,
        **runner: Any,
    ) -> None:
        super().__init__("aiohttp", clock)
        if app.frozen:
            raise ConfigurationError(f"{app!r} was run before: make a new web.Application to serve again")
        for option in ("handle_signals", "shutdown_timeout"):
            if option in runner:
                raise ConfigurationError(f"{option}={runner[option]!r}: the stop routine's business; leave it out")
        policy = RequestPolicy(
            self.in_flight.stop_state,
            health_check_paths=health_check_paths,
            readiness_path=readiness_path,
            refuses_when_sealed=refuses_when_sealed,
            retry_after=retry_after,
        )
        self._app = app
        self._tracking = Tracking(self.in_flight, policy)
        self._address = (host, port)
        self._path = path
        self._bound_path: BoundPath | None = None
        self._ssl_context = ssl_context
        self._backlog = backlog
        self._idle_quiet = idle_quiet
        self._runner_options = runner

    def _bind(self) -> list[socket.socket]:
        sock = bind_path(self._path) if self._path else bind(*self._address)
        self._bound_path = BoundPath(sock)
        return [sock]

    async def _start(self, sockets: list[socket.socket]) -> RunningAiohttp:
        runner = Runner(self._app, **self._runner_options)
        try:
            await runner.setup()
        except Exception as error:
            await runner.cleanup()
            raise ServerError(f"on_startup of the application failed: {error!r}") from error
        server = runner.server
        if server is None:
            raise ServerError("aiohttp has set up no server")
        new_connection = self._tracking.attach(server)
        loop = asyncio.get_running_loop()
        listeners = [
            await loop.create_server(new_connection, sock=sock, ssl=self._ssl_context, backlog=self._backlog)
            for sock in sockets
        ]
        return RunningAiohttp(runner, listeners, self._tracking, self.in_flight, idle_quiet=self._idle_quiet)

    def _listener_closed(self) -> None:
        if self._bound_path is not None:
            self._bound_path.remove()
