"""The soft drain: out of rotation first, inside the deregistration's budget; it can cost nothing but the notice."""

from __future__ import annotations

import pytest

from registry_drain.clock import Deadline
from registry_drain.errors import ConfigurationError, RegistryUnavailableError
from registry_drain.phases import Outcome, Phase
from registry_drain.registries.base import Removal, RemovalOutcome
from registry_drain.shutdown.budget import StopBudget
from registry_drain.shutdown.events import LeftRotation
from registry_drain.shutdown.report import ShutdownReport
from registry_drain.shutdown.routine import StopRoutine
from tests.shutdown.stage import Stage

BUDGET = StopBudget(grace_period=30, deregister=6, floor=0, quiet_period=0)


class Rotating:
    """A registration that can leave the rotation, and writes down when."""

    def __init__(self, stage: Stage, *, can: bool = True, fails: bool = False, hangs: bool = False) -> None:
        self._stage, self._fails, self._hangs = stage, fails, hangs
        self.can_leave_rotation = can
        self.instance = "one"

    def leave_rotation(self, deadline: Deadline) -> bool | None:
        """Do so, or what the test asks for."""
        self._stage.note(f"out at {self._stage.elapsed:g}")
        assert not deadline.is_past
        if self._hangs:
            self._stage.hang()
        if self._fails:
            raise RegistryUnavailableError("no leader")
        return None

    def fence(self, deadline: Deadline) -> None:
        """Note it."""
        del deadline
        self._stage.note(f"fence at {self._stage.elapsed:g}")

    def on_shutdown(self, deadline: Deadline) -> Removal:
        """Note it."""
        assert not deadline.is_past
        self._stage.note(f"removed at {self._stage.elapsed:g}")
        return Removal("one", "fake://", RemovalOutcome.CONFIRMED, confirmed_at=self._stage.clock.now())


class Unneeded(Rotating):
    """One that finds nothing to leave."""

    def leave_rotation(self, deadline: Deadline) -> bool:
        """Look, and leave it."""
        super().leave_rotation(deadline)
        return False


def stop(stage: Stage, *registrations: Rotating, soft_drain: float = 2.0) -> tuple[StopRoutine, ShutdownReport]:
    """Stop with these registrations."""
    routine = routine_of(stage, *registrations, soft_drain=soft_drain)
    return routine, stage.spawn(lambda: routine.stop("the test")).result()


def routine_of(stage: Stage, *registrations: Rotating, soft_drain: float = 2.0) -> StopRoutine:
    """Return a stop with these registrations."""
    routine = StopRoutine(
        stage.server, budget=BUDGET, clock=stage.clock, sinks=[stage.events.append], soft_drain=soft_drain
    )
    for registration in registrations:
        routine.notifier.add_first(registration)
    return routine


def registry_steps(stage: Stage) -> list[str]:
    """Return what the registrations wrote down."""
    return [line for line in stage.journal if " at " in line]


def test_it_is_out_of_rotation_before_it_is_removed(stage: Stage) -> None:
    """For as long as asked, before the fence; the report and the events say so."""
    _, report = stop(stage, Rotating(stage))
    assert registry_steps(stage) == ["out at 0", "fence at 2", "removed at 2"]
    (drain,) = report.soft_drains
    assert (drain.subject, drain.outcome) == ("one", Outcome.COMPLETED)
    assert "soft drain    one" in str(report)
    (event,) = [event for event in stage.events if isinstance(event, LeftRotation)]
    assert not event.is_warning
    assert report.is_clean
    assert report.as_dict()["soft_drains"]


def test_without_it_nothing_leaves_the_rotation(stage: Stage) -> None:
    """The default."""
    _, report = stop(stage, Rotating(stage), soft_drain=0.0)
    assert registry_steps(stage) == ["fence at 0", "removed at 0"]
    assert report.soft_drains == ()


def test_what_cannot_leave_is_removed_at_once(stage: Stage) -> None:
    """An entry that is not ours to change, or a registry without such a state."""
    _, report = stop(stage, Rotating(stage, can=False))
    assert registry_steps(stage) == ["fence at 0", "removed at 0"]
    assert report.is_clean


def test_what_finds_nothing_to_leave_is_removed_at_once(stage: Stage) -> None:
    """Several workers share it, and the others go on: nothing was drained, and nothing is said to have been."""
    _, report = stop(stage, Unneeded(stage))
    assert registry_steps(stage) == ["out at 0", "fence at 0", "removed at 0"]
    assert report.soft_drains == ()
    assert not any(isinstance(event, LeftRotation) for event in stage.events)


def test_a_failure_is_reported_and_costs_nothing(stage: Stage) -> None:
    """The removal follows at once, and the stop is clean."""
    _, report = stop(stage, Rotating(stage, fails=True))
    assert registry_steps(stage) == ["out at 0", "fence at 0", "removed at 0"]
    (drain,) = report.soft_drains
    assert drain.outcome is Outcome.FAILED
    assert "no leader" in drain.detail
    assert report.is_clean
    assert any(event.is_warning for event in stage.events if isinstance(event, LeftRotation))


def test_one_that_hangs_keeps_to_its_part(stage: Stage) -> None:
    """It is left behind; the removal begins when the soft drain's seconds are over."""
    _, report = stop(stage, Rotating(stage, hangs=True))
    assert registry_steps(stage) == ["out at 0", "fence at 2", "removed at 2"]
    assert report.soft_drains[0].outcome is Outcome.TIMED_OUT
    (deregistering,) = [each for each in report.phases if each.phase is Phase.DEREGISTERING]
    assert deregistering.planned == BUDGET.deregister


def test_a_second_signal_ends_it(stage: Stage) -> None:
    """Hurried: removed at once."""
    routine = routine_of(stage, Rotating(stage), soft_drain=3.0)
    stage.after(1.0, lambda: routine.hurry("again"))
    stage.spawn(lambda: routine.stop("the test")).result()
    assert registry_steps(stage) == ["out at 0", "fence at 1", "removed at 1"]


def test_a_hurried_stop_has_none(stage: Stage) -> None:
    """There is time for the removal only."""
    routine = routine_of(stage, Rotating(stage))
    routine.hurry("at once")
    stage.spawn(lambda: routine.stop("the test")).result()
    assert registry_steps(stage) == ["fence at 0", "removed at 0"]


def test_what_was_handed_over_is_left_alone(stage: Stage) -> None:
    """The entry is the next process'."""
    routine = routine_of(stage, Rotating(stage))
    routine.hand_over_to(4711)
    stage.spawn(lambda: routine.stop("the test")).result()
    assert registry_steps(stage) == ["fence at 0", "removed at 0"]


@pytest.mark.parametrize("seconds", [-1.0, 3.01, float("nan")])
def test_seconds_that_cannot_work_are_refused(stage: Stage, seconds: float) -> None:
    """More than half of the deregistration's part would leave too little for the removal."""
    with pytest.raises(ConfigurationError, match="soft_drain"):
        routine_of(stage, soft_drain=seconds)
