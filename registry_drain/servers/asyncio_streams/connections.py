"""The open connections of one asyncio server, and the drain that closes them.

Theory of operation: all of them stand in one dict, which only the loop's thread changes. The drain is a coroutine that
looks at it every few milliseconds: it half-closes what is idle and quiet, and is over when the dict is empty. Busy
connections close themselves behind their answers. Counts and names are read from the connections when somebody asks, in
any thread.

While a connection shakes hands for TLS asyncio alone holds on to it, for asyncio tells nobody of a handshake that
fails: what every look of a port scanner leaves behind must not be kept until the end.
"""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections.abc import Callable

from registry_drain.clock import Clock, Deadline, SystemClock
from registry_drain.phases import Phase
from registry_drain.servers.asyncio_streams.connection import AsyncioConnection
from registry_drain.servers.connections import Pace, checked_spread
from registry_drain.servers.in_flight import InFlightRequest
from registry_drain.servers.stop_state import StopState

_STEP = 0.005
"""Seconds between two looks of the drain."""
_HANDSHAKE_LIMIT_S = 1.0
"""Seconds that the drain waits for a connection's TLS handshake."""
_CLEAN_UP_LIMIT_S = 0.250
"""Seconds for cancelled handlers to clean up; half of what cutting off may take."""


class AsyncioConnections:
    """All open connections of one server: a :class:`~registry_drain.servers.in_flight.RequestSource`.

    What a RequestSource has is for any thread, the rest for the loop's.

    Args:
        clock: for the instants of requests.
        stop_state: the server's.
        handler_name: names requests that are not named by their handler.
        idle_quiet: seconds without a byte before the drain closes an idle connection.
        linger: seconds to go on reading after our FIN.
        spread: seconds over which idle connections are closed if there are thousands; 0: all at once.

    Raises:
        ConfigurationError: ``spread`` is no number of seconds.

    Attributes:
        is_draining: whether connections are closed behind their answers.
        is_cut_off: whether a connection that comes now is closed at once.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        stop_state: StopState,
        handler_name: str,
        idle_quiet: float,
        linger: float,
        spread: float,
    ) -> None:
        self._spread = checked_spread(spread)
        # SystemClock.now is this function, one call deeper.
        self.now: Callable[[], float] = time.monotonic if isinstance(clock, SystemClock) else clock.now
        self.stop_state = stop_state
        self.handler_name = handler_name
        self.linger = linger
        self.is_draining = False
        self._idle_quiet = idle_quiet
        self.is_cut_off = False
        self._open: dict[AsyncioConnection, None] = {}
        self._connecting: weakref.WeakSet[AsyncioConnection] = weakref.WeakSet()
        self._sum_lock = threading.Lock()
        self._served_before = 0
        self._arrived_before: float | None = None

    def __len__(self) -> int:
        """How many connections are open, or have a handler at work; those that shake hands are among them."""
        return len(self._open) + len(self._connecting)

    @property
    def total(self) -> int:
        """How many requests have arrived, health checks not counted."""
        with self._sum_lock:
            return self._served_before + sum(connection.served for connection in self._open.copy())

    @property
    def last_arrival_at(self) -> float | None:
        """When the last of them arrived."""
        with self._sum_lock:
            instants = [self._arrived_before, *(connection.arrived_at for connection in self._open.copy())]
        return max((instant for instant in instants if instant is not None), default=None)

    def requests(self) -> list[InFlightRequest]:
        """Return the requests in flight."""
        return [connection.describe() for connection in self._open.copy() if connection.is_busy]

    def accept(self) -> AsyncioConnection:
        """Take in a connection that was just accepted."""
        connection = AsyncioConnection(self)
        self._connecting.add(connection)
        return connection

    def connected(self, connection: AsyncioConnection) -> None:
        """Note that a connection can be used."""
        self._open[connection] = None
        self._connecting.discard(connection)

    def remove(self, connection: AsyncioConnection) -> None:
        """Forget a connection that is over. Idempotent."""
        with self._sum_lock:
            if connection not in self._open:
                return
            del self._open[connection]
            self._served_before += connection.served
            if connection.arrived_at is not None:
                self._arrived_before = max(connection.arrived_at, self._arrived_before or connection.arrived_at)

    async def drain(self, deadline: Deadline) -> bool:
        """Close idle connections once quiet, and busy ones behind their answers; return whether all are gone.

        At the deadline the rest is left as it is, and still closes behind its answers.
        """
        self.is_draining = True
        self.stop_state.enter(Phase.DRAINING, deadline.at)
        pace = Pace(len(self._open), self._spread, deadline, self.stop_state)
        while len(self):
            began_at = time.monotonic()
            self._close_quiet(pace)
            if not len(self):
                break
            if deadline.is_past:
                return False
            # Looking at thousands of connections takes a while: leave the loop to the requests for as long.
            await asyncio.sleep(max(_STEP, time.monotonic() - began_at))
        return True

    def _close_quiet(self, pace: Pace) -> None:
        for connection in list(self._connecting):
            if connection.age > _HANDSHAKE_LIMIT_S:
                self._connecting.discard(connection)
        allowed = pace.allows()
        for connection in self._open.copy():
            if allowed <= 0:
                return
            if connection.close_if_quiet(self._idle_quiet):
                pace.closed()
                allowed -= 1

    async def cut_off(self) -> tuple[InFlightRequest, ...]:
        """Cancel the handlers that are left, await them, and close every connection; return what was in flight."""
        self.is_draining = self.is_cut_off = True
        cut = self.requests()
        tasks = {connection.task for connection in self._open if connection.task is not None}
        tasks.discard(asyncio.current_task())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_CLEAN_UP_LIMIT_S)
        self._connecting.clear()
        for connection in self._open.copy():
            connection.abort()
        ends_at = time.monotonic() + _CLEAN_UP_LIMIT_S
        while self._open and time.monotonic() < ends_at:  # noqa: ASYNC110 - a few turns of the loop
            await asyncio.sleep(_STEP / 5)
        return tuple(sorted(cut, key=lambda request: request.started_at))

    def __repr__(self) -> str:
        """Show the counts."""
        busy = sum(connection.is_busy for connection in self._open.copy())
        return f"<AsyncioConnections open={len(self._open)} busy={busy}>"
