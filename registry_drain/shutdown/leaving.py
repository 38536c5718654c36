"""Leaving the cluster: the phases DEREGISTERING and PROPAGATING.

Theory of operation: every first observer (a registration) leaves its cluster in a thread of its own, all at once: out
of rotation first, where that is asked for, then fenced, removed and proven gone. Then the server serves on until
callers have noticed. What could not be proven in time is tried again meanwhile: callers keep coming as long as a
registry lists us, so that trying on costs nothing.

Rules: a fence stands before anything is deleted. What fails here never keeps the later phases from running.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Protocol, runtime_checkable

from registry_drain.clock import Deadline
from registry_drain.errors import ConfigurationError
from registry_drain.phases import Outcome
from registry_drain.registries.base import Removal, RemovalOutcome
from registry_drain.servers.in_flight import InFlight
from registry_drain.shutdown import events
from registry_drain.shutdown.bounded import BoundedCall
from registry_drain.shutdown.budget import StopBudget
from registry_drain.shutdown.observers import FirstObserver, RotatingObserver, ShutdownNotifier, SoftDrainResult
from registry_drain.shutdown.pace import Pace
from registry_drain.shutdown.report import LateArrivals

_SETTLING_SHARE = 0.75
"""The part of a removal's time for which an open offer is waited for: 3.5 s by default, in which the course of a
hand-over has ended a new process that does not leave by itself. What is left is enough for a registry that answers.
"""


@runtime_checkable
class OfferingObserver(FirstObserver, Protocol):
    """A first observer whose entry may be on offer to the next process."""

    def await_settled(self, deadline: Deadline) -> None:
        """Wait until it is known whose the entry is; return at once if it is not on offer."""


class Leaving:
    """How one stop leaves its clusters. Its steps are called by the stop's thread, the properties by any.

    Attributes:
        is_proven_late: whether everything was proven gone only while callers were still served.
    """

    def __init__(
        self,
        notifier: ShutdownNotifier,
        in_flight: InFlight,
        *,
        budget: StopBudget,
        pace: Pace,
        emit: Callable[[events.Event], None],
    ) -> None:
        """Begin with nothing done; ``emit`` is told each event."""
        self.is_proven_late = False
        self._notifier = notifier
        self._in_flight = in_flight
        self._budget = budget
        self._pace = pace
        self._emit = emit
        self._soft_drains: list[BoundedCall[object]] = []
        self._removing: list[BoundedCall[Removal]] = []
        self._removing_again: dict[int, BoundedCall[Removal]] = {}
        self._gone_at: float | None = None
        self._arrivals_when_gone = 0

    # --- what became of it ------------------------------------------------------------------------------------------

    @property
    def removals(self) -> tuple[Removal, ...]:
        """What is known by now of each registration."""
        again = {position: call.value for position, call in self._removing_again.items()}
        return tuple(again.get(position) or _removal_of(call) for position, call in enumerate(self._removing))

    @property
    def is_in_doubt(self) -> bool:
        """Whether a registry may still list the instance, and a further try may change that."""
        return any(removal.outcome is RemovalOutcome.UNCONFIRMED for removal in self.removals)

    @property
    def soft_drains(self) -> tuple[SoftDrainResult, ...]:
        """What became of taking instances out of rotation."""
        return tuple(map(_soft_drain_of, self._soft_drains))

    @property
    def late_arrivals(self) -> LateArrivals:
        """Which requests came after the instance was gone."""
        gone_at, last_at = self._gone_at, self._in_flight.last_arrival_at
        count = self._in_flight.total - self._arrivals_when_gone
        if gone_at is None or last_at is None or count <= 0:
            return LateArrivals()
        return LateArrivals(count, max(last_at - gone_at, 0.0))

    # --- the steps --------------------------------------------------------------------------------------------------

    def deregister(self, deadline: Deadline, *, soft_drain: float) -> tuple[Outcome, str]:
        """Take every instance out of rotation for ``soft_drain`` seconds, if any, then remove it, and prove it."""
        if soft_drain:
            try:
                self._leave_rotation(deadline, soft_drain)
            except Exception:  # noqa: BLE001 - a registration of somebody's; its removal matters more
                events.logger.exception("the soft drain failed; removing at once")
        until = self._pace.until(deadline)
        self._removing = [self._begin_removal(*each, until) for each in self._notifier.first]
        self._pace.wait_for(self._removing)
        removals = self.removals
        for removal in removals:
            self._emit(events.InstanceRemoved(removal))
        if not removals:
            return Outcome.SKIPPED, "nothing is registered"
        # The instant of proof is the backend's; arrivals are counted a moment later, so at worst one too few is late.
        # An entry that another process keeps leads callers to the same address: nobody comes late there.
        ours = [removal for removal in removals if removal.outcome is not RemovalOutcome.HANDED_OVER]
        if not ours:
            return Outcome.COMPLETED, "handed over"
        now = self._pace.clock.now()
        proofs = [now if removal.confirmed_at is None else removal.confirmed_at for removal in ours]
        self._arrivals_when_gone = self._in_flight.total
        self._gone_at = min(max(proofs), now)  # a backend that read another clock must not prolong the wait
        left = [removal.subject for removal in removals if not removal.is_gone]
        if not left:
            return Outcome.COMPLETED, ""
        is_late = any(not call.is_done for call in self._removing)
        return Outcome.TIMED_OUT if is_late else Outcome.FAILED, f"not proven gone: {', '.join(left)}"

    def propagate(self, deadline: Deadline) -> tuple[Outcome, str]:
        """Wait until callers have noticed; try again to remove what is in doubt."""
        outcomes = {removal.outcome for removal in self.removals}
        if outcomes <= {RemovalOutcome.NOT_REGISTERED}:
            return Outcome.SKIPPED, "nothing was registered"
        if outcomes <= {RemovalOutcome.NOT_REGISTERED, RemovalOutcome.HANDED_OVER}:
            return Outcome.SKIPPED, "handed over: callers find the same address"
        awaited = self._begin_again(deadline)
        clock = self._pace.clock
        gone_at = clock.now() if self._gone_at is None else self._gone_at
        while True:
            self._pace.clear_nudge()
            if self._pace.is_hurried:
                return Outcome.SKIPPED, "hurried"
            for position in [each for each in awaited if self._removing_again[each].is_done]:
                awaited.discard(position)
                gone_at = self._note_late_removal(self._removing_again[position].value, gone_at)
                deadline = deadline if awaited else deadline.capped(self._budget.part("ceiling"))
            last_arrival_at = self._in_flight.last_arrival_at
            due_at = gone_at + self._budget.floor
            if last_arrival_at is not None:
                due_at = max(due_at, last_arrival_at + self._budget.quiet_period)
            now = clock.now()
            if due_at <= now:
                return Outcome.COMPLETED, ""
            if deadline.is_past:
                return Outcome.TIMED_OUT, f"requests still arrived {now - (last_arrival_at or now):.3f} s ago"
            self._pace.wait_for_nudge(Deadline(min(due_at, deadline.at), clock))

    # --- their parts ------------------------------------------------------------------------------------------------

    def _leave_rotation(self, deadline: Deadline, seconds: float) -> None:
        """Take instances out of rotation, and give callers time to notice; in a hurry the removal is all."""
        if self._pace.is_hurried:
            return
        until = deadline.capped(min(seconds, deadline.remaining() / 2))
        handed_on = until.with_headroom()
        self._soft_drains = [
            BoundedCall(name, partial(observer.leave_rotation, handed_on), until, on_end=self._pace.nudge)
            for name, observer in self._notifier.first
            if isinstance(observer, RotatingObserver) and observer.can_leave_rotation
        ]
        self._pace.wait_for(self._soft_drains)
        # One that finds, when it looks, that its entry is to stay as it is has left nothing.
        self._soft_drains = [call for call in self._soft_drains if call.value is not False]
        for result in self.soft_drains:
            self._emit(events.LeftRotation(result))
        if any(result.outcome.is_fine for result in self.soft_drains):
            until.wait(self._pace.hurried)

    def _begin_removal(self, name: str, observer: FirstObserver, deadline: Deadline) -> BoundedCall[Removal]:
        leave = partial(_leave, observer, deadline.with_headroom())
        return BoundedCall(name, leave, deadline, on_end=self._pace.nudge)

    def _begin_again(self, deadline: Deadline) -> set[int]:
        """Let those try once more whose removal ended in doubt; return their positions."""
        self._removing_again = {
            position: self._begin_removal(name, observer, deadline)
            for position, ((name, observer), call) in enumerate(zip(self._notifier.first, self._removing, strict=True))
            if isinstance(call.value, Removal) and call.value.outcome is RemovalOutcome.UNCONFIRMED
        }
        return set(self._removing_again)

    def _note_late_removal(self, removal: Removal | None, gone_at: float) -> float:
        """Tell of a removal that was proven only now; return when all that is gone was."""
        if removal is None or not removal.is_gone:
            return gone_at
        self._emit(events.InstanceRemoved(removal))
        self._arrivals_when_gone = self._in_flight.total
        self._gone_at = max(gone_at, min(removal.confirmed_at or gone_at, self._pace.clock.now()))
        self.is_proven_late = all(each.is_gone for each in self.removals)
        return self._gone_at


def _leave(observer: FirstObserver, deadline: Deadline) -> Removal:
    # The fence stands before anything is deleted: a heartbeat that comes between would put the instance back. A
    # heartbeat that cannot be joined leaves half of the time for the removal all the same. And before the fence: what
    # is on offer to another process may be written by that one, until it has ended or has left.
    try:
        if isinstance(observer, OfferingObserver):
            observer.await_settled(deadline.capped(deadline.remaining() * _SETTLING_SHARE))
        observer.fence(deadline.capped(deadline.remaining() / 2))
    except Exception as error:  # noqa: BLE001 - an entry that may come back is better than one that surely stays
        removal = observer.on_shutdown(deadline)
        outcome = RemovalOutcome.UNCONFIRMED if removal.is_gone else removal.outcome
        why = f"its fence failed ({type(error).__name__}: {error}), so it may come back"
        return replace(removal, outcome=outcome, detail=f"{removal.detail or removal.outcome.value}; {why}")
    return observer.on_shutdown(deadline)


def _removal_of(call: BoundedCall[Removal]) -> Removal:
    if isinstance(call.value, Removal):
        return call.value
    detail = call.detail or f"its answer was {call.value!r}"
    return Removal(call.name, "", RemovalOutcome.UNCONFIRMED, f"{detail}; what is left behind expires by itself")


def _soft_drain_of(call: BoundedCall[object]) -> SoftDrainResult:
    return SoftDrainResult(call.name, call.outcome, call.elapsed, call.detail)


def check_soft_drain(seconds: float, budget: StopBudget) -> float:
    """Return ``seconds``.

    Raises:
        ConfigurationError: they are more than half of the budget's ``deregister``, or negative.
    """
    most = budget.part("deregister") / 2
    if not 0 <= seconds <= most:
        raise ConfigurationError(
            f"soft_drain={seconds:g} s: must be between 0 and {most:g} s, half of the budget's deregister, so that the"
            " removal has time: lower it, or raise StopBudget(deregister=…)"
        )
    return seconds
