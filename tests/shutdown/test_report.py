"""The report: for people, for machines, and as an exit code."""

from __future__ import annotations

import dataclasses
import json

import pytest

from registry_drain.phases import STOP_ORDER, Outcome, Phase
from registry_drain.registries.base import Removal, RemovalOutcome
from registry_drain.shutdown.observers import ObserverResult, When
from registry_drain.shutdown.report import (
    EXIT_CLEAN,
    EXIT_INCOMPLETE,
    EXIT_WATCHDOG,
    CutOffRequest,
    LateArrivals,
    PhaseReport,
    ShutdownReport,
)

CLEAN = ShutdownReport(
    reason="SIGTERM",
    phase=Phase.STOPPED,
    grace_period=30.0,
    elapsed=1.5,
    phases=tuple(PhaseReport(phase, 5.0, 0.25, Outcome.COMPLETED) for phase in STOP_ORDER),
    removals=(Removal("calc-1 (10.0.0.7:9090)", "consul://c:8500", RemovalOutcome.CONFIRMED, "", 1, 1000.0),),
    listener="SYN filter",
    observers=(ObserverResult("cache", When.DRAINED, Outcome.COMPLETED, 0.125),),
)


def with_phase(phase: Phase, outcome: Outcome) -> ShutdownReport:
    """Return the clean report with one phase that ended like this."""
    phases = tuple(dataclasses.replace(each, outcome=outcome) if each.phase is phase else each for each in CLEAN.phases)
    return dataclasses.replace(CLEAN, phases=phases)


def test_a_clean_stop_exits_with_0() -> None:
    """Gone, finished, told."""
    assert (CLEAN.is_complete, CLEAN.is_clean, CLEAN.exit_code) == (True, True, EXIT_CLEAN)


def test_the_exit_codes_are_the_documented_numbers() -> None:
    """Scripts compare them."""
    assert (EXIT_CLEAN, EXIT_INCOMPLETE, EXIT_WATCHDOG) == (0, 1, 70)


@pytest.mark.parametrize("phase", [phase for phase in Phase if phase is not Phase.STOPPED])
def test_a_stop_under_way_is_neither_complete_nor_clean(phase: Phase) -> None:
    """Nobody may take a report so far for success."""
    report = dataclasses.replace(CLEAN, phase=phase)
    assert (report.is_complete, report.is_clean, report.exit_code) == (False, False, EXIT_INCOMPLETE)


@pytest.mark.parametrize("outcome", RemovalOutcome)
def test_only_what_is_proven_gone_is_clean(outcome: RemovalOutcome) -> None:
    """Unconfirmed, unverifiable and refused may still be listed."""
    report = dataclasses.replace(CLEAN, removals=(*CLEAN.removals, Removal("calc-1", "zookeeper://z", outcome)))
    is_gone = outcome not in {RemovalOutcome.UNCONFIRMED, RemovalOutcome.UNVERIFIABLE, RemovalOutcome.REFUSED}
    assert report.is_clean is is_gone


@pytest.mark.parametrize("outcome", Outcome)
@pytest.mark.parametrize("phase", [phase for phase in STOP_ORDER if phase is not Phase.PROPAGATING])
def test_a_phase_that_did_not_do_its_work_is_not_clean(phase: Phase, outcome: Outcome) -> None:
    """Completed and skipped are fine."""
    assert with_phase(phase, outcome).is_clean is outcome.is_fine


@pytest.mark.parametrize("outcome", Outcome)
def test_callers_that_never_stop_calling_do_not_make_a_stop_unclean(outcome: Outcome) -> None:
    """The ceiling is there for them, and they were served: nothing was lost."""
    assert with_phase(Phase.PROPAGATING, outcome).is_clean


@pytest.mark.parametrize("outcome", Outcome)
def test_an_observer_that_is_not_well_is_not_clean(outcome: Outcome) -> None:
    """Somebody was not told, or failed."""
    observers = (*CLEAN.observers, ObserverResult("pool", When.DRAINING_STARTS, outcome, 1.0))
    assert dataclasses.replace(CLEAN, observers=observers).is_clean is outcome.is_fine


def test_a_request_cut_off_is_not_clean() -> None:
    """It is lost."""
    assert not dataclasses.replace(CLEAN, cut_off=(CutOffRequest("add", "10.0.0.9:1", 2.0),)).is_clean


def test_late_arrivals_are_clean() -> None:
    """They were served."""
    assert dataclasses.replace(CLEAN, late_arrivals=LateArrivals(7, 0.5)).is_clean


FULL = dataclasses.replace(
    with_phase(Phase.DRAINING, Outcome.TIMED_OUT),
    is_hurried=True,
    late_arrivals=LateArrivals(7, 0.5),
    cut_off=(CutOffRequest("add", "10.0.0.9:5000", 2.0), CutOffRequest("", "", 0.5)),
    removals=(
        Removal("calc-1 (10.0.0.7:9090)", "consul://c:8500", RemovalOutcome.UNCONFIRMED, "no answer"),
        Removal("calc-2 (10.0.0.7:9090)", "", RemovalOutcome.CONFIRMED),
    ),
    observers=(
        ObserverResult("cache", When.DRAINED, Outcome.COMPLETED, 0.125),
        ObserverResult("pool", When.DRAINING_STARTS, Outcome.TIMED_OUT, 5.0, "still in close() at pool.py:7"),
    ),
)


def test_str_says_everything_a_line_for_each_fact() -> None:
    """For the log: what was asked, how long each step took, and what was lost, by name."""
    assert str(FULL).splitlines() == [
        "stopped (SIGTERM, hurried) in 1.500 s of 30 s: INCOMPLETE",
        "  deregistering   0.250 s of  5.000 s  completed",
        "  propagating     0.250 s of  5.000 s  completed",
        "  closing         0.250 s of  5.000 s  completed",
        "  draining        0.250 s of  5.000 s  out of time",
        "  notifying       0.250 s of  5.000 s  completed",
        "  registry      calc-1 (10.0.0.7:9090) at consul://c:8500: unconfirmed: no answer",
        "  registry      calc-2 (10.0.0.7:9090) at unknown: confirmed",
        "  listener      SYN filter",
        "  late          7 requests after deregistration, the last 0.500 s after it",
        "  cut off       add from 10.0.0.9:5000, in flight for 2.000 s",
        "  cut off       request from unknown, in flight for 0.500 s",
        "  observer      cache (drained): completed after 0.125 s",
        "  observer      pool (draining starts): out of time: still in close() at pool.py:7 after 5.000 s",
    ]


def test_str_of_a_clean_stop_says_so_in_its_first_line() -> None:
    """And nothing about what did not happen."""
    text = str(CLEAN)
    assert text.splitlines()[0] == "stopped (SIGTERM) in 1.500 s of 30 s: clean"
    assert "late" not in text
    assert "cut off" not in text


def test_str_of_a_stop_under_way_says_where_it_is() -> None:
    """Whoever joins from inside gets such a one."""
    report = dataclasses.replace(CLEAN, phase=Phase.DRAINING)
    assert str(report).startswith("stopped (SIGTERM) in 1.500 s of 30 s: so far, in DRAINING")


def test_as_dict_survives_json_and_names_everything() -> None:
    """Enums are their lower-case names, times are seconds, and the verdicts are there."""
    plain = json.loads(json.dumps(FULL.as_dict()))
    assert plain["phase"] == "stopped"
    assert plain["reason"] == "SIGTERM"
    assert plain["is_hurried"] is True
    assert (plain["is_complete"], plain["is_clean"], plain["exit_code"]) == (True, False, 1)
    assert plain["phases"][3] == {
        "phase": "draining",
        "planned": 5.0,
        "actual": 0.25,
        "outcome": "timed_out",
        "detail": "",
    }
    assert plain["removals"][0]["outcome"] == "unconfirmed"
    assert plain["late_arrivals"] == {"count": 7, "last_delay": 0.5}
    assert plain["cut_off"][0] == {"name": "add", "peer": "10.0.0.9:5000", "age": 2.0}
    assert plain["observers"][1]["when"] == "draining_starts"
    assert set(plain) == {field.name for field in dataclasses.fields(ShutdownReport)} | {
        "is_complete",
        "is_clean",
        "exit_code",
    }
