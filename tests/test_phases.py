"""The table of phases."""

from __future__ import annotations

import pytest

from registry_drain.phases import STOP_ORDER, Outcome, Phase
from registry_drain.shutdown.budget import StopBudget


def test_the_order_is_to_leave_propagate_close_drain_and_notify() -> None:
    """The registry is left before the listener closes, and observers are told last."""
    assert [phase.name for phase in STOP_ORDER] == [
        "DEREGISTERING",
        "PROPAGATING",
        "CLOSING",
        "DRAINING",
        "NOTIFYING",
    ]


def test_every_phase_is_in_the_order_but_the_two_ends() -> None:
    """No phase can be defined and left out of the stop."""
    assert [Phase.SERVING, *STOP_ORDER, Phase.STOPPED] == list(Phase)


@pytest.mark.parametrize("phase", Phase)
def test_only_serving_is_not_stopping(phase: Phase) -> None:
    """Readiness ends with the first phase."""
    assert phase.is_stopping == (phase is not Phase.SERVING)


@pytest.mark.parametrize(
    ("outcome", "is_fine"),
    [(Outcome.COMPLETED, True), (Outcome.SKIPPED, True), (Outcome.TIMED_OUT, False), (Outcome.FAILED, False)],
)
def test_only_completed_and_skipped_are_fine(outcome: Outcome, is_fine: bool) -> None:
    """Whatever else happened, somebody should look."""
    assert outcome.is_fine is is_fine


def test_a_hurried_stop_waits_for_nothing_but_leaving_closing_and_telling() -> None:
    """The columns of the table: what each phase may take once hurried."""
    budget = StopBudget(hurried_deregister=1.5, hurried_notify=0.5, closing=0.25)
    assert {phase: budget.when_hurried(phase) for phase in STOP_ORDER} == {
        Phase.DEREGISTERING: 1.5,
        Phase.PROPAGATING: 0.0,
        Phase.CLOSING: 0.25,
        Phase.DRAINING: 0.0,
        Phase.NOTIFYING: 0.5,
    }
