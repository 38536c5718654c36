"""What the stop tells the server's handlers: each phase when it begins, and when they will be cut off."""

from __future__ import annotations

import pytest

from registry_drain.phases import STOP_ORDER, Phase
from registry_drain.shutdown.budget import StopBudget
from tests.shutdown.stage import Stage

DRAIN_ENDS = 23.0
"""Of the default budget: 30 s less 5 for the observers and 2 of margin."""


def test_every_phase_is_told(stage: Stage) -> None:
    """In the order of the stop, to the last."""
    told: list[Phase] = []
    stage.server.in_flight.stop_state.watch(told.append)
    routine = stage.routine()
    stage.register(routine)
    assert stage.server.in_flight.stop_state.time_left() is None
    routine.stop()
    assert told == [*STOP_ORDER, Phase.STOPPED]


@pytest.mark.parametrize("phase", [Phase.DEREGISTERING, Phase.PROPAGATING, Phase.DRAINING])
def test_time_left_is_until_the_end_of_the_drain(stage: Stage, phase: Phase) -> None:
    """Whatever the phase: all that it does not use falls to the drain."""
    seen: list[float] = []
    state = stage.server.in_flight.stop_state
    state.watch(lambda each: seen.append(state.time_left() or -1) if each is phase else None)
    routine = stage.routine(StopBudget())
    stage.register(routine)
    routine.stop()
    at = next(each for each in routine.report.phases if each.phase is phase)
    before = sum(each.actual for each in routine.report.phases if each.phase.value < phase.value)
    assert at.outcome.is_fine
    assert seen == [pytest.approx(DRAIN_ENDS - before)]


def test_a_hurry_leaves_no_time(stage: Stage) -> None:
    """A second signal: what is in flight learns that its time is over, before it is cut off."""
    routine = stage.routine()
    request = stage.server.request("long", 100)
    state = stage.server.in_flight.stop_state
    routine.request_stop("SIGTERM")
    stage.after(3.0, lambda: routine.hurry("SIGTERM"))
    told: list[tuple[Phase, float | None]] = []
    state.watch(lambda phase: told.append((phase, state.time_left())))
    routine.wait()
    request.result()
    assert (Phase.DRAINING, 0) in told
    assert [each.name for each in routine.report.cut_off] == ["long"]
