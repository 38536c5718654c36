"""The open connections of one server, and the drain that closes them.

Theory of operation: :mod:`~registry_drain.servers.connections.connection` says what a connection is, and how it is
closed. Here all of them stand in one dict. The drain looks at it every few milliseconds: it half-closes what is idle
and quiet, at the pace of :mod:`~registry_drain.servers.connections.spread`, wakes the threads of what has lingered, and
is over when the dict is empty. Busy connections it leaves to their own threads, which close them behind their answers.

Nothing is summed up while serving: counts, names and times are read from the connections when somebody asks. What a
connection has counted is kept when it is removed, under a lock that only removing and asking take.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from registry_drain.clock import SYSTEM_CLOCK, Clock, Deadline, SystemClock
from registry_drain.phases import Phase
from registry_drain.servers.connections.connection import Connection
from registry_drain.servers.connections.spread import SPREAD, Pace, checked_spread
from registry_drain.servers.connections.tcp import pending_bytes
from registry_drain.servers.in_flight import InFlightRequest
from registry_drain.servers.stop_state import StopState

IDLE_QUIET = 0.020
"""Seconds without a byte before an idle connection is closed: in 2,000 closes against clients sending around the very
moment, 20 ms lost none; no quiet period, 256.
"""

LINGER = 0.020
"""Seconds to go on reading after our FIN, so that a request that crossed it meets an end of file and not a reset."""

_STEP = 0.005
"""Seconds between two looks of the drain; closing itself is not paced by it."""

_WAKE_AT_ONCE = 512
"""How many threads may be on their way out at a time. Thousands that wait for the interpreter lock together, each
looking for it 200 times a second, take twice as long; one after the other, eight times.
"""

_JOIN_PATIENCE_S = 0.100
_JOIN_LIMIT_S = 2.0
"""Bounds of what cutting off adds to a stop: the first with a stuck handler, the second with thousands of threads."""


class Connections:
    """All open connections of one server: a :class:`~registry_drain.servers.in_flight.RequestSource`. Thread-safe.

    Args:
        clock: for the instants of requests.
        idle_quiet: seconds without a byte before the drain closes an idle connection.
        linger: seconds to go on reading after our FIN.
        corks_answers: whether an answer and the FIN behind it may leave as one; see rule 4 there.
        stop_state: the server's.
        spread: seconds over which idle connections are closed if there are thousands; 0: all at once.

    Raises:
        ConfigurationError: ``spread`` is no number of seconds.

    Attributes:
        now: the clock's.
        stop_state: what handlers may know of the stop.
        is_draining: whether connections are closed behind their answers.
    """

    def __init__(
        self,
        *,
        clock: Clock = SYSTEM_CLOCK,
        idle_quiet: float = IDLE_QUIET,
        linger: float = LINGER,
        corks_answers: bool = False,
        stop_state: StopState | None = None,
        spread: float = SPREAD,
    ) -> None:
        # SystemClock.now is this function, one call deeper.
        self.now: Callable[[], float] = time.monotonic if isinstance(clock, SystemClock) else clock.now
        self.stop_state = stop_state or StopState(self.now)
        self.corks_answers = corks_answers
        self.is_draining = False
        self._idle_quiet = idle_quiet
        self._linger = linger
        self._spread = checked_spread(spread)
        self._open: dict[Connection, None] = {}
        self._lingering: dict[Connection, float] = {}
        self._woken: dict[Connection, None] = {}
        self._progress = threading.Event()
        self._leaving: deque[threading.Thread] = deque()
        self._sum_lock = threading.Lock()
        self._served_before = 0
        self._arrived_before: float | None = None

    def __len__(self) -> int:
        """How many connections are open, those that wait for a serving thread included."""
        return len(self._open)

    @property
    def total(self) -> int:
        """How many requests have arrived, health checks not counted."""
        with self._sum_lock:
            return self._served_before + sum(connection.served for connection in self._open.copy())

    @property
    def last_arrival_at(self) -> float | None:
        """When the last of them arrived."""
        with self._sum_lock:
            connections = self._open.copy()
            for connection in connections:
                connection.ask_arrival()
            instants = [self._arrived_before, *(connection.arrived_at for connection in connections)]
        return max((instant for instant in instants if instant is not None), default=None)

    def requests(self) -> list[InFlightRequest]:
        """Return the requests in flight."""
        return [
            connection.describe()
            for connection in self._open.copy()
            if connection.thread is not None and connection.is_busy
        ]

    def add(self, connection: Connection) -> None:
        """Take in a connection that was just accepted."""
        self._open[connection] = None

    def remove(self, connection: Connection) -> None:
        """Forget a connection whose descriptor is closed. Idempotent."""
        self._lingering.pop(connection, None)
        self._woken.pop(connection, None)
        with self._sum_lock:
            if connection not in self._open:
                return
            del self._open[connection]
            self._served_before += connection.served
            if connection.arrived_at is not None:
                self._arrived_before = max(connection.arrived_at, self._arrived_before or connection.arrived_at)
        if self.is_draining:
            if connection.thread is not None:
                self._leaving.append(connection.thread)
            # Should two threads pass the mark at once, the drain looks by itself a little later.
            if len(self._woken) == _WAKE_AT_ONCE // 2 or not self._open:
                self._progress.set()

    def linger(self, connection: Connection) -> None:
        """Note that our FIN is out."""
        self._lingering[connection] = time.monotonic()

    def drain(self, deadline: Deadline) -> bool:
        """Close idle connections once quiet, and busy ones behind their answers; return whether all are gone.

        At the deadline the rest is left as it is, and still closes behind its answers.
        """
        self.is_draining = True
        self.stop_state.enter(Phase.DRAINING, deadline.at)
        for connection in self._open.copy():
            if connection.when_draining is not None:
                connection.when_draining()
            # One that was never served may be shaking hands for TLS, which the cork would hold up for 200 ms.
            if connection.served:
                connection.cork(is_corked=True)
        look_at = 0.0
        pace = Pace(len(self._open), self._spread, deadline, self.stop_state)
        while self._open:
            self._progress.clear()
            now = time.monotonic()
            if now >= look_at:
                self._close_quiet(pace)
                # Looking at thousands of connections takes a while: leave the processor to the requests for as long.
                look_at = time.monotonic() + max(_STEP, time.monotonic() - now)
            self._end_lingering()
            if not self._open:
                break
            if deadline.is_past:
                return False
            deadline.clock.wait(self._progress, min(_STEP, deadline.remaining()))
        return True

    def _close_quiet(self, pace: Pace) -> None:
        """Half-close connections that are idle and quiet, as many as are due. Oldest first: a dict keeps its order."""
        allowed = pace.allows()
        for connection in self._open.copy():
            if allowed <= 0:
                return
            if connection.close_if_quiet(self._idle_quiet):
                pace.closed()
                allowed -= 1

    def _end_lingering(self) -> None:
        """Wake the threads of connections that have lingered for long enough; some at a time."""
        before = time.monotonic() - self._linger
        # Oldest first: a dict keeps its order.
        for connection, since in self._lingering.copy().items():
            if since > before or len(self._woken) >= _WAKE_AT_ONCE:
                return
            self._woken[connection] = None
            self._lingering.pop(connection, None)
            connection.end_lingering()
            if connection not in self._open:
                self._woken.pop(connection, None)  # It left by itself meanwhile, and nobody would take it out again.

    def cut_off(self) -> tuple[InFlightRequest, ...]:
        """Shut every connection that is left; return what was cut. Connections nobody serves are closed here."""
        self.is_draining = True
        cut = self.requests()
        for connection in self._open.copy():
            if connection.thread is None and pending_bytes(connection.sock):
                cut.append(InFlightRequest("(not yet read)", connection.peer, self.now(), 0))
            connection.cut()
            if connection.thread is None:
                connection.close()
                connection.sock.close()
                connection.closed()
        return tuple(sorted(cut, key=lambda request: request.started_at))

    def threads(self) -> list[threading.Thread]:
        """Return the serving threads that have not ended, those that are about to included."""
        threads = [connection.thread for connection in self._open.copy() if connection.thread is not None]
        return [thread for thread in {*threads, *self._leaving.copy()} if thread.is_alive()]

    def __repr__(self) -> str:
        """Show the counts."""
        busy = sum(connection.is_busy for connection in self._open.copy())
        return f"<Connections open={len(self._open)} busy={busy} lingering={len(self._lingering)}>"


def join_threads(threads: Callable[[], list[threading.Thread]]) -> bool:
    """Wait until no other thread is left, as long as one ends now and then; return whether all have ended.

    Args:
        threads: returns those that are still alive.
    """
    # Real time: these threads have been woken and have nothing left to do but to end, or they are stuck in a handler.
    until = time.monotonic() + _JOIN_LIMIT_S
    progress_at, left = time.monotonic(), -1
    while alive := [thread for thread in threads() if thread is not threading.current_thread()]:
        now = time.monotonic()
        if len(alive) != left:
            progress_at, left = now, len(alive)
        if now >= min(until, progress_at + _JOIN_PATIENCE_S):
            return False
        alive[-1].join(_STEP)
    return True
