"""Stops an aiohttp application that runs, in its event loop, without losing a request.

Theory of operation: aiohttp's own cleanup closes the listener first, then every connection that is between two
requests, then runs ``on_shutdown``; and deregisters, where its users have put that there, too late. Here the
application is out of its registries before any of this begins. Then the listener is closed as
:mod:`registry_drain.servers.asyncio_listeners` does it; ``on_shutdown`` runs when the drain begins, as aiohttp has it;
WebSockets are closed with 1001 (going away) as soon as their handler waits for a message, and at half of the time
anyway; idle connections when they were quiet for a while; and ``on_cleanup`` runs when nothing is in flight.

Rules:

1. A connection is closed in the same turn of the loop in which it was seen to be quiet.
2. WebSockets are closed some at a time, so that reconnecting clients do not all come at once.
3. Every coroutine here runs in the application's loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence

from aiohttp import WSCloseCode, web

from registry_drain.clock import Deadline
from registry_drain.servers.aiohttp_server.tracking import Connection, Tracking, has_more
from registry_drain.servers.asyncio_listeners import close_listeners, duplicates
from registry_drain.servers.base import ListenerClosure
from registry_drain.servers.connections import IDLE_QUIET
from registry_drain.servers.in_flight import InFlight, InFlightRequest

logger = logging.getLogger(__name__)

_LOOK_EVERY = 0.005
"""Seconds between two looks at the connections that are left."""
_UNUSED_QUIET = 0.2
"""Seconds before a connection is closed that has not carried a request since the instance was delisted: its client may
have just connected, and be about to send."""
_WEBSOCKETS_AT_ONCE = 10
"""At each look: 2,000 in a second."""
_CUT_OFF_LIMIT = 0.25
"""Seconds for cancelled requests to end."""
_LEFT_LIMIT = 0.05
"""Seconds that aiohttp's own shutdown gives to connections; by then there should be none."""


class Runner(web.AppRunner):
    """aiohttp's own runner, with the application's ``on_shutdown`` run once, whoever asks for it first."""

    __slots__ = ("_has_shut_down",)

    def __init__(self, app: web.Application, **options: object) -> None:
        super().__init__(app, handle_signals=False, shutdown_timeout=_LEFT_LIMIT, **options)  # type: ignore[arg-type]
        self._has_shut_down = False

    async def shutdown(self) -> None:
        """Run ``on_shutdown``."""
        if not self._has_shut_down:
            self._has_shut_down = True
            await super().shutdown()


class RunningAiohttp:
    """The steps of a stop, for an application that serves.

    Args:
        runner: has set the application up.
        listeners: accept its connections.
        tracking: of the application.
        in_flight: the server's.
        idle_quiet: seconds without a request before an idle connection is closed.
    """

    def __init__(
        self,
        runner: Runner,
        listeners: Sequence[asyncio.Server],
        tracking: Tracking,
        in_flight: InFlight,
        *,
        idle_quiet: float = IDLE_QUIET,
    ) -> None:
        self._runner = runner
        self._listeners = listeners
        self._tracking = tracking
        self._in_flight = in_flight
        self._idle_quiet = idle_quiet
        self._first_seen: dict[Connection, float] = {}
        self._hook: asyncio.Task[None] | None = None
        self._goodbyes: set[asyncio.Task[None]] = set()

    async def close_listener(self, deadline: Deadline) -> ListenerClosure:
        """Stop accepting; what is in the backlog is served."""
        descriptors = [sock.fileno() for each in self._listeners for sock in each.sockets]

        def close() -> None:
            for each in self._listeners:
                each.close()

        return await close_listeners(duplicates(descriptors), close, deadline)

    async def drain(self, deadline: Deadline) -> bool:
        """Run ``on_shutdown``, close what is idle, wait for the rest; True once no connection or handler is left."""
        loop = asyncio.get_running_loop()
        if self._hook is None:
            self._hook = loop.create_task(self._shut_down_hook())
        insists_at = loop.time() + deadline.remaining() / 2
        # Handlers may outlive their connections.
        while self._connections() or self._tracking.served or not self._hook.done():
            self._close_websockets(is_insisting=loop.time() >= insists_at)
            self._close_quiet(loop.time())
            if deadline.is_past:
                return False
            await asyncio.sleep(min(_LOOK_EVERY, deadline.remaining()))
        return True

    async def _shut_down_hook(self) -> None:
        try:
            await self._runner.shutdown()
        except Exception:
            logger.exception("on_shutdown of the application failed; the stop goes on")

    def _connections(self) -> list[Connection]:
        server = self._runner.server
        return [] if server is None else [each for each in server.connections if isinstance(each, Connection)]

    def _close_quiet(self, now: float) -> None:
        connections = self._connections()
        for connection in connections:
            if connection.served is not None or has_more(connection):
                self._first_seen.pop(connection, None)
                continue
            since = self._first_seen.setdefault(connection, now)
            ended_at = connection.ended_at
            quiet = self._idle_quiet
            if ended_at is None:
                quiet = max(quiet, _UNUSED_QUIET)
            elif ended_at > since:
                since = self._first_seen[connection] = ended_at
            if now - since >= quiet:
                connection.force_close()

    def _close_websockets(self, *, is_insisting: bool) -> None:
        closing = 0
        for served in self._tracking.served:
            websocket = served.websocket
            if websocket is None or served.is_sent_away or websocket.closed:
                continue
            # Its handler waits for a message, so it has answered the last one.
            if is_insisting or getattr(websocket, "_waiting", True):
                served.is_sent_away = True
                goodbye = asyncio.get_running_loop().create_task(_close(websocket))
                self._goodbyes.add(goodbye)
                goodbye.add_done_callback(self._goodbyes.discard)
                closing += 1
                if closing >= _WEBSOCKETS_AT_ONCE:
                    return

    async def cut_off(self) -> tuple[InFlightRequest, ...]:
        """Cancel the requests, await them, close every connection; return what was in flight."""
        cut = self._in_flight.snapshot()
        left = self._tracking.served
        me = asyncio.current_task()
        tasks = [each.handler_task for each in left if each.handler_task is not None and each.handler_task is not me]
        for served in left:
            served.is_cut = True
        for task in (*tasks, *self._goodbyes, *([self._hook] if self._hook else [])):
            task.cancel()
        if tasks:
            _, stuck = await asyncio.wait(tasks, timeout=_CUT_OFF_LIMIT)
            for task in stuck:
                logger.warning("%r does not end although it was cancelled", task)
        for connection in self._connections():
            transport = connection.transport
            # What was written already (a 503) has left, unless the client does not read.
            if transport is not None and transport.get_write_buffer_size():
                transport.abort()
            connection.force_close()
        for _ in range(4):  # turns in which transports tell that they are closed
            await asyncio.sleep(0)
        return cut

    async def shut_down(self, limit: float) -> bool:
        """Run ``on_shutdown``, if that was not, and ``on_cleanup``, for at most ``limit`` seconds."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._runner.cleanup(), limit)
            return True
        return False


async def _close(websocket: web.WebSocketResponse) -> None:
    try:
        await websocket.close(code=WSCloseCode.GOING_AWAY, message=b"this instance is stopping")
    except Exception as error:  # noqa: BLE001 - the client is gone, or somebody else's close was faster
        logger.info("a WebSocket could not be closed: %r", error)
