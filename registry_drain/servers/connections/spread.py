"""How fast idle connections are closed: spread over some time, for their clients come back all at once otherwise.

Theory of operation: every client whose connection is closed opens another, somewhere else. Thousands that do so within
the same few milliseconds overflow backlogs, and have the other instances shake hands (TLS too) instead of serving. So
connections are closed at an even pace. It asks only how many were closed already, and says how many more may be.

Rules:

1. A few connections need no spreading: it takes no longer than a millisecond for each.
2. It never takes more than half of the time that is left, and none when the stop is hurried: what is not closed in
   time is cut off.
3. Only the closing of idle connections is paced. Busy ones are closed behind their answers, and so are spread anyway.
"""

from __future__ import annotations

import math

from registry_drain.clock import Deadline
from registry_drain.errors import ConfigurationError
from registry_drain.servers.stop_state import StopState

SPREAD = 2.0
"""Seconds over which the idle connections are closed, at most: 5,000 are 25 in 10 ms then, instead of a thousand."""

_SECONDS_EACH = 0.001
_PART_OF_TIME_LEFT = 0.5


class Pace:
    """How many connections may be closed by now. For one thread.

    Args:
        count: of the connections that are open when the closing begins, now.
        spread: seconds over which they are closed, at most; 0: all at once.
        deadline: when all must be over.
        stop_state: tells of a hurry.
    """

    def __init__(self, count: int, spread: float, deadline: Deadline, stop_state: StopState) -> None:
        self._count = count
        self._clock = deadline.clock
        self._stop_state = stop_state
        self._began_at = self._clock.now()
        self._seconds = min(spread, count * _SECONDS_EACH, deadline.remaining() * _PART_OF_TIME_LEFT)
        self._closed = 0

    def allows(self) -> int:
        """Return how many more connections may be closed now."""
        elapsed = self._clock.now() - self._began_at
        if elapsed >= self._seconds or self._stop_state.time_left() == 0.0:
            return max(self._count, 1)
        return math.ceil(self._count * elapsed / self._seconds) - self._closed

    def closed(self) -> None:
        """Note that one was closed."""
        self._closed += 1

    def __repr__(self) -> str:
        """Show how far it is."""
        return f"<Pace {self._closed} of {self._count} in {self._seconds:.3f} s>"


def checked_spread(spread: float) -> float:
    """Return ``spread``.

    Raises:
        ConfigurationError: it is negative, or not a number of seconds.
    """
    if not math.isfinite(spread) or spread < 0:
        raise ConfigurationError(f"spread is {spread!r}: give seconds, or 0 to close idle connections all at once")
    return spread
