"""What a server's handlers, middleware and adapter may know of its stop: the phase, and how long is left.

Theory of operation: the stop routine tells the :class:`StopState` of the server's tracker each phase that it enters.
Whoever has the server's :class:`~registry_drain.servers.in_flight.InFlight` asks; nobody else needs to be told. A
server in several processes copies it from the one in which the stop runs to its workers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from registry_drain.phases import Phase

logger = logging.getLogger(__name__)


class StopState:
    """Where the stop of one server is. Written by whoever stops the server, read from any thread without a lock.

    A subclass that computes ``phase`` instead of entering it computes the three flags as well.

    Attributes:
        phase: SERVING until the stop begins.
        cut_off_at: when what is still in flight is cut off, on the tracker's clock; None until the stop begins. A
            second signal brings it forward.
        is_stopping: the stop has begun: readiness checks should answer no, while requests are served normally.
        is_delisted: the instance has left its registries: from now on clients are sent away, politely.
        is_draining: the listener is closed: what streams, or waits for more work, should come to an end.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        """Serve; ``now`` is the tracker's clock."""
        self.phase = Phase.SERVING
        self.cut_off_at: float | None = None
        # Asked for each request, so they are no properties: :meth:`enter` keeps them in step with the phase.
        self.is_stopping = self.is_delisted = self.is_draining = False
        self._now = now
        self._watchers: tuple[Callable[[Phase], object], ...] = ()

    def time_left(self) -> float | None:
        """Return the seconds until what is in flight is cut off, never below zero; None if no stop has begun."""
        return None if self.cut_off_at is None else max(self.cut_off_at - self._now(), 0.0)

    def watch(self, callback: Callable[[Phase], object]) -> None:
        """Call ``callback`` with each phase entered from now on, and with the same again when the stop is hurried.

        In whatever thread that happens. It must not block; what it raises is logged.
        """
        self._watchers += (callback,)

    def enter(self, phase: Phase, cut_off_at: float | None = None) -> None:
        """Note that ``phase`` begins, unless a later one has; ``cut_off_at`` None leaves that instant as it is."""
        if cut_off_at is not None:
            self.cut_off_at = cut_off_at
        if phase.value <= self.phase.value:
            return
        self.phase = phase
        self.is_stopping = phase.is_stopping
        self.is_delisted = phase.value >= Phase.PROPAGATING.value
        self.is_draining = phase.value >= Phase.DRAINING.value
        self._tell(phase)

    def hurry(self, cut_off_at: float) -> None:
        """Note that what is in flight is cut off earlier, whatever the phase."""
        self.cut_off_at = cut_off_at
        self._tell(self.phase)

    def _tell(self, phase: Phase) -> None:
        for watcher in self._watchers:
            try:
                watcher(phase)
            except Exception:  # noqa: PERF203 - somebody else's code; the stop goes on
                logger.exception("%r failed at %s", watcher, phase.name)

    def __repr__(self) -> str:
        """Show the phase and what is left."""
        left = self.time_left()
        return f"<StopState {self.phase.name}{'' if left is None else f' time_left={left:.1f}s'}>"
