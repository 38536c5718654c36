"""How the grace period is split, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from registry_drain.clock import Deadline
from registry_drain.errors import ConfigurationError
from registry_drain.phases import STOP_ORDER, Phase
from registry_drain.shutdown.budget import Ledger, StopBudget
from registry_drain.testing.clock import FakeClock

PARTS = ("deregister", "ceiling", "closing", "notify", "margin")

# Sums of a dozen floats near 1e6 are off by less than this.
ROUNDING = 1e-6

# The machine may be busy: what is drawn must be right, not fast.
unhurried = settings(deadline=None)

seconds = st.floats(0, 1e4, allow_nan=False)
part = st.none() | seconds


@st.composite
def accepted_budgets(draw: st.DrawFn) -> StopBudget:
    """Any budget that its constructor takes."""
    drawn: dict[str, Any] = {
        "grace_period": draw(st.floats(0.01, 1e4)),
        "floor": draw(st.sampled_from([0.0, 1.0]) | seconds),
        "quiet_period": draw(st.sampled_from([0.0, 1.0]) | seconds),
        # Parts are drawn as shares, most of which fit; free numbers hardly ever would.
        **{name: draw(st.none() | st.floats(0, 1)) for name in PARTS},
    }
    for name in PARTS:
        if drawn[name] is not None:
            drawn[name] *= drawn["grace_period"] / 3
    try:
        return StopBudget(**drawn)
    except ConfigurationError:
        assume(condition=False)
        raise


def test_the_defaults_fit_the_30_s_of_kubernetes() -> None:
    """The parts add up, with 9.5 s at least for the drain."""
    budget = StopBudget()
    assert {name: round(budget.part(name), 9) for name in PARTS} == {
        "deregister": 5.0,
        "ceiling": 7.5,
        "closing": 1.0,
        "notify": 5.0,
        "margin": 2.0,
    }
    assert budget.grace_period - sum(map(budget.part, PARTS)) == pytest.approx(9.5)
    assert budget.watchdog == pytest.approx(29.0)


def test_the_defaults_fit_the_10_s_of_docker() -> None:
    """One number is enough: everything else scales, and floor and quiet_period still fit under the ceiling."""
    budget = StopBudget(grace_period=10)
    assert {name: round(budget.part(name), 3) for name in PARTS} == {
        "deregister": 1.667,
        "ceiling": 2.5,
        "closing": 0.333,
        "notify": 1.667,
        "margin": 0.667,
    }
    assert budget.grace_period - sum(map(budget.part, PARTS)) == pytest.approx(9.5 / 3)
    assert budget.watchdog == pytest.approx(9.6667, abs=1e-4)


@pytest.mark.parametrize(
    ("numbers", "names"),
    [
        ({"grace_period": 0}, ["grace_period"]),
        ({"grace_period": -1}, ["grace_period"]),
        ({"grace_period": float("nan")}, ["grace_period"]),
        ({"grace_period": float("inf")}, ["grace_period"]),
        ({"grace_period": "30"}, ["grace_period", "'30'"]),
        ({"grace_period": True}, ["grace_period"]),
        ({"margin": -0.5}, ["margin"]),
        ({"hurried_notify": None, "floor": "x"}, ["floor"]),
        ({"floor": 8}, ["floor=8", "ceiling=7.5", "raise ceiling"]),
        ({"quiet_period": 8}, ["quiet_period=8", "ceiling=7.5", "lower quiet_period"]),
        ({"grace_period": 3}, ["floor=1", "ceiling=0.75", "grace_period"]),
        ({"deregister": 20}, ["grace_period=30", "raise grace_period", "deregister=20"]),
        ({"drain": 15}, ["leaves 9.5 s", "needs 15 s", "raise grace_period"]),
        ({"deregister": 14.5, "drain": 0}, ["leaves 0 s", "more than none"]),
    ],
)
def test_what_cannot_work_is_refused_in_one_line_that_says_what_to_change(
    numbers: dict[str, Any], names: list[str]
) -> None:
    """A budget is refused where it is made, not found out in the night."""
    with pytest.raises(ConfigurationError) as caught:
        StopBudget(**numbers)
    message = str(caught.value)
    assert "\n" not in message
    for name in names:
        assert name in message


def test_exactly_what_the_drain_needs_is_accepted() -> None:
    """The bound of the refusal is the sum, not less."""
    assert StopBudget(drain=9.5).drain == 9.5


@unhurried
@given(drawn=st.fixed_dictionaries({}, optional=dict.fromkeys(("grace_period", "drain", *PARTS), part)))
def test_any_numbers_are_accepted_or_refused_in_one_line(drawn: dict[str, Any]) -> None:
    """Never a ValueError of Python's own, never a ZeroDivisionError, never a message over several lines."""
    if drawn.get("grace_period", 30) is None:
        del drawn["grace_period"]
    try:
        budget = StopBudget(**drawn)
    except ConfigurationError as error:
        assert "\n" not in str(error)  # noqa: PT017 - most of what is drawn is refused
    else:
        left = budget.grace_period - sum(map(budget.part, PARTS))
        assert left > 0
        assert left >= (budget.drain or 0) - ROUNDING


@unhurried
@given(
    budget=accepted_budgets(),
    started_at=st.floats(0, 1e6),
    # How much of its own time each phase takes; above 1 it is late, as a thread on a busy machine is.
    use=st.lists(st.floats(0, 1.5), min_size=len(STOP_ORDER), max_size=len(STOP_ORDER)),
)
def test_deadlines_are_never_past_before_their_phase_nor_into_what_is_reserved(
    budget: StopBudget, started_at: float, use: list[float]
) -> None:
    """Whatever earlier phases took: no deadline is over too early, the margin is free, observers have their part."""
    clock = FakeClock(started_at, autojump=False)
    ledger = Ledger(budget, started_at, clock)
    end = started_at + budget.grace_period
    is_late = False
    for phase, share in zip(STOP_ORDER, use, strict=True):
        deadline = ledger.deadline(phase)
        if not is_late:
            # Earlier phases that kept to their time never leave a later one with a deadline in the past.
            assert deadline.at >= clock.now() - ROUNDING
        assert deadline.at <= end - budget.part("margin") + ROUNDING
        if phase is Phase.NOTIFYING:
            assert deadline.at == pytest.approx(end - budget.part("margin"), abs=ROUNDING)
        else:
            assert deadline.at <= end - budget.part("margin") - budget.part("notify") + ROUNDING
        is_late = is_late or share > 1
        clock.advance(deadline.remaining() * share)
        if phase is Phase.DRAINING and not is_late:
            assert ledger.deadline(Phase.NOTIFYING).remaining() >= budget.part("notify") - ROUNDING


@unhurried
@given(budget=accepted_budgets(), use=st.lists(st.floats(0, 1), min_size=3, max_size=3))
def test_the_drain_inherits_what_is_left_unused(budget: StopBudget, use: list[float]) -> None:
    """However the earlier phases share their time, the drain has at least its own part, and all that they left."""
    clock = FakeClock(autojump=False)
    ledger = Ledger(budget, clock.now(), clock)
    taken = 0.0
    for phase, share in zip(STOP_ORDER, use, strict=False):
        step = ledger.deadline(phase).remaining() * share
        clock.advance(step)
        taken += step
    left = ledger.deadline(Phase.DRAINING).remaining()
    assert left == pytest.approx(
        budget.grace_period - budget.part("margin") - budget.part("notify") - taken, abs=ROUNDING
    )
    assert left >= budget.grace_period - sum(map(budget.part, PARTS)) - ROUNDING


@pytest.mark.parametrize(("phase", "planned"), [(Phase.DEREGISTERING, 5), (Phase.PROPAGATING, 7.5), (Phase.CLOSING, 1)])
def test_a_phase_before_the_drain_gets_its_part_and_no_more(phase: Phase, planned: float) -> None:
    """What one leaves unused goes to the drain, not to its neighbour."""
    clock = FakeClock(autojump=False)
    assert Ledger(StopBudget(), clock.now(), clock).deadline(phase).remaining() == pytest.approx(planned)


def test_a_stop_that_is_late_has_no_time_left_but_no_negative_time() -> None:
    """Deadlines in the past have nothing remaining; the phases still run."""
    clock = FakeClock(autojump=False)
    ledger = Ledger(StopBudget(), clock.now() - 100, clock)
    assert [ledger.deadline(phase).remaining() for phase in STOP_ORDER] == [0] * len(STOP_ORDER)


@unhurried
@given(remaining=st.floats(0, 1e4))
def test_headroom_is_a_tenth_and_at_most_a_quarter_of_a_second(remaining: float) -> None:
    """What is handed on ends early enough to be heard of, and no earlier."""
    clock = FakeClock(autojump=False)
    handed_on = Deadline.after(remaining, clock).with_headroom().remaining()
    assert handed_on == pytest.approx(remaining - min(0.25, remaining / 10), abs=ROUNDING)


@unhurried
@given(budget=accepted_budgets(), used=st.floats(0, 1))
def test_waiting_for_a_registry_leaves_the_drain_its_own(budget: StopBudget, used: float) -> None:
    """It never ends before the ceiling, and takes from the drain only what ``drain`` does not claim."""
    clock = FakeClock(autojump=False)
    ledger = Ledger(budget, clock.now(), clock)
    clock.advance(ledger.deadline(Phase.DEREGISTERING).remaining() * used)
    ceiling, in_doubt = ledger.deadline(Phase.PROPAGATING), ledger.deadline_in_doubt()
    assert in_doubt.at >= ceiling.at
    clock.advance(in_doubt.remaining() + budget.part("closing"))
    left = ledger.deadline(Phase.DRAINING).remaining()
    least = budget.grace_period / 6 if budget.drain is None else budget.drain
    assert left >= least - ROUNDING or in_doubt.at == ceiling.at
