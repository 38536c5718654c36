"""The rolling restart of every kind of server: the harness counts rightly, and each of its servers takes part."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from types import ModuleType

import pytest

from benchmarks.rolling_restart import subjects
from benchmarks.rolling_restart.__main__ import measure
from benchmarks.rolling_restart.fleet import Stop, SubjectError
from benchmarks.rolling_restart.load import FOLLOWING, IGNORING, Sample
from benchmarks.rolling_restart.outcome import Outcome

SUBJECTS = sorted(module.name for module in pkgutil.iter_modules(subjects.__path__))


@pytest.mark.slow
@pytest.mark.parametrize("subject", SUBJECTS)
def test_a_drained_restart_loses_nothing(subject: str) -> None:
    """One stop of each server, under load. The benchmark makes many more."""
    outcome = measure(subject, "drained", 1)
    assert outcome.ok > 100
    assert outcome.failed(FOLLOWING) == 0, outcome.remarks
    # One connection in a thousand would be less than one here.
    assert outcome.failed(IGNORING) <= (1 if outcome.ignoring_limit else 0), outcome.remarks
    assert not any(stop.has_orphans for stop in outcome.stops)


def test_a_stop_of_the_servers_own_loses_requests() -> None:
    """Otherwise the harness would notice nothing."""
    assert measure("socketserver_threading", "own", 2).failed(FOLLOWING) > 0


@pytest.mark.parametrize("subject", SUBJECTS)
def test_every_subject_says_what_it_is(subject: str) -> None:
    """The harness looks for these names."""
    traits = importlib.import_module(f"benchmarks.rolling_restart.subjects.{subject}")
    assert importlib.import_module(f"benchmarks.rolling_restart.clients.{traits.CLIENT}").Client
    assert 0 <= traits.IGNORING_LIMIT <= 1 / 1000


def test_a_subject_that_does_not_start_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its last words; nothing is left running."""
    broken = ModuleType("benchmarks.rolling_restart.subjects.broken")
    broken.__dict__.update(CLIENT="line", IGNORING_LIMIT=0)
    monkeypatch.setitem(sys.modules, broken.__name__, broken)
    with pytest.raises(SubjectError, match=r"broken.*did not get ready.*No module named"):
        measure("broken", "drained", 1)


def outcome_of(*samples: Sample, connections: int = 1000, limit: float = 1 / 1000) -> Outcome:
    """Return what came of these requests, with one stop from 10 to 12 s."""
    return Outcome("echo", "drained", samples, [Stop(10.0, 12.0, 0, has_orphans=False)], connections, limit)


@pytest.mark.parametrize(
    ("outcome", "is_kept"),
    [
        (outcome_of(Sample(FOLLOWING, 1, 1, "")), True),
        (outcome_of(Sample(FOLLOWING, 1, 1, "refused")), False),
        (outcome_of(Sample(IGNORING, 1, 1, "cut off")), True),
        (outcome_of(*[Sample(IGNORING, 1, 1, "cut off")] * 2), False),
        (outcome_of(Sample(IGNORING, 1, 1, "cut off"), connections=999), False),
        (outcome_of(Sample(IGNORING, 1, 1, "cut off"), limit=0), False),
    ],
)
def test_what_is_promised(outcome: Outcome, is_kept: bool) -> None:
    """Nothing fails for clients that follow the registry, and one in a thousand for those that do not."""
    assert outcome.is_kept is is_kept


def test_latencies_count_during_stops_only() -> None:
    """Those of clients that follow the registry, and were answered."""
    outcome = outcome_of(
        Sample(FOLLOWING, 9.0, 5.0, ""),
        Sample(FOLLOWING, 11.0, 0.010, ""),
        Sample(FOLLOWING, 11.0, 7.0, "refused"),
        Sample(IGNORING, 11.0, 3.0, ""),
    )
    assert outcome.p99_ms == pytest.approx(10)
    assert outcome.stop_s == pytest.approx(2)
    assert outcome.as_dict()["failed_following"] == 1
