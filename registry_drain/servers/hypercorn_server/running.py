"""Hypercorn while it runs in our hands, and the steps of its stop.

Theory of operation: hypercorn's ``serve()`` closes the listener and tells nobody when its trigger fires, cuts what is
left after ``graceful_timeout``, and keeps its servers and connections to itself. So what it does is done here, with its
own parts (``Lifespan``, ``TCPServer``, ``WorkerContext``), and the connections are known.

Rules:

1. The worker's context is never told that it is ``terminated``: it would reset HTTP/2 streams that come then, and close
   connections in the middle of pipelined requests.
2. ``Connection: close`` goes with the last answer of a connection, not with one that has others behind it; GOAWAY goes
   behind an answer after which no stream is open.
3. Every coroutine here runs in the server's own loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket

from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.asyncio.lifespan import Lifespan
from hypercorn.asyncio.statsd import StatsdLogger
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config, Sockets
from hypercorn.utils import LifespanFailureError, LifespanTimeoutError

from registry_drain.clock import Deadline
from registry_drain.errors import ServerError
from registry_drain.servers.asyncio_listeners import close_listeners, duplicates
from registry_drain.servers.base import ListenerClosure
from registry_drain.servers.connections import IDLE_QUIET
from registry_drain.servers.http.answers import send_with_close, without_close
from registry_drain.servers.http.asgi import ASGIMiddleware
from registry_drain.servers.http.asgi_types import Message, Scope, Send
from registry_drain.servers.hypercorn_server.connection import (
    close,
    has_more,
    is_closing,
    is_idle,
    protocol_of,
    requests_of,
    say_goodbye,
)
from registry_drain.servers.in_flight import InFlightRequest

_LOOK_EVERY = 0.005
"""Seconds between two looks at the connections that are left."""
_UNUSED_QUIET = 0.2
"""Seconds before a connection is closed that has never carried a request: its client has just connected, and is about
to send."""
_CUT_OFF_LIMIT = 0.25
"""Seconds for cancelled tasks to end."""


async def send_last(scope: Scope, send: Send, message: Message) -> None:
    """Send goodbyes where hypercorn's connection allows it: an :class:`ASGIMiddleware`'s farewell."""
    protocol = protocol_of(send)
    if message["type"] == "http.response.start" and protocol is not None and has_more(protocol):
        await send(without_close(message))
    else:
        await send_with_close(scope, send, message)
    if message["type"] == "http.response.body" and not message.get("more_body", False):
        await say_goodbye(protocol)


class RunningHypercorn:
    """A hypercorn server in the running loop. :meth:`start` it once.

    Args:
        middleware: around the application.
        config: hypercorn's own.
        idle_quiet: seconds without a byte before an idle connection is closed.
    """

    def __init__(self, middleware: ASGIMiddleware, config: Config, *, idle_quiet: float = IDLE_QUIET) -> None:
        self._config = config
        self._middleware = middleware
        # Hypercorn's annotations name the messages of the specification one by one; ours are any mapping.
        self._app = ASGIWrapper(middleware)  # type: ignore[arg-type]
        self._idle_quiet = idle_quiet
        self._context = WorkerContext(None)
        self._servers: list[asyncio.Server] = []
        self._connections: dict[TCPServer, asyncio.Task[object]] = {}
        self._lifespan: Lifespan | None = None
        self._lifespan_task: asyncio.Task[None] | None = None
        self._state: dict[str, object] = {}

    async def start(self, sockets: Sockets) -> None:
        """Run the lifespan startup and serve from ``sockets``.

        Raises:
            ServerError: the startup failed, or took longer than ``config.startup_timeout``.
        """
        config, loop = self._config, asyncio.get_running_loop()
        config.set_statsd_logger_class(StatsdLogger)
        self._lifespan = Lifespan(self._app, config, loop, self._state)
        self._lifespan_task = loop.create_task(self._lifespan.handle_lifespan())
        try:
            await self._lifespan.wait_for_startup()
            if self._lifespan_task.done():
                self._lifespan_task.result()
        except (LifespanFailureError, LifespanTimeoutError) as error:
            self._lifespan_task.cancel()
            raise ServerError(f"the application's lifespan startup failed: {error}") from error
        ssl = config.create_ssl_context() if config.ssl_enabled else None
        for sock in sockets.secure_sockets:
            self._servers.append(
                await asyncio.start_server(
                    self._serve,
                    sock=sock,
                    backlog=config.backlog,
                    ssl=ssl,
                    ssl_handshake_timeout=config.ssl_handshake_timeout,
                )
            )
        for sock in sockets.insecure_sockets:
            self._servers.append(await asyncio.start_server(self._serve, sock=sock, backlog=config.backlog))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - for the type checker: this is a task's coroutine
        loop = asyncio.get_running_loop()
        connection = TCPServer(self._app, loop, self._config, self._context, self._state, reader, writer)
        self._connections[connection] = task
        try:
            await connection
        finally:
            del self._connections[connection]

    async def close_listener(self, deadline: Deadline) -> ListenerClosure:
        """Stop accepting; what is in the backlog is served."""
        listening: list[socket.socket] = duplicates([sock.fileno() for each in self._servers for sock in each.sockets])

        def close_servers() -> None:
            for each in self._servers:
                each.close()

        return await close_listeners(listening, close_servers, deadline)

    async def drain(self, deadline: Deadline) -> bool:
        """Close what is idle, wait for the rest; True once no connection is left."""
        seen: dict[TCPServer, tuple[int, float]] = {}
        while self._connections:
            await self._close_quiet(seen)
            if deadline.is_past:
                return False
            await asyncio.sleep(min(_LOOK_EVERY, deadline.remaining()))
        return True

    async def _close_quiet(self, seen: dict[TCPServer, tuple[int, float]]) -> None:
        now = asyncio.get_running_loop().time()
        for connection in list(self._connections):
            if is_closing(connection):
                continue
            if not is_idle(connection):
                seen.pop(connection, None)
                continue
            count = requests_of(connection)
            last, since = seen.setdefault(connection, (count, now))
            if last != count:
                seen[connection] = (count, now)
            elif now - since >= (self._idle_quiet if count else _UNUSED_QUIET) and not await close(connection):
                seen[connection] = (count, now)  # GOAWAY is out: it is closed when it was quiet once more

    async def cut_off(self) -> tuple[InFlightRequest, ...]:
        """Cancel the requests, await them, close every connection; return what was in flight."""
        cut = await self._middleware.cut_off(_CUT_OFF_LIMIT)
        me = asyncio.current_task()
        for connection in list(self._connections):
            connection.writer.transport.abort()
        left = [task for task in self._connections.values() if task is not me]
        if left:
            _, stuck = await asyncio.wait(left, timeout=_CUT_OFF_LIMIT)
            for task in stuck:
                task.cancel()
            if stuck:
                await asyncio.wait(stuck, timeout=_CUT_OFF_LIMIT)
        return cut

    async def shut_down(self, limit: float) -> bool:
        """Run the application's own lifespan shutdown, for at most ``limit`` seconds; return whether it ended."""
        lifespan, task = self._lifespan, self._lifespan_task
        if lifespan is None or task is None:
            return True
        has_ended = False
        with contextlib.suppress(asyncio.TimeoutError, LifespanTimeoutError):
            await asyncio.wait_for(lifespan.wait_for_shutdown(), limit)
            has_ended = True
        task.cancel()
        await asyncio.wait({task}, timeout=_CUT_OFF_LIMIT)
        return has_ended
