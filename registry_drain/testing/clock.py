"""A clock whose time passes only when told to, or when nobody has anything else to do.

Theory of operation: threads that wait on a :class:`FakeClock` wait in real time for their event, but their time limit
is virtual. With ``autojump`` (the default) the clock watches its waiters: when no waiter has come or gone for a short
real while, everybody is taken to be waiting, and the clock jumps to the earliest time limit. A stop of 30 s then takes
some milliseconds, with real threads.

A thread that computes for longer than ``idle_after`` real seconds looks idle too; tests with such threads use
``autojump=False`` and :meth:`FakeClock.advance`. The idea is trio's MockClock, for threads.
"""

from __future__ import annotations

import math
import threading


class FakeClock:
    """A virtual :class:`registry_drain.clock.Clock`. Thread-safe.

    Args:
        start: the first ``now()``.
        autojump: whether time jumps by itself when everybody waits.
        idle_after: real seconds without a change among the waiters that count as everybody waiting.
    """

    def __init__(self, start: float = 1000.0, *, autojump: bool = True, idle_after: float = 0.005) -> None:
        """Begin at ``start`` with nobody waiting."""
        self._changed = threading.Condition()
        self._now = start
        self._waiters: dict[object, tuple[float, threading.Event]] = {}
        self._autojump = autojump
        self._idle_after = idle_after

    def now(self) -> float:
        """Return the virtual time in seconds."""
        with self._changed:
            return self._now

    def unix_time(self) -> float:
        """Return the virtual time too: tests compare durations, not dates."""
        return self.now()

    def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass at once; waiters whose limit is reached return."""
        with self._changed:
            self._now += seconds
            self._changed.notify_all()

    @property
    def waiting(self) -> int:
        """How many threads wait with a time limit."""
        with self._changed:
            return len(self._waiters)

    def sleep(self, seconds: float) -> None:
        """Wait for ``seconds`` of virtual time."""
        self.wait(threading.Event(), seconds)

    def wait(self, event: threading.Event, timeout: float | None = None) -> bool:
        """Wait for ``event`` in real time, or ``timeout`` in virtual time."""
        if timeout is None:
            return event.wait()
        me = object()
        with self._changed:
            ends_at = self._now + max(timeout, 0.0)
            self._waiters[me] = ends_at, event
            self._changed.notify_all()
            try:
                while not event.is_set() and self._now < ends_at:
                    # An Event cannot tell a Condition that it was set: look at it every idle_after.
                    undisturbed = not self._changed.wait(self._idle_after)
                    next_end = min(end for end, _ in self._waiters.values())
                    # Somebody whose event is set has work to do, and has only not been given the processor yet.
                    nobody_is_due = not any(each.is_set() for _, each in self._waiters.values())
                    # To a limit that never comes there is no jump: such waiters wait for their events.
                    if undisturbed and self._autojump and nobody_is_due and next_end < math.inf:
                        self._now = max(self._now, next_end)
                        self._changed.notify_all()
            finally:
                del self._waiters[me]
                self._changed.notify_all()
        return event.is_set()

    def __repr__(self) -> str:
        """Show the time and how many wait."""
        return f"<FakeClock now={self.now():.3f} waiting={self.waiting}>"
