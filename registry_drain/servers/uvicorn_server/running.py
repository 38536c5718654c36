"""Stops a ``uvicorn.Server`` that runs, in its event loop, without losing a request.

Theory of operation: uvicorn's own ``shutdown()`` closes the listener at once, then every connection that is between two
requests, whatever its client is just sending; and it forgets requests that were pipelined. Here the listener is closed
as :mod:`registry_drain.servers.asyncio_listeners` does it; ``Connection: close`` has told clients to leave since the
instance is out of its registries (:mod:`registry_drain.servers.uvicorn_server.request`); and a connection that is left
is closed when it was quiet for a while.

Rules:

1. ``Connection: close`` goes with the last answer of a connection, not with one that has others behind it: uvicorn
   closes behind the header, and what was pipelined would get no answer.
2. A connection is closed in the same turn of the loop in which it was seen to be quiet.
3. Every coroutine here runs in the server's own loop.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import uvicorn

from registry_drain.clock import Deadline
from registry_drain.servers.asyncio_listeners import close_listeners, duplicates, leave_listeners
from registry_drain.servers.base import ListenerClosure
from registry_drain.servers.connections import IDLE_QUIET
from registry_drain.servers.http.asgi import ASGIMiddleware
from registry_drain.servers.in_flight import InFlightRequest
from registry_drain.servers.uvicorn_server.connection import is_between_requests, is_http

_LOOK_EVERY = 0.005
"""Seconds between two looks at the connections that are left."""
_UNUSED_QUIET = 0.2
"""Seconds before a connection is closed that has never carried a request: its client has just connected, and is about
to send."""
_CUT_OFF_LIMIT = 0.25
"""Seconds for cancelled tasks to end."""


class RunningUvicorn:
    """The steps of a stop, for a server that has started. For its event loop.

    Args:
        server: uvicorn's.
        middleware: around its application.
        idle_quiet: seconds without a byte before an idle connection is closed.
        on_end: is called when everything is cut off.
    """

    def __init__(
        self,
        server: uvicorn.Server,
        middleware: ASGIMiddleware,
        *,
        idle_quiet: float = IDLE_QUIET,
        on_end: Callable[[], object] = lambda: None,
    ) -> None:
        self._server = server
        self._middleware = middleware
        self._idle_quiet = idle_quiet
        self._on_end = on_end

    async def close_listener(
        self, deadline: Deadline, *, is_last: Callable[[], bool] = lambda: True
    ) -> ListenerClosure:
        """Stop accepting; what is in the backlog is served.

        Args:
            deadline: see :meth:`DrainableServer.close_listener`.
            is_last: whether no other process listens any more; see :func:`close_listeners`.
        """
        return await close_listeners(duplicates(self._descriptors()), self._close_servers, deadline, is_last=is_last)

    async def leave_listener(self) -> ListenerClosure:
        """Stop accepting from sockets that other processes go on serving."""
        await leave_listeners(self._descriptors(), self._close_servers)
        return ListenerClosure("left to the other workers")

    def _descriptors(self) -> list[int]:
        return [sock.fileno() for each in self._server.servers for sock in each.sockets or ()]

    def _close_servers(self) -> None:
        for each in self._server.servers:
            each.close()

    async def drain(self, deadline: Deadline) -> bool:
        """Close what is idle, wait for the rest; True once no connection and no task is left."""
        state = self._server.server_state
        seen: dict[Any, tuple[object, float]] = {}
        while state.connections or state.tasks:
            self._close_quiet(seen)
            if deadline.is_past:
                return False
            await asyncio.sleep(min(_LOOK_EVERY, deadline.remaining()))
        return True

    def _close_quiet(self, seen: dict[Any, tuple[object, float]]) -> None:
        now = asyncio.get_running_loop().time()
        connections: list[Any] = list(self._server.server_state.connections)
        for connection in connections:
            if not is_http(connection) or connection.transport.is_closing():
                continue
            if not is_between_requests(connection):
                seen.pop(connection, None)
                continue
            # Another request may have come and gone between two looks: then there is another cycle.
            last, since = seen.setdefault(connection, (connection.cycle, now))
            if last is not connection.cycle:
                seen[connection] = (connection.cycle, now)
            elif now - since >= (_UNUSED_QUIET if connection.cycle is None else self._idle_quiet):
                connection.shutdown()

    async def cut_off(self) -> tuple[InFlightRequest, ...]:
        """Cancel the requests, await them, close every connection; return what was in flight."""
        state = self._server.server_state
        cut = await self._middleware.cut_off(_CUT_OFF_LIMIT)
        connections: list[Any] = list(state.connections)
        for connection in connections:
            transport = connection.transport
            # What was written already (a 503, a WebSocket's 1001) has left, unless the client does not read.
            if transport.get_write_buffer_size():
                transport.abort()
            else:
                transport.close()
        left = [task for task in state.tasks if task is not asyncio.current_task()]
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=_CUT_OFF_LIMIT)
        for _ in range(4):  # turns in which transports tell that they are closed
            await asyncio.sleep(0)
        self._on_end()
        return cut

    async def shut_down(self, limit: float) -> bool:
        """Run the application's own lifespan shutdown, for at most ``limit`` seconds; return whether it ended."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._server.lifespan.shutdown(), limit)
            return True
        return False
