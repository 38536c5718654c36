"""All of time, injected: now, sleep, waiting for an event, and the wall clock.

Injecting only ``sleep`` is not enough: a wait with a timeout is time too. Everything in this package that waits does so
through a :class:`Clock`, so that the tests' fake clock (:mod:`registry_drain.testing.clock`) makes a 30 s stop take no
time.

Words: a *timeout* is relative seconds, a *deadline* an absolute instant of one clock, ``*_at`` an instant.
"""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass
from typing import Protocol


class Clock(Protocol):
    """What measures and passes time. All methods may be called from any thread."""

    def now(self) -> float:
        """Return seconds since an arbitrary start; never goes backwards (:func:`time.monotonic`)."""
        ...

    def unix_time(self) -> float:
        """Return seconds since 1970 in UTC, for what leaves the process; never used to measure durations."""
        ...

    def sleep(self, seconds: float) -> None:
        """Pass ``seconds``; zero or less returns at once."""
        ...

    def wait(self, event: threading.Event, timeout: float | None = None) -> bool:
        """Wait until ``event`` is set or ``timeout`` seconds have passed; return whether it is set.

        ``None`` waits without limit and is for threads that somebody else ends, never for a step of the stop.
        """
        ...


_SIGNALS_EVERY = 0.1
"""Seconds between two chances for signal handlers: ten wake-ups a second cost nothing, and a stop loses little."""


class SystemClock:
    """The real clock."""

    def now(self) -> float:
        """Return :func:`time.monotonic` seconds."""
        return time.monotonic()

    def unix_time(self) -> float:
        """Return :func:`time.time` seconds."""
        return time.time()

    def sleep(self, seconds: float) -> None:
        """Sleep for ``seconds``."""
        if seconds > 0:
            time.sleep(seconds)

    def wait(self, event: threading.Event, timeout: float | None = None) -> bool:
        """Wait for ``event``. In the main thread signal handlers run meanwhile, within 0.1 s at the latest.

        Python runs them there only. Linux may give a signal that was sent to the process to another thread, and then
        nothing interrupts a main thread that sleeps in a lock: it has to look by itself. (Seen in 4 of 25 stops of a
        server that was just starting threads for new connections.)
        """
        if threading.current_thread() is not threading.main_thread():
            return event.wait(None if timeout is None else max(timeout, 0.0))
        ends_at = math.inf if timeout is None else time.monotonic() + timeout
        while not event.wait(max(min(ends_at - time.monotonic(), _SIGNALS_EVERY), 0.0)):
            if time.monotonic() >= ends_at:
                return False
        return True

    def __repr__(self) -> str:
        """Name the clock, as defaults are shown in documentation."""
        return "<SystemClock>"


SYSTEM_CLOCK: Clock = SystemClock()
"""The default of every ``clock`` parameter."""

_MOST_HEADROOM = 0.25
"""Seconds; some hundred times what handing a result between two threads takes on a busy machine."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """An absolute instant of one clock. Cheap to pass down: every call below takes what is left of it."""

    at: float
    clock: Clock

    @classmethod
    def after(cls, seconds: float, clock: Clock = SYSTEM_CLOCK) -> Deadline:
        """Return the deadline ``seconds`` from now."""
        return cls(clock.now() + seconds, clock)

    def remaining(self) -> float:
        """Return the seconds left, never below zero."""
        return max(self.at - self.clock.now(), 0.0)

    @property
    def is_past(self) -> bool:
        """Whether the instant has come."""
        return self.clock.now() >= self.at

    def capped(self, seconds: float) -> Deadline:
        """Return this deadline or the one ``seconds`` from now, whichever comes first."""
        return Deadline(min(self.at, self.clock.now() + seconds), self.clock)

    def with_headroom(self) -> Deadline:
        """Return an earlier deadline to hand on: what ends exactly there still reaches whoever waits for this one.

        It is a tenth of what is left earlier, and at most 0.25 s.
        """
        remaining = self.remaining()
        return self.capped(remaining - min(_MOST_HEADROOM, remaining / 10))

    def wait(self, event: threading.Event) -> bool:
        """Wait until ``event`` is set or this deadline is past; return whether it is set."""
        return self.clock.wait(event, self.remaining())

    def __repr__(self) -> str:
        """Show what is left, which is what a log line or a debugger wants to know."""
        return f"<Deadline remaining={self.remaining():.3f}s>"
