"""Runs uvicorn and drains it: the adapter for programs that start their server themselves.

Theory of operation: uvicorn's own server object starts (lifespan, listeners, Date header), and is stopped by
:mod:`~registry_drain.servers.uvicorn_server.running`. Its ``serve()`` is not used, and so none of its signal handlers
is installed, no signal is raised again at the end, and the process' exit status is the program's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path
from typing import Any

import uvicorn

from registry_drain.clock import SYSTEM_CLOCK, Clock
from registry_drain.errors import ConfigurationError, ServerError
from registry_drain.servers.asgi_adapter import ASGIAdapter
from registry_drain.servers.connections import IDLE_QUIET
from registry_drain.servers.http.asgi import ASGIMiddleware
from registry_drain.servers.uvicorn_server.binding import bind
from registry_drain.servers.uvicorn_server.request import CycleRequest, send_last
from registry_drain.servers.uvicorn_server.running import RunningUvicorn

_TICK = 0.1
"""Seconds between two calls of uvicorn's ``on_tick``, as its own main loop has it."""


class UvicornServer(ASGIAdapter):
    """Makes uvicorn drainable. Thread-safe.

    Args:
        config: uvicorn's own, with the application: ``uvicorn.Config(app, host=…, port=…)``.
        clock: for the instants of requests.
        idle_quiet: seconds without a byte before an idle connection is closed by the drain.
        middleware: options of :class:`~registry_drain.servers.http.ASGIMiddleware`: ``health_check_paths``,
            ``readiness_path``, …

    Raises:
        ConfigurationError: settings that belong to uvicorn's own command line (workers, reload, limit_max_requests).
    """

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        clock: Clock = SYSTEM_CLOCK,
        idle_quiet: float = IDLE_QUIET,
        **middleware: Any,
    ) -> None:
        super().__init__("uvicorn", clock)
        for setting, is_set in (
            ("workers", config.workers > 1),
            ("reload", bool(config.reload)),
            ("limit_max_requests", config.limit_max_requests is not None),
        ):
            if is_set:
                raise ConfigurationError(
                    f"uvicorn.Config({setting}=…) belongs to a supervisor, and this process has none: leave it out, or"
                    " start uvicorn by its command line and wrap the application (registry_drain.hosted)"
                )
        self._config = config
        self._middleware_options = middleware
        self._idle_quiet = idle_quiet
        self._ticking: asyncio.Task[None] | None = None

    def _bind(self) -> list[socket.socket]:
        return bind(self._config)

    async def _start(self, sockets: list[socket.socket]) -> RunningUvicorn:
        config = self._config
        if not config.loaded:
            config.load()
        middleware = ASGIMiddleware(
            config.loaded_app, self._in_flight, farewell=send_last, inside=CycleRequest, **self._middleware_options
        )
        config.loaded_app = middleware
        server = uvicorn.Server(config)
        server.lifespan = config.lifespan_class(config)
        try:
            await server.startup(sockets=sockets)
        except SystemExit:
            raise ServerError("the application's lifespan startup failed; the log says why") from None
        self._ticking = asyncio.get_running_loop().create_task(_tick(server))
        return RunningUvicorn(server, middleware, idle_quiet=self._idle_quiet, on_end=self._ticking.cancel)

    def _listener_closed(self) -> None:
        if self._config.uds is not None:
            with contextlib.suppress(FileNotFoundError):
                Path(self._config.uds).unlink()

    def __repr__(self) -> str:
        """Show the address and the count."""
        where = self._config.uds or f"{self._config.host}:{self._config.port}"
        return f"<UvicornServer {where} in_flight={self._in_flight.count}>"


async def _tick(server: uvicorn.Server) -> None:
    """Keep the Date header right; nothing here ends the server."""
    counter = 0
    while True:
        await server.on_tick(counter)
        counter = (counter + 1) % 864000
        await asyncio.sleep(_TICK)
