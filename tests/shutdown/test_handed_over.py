"""A stop that a hand-over causes: nobody is waited for who need not notice; and SIGHUP, which asks for one."""

from __future__ import annotations

import signal
import threading

import pytest

from registry_drain.clock import Deadline
from registry_drain.handover.course import _LEAVE_LIMIT
from registry_drain.persistent_registration import PersistentRegistration
from registry_drain.phases import Outcome, Phase
from registry_drain.registries.base import Removal, RemovalOutcome
from registry_drain.shutdown.events import HandedOver
from registry_drain.shutdown.signals import StopSignals
from tests.shutdown.stage import Stage


class Handed:
    """A registration that was handed over."""

    def __init__(self, outcome: RemovalOutcome = RemovalOutcome.HANDED_OVER) -> None:
        self.outcome = outcome

    def fence(self, deadline: Deadline) -> None:
        """Nothing renews."""

    def on_shutdown(self, deadline: Deadline) -> Removal:
        """Say so."""
        return Removal("calculator-1", "memory://", self.outcome, confirmed_at=deadline.clock.now())


def outcomes(report_phases: object) -> dict[Phase, Outcome]:
    """Return what became of each phase."""
    return {each.phase: each.outcome for each in report_phases}  # type: ignore[attr-defined]


def test_a_stop_by_hand_over_waits_for_no_caller(stage: Stage) -> None:
    """They find the same address: propagating is skipped, nobody is late, and the report says who serves."""
    routine = stage.routine()
    routine.notifier.add_first(Handed(), name="calculator-1")
    routine.hand_over_to(4711)
    report = routine.wait()
    assert report is not None
    assert report.is_clean
    assert (report.handed_over_to, report.reason) == (4711, "handed over to pid 4711")
    assert outcomes(report.phases)[Phase.PROPAGATING] is Outcome.SKIPPED
    assert report.late_arrivals.count == 0
    assert "handed over   to pid 4711" in str(report)
    assert report.as_dict()["handed_over_to"] == 4711
    assert HandedOver(4711) in stage.events
    assert stage.elapsed < 1.0, "on the fake clock: no wait at all"


def test_one_entry_that_was_removed_makes_callers_be_waited_for(stage: Stage) -> None:
    """Of two registrations one could not be handed over, and was removed: its callers must notice."""
    routine = stage.routine()
    routine.notifier.add_first(Handed(), name="one")
    routine.notifier.add_first(Handed(RemovalOutcome.CONFIRMED), name="two")
    routine.hand_over_to(4711)
    report = routine.wait()
    assert report is not None
    assert outcomes(report.phases)[Phase.PROPAGATING] is Outcome.COMPLETED
    assert stage.elapsed >= 1.0


def test_a_hand_over_that_succeeds_while_a_stop_begins_is_in_its_report(stage: Stage) -> None:
    """SIGTERM came a moment earlier: one stop, and it says who serves."""
    routine = stage.routine()
    stage.server.before["drain"] = lambda: routine.hand_over_to(4711)
    routine.request_stop("SIGTERM")
    report = routine.wait()
    assert report is not None
    assert (report.reason, report.handed_over_to) == ("SIGTERM", 4711)


class Offered:
    """A registration that another process may be writing to: notes when it is fenced."""

    is_registered = True

    def __init__(self, stage: Stage) -> None:
        self.instance = stage.instance()
        self.fenced_at: float | None = None
        self._stage = stage

    def register(self, deadline: Deadline) -> None:
        """It is."""

    def fence(self, deadline: Deadline) -> None:
        """Note when: what another process writes after this stays."""
        del deadline
        self.fenced_at = self._stage.elapsed

    def on_shutdown(self, deadline: Deadline) -> Removal:
        """Need some time for it."""
        outcome = RemovalOutcome.CONFIRMED if deadline.remaining() >= 1.0 else RemovalOutcome.UNCONFIRMED
        return Removal("calculator-1", "memory://", outcome, confirmed_at=deadline.clock.now())


@pytest.mark.parametrize("seconds", [0.0, 2 * _LEAVE_LIMIT])
def test_a_stop_during_a_hand_over_removes_only_what_is_its_own(stage: Stage, seconds: float) -> None:
    """A new process that does not leave is killed first; without a hand-over nothing is waited for."""
    offered = Offered(stage)
    registration = PersistentRegistration(offered, "memory://", stage.clock)
    routine = stage.routine()
    routine.notifier.add_first(registration)
    if seconds:
        registration.offer(Deadline.after(1.0, stage.clock))
        stage.after(seconds, lambda: registration.settle(is_handed_over=False))
    report = routine.stop()
    assert offered.fenced_at == pytest.approx(seconds)
    assert report.removals[0].outcome is RemovalOutcome.CONFIRMED
    assert report.is_clean


def test_cutting_off_may_take_what_the_drain_has_left(stage: Stage) -> None:
    """Thousands of threads that end need two seconds; that is no failure while there is time."""
    stage.server.before["cut_off"] = stage.lasting(2.0)
    routine = stage.routine()
    report = routine.stop()
    assert outcomes(report.phases)[Phase.DRAINING] is Outcome.COMPLETED


class Target:
    """Notes what signals ask for."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.is_asked = threading.Event()

    def request_stop(self, reason: str) -> None:
        """Note it."""
        self.asked.append(f"stop {reason}")
        self.is_asked.set()

    def hurry(self, reason: str) -> None:
        """Note it."""
        self.asked.append(f"hurry {reason}")
        self.is_asked.set()

    def restart(self, reason: str) -> None:
        """Note it."""
        self.asked.append(f"restart {reason}")
        self.is_asked.set()

    def report_displaced(self, signal_name: str, handler: str) -> None:
        """Not in these tests."""


def test_sighup_restarts_and_never_counts_as_a_stop() -> None:
    """However many come, a SIGTERM after them is the first signal; and what stood there before is put back."""
    target = Target()
    signals = StopSignals(target)
    signals.on_hangup = target.restart
    before = signal.getsignal(signal.SIGHUP)
    signals.install()
    try:
        for _ in range(3):
            target.is_asked.clear()
            signal.raise_signal(signal.SIGHUP)
            assert target.is_asked.wait(30)
        target.is_asked.clear()
        signal.raise_signal(signal.SIGTERM)
        assert target.is_asked.wait(30)
    finally:
        signals.uninstall(chain=False)
    assert target.asked == [*["restart SIGHUP"] * 3, "stop SIGTERM"]
    assert signals.received == (signal.SIGTERM,)
    assert signal.getsignal(signal.SIGHUP) == before


def test_sighup_is_left_alone_unless_it_is_asked_for() -> None:
    """Its handler is somebody else's."""
    before = signal.getsignal(signal.SIGHUP)
    signals = StopSignals(Target())
    signals.install()
    try:
        assert signal.getsignal(signal.SIGHUP) == before
    finally:
        signals.uninstall(chain=False)


def test_under_nohup_sighup_stays_ignored_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """Whoever closes the terminal does not mean to restart the service."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signals = StopSignals(Target())
    signals.on_hangup = print
    try:
        signals.install()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert "SIGHUP is ignored" in caplog.text
    finally:
        signals.uninstall(chain=False)
        signal.signal(signal.SIGHUP, before)
