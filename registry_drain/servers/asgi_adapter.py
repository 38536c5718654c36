"""What the adapters of ASGI servers share: the event loop, and the order of the steps in it.

Theory of operation: an adapter starts its server in the loop and gets a :class:`RunningServer`, whose coroutines are
the steps of the stop. The members of :class:`ASGIAdapter` are called from threads; each hands one step to the loop and
waits for it. The application's lifespan shutdown runs when the drain has ended, and in any case before the loop does.

Rules:

1. A handler that blocks the loop cannot keep a step: each has a deadline, and what it could not do is said.
2. None of the server's signal handlers is installed: whoever runs the adapter handles the signals.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from typing import Protocol

from registry_drain.clock import Clock, Deadline
from registry_drain.errors import ServerError
from registry_drain.phases import Phase
from registry_drain.servers.asyncio_listeners import shut
from registry_drain.servers.base import ListenerClosure
from registry_drain.servers.event_loop import ServerLoop
from registry_drain.servers.in_flight import InFlight, InFlightRequest
from registry_drain.servers.listener import bound_address

logger = logging.getLogger(__name__)

_CUT_OFF_LIMIT = 2.0
"""Seconds for the loop to answer when everything is cut off: a handler may block it."""
_LAST_SHUTDOWN = 0.2
"""Seconds for the application's lifespan shutdown if the drain left it none."""
_OVERTIME_S = 0.05
"""Seconds for a loop that is asked to do a step without any time."""
_CLOSING_OVERTIME_S = 1.0
"""Seconds beyond its deadline that closing the listener waits for a busy loop."""


class RunningServer(Protocol):
    """A server that has started. Its coroutines run in its loop; each may be called again."""

    async def close_listener(self, deadline: Deadline) -> ListenerClosure:
        """Stop accepting; what is in the backlog is served."""
        ...

    async def drain(self, deadline: Deadline) -> bool:
        """Close what is idle, wait for the rest; return whether no connection is left."""
        ...

    async def cut_off(self) -> tuple[InFlightRequest, ...]:
        """Cancel and await the requests, close every connection; return what was in flight."""
        ...

    async def shut_down(self, limit: float) -> bool:
        """Run the application's lifespan shutdown for at most ``limit`` seconds; return whether it ended."""
        ...


class ASGIAdapter:
    """Base of an adapter: everything but how the server starts. Thread-safe.

    Args:
        name: the server library's, for the thread.
        clock: for the instants of requests.
    """

    def __init__(self, name: str, clock: Clock) -> None:
        self._in_flight = InFlight(clock=clock)
        self._loop = ServerLoop(f"registry-drain-{name}")
        self._lock = threading.Lock()
        self._is_used = False
        self._running: RunningServer | None = None
        self._listening: list[socket.socket] = []
        self._closing = threading.Lock()
        self._closure: ListenerClosure | None = None
        self._has_shut_down = False

    def _bind(self) -> list[socket.socket]:
        """Return bound sockets; the first one's address is the server's.

        Raises:
            OSError: an address cannot be bound.
        """
        raise NotImplementedError

    async def _start(self, sockets: list[socket.socket]) -> RunningServer:
        """Run the lifespan startup and serve from ``sockets``.

        Raises:
            ServerError: the startup failed.
        """
        raise NotImplementedError

    def _listener_closed(self) -> None:
        """Tidy up behind the listener (a Unix socket's path)."""

    @property
    def in_flight(self) -> InFlight:
        """The requests, named ``METHOD /path``."""
        return self._in_flight

    def use_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Serve in the application's loop. Before :meth:`start`."""
        self._loop.use(loop)

    def start(self) -> tuple[str, int]:
        """Bind, run the application's lifespan startup, listen; return the bound address and port.

        Raises:
            OSError: the address cannot be bound.
            ServerError: started or stopped before, or the lifespan startup failed.
        """
        with self._lock:
            if self._is_used:
                raise ServerError(f"{self!r} was started or stopped before: make a new one to serve again")
            self._is_used = True
        sockets = self._bind()
        address = bound_address(sockets[0])
        self._loop.start()
        try:
            self._running = self._loop.call(lambda: self._start(sockets))
        except BaseException:
            for sock in sockets:
                sock.close()
            self._loop.stop()
            raise
        self._listening = sockets
        return address

    def close_listener(self, deadline: Deadline) -> ListenerClosure:
        """Stop accepting; what is in the backlog is served. See :meth:`DrainableServer.close_listener`."""
        # Held during the whole close: a second caller waits for the first one's outcome.
        with self._closing:
            if self._closure is None:
                self._closure = self._close_listener(deadline)
            return self._closure

    def _close_listener(self, deadline: Deadline) -> ListenerClosure:
        with self._lock:
            self._is_used = True
        running = self._running
        if running is None or not self._loop.is_open:
            return ListenerClosure("never started")
        limit = Deadline.after(deadline.remaining() + _CLOSING_OVERTIME_S)
        try:
            closure = self._loop.call(lambda: running.close_listener(deadline), limit)
        except TimeoutError:
            # A handler blocks the loop: what has not been accepted is lost. The call, cancelled now, closes the servers
            # when the loop comes to it.
            for each in self._listening:
                shut(each)
            closure = ListenerClosure("close", is_clean=False)
        self._listener_closed()
        return closure

    def drain(self, deadline: Deadline) -> bool:
        """Let requests finish, close idle connections, run the lifespan shutdown. See :meth:`DrainableServer.drain`."""
        self._in_flight.stop_state.enter(Phase.DRAINING, deadline.at)
        running = self._running
        if running is None or not self._loop.is_open:
            return True
        limit = Deadline.after(deadline.remaining() + _OVERTIME_S)
        with contextlib.suppress(TimeoutError):  # a handler blocks the loop
            return self._loop.call(lambda: self._drain(running, deadline), limit)
        return False

    async def _drain(self, running: RunningServer, deadline: Deadline) -> bool:
        if not await running.drain(deadline):
            return False
        if not self._has_shut_down:
            self._has_shut_down = await running.shut_down(deadline.remaining())
            if not self._has_shut_down:
                logger.warning("the application's lifespan shutdown did not end in the time of the drain")
        return self._has_shut_down

    def cut_off(self) -> tuple[InFlightRequest, ...]:
        """Cancel and close what is left, end the loop if it is ours. See :meth:`DrainableServer.cut_off`."""
        cut = self._in_flight.snapshot()
        try:
            self.close_listener(Deadline.after(0.0))
            running = self._running
            if running is not None and self._loop.is_open:
                cut = self._loop.call(lambda: self._cut_off(running), Deadline.after(_CUT_OFF_LIMIT))
        except TimeoutError:
            logger.warning("%r: a handler blocks the event loop, so nothing could be cancelled", self)
        finally:
            self._loop.stop()
            if not self._loop.is_open:
                for each in self._listening:  # if the loop has ended before it came to that
                    each.close()
        return cut

    async def _cut_off(self, running: RunningServer) -> tuple[InFlightRequest, ...]:
        cut = await running.cut_off()
        if not self._has_shut_down:
            self._has_shut_down = True
            await running.shut_down(_LAST_SHUTDOWN)
        return cut

    def __repr__(self) -> str:
        """Show the count."""
        return f"<{type(self).__name__} in_flight={self._in_flight.count}>"
