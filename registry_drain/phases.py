"""The phases of a stop, their order, and what a second signal does to each. A pure table: no time, no thread.

===  =============  ==================================================  ======================================
 #   phase          ends when                                           when hurried
===  =============  ==================================================  ======================================
 0   SERVING        somebody asks for the stop
 1   DEREGISTERING  gone and proven, or its budget is spent             runs, within ``hurried_deregister``
 2   PROPAGATING    ``floor`` and ``quiet_period`` kept, or ``ceiling``  skipped
 3   CLOSING        backlog empty, listener closed                      runs
 4   DRAINING       nothing in flight, or the deadline                  what is in flight is cut off at once
 5   NOTIFYING      every observer told, or out of its time limit       runs, within ``hurried_notify``
 6   STOPPED
===  =============  ==================================================  ======================================
"""

from __future__ import annotations

from enum import Enum


class Phase(Enum):
    """Where a stop is. Phases are passed in the order of their definition, each exactly once, none left out."""

    SERVING = 0
    DEREGISTERING = 1
    PROPAGATING = 2
    CLOSING = 3
    DRAINING = 4
    NOTIFYING = 5
    STOPPED = 6

    @property
    def is_stopping(self) -> bool:
        """Whether the stop has begun (and perhaps ended)."""
        return self is not Phase.SERVING


STOP_ORDER = (Phase.DEREGISTERING, Phase.PROPAGATING, Phase.CLOSING, Phase.DRAINING, Phase.NOTIFYING)
"""The phases that do something."""


class Outcome(Enum):
    """How a phase, or one observer in it, ended. Nothing but COMPLETED and SKIPPED is fine."""

    COMPLETED = "completed"
    """Did what it is for."""
    SKIPPED = "skipped"
    """Had nothing to do, or was hurried."""
    TIMED_OUT = "out of time"
    """Its time was spent first; the stop went on without it."""
    FAILED = "failed"
    """Raised an exception; the stop went on."""

    @property
    def is_fine(self) -> bool:
        """Whether nobody needs to look."""
        return self in {Outcome.COMPLETED, Outcome.SKIPPED}
