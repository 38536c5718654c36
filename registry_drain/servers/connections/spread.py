"""How fast idle connections are closed: spread over some time, for their clients come back all at once otherwise.

Theory of operation: every client whose connection is closed opens another, somewhere else. Thousands that do so within
the same few milliseconds overflow backlogs, and have the other instances shake hands (TLS too) instead of serving. So
connections are closed at an even pace.

Rules:

1. A few connections need no spreading: a millisecond for each is enough.
2. It never takes more than half of the time that is left, and none when the stop is hurried: what is not closed in
   time is cut off. On a machine that is too busy to keep the pace it takes longer than asked for, not less.
3. Only the closing of idle connections is paced. Busy ones are closed behind their answers, and so are spread anyway.
"""

from __future__ import annotations

import math

from registry_drain.clock import Deadline
from registry_drain.errors import ConfigurationError
from registry_drain.servers.stop_state import StopState

SPREAD = 2.0
"""Seconds over which idle connections are closed: 5,000 are 25 in 10 ms then, and not as many as we can."""

_SECONDS_EACH = 0.001
_PART_OF_TIME_LEFT = 0.5
_BURST = 0.010


class Pace:
    """How many connections may be closed by now. For one thread.

    Args:
        count: of the connections that are open when the closing begins, now.
        spread: seconds over which they are closed, at least if there are many; 0: all at once.
        deadline: when all must be over.
        stop_state: tells of a hurry.
    """

    def __init__(self, count: int, spread: float, deadline: Deadline, stop_state: StopState) -> None:
        self._count = count
        self._clock = deadline.clock
        self._stop_state = stop_state
        time_for_it = deadline.remaining() * _PART_OF_TIME_LEFT
        self._seconds = min(spread, count * _SECONDS_EACH, time_for_it)
        self._looked_at = self._clock.now()
        self._all_at = self._looked_at + time_for_it
        self._due = 1.0

    def allows(self) -> int:
        """Return how many more connections may be closed now."""
        now = self._clock.now()
        if not self._seconds or now >= self._all_at or self._stop_state.time_left() == 0.0:
            return max(self._count, 1)
        rate = self._count / self._seconds
        # Time that the drain did not get the processor is not made up for: that would be the very burst to avoid.
        self._due = min(self._due + rate * (now - self._looked_at), max(rate * _BURST, 1.0))
        self._looked_at = now
        return int(self._due)

    def closed(self) -> None:
        """Note that one was closed."""
        self._due -= 1

    def __repr__(self) -> str:
        """Show the pace."""
        return f"<Pace {self._count} in {self._seconds:.3f} s>"


def checked_spread(spread: float) -> float:
    """Return ``spread``.

    Raises:
        ConfigurationError: it is negative, or not a number of seconds.
    """
    if not math.isfinite(spread) or spread < 0:
        raise ConfigurationError(f"spread is {spread!r}: give seconds, or 0 to close idle connections all at once")
    return spread
