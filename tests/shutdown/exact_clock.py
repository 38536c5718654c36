"""A fake clock that cannot be wrong about who is busy, so that virtual times can be asserted to the digit.

:class:`~registry_drain.testing.clock.FakeClock` jumps when nothing has moved for some real milliseconds, which a slow
machine takes for idleness now and then. This one counts threads: every thread that was started after the clock was
made, and the thread that made it, is busy unless it waits on the clock. Time jumps, at once, when nobody is busy. So
nothing may block on anything else for long: tests wait with :meth:`ExactClock.wait`, hangs hang on it too.
"""

from __future__ import annotations

import math
import threading

_LOOK_EVERY = 0.001
"""Real seconds: nobody says when an Event is set or a thread ends, so waiters look."""


class ExactClock:
    """A :class:`registry_drain.clock.Clock`. Thread-safe. Time stands still while the thread that made it works."""

    def __init__(self, start: float = 1000.0) -> None:
        """Begin at ``start``; the threads that run already are none of our business."""
        self._changed = threading.Condition()
        self._now = start
        self._waiters: dict[threading.Thread, tuple[threading.Event, float]] = {}
        self._owner = threading.current_thread()
        self._strangers = set(threading.enumerate()) - {self._owner}

    def now(self) -> float:
        """Return the virtual time."""
        with self._changed:
            return self._now

    def unix_time(self) -> float:
        """Return the virtual time too."""
        return self.now()

    def sleep(self, seconds: float) -> None:
        """Let ``seconds`` pass; what others do in them happens in the right order."""
        self.wait(threading.Event(), seconds)

    def wait(self, event: threading.Event, timeout: float | None = None) -> bool:
        """Wait for ``event``, at most ``timeout`` virtual seconds."""
        me = threading.current_thread()
        with self._changed:
            ends_at = math.inf if timeout is None else self._now + max(timeout, 0.0)
            self._waiters[me] = event, ends_at
            try:
                while not event.is_set() and self._now < ends_at:
                    if self._is_quiet():
                        self._jump(me)
                    else:
                        self._changed.wait(_LOOK_EVERY)
            finally:
                del self._waiters[me]
        return event.is_set()

    def ignore(self, thread: threading.Thread) -> None:
        """Let time pass while ``thread`` works: it blocks on something that is not the clock."""
        with self._changed:
            self._strangers.add(thread)

    def settle(self) -> None:
        """Return when everybody else waits, at this same instant."""
        with self._changed:
            while not self._is_quiet(but_for=threading.current_thread()):
                self._changed.wait(_LOOK_EVERY)

    def _is_quiet(self, *, but_for: threading.Thread | None = None) -> bool:
        busy = set(threading.enumerate()) - self._strangers - self._waiters.keys() - {but_for}
        return not busy and not any(event.is_set() or at <= self._now for event, at in self._waiters.values())

    def _jump(self, me: threading.Thread) -> None:
        earliest = min(at for _, at in self._waiters.values())
        if math.isfinite(earliest):
            self._now = earliest
            self._changed.notify_all()
        elif me is self._owner:
            raise AssertionError(f"everybody waits for ever: {list(self._waiters)}")
        else:
            self._changed.wait(_LOOK_EVERY)

    def __repr__(self) -> str:
        """Show the time."""
        return f"<ExactClock now={self._now:.3f}>"
