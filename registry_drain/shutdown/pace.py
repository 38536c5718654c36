"""How long the steps of one stop wait: until their deadlines, and for less once the stop is hurried.

Theory of operation: whatever a step has called wakes it by :meth:`Pace.nudge` when it ends, and so does a hurry; the
step then looks again at what it waits for.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

from registry_drain.clock import Clock, Deadline
from registry_drain.phases import Phase
from registry_drain.shutdown.bounded import BoundedCall
from registry_drain.shutdown.budget import StopBudget


class Pace:
    """The waits of one stop. ``nudge`` and ``hurry`` may be called from any thread, all else from the stop's own.

    Attributes:
        clock: measures and passes all time.
        hurried: set once the stop is hurried. Wait for it; do not set it.
    """

    def __init__(self, budget: StopBudget, clock: Clock) -> None:
        """Begin unhurried, before the first phase."""
        self.clock = clock
        self.hurried = threading.Event()
        self._budget = budget
        self._phase = Phase.SERVING
        self._phase_started_at = 0.0
        self._hurried_at: float | None = None
        self._nudge = threading.Event()

    @property
    def is_hurried(self) -> bool:
        """Whether every wait is to be skipped."""
        return self.hurried.is_set()

    def hurry(self) -> float:
        """Skip the waits from now on; return now. The caller nudges when everybody else knows, too."""
        now = self._hurried_at = self.clock.now()
        self.hurried.set()
        return now

    def enter(self, phase: Phase) -> float:
        """Begin a phase; return now."""
        self._phase, self._phase_started_at = phase, self.clock.now()
        return self._phase_started_at

    def until(self, deadline: Deadline) -> Deadline:
        """Return ``deadline``, or once the stop is hurried what this phase may then take, if that is earlier."""
        if self._hurried_at is None:
            return deadline
        hurried_at = max(self._hurried_at, self._phase_started_at) + self._budget.when_hurried(self._phase)
        return Deadline(min(deadline.at, hurried_at), self.clock)

    def nudge(self) -> None:
        """Let the step look again."""
        self._nudge.set()

    def clear_nudge(self) -> None:
        """Begin a look: what changes after this ends the wait that follows it."""
        self._nudge.clear()

    def wait_for_nudge(self, deadline: Deadline) -> None:
        """Wait until something may have changed since the look began, at most until ``deadline``."""
        deadline.wait(self._nudge)

    def wait_for(self, calls: Iterable[BoundedCall[object]]) -> None:
        """Wait until each of ``calls`` has ended or is past its deadline, or a hurry ends the phase."""
        calls = tuple(calls)
        while True:
            self.clear_nudge()
            pending = [self.until(call.deadline) for call in calls if not call.is_over]
            if not pending or all(deadline.is_past for deadline in pending):
                return
            self.wait_for_nudge(min(pending, key=lambda deadline: deadline.at))
