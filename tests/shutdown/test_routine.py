"""The stop: its order, its times to the digit, and what it withstands."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import cast

import pytest

from registry_drain.clock import Deadline
from registry_drain.phases import STOP_ORDER, Outcome, Phase
from registry_drain.registries.base import Removal, RemovalOutcome
from registry_drain.servers.base import ListenerClosure
from registry_drain.shutdown import events
from registry_drain.shutdown.bounded import StopThread
from registry_drain.shutdown.budget import StopBudget
from registry_drain.shutdown.observers import When
from registry_drain.shutdown.report import LateArrivals, ShutdownReport
from registry_drain.shutdown.routine import StopRoutine
from registry_drain.testing.faults import (
    HANG,
    HANG_FOREVER,
    LIE,
    REFUSED,
    REPLY_LOST,
    TIMEOUT,
    UNAVAILABLE,
    Fault,
    Step,
    late,
    slow,
)
from tests.shutdown.stage import SERVER_STEPS, Stage, phase_report

NO_WAIT = StopBudget(floor=0, quiet_period=0)
# The default budget, in numbers: 30 s = 5 deregister + 7.5 ceiling + 1 closing + drain + 5 notify + 2 margin.
ALL = 28.0
DRAIN_ENDS = 23.0
CUTTING = 0.5
HEADROOM = 0.25


def outcomes(report: ShutdownReport) -> list[Outcome]:
    """Return how the phases ended, in order."""
    assert [each.phase for each in report.phases] == list(STOP_ORDER)
    return [each.outcome for each in report.phases]


# --- the order ------------------------------------------------------------------------------------------------------


def test_phases_and_calls_come_in_order(stage: Stage) -> None:
    """Fence, remove, prove; propagate; close; drain and cut off; notify."""
    routine = stage.routine()
    stage.register(routine)
    routine.notifier.add(stage.noting("starts"), when=When.DRAINING_STARTS)
    routine.notifier.add(stage.noting("drained"))
    asked_before = len(stage.registry.requests)
    report = routine.stop("SIGTERM")
    asked = [request.step for request in stage.registry.requests[asked_before:]]
    # on_shutdown fences too, since others may call it alone.
    assert asked == [Step.FENCE, Step.ON_SHUTDOWN, Step.FENCE, Step.DELETE, Step.READ]
    assert sorted(stage.journal[1:3]) == ["drain", "starts"]  # at once
    assert [each for each in stage.journal if each != "starts"] == ["close_listener", "drain", "cut_off", "drained"]
    assert outcomes(report) == [Outcome.COMPLETED] * 5
    assert (report.reason, report.phase, report.is_clean) == ("SIGTERM", Phase.STOPPED, True)
    assert stage.listed() == set()


def test_readiness_is_false_before_anything_else_happens(stage: Stage) -> None:
    """Whoever asks during the fence, the very first step, is told."""
    routine = stage.routine()
    seen: list[tuple[bool, Phase, bool]] = []

    class Looking:
        def fence(self, deadline: Deadline) -> None:
            del deadline
            seen.append((routine.is_stopping, routine.phase, routine.requested.is_set()))

        def on_shutdown(self, deadline: Deadline) -> object:
            del deadline
            return None

    routine.notifier.add_first(Looking(), name="looking")  # type: ignore[arg-type] # only the fence matters
    assert not routine.is_stopping
    routine.stop()
    assert seen == [(True, Phase.DEREGISTERING, True)]


def test_the_server_serves_until_the_instance_is_gone_and_callers_have_noticed(stage: Stage) -> None:
    """A prober never sees a closed listener while still listed, nor before floor has passed."""
    routine = stage.routine(StopBudget(floor=2))
    stage.register(routine)
    stage.server.start()
    stage.registry.faults.add(Step.DELETE, slow(1.5))
    seen: list[tuple[float, bool, bool]] = []
    stopping = stage.spawn(routine.stop)
    for _ in range(40):
        seen.append((round(stage.elapsed, 3), bool(stage.listed()), stage.server.is_listening))
        stage.clock.sleep(0.1)
    stopping.result()
    assert (True, False) not in [(listed, listening) for _, listed, listening in seen]
    assert [at for at, listed, _ in seen if listed][-1] == pytest.approx(1.5, abs=0.11)
    assert [at for at, _, listening in seen if listening][-1] == pytest.approx(3.5, abs=0.11)


def test_a_stop_with_nothing_to_wait_for_takes_no_time(stage: Stage) -> None:
    """No clock tick is spent on anything but the configured waits."""
    routine = stage.routine(NO_WAIT)
    stage.register(routine)
    routine.stop()
    assert stage.elapsed == 0


def test_without_a_registry_the_stop_is_a_drain(stage: Stage) -> None:
    """Nothing is deregistered, so there is nothing to propagate, and no arrival is late."""
    routine = stage.routine()
    stage.server.request("long", 2.0)
    stage.after(1.0, lambda: stage.server.request("more", 1.5))
    report = routine.stop()
    assert outcomes(report)[:3] == [Outcome.SKIPPED, Outcome.SKIPPED, Outcome.COMPLETED]
    assert report.late_arrivals == LateArrivals()
    assert report.is_clean
    assert stage.elapsed == pytest.approx(2.5)


# --- deregistering --------------------------------------------------------------------------------------------------


def test_several_registries_are_left_at_the_same_time(stage: Stage) -> None:
    """Three that need 2 s each need 2 s."""
    routine = stage.routine(NO_WAIT)
    for index in range(3):
        registry = stage.another_registry()
        stage.register(routine, f"calculator-{index}", registry)
        registry.faults.add(Step.DELETE, slow(2.0))
    report = routine.stop()
    assert stage.elapsed == pytest.approx(2.0)
    assert [removal.outcome for removal in report.removals] == [RemovalOutcome.CONFIRMED] * 3


@pytest.mark.parametrize("fault", [UNAVAILABLE, TIMEOUT, REFUSED, HANG, HANG_FOREVER, LIE], ids=repr)
@pytest.mark.parametrize("step", [Step.FENCE, Step.ON_SHUTDOWN, Step.DELETE, Step.READ, None])
def test_one_registry_in_trouble_hinders_neither_the_other_nor_the_drain(
    stage: Stage, step: Step | None, fault: Fault
) -> None:
    """The well one is proven gone, all phases run, requests finish, and the stop ends inside its budget."""
    routine = stage.routine()
    stage.register(routine, "well")
    troubled = stage.another_registry()
    stage.register(routine, "troubled", troubled)
    troubled.faults.add(step, fault)
    stage.server.request("long", 15.0)
    routine.notifier.add(stage.noting("told"))
    report = routine.stop()
    removals = {removal.subject.split()[0]: removal for removal in report.removals}
    assert removals["well"].outcome is RemovalOutcome.CONFIRMED
    assert "well" not in stage.listed()
    assert phase_report(report, Phase.DEREGISTERING).actual <= 5.0
    assert outcomes(report)[1:] == [Outcome.COMPLETED] * 4
    assert stage.server.served == ["long"]
    assert stage.journal[-1] == "told"
    assert stage.elapsed == pytest.approx(15.0)
    # A read that lies cannot be found out; everything else that is still listed is not called gone.
    is_believed_lie = fault is LIE and step in {Step.READ, None}
    if "troubled" in stage.listed() and not is_believed_lie:
        assert not removals["troubled"].is_gone
        assert "not proven gone: troubled" in phase_report(report, Phase.DEREGISTERING).detail
        assert report.exit_code == 1


@pytest.mark.parametrize(
    ("step", "fault"), [(Step.DELETE, UNAVAILABLE), (Step.READ, TIMEOUT), (Step.DELETE, REPLY_LOST)]
)
def test_what_fails_a_few_times_is_retried_and_proven(stage: Stage, step: Step, fault: Fault) -> None:
    """A blip during a deploy costs some tries, not an orphan."""
    routine = stage.routine(NO_WAIT)
    stage.register(routine)
    stage.registry.faults.add(step, fault, times=2)
    report = routine.stop()
    (removal,) = report.removals
    assert (removal.outcome, removal.attempts) == (RemovalOutcome.CONFIRMED, 3)
    assert report.is_clean


@pytest.mark.parametrize("step", [Step.FENCE, Step.ON_SHUTDOWN, Step.DELETE, Step.READ])
def test_a_registry_that_never_answers_costs_its_budget_and_no_more(stage: Stage, step: Step) -> None:
    """Hung for ever at any step: 5 s, then callers still get their time, and the report says what may be left."""
    routine = stage.routine(StopBudget(floor=2.0, quiet_period=0))
    stage.register(routine)
    stage.registry.faults.add(step, HANG_FOREVER)
    report = routine.stop()
    deregistering = phase_report(report, Phase.DEREGISTERING)
    assert deregistering.outcome is Outcome.TIMED_OUT
    assert deregistering.planned == pytest.approx(5.0)
    assert deregistering.actual == pytest.approx(5.0)
    assert phase_report(report, Phase.PROPAGATING).actual == pytest.approx(2.0)
    (removal,) = report.removals
    assert removal.outcome is RemovalOutcome.UNCONFIRMED
    assert "what is left behind expires by itself" in removal.detail
    assert stage.elapsed == pytest.approx(7.0)


def test_a_backend_that_keeps_its_deadline_is_heard_before_the_phase_ends(stage: Stage) -> None:
    """What is handed on ends early enough for the backend's own words to reach the report."""
    routine = stage.routine(NO_WAIT)
    stage.register(routine)
    stage.registry.faults.add(Step.DELETE, HANG)
    report = routine.stop()
    (removal,) = report.removals
    assert removal.outcome is RemovalOutcome.UNCONFIRMED
    assert "no answer by the deadline" in removal.detail
    assert phase_report(report, Phase.DEREGISTERING).actual <= 5.0 - HEADROOM + 1e-6


class _Doubtful:
    """A registration whose registry elects a leader, for longer than deregistering may take."""

    def __init__(self, stage: Stage, *, elected_after: float) -> None:
        """Be registered."""
        self._stage = stage
        self._elected_at = stage.clock.now() + elected_after
        self.gone = threading.Event()

    def fence(self, deadline: Deadline) -> None:
        """There is nothing to fence."""

    def on_shutdown(self, deadline: Deadline) -> Removal:
        """Remove it once there is a leader."""
        clock = self._stage.clock
        clock.wait(self._stage.released, min(self._elected_at, deadline.at) - clock.now())
        if clock.now() < self._elected_at:
            return Removal("me", "somewhere", RemovalOutcome.UNCONFIRMED, "no leader")
        self.gone.set()
        return Removal("me", "somewhere", RemovalOutcome.CONFIRMED, confirmed_at=clock.now())


def _called_until(noticed: threading.Event, stage: Stage, routine: StopRoutine) -> Callable[[], None]:
    def call() -> None:
        while not stage.clock.wait(noticed, 0.25) and routine.phase is not Phase.STOPPED:
            stage.server.in_flight.end(stage.server.in_flight.begin("call"))

    return call


def test_what_is_in_doubt_is_tried_again_while_callers_still_come(stage: Stage) -> None:
    """A leader is elected after 8 s of 5: callers notice, and the listener is closed when they have."""
    routine = stage.routine(StopBudget(floor=1.0, quiet_period=1.0))
    registration = _Doubtful(stage, elected_after=8.0)
    routine.notifier.add_first(registration)
    callers = stage.spawn(_called_until(registration.gone, stage, routine))
    report = routine.stop()
    callers.result()
    (removal,) = report.removals
    assert removal.outcome is RemovalOutcome.CONFIRMED
    deregistering = phase_report(report, Phase.DEREGISTERING)
    assert (deregistering.outcome, deregistering.detail) == (Outcome.COMPLETED, "proven while propagating")
    assert phase_report(report, Phase.PROPAGATING).outcome is Outcome.COMPLETED
    assert phase_report(report, Phase.PROPAGATING).planned == pytest.approx(12.0, abs=0.3)
    assert report.exit_code == 0
    assert stage.elapsed == pytest.approx(9.0, abs=0.1)
    assert [each.removal.outcome for each in stage.events if isinstance(each, events.InstanceRemoved)] == [
        RemovalOutcome.UNCONFIRMED,
        RemovalOutcome.CONFIRMED,
    ]
    assert report.late_arrivals.count == 0


@pytest.mark.parametrize(("drain", "until"), [(None, 17.0), (3.0, 19.0)])
def test_what_is_in_doubt_may_take_what_the_drain_can_spare(stage: Stage, drain: float | None, until: float) -> None:
    """No leader for a minute, and callers that never stop: the listener is closed when the drain needs its time."""
    routine = stage.routine(StopBudget(floor=1.0, quiet_period=1.0, drain=drain))
    registration = _Doubtful(stage, elected_after=60.0)
    routine.notifier.add_first(registration)
    callers = stage.spawn(_called_until(registration.gone, stage, routine))
    report = routine.stop()
    callers.result()
    assert report.removals[0].outcome is RemovalOutcome.UNCONFIRMED
    assert phase_report(report, Phase.PROPAGATING).outcome is Outcome.TIMED_OUT
    assert report.elapsed == pytest.approx(until, abs=0.1)


def test_callers_have_the_ceiling_to_notice_a_late_proof_and_no_more(stage: Stage) -> None:
    """Proven gone at 8 s; who ignores the registry still calls: the ceiling counts from the proof."""
    routine = stage.routine(StopBudget(floor=0.5, quiet_period=0.5, ceiling=2.0))
    registration = _Doubtful(stage, elected_after=8.0)
    routine.notifier.add_first(registration)
    callers = stage.spawn(_called_until(threading.Event(), stage, routine))
    report = routine.stop()
    callers.result()
    assert report.removals[0].outcome is RemovalOutcome.CONFIRMED
    assert phase_report(report, Phase.PROPAGATING).outcome is Outcome.TIMED_OUT
    assert report.elapsed == pytest.approx(10.0, abs=0.1)


def test_what_stays_in_doubt_costs_no_more_than_the_callers_do(stage: Stage) -> None:
    """Nobody comes any more: the stop does not wait for the registry, and the report says what is in doubt."""
    routine = stage.routine(StopBudget(floor=1.0, quiet_period=1.0))
    routine.notifier.add_first(_Doubtful(stage, elected_after=60.0))
    report = routine.stop()
    assert report.removals[0].outcome is RemovalOutcome.UNCONFIRMED
    assert report.removals[0].detail == "no leader"
    assert phase_report(report, Phase.PROPAGATING).outcome is Outcome.COMPLETED
    assert stage.elapsed == pytest.approx(6.0, abs=0.3)


class _Vague:
    """A registration of somebody's that answers with something else than a Removal."""

    def fence(self, deadline: Deadline) -> None:
        """There is nothing to fence."""

    def on_shutdown(self, deadline: Deadline) -> Removal:  # noqa: ARG002
        """Say anything."""
        return cast("Removal", "gone, I think")


def test_an_answer_that_is_no_removal_proves_nothing_and_breaks_nothing(stage: Stage) -> None:
    """It is in doubt, and callers have their time all the same."""
    routine = stage.routine(StopBudget(floor=1.0, quiet_period=1.0))
    routine.notifier.add_first(_Vague())
    report = routine.stop()
    assert report.removals[0].outcome is RemovalOutcome.UNCONFIRMED
    assert "gone, I think" in report.removals[0].detail
    assert phase_report(report, Phase.PROPAGATING).outcome is Outcome.COMPLETED
    assert stage.elapsed == pytest.approx(1.0, abs=0.1)


def test_a_removal_that_comes_back_late_is_still_in_the_report(stage: Stage) -> None:
    """Abandoned at 5 s, gone at 6 s, while the stop was still draining."""
    routine = stage.routine(NO_WAIT)
    stage.register(routine)
    stage.registry.faults.add(Step.DELETE, late(6.0))
    stage.server.request("long", 8.0)
    report = routine.stop()
    (removal,) = report.removals
    assert removal.outcome is RemovalOutcome.CONFIRMED
    assert phase_report(report, Phase.DEREGISTERING).outcome is Outcome.TIMED_OUT
    assert report.exit_code == 1


def test_the_report_does_not_change_once_the_stop_has_ended(stage: Stage) -> None:
    """A thread that was left behind and answers later changes neither the report nor the exit code."""
    routine = stage.routine(NO_WAIT)
    stage.register(routine)
    stage.registry.faults.add(Step.DELETE, late(6.0))
    routine.notifier.add(stage.lasting(50.0), when=When.DRAINING_STARTS, time_limit=0.25)
    report = routine.stop()
    stage.clock.sleep(60.0)
    assert routine.report == report
    assert routine.wait() == report
    assert report.removals[0].outcome is RemovalOutcome.UNCONFIRMED


def test_a_successor_under_the_same_id_survives(stage: Stage) -> None:
    """It registered before the stop: it is left alone, and ours counts as gone."""
    routine = stage.routine(NO_WAIT)
    stage.register(routine)
    stage.registry.registration(stage.instance()).register(Deadline.after(1.0, stage.clock))
    report = routine.stop()
    assert report.removals[0].outcome is RemovalOutcome.SUCCESSOR
    assert stage.listed() == {"calculator-1"}
    assert report.is_clean


def test_what_was_never_registered_is_not_an_error(stage: Stage) -> None:
    """A stop before the registration got through: nobody was ever sent here, so nobody's list is waited for."""
    routine = stage.routine(StopBudget())
    routine.notifier.add_first(stage.registry.registration(stage.instance()))
    report = routine.stop()
    assert report.removals[0].outcome is RemovalOutcome.NOT_REGISTERED
    assert phase_report(report, Phase.PROPAGATING).outcome is Outcome.SKIPPED
    assert report.elapsed < StopBudget().floor
    assert report.is_clean


def test_nothing_registers_again_once_the_stop_has_begun(stage: Stage) -> None:
    """A registration under way when the stop begins is cancelled, and later ones are refused."""
    routine = stage.routine(NO_WAIT)
    registration = stage.registry.registration(stage.instance())
    routine.notifier.add_first(registration)
    stage.registry.faults.add(Step.WRITE, late(3.0))
    writing = stage.spawn(lambda: registration.register(Deadline.after(10.0, stage.clock)))
    stage.clock.sleep(1.0)
    routine.stop()
    stage.clock.sleep(10.0)
    assert writing.is_done
    assert type(writing.error).__name__ == "LiveOwnerError"
    assert stage.listed() == set()


# --- propagating ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("floor", [0.0, 0.5, 1.0, 7.5])
def test_without_requests_propagating_takes_exactly_the_floor(stage: Stage, floor: float) -> None:
    """Nobody calls: the floor is all."""
    routine = stage.routine(StopBudget(floor=floor, quiet_period=2.0))
    stage.register(routine)
    report = routine.stop()
    assert phase_report(report, Phase.PROPAGATING).actual == pytest.approx(floor)
    assert phase_report(report, Phase.PROPAGATING).outcome is Outcome.COMPLETED


def test_the_floor_counts_from_the_proof_not_from_the_request(stage: Stage) -> None:
    """Callers can notice only what has happened."""
    routine = stage.routine(StopBudget(floor=1.0, quiet_period=0))
    stage.register(routine)
    stage.registry.faults.add(Step.READ, slow(2.5))
    routine.stop()
    assert stage.elapsed == pytest.approx(3.5)


def test_the_floor_counts_from_the_last_of_several_proofs(stage: Stage) -> None:
    """Callers of the slower registry need their time too."""
    routine = stage.routine(StopBudget(floor=1.0, quiet_period=0))
    for index, delay in enumerate((0.5, 2.0)):
        registry = stage.another_registry()
        stage.register(routine, f"calculator-{index}", registry)
        registry.faults.add(Step.DELETE, slow(delay))
    routine.stop()
    assert stage.elapsed == pytest.approx(3.0)


@pytest.mark.parametrize(("arrives_at", "ends_at"), [(0.2, 1.7), (0.9, 2.4), (None, 1.0)])
def test_propagating_ends_when_no_request_has_come_for_the_quiet_period(
    stage: Stage, arrives_at: float | None, ends_at: float
) -> None:
    """Counted from the last arrival, and never before the floor."""
    routine = stage.routine(StopBudget(floor=1.0, quiet_period=1.5))
    stage.register(routine)
    if arrives_at is not None:
        stage.after(arrives_at, lambda: stage.server.request("late", 0.0))
    routine.stop()
    assert stage.elapsed == pytest.approx(ends_at)


def test_a_request_just_before_the_stop_counts_for_the_quiet_period(stage: Stage) -> None:
    """Its caller knew us a moment ago, and may well call again."""
    routine = stage.routine(StopBudget(floor=0.0, quiet_period=2.0))
    stage.register(routine)
    stage.server.request("early", 0.0)
    stage.clock.sleep(0.5)
    begun_at = stage.elapsed
    routine.stop()
    assert stage.elapsed - begun_at == pytest.approx(1.5)


def test_callers_that_never_stop_are_waited_for_until_the_ceiling(stage: Stage) -> None:
    """Exactly, and it is said; nothing is lost, so the stop is clean."""
    routine = stage.routine(StopBudget(floor=1.0, quiet_period=1.0, ceiling=4.0))
    stage.register(routine)
    for tick in range(1, 12):
        # None at the very instant of the ceiling, where it would be anybody's guess which comes first.
        stage.after(tick * 0.37, lambda: stage.server.request("again", 0.1))
    report = routine.stop()
    propagating = phase_report(report, Phase.PROPAGATING)
    assert propagating.actual == pytest.approx(4.0)
    assert propagating.outcome is Outcome.TIMED_OUT
    assert "requests still arrived" in propagating.detail
    assert report.is_clean


def test_health_checks_neither_prolong_propagating_nor_count_as_late(stage: Stage) -> None:
    """The orchestrator's probes come until the end, and are no callers."""
    routine = stage.routine(StopBudget(floor=1.0, quiet_period=1.0))
    stage.register(routine)
    for tick in range(1, 6):
        stage.after(tick * 0.19, lambda: stage.server.request("GET /health", 0.02, is_health_check=True))
    report = routine.stop()
    assert stage.elapsed == pytest.approx(1.0)
    assert report.late_arrivals == LateArrivals()


def test_late_arrivals_are_counted_with_the_delay_of_the_last(stage: Stage) -> None:
    """The number to set the floor by."""
    routine = stage.routine(StopBudget(floor=1.0, quiet_period=1.0))
    stage.register(routine)
    stage.server.request("before", 0.0)
    for at in (0.3, 0.8, 1.25):
        stage.after(at, lambda: stage.server.request("late", 0.0))
    report = routine.stop()
    assert report.late_arrivals.count == 3
    assert report.late_arrivals.last_delay == pytest.approx(1.25)


def test_a_proof_on_another_clock_does_not_prolong_propagating(stage: Stage) -> None:
    """A backend that reports UNIX time instead of the clock's must not wait for the year 2080."""

    class Confused:
        def fence(self, deadline: Deadline) -> None:
            """Nothing to fence."""

        def on_shutdown(self, deadline: Deadline) -> object:
            removal = registration.on_shutdown(deadline)
            object.__setattr__(removal, "confirmed_at", 1.8e9)
            return removal

    registration = stage.registry.registration(stage.instance())
    registration.register(Deadline.after(1.0, stage.clock))
    routine = stage.routine(StopBudget(floor=1.0, quiet_period=0))
    routine.notifier.add_first(Confused(), name="confused")  # type: ignore[arg-type] # it returns a Removal
    routine.stop()
    assert stage.elapsed == pytest.approx(1.0)


# --- closing, draining ----------------------------------------------------------------------------------------------


def test_the_drain_inherits_what_came_before_did_not_use(stage: Stage) -> None:
    """After 2 s for the registry it may last until the observers' part: 21 s instead of 9.5 s."""
    routine = stage.routine(NO_WAIT)
    stage.register(routine)
    stage.registry.faults.add(Step.DELETE, slow(2.0))
    stage.server.request("long", 22.0)
    report = routine.stop()
    assert phase_report(report, Phase.DRAINING).planned == pytest.approx(DRAIN_ENDS - 2.0)
    assert stage.server.served == ["long"]
    assert report.is_clean
    assert stage.elapsed == pytest.approx(22.0)


def test_what_does_not_finish_is_cut_off_and_named(stage: Stage) -> None:
    """With its name, its caller and its age, at the end of the drain's time and not of the observers'."""
    routine = stage.routine()
    routine.notifier.add(stage.noting("told"))
    stage.server.request("endless", 1000.0)
    stage.server.request("quick", 1.0)
    report = routine.stop()
    cut_at = DRAIN_ENDS - CUTTING
    (cut,) = report.cut_off
    assert (cut.name, cut.peer) == ("endless", "10.0.0.9:5000")
    assert cut.age == pytest.approx(cut_at)
    assert phase_report(report, Phase.DRAINING).outcome is Outcome.TIMED_OUT
    assert phase_report(report, Phase.DRAINING).detail == "1 cut off"
    assert stage.server.served == ["quick"]
    assert stage.journal[-1] == "told"
    assert report.exit_code == 1
    assert any(isinstance(event, events.RequestsCutOff) for event in stage.events)


def test_the_drain_ends_with_the_last_request(stage: Stage) -> None:
    """Not at its deadline."""
    routine = stage.routine()
    for seconds in (1.0, 4.25, 2.0):
        stage.server.request("r", seconds)
    assert routine.stop().is_clean
    assert stage.elapsed == pytest.approx(4.25)


def test_what_the_listener_said_is_in_the_report(stage: Stage) -> None:
    """How resets were avoided, and whether they were."""
    stage.server.answers["close_listener"] = ListenerClosure("SYN filter", accepted=3, is_clean=False)
    report = stage.routine().stop()
    assert report.listener == "SYN filter"
    assert phase_report(report, Phase.CLOSING).outcome is Outcome.TIMED_OUT
    assert report.exit_code == 1


def test_a_drain_that_hangs_is_named_with_where_and_its_requests_are_cut(stage: Stage) -> None:
    """The adapter's fault, not the request's, is what must be mended."""
    stage.server.before["drain"] = stage.hang
    stage.server.request("endless", 1000.0)
    report = stage.routine().stop()
    draining = phase_report(report, Phase.DRAINING)
    assert draining.actual == pytest.approx(DRAIN_ENDS - CUTTING)
    assert draining.detail.startswith("still in ")
    assert draining.detail.endswith(": 1 cut off")


def test_a_cut_off_that_hangs_is_failed_and_the_tracker_has_the_last_word(stage: Stage) -> None:
    """Also then the requests are named, and the observers lose nothing of their reserve."""
    stage.server.before["cut_off"] = stage.hang
    stage.server.request("endless", 1000.0)
    routine = stage.routine()
    remaining: list[float] = []

    class Asking:
        def on_shutdown(self, deadline: Deadline) -> None:
            remaining.append(deadline.remaining())

    routine.notifier.add(Asking(), time_limit=5.0)
    report = routine.stop()
    assert [cut.name for cut in report.cut_off] == ["endless"]
    assert phase_report(report, Phase.DRAINING).outcome is Outcome.FAILED
    assert remaining == [pytest.approx(5.0 - HEADROOM)]


# --- every step fails in every way ----------------------------------------------------------------------------------


def _raise() -> None:
    raise RuntimeError("broken")


def _leave() -> None:
    raise SystemExit(0)


TROUBLES: dict[str, Callable[[Stage], Callable[[], object]]] = {
    "raises": lambda _stage: _raise,
    "exits": lambda _stage: _leave,
    "hangs": lambda stage: stage.hang,
    "is slow": lambda stage: stage.lasting(0.25),
    "is late": lambda stage: stage.lasting(40.0),
}


SAID = {
    "raises": "RuntimeError: broken",
    "exits": "SystemExit",
    "hangs": "still in ",
    "is slow": "clean",
    "is late": "still in ",
}


class _Member:
    """A registration that goes wrong at the end of one of its calls."""

    def __init__(self, stage: Stage, victim: str, go_wrong: Callable[[], object]) -> None:
        """Be registered."""
        self._stage, self._victim, self._go_wrong = stage, victim, go_wrong
        self._registration = stage.registry.registration(stage.instance())
        self._registration.register(Deadline.after(1.0, stage.clock))

    def _note(self, what: str) -> None:
        self._stage.note(what)
        if what == self._victim:
            self._go_wrong()

    def fence(self, deadline: Deadline) -> None:
        """Fence."""
        self._registration.fence(deadline)
        self._note("fence")

    def on_shutdown(self, deadline: Deadline) -> Removal:
        """Remove."""
        removal = self._registration.on_shutdown(deadline)
        self._note("remove")
        return removal


@pytest.mark.parametrize("trouble", TROUBLES)
@pytest.mark.parametrize("grace_period", [30.0, 10.0])
@pytest.mark.parametrize("victim", [*SERVER_STEPS, "fence", "remove", "starts", "first", "second", "last"])
def test_whatever_goes_wrong_at_any_step_the_later_ones_run(
    stage: Stage, victim: str, trouble: str, grace_period: float
) -> None:
    """Raise, exit, hang, be slow or late at step k, for every k: all others run, in time, and the report says so."""
    budget = StopBudget(grace_period=grace_period)
    routine = stage.routine(budget)
    go_wrong = TROUBLES[trouble](stage)

    def observer(name: str) -> Callable[[], None]:
        def tell() -> None:
            stage.note(name)
            if victim == name:
                go_wrong()

        return tell

    routine.notifier.add_first(_Member(stage, victim, go_wrong), name="member")
    routine.notifier.add(observer("starts"), name="starts", when=When.DRAINING_STARTS)
    for name in ("first", "second", "last"):
        routine.notifier.add(observer(name), name=name, time_limit=budget.part("notify") / 4)
    if victim in SERVER_STEPS:
        stage.server.before[victim] = go_wrong
    stage.server.request("short", 2.0)

    report = routine.stop()

    assert [each.phase for each in report.phases] == list(STOP_ORDER)
    assert report.is_complete
    assert report.elapsed <= grace_period - budget.part("margin") + 1e-6
    assert all(each.actual <= each.planned + 1e-6 for each in report.phases)
    expected = {"fence", "remove", *SERVER_STEPS, "starts", "first", "second", "last"}
    if victim == "fence" and trouble in {"hangs", "is late", "exits"}:
        expected -= {"remove"}  # nothing may be deleted before the fence has ended, and SystemExit was meant
    assert set(stage.journal) == expected
    assert stage.server.served == ["short"]
    assert report.exit_code == (0 if trouble == "is slow" else 1)
    assert SAID[trouble] in str(report)


@pytest.mark.parametrize(
    ("step", "answer", "phase", "outcome"),
    [
        ("close_listener", None, Phase.CLOSING, Outcome.COMPLETED),
        ("close_listener", ListenerClosure("raced", is_clean=False), Phase.CLOSING, Outcome.TIMED_OUT),
        ("drain", False, Phase.DRAINING, Outcome.TIMED_OUT),
    ],
)
def test_a_server_that_answers_nonsense_or_no_does_not_stop_the_stop(
    stage: Stage, step: str, answer: object, phase: Phase, outcome: Outcome
) -> None:
    """Its answer is reported, and the observers are told."""
    stage.server.answers[step] = answer
    routine = stage.routine()
    routine.notifier.add(stage.noting("told"))
    report = routine.stop()
    assert phase_report(report, phase).outcome is outcome
    assert stage.journal[-1] == "told"


def test_a_process_without_threads_to_spare_still_stops(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step fails and says why; nobody waits for a stop that never began."""
    routine = stage.routine(has_watchdog=True)
    stage.register(routine)

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(StopThread, "start", refuse)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    report = routine.stop()
    monkeypatch.undo()
    assert report.is_complete
    assert report.exit_code == 1
    assert "can't start new thread" in str(report)


# --- hurry ----------------------------------------------------------------------------------------------------------


def _hurry_at(stage: Stage, routine: StopRoutine, at: float) -> ShutdownReport:
    stopping = stage.spawn(lambda: routine.stop("one"))
    stage.clock.sleep(at)
    routine.hurry("two")
    return stopping.result()


def test_a_hurry_while_deregistering_bounds_what_is_left_of_it(stage: Stage) -> None:
    """1 s more for a registry that hangs, then no wait at all; the observers are told."""
    routine = stage.routine()
    stage.register(routine)
    stage.registry.faults.add(Step.DELETE, HANG_FOREVER)
    routine.notifier.add(stage.noting("told"))
    report = _hurry_at(stage, routine, 2.0)
    assert phase_report(report, Phase.DEREGISTERING).actual == pytest.approx(3.0)
    assert phase_report(report, Phase.PROPAGATING).outcome is Outcome.SKIPPED
    assert phase_report(report, Phase.PROPAGATING).detail == "hurried"
    assert stage.elapsed == pytest.approx(3.0)
    assert stage.journal[-1] == "told"
    assert report.is_hurried


def test_a_hurry_before_anything_still_deregisters(stage: Stage) -> None:
    """Leaving the registry is what a hurried stop must not skip: hurry() alone begins one."""
    routine = stage.routine()
    stage.register(routine)
    stage.registry.faults.add(Step.DELETE, slow(0.75))
    routine.hurry("at once")
    report = routine.wait()
    assert report is not None
    assert (report.reason, report.is_hurried) == ("at once", True)
    assert report.removals[0].outcome is RemovalOutcome.CONFIRMED
    assert stage.elapsed == pytest.approx(0.75)
    assert report.exit_code == 0


def test_a_hurried_removal_has_its_short_bound_from_the_start(stage: Stage) -> None:
    """hurried_deregister is all that the backend is promised."""
    routine = stage.routine(StopBudget(hurried_deregister=0.5))
    stage.register(routine)
    stage.registry.faults.add(Step.DELETE, HANG)
    routine.hurry("at once")
    routine.wait()
    assert phase_report(routine.report, Phase.DEREGISTERING).planned == pytest.approx(0.5)
    assert stage.elapsed <= 0.5


def test_an_abandoned_removal_that_succeeds_meanwhile_is_reported(stage: Stage) -> None:
    """The hurry stops waiting at 1 s, the registry answers at 1.5 s, an observer keeps the stop until 1.75 s."""
    routine = stage.routine()
    stage.register(routine)
    stage.registry.faults.add(Step.DELETE, late(1.5))
    routine.notifier.add(stage.lasting(0.75))
    routine.hurry("at once")
    routine.wait()
    assert phase_report(routine.report, Phase.DEREGISTERING).outcome is Outcome.TIMED_OUT
    assert routine.report.removals[0].outcome is RemovalOutcome.CONFIRMED
    assert stage.listed() == set()


def test_a_hurry_while_propagating_skips_the_rest(stage: Stage) -> None:
    """The instance is gone already; callers that have not noticed are what is given up."""
    routine = stage.routine(StopBudget(floor=5.0))
    stage.register(routine)
    report = _hurry_at(stage, routine, 2.0)
    assert phase_report(report, Phase.PROPAGATING).actual == pytest.approx(2.0)
    assert phase_report(report, Phase.PROPAGATING).outcome is Outcome.SKIPPED
    assert report.exit_code == 0


def test_a_hurry_while_closing_lets_the_listener_close(stage: Stage) -> None:
    """Resetting the backlog would lose requests for nothing; it is short anyhow."""
    stage.server.before["close_listener"] = stage.lasting(0.5)
    routine = stage.routine()
    report = _hurry_at(stage, routine, 0.25)
    assert phase_report(report, Phase.CLOSING).outcome is Outcome.COMPLETED
    assert stage.elapsed == pytest.approx(0.5)


def test_a_hurry_while_draining_cuts_off_at_once(stage: Stage) -> None:
    """And names what was cut."""
    routine = stage.routine()
    routine.notifier.add(stage.noting("told"))
    stage.server.request("long", 10.0)
    report = _hurry_at(stage, routine, 3.0)
    assert stage.elapsed == pytest.approx(3.0)
    assert [cut.name for cut in report.cut_off] == ["long"]
    assert phase_report(report, Phase.DRAINING).detail == "hurried: 1 cut off"
    assert stage.journal[-1] == "told"
    assert report.exit_code == 1


def test_a_hurry_while_notifying_bounds_all_that_are_left_together(stage: Stage) -> None:
    """The one under way and those to come share 1 s."""
    routine = stage.routine()
    for name in ("first", "second", "third"):
        routine.notifier.add(stage.hanging(name), name=name)
    report = _hurry_at(stage, routine, 0.5)
    assert stage.elapsed == pytest.approx(1.5)
    assert set(stage.journal) >= {"first", "second", "third"}
    assert [each.outcome for each in report.observers] == [Outcome.TIMED_OUT] * 3


@pytest.mark.parametrize("times", range(3))
def test_a_hurried_stop_of_an_idle_server_is_clean(stage: Stage, times: int) -> None:
    """Nothing was in flight, so nothing was lost, whether or not the drain had time to say so."""
    del times
    stage.server.before["drain"] = stage.lasting(0.1)
    routine = stage.routine()
    stage.register(routine)
    routine.hurry("at once")
    report = routine.wait()
    assert report is not None
    assert phase_report(report, Phase.DRAINING).outcome is Outcome.SKIPPED
    assert report.is_clean


def test_those_told_when_draining_starts_get_the_rest_of_a_hurried_notify(stage: Stage) -> None:
    """A hurried drain does not wait for them; the others are told first, then they have what is left of the 1 s."""
    routine = stage.routine()
    routine.notifier.add(stage.lasting(0.4, "quick"), name="quick", when=When.DRAINING_STARTS)
    routine.notifier.add(stage.hanging("hangs"), name="hangs", when=When.DRAINING_STARTS)
    routine.notifier.add(stage.lasting(0.2, "cache"), name="cache")
    routine.hurry("at once")
    report = routine.wait()
    assert report is not None
    assert {each.name: each.outcome for each in report.observers} == {
        "quick": Outcome.COMPLETED,
        "hangs": Outcome.TIMED_OUT,
        "cache": Outcome.COMPLETED,
    }
    assert stage.elapsed == pytest.approx(1.0)
    told = [event.result.name for event in stage.events if isinstance(event, events.ObserverTold)]
    assert told == ["cache", "quick", "hangs"]


@pytest.mark.parametrize("at", [0.0, 0.5, 2.0, 6.0, 9.0])
def test_a_hurried_stop_in_which_everything_hangs_ends_within_its_short_bounds(stage: Stage, at: float) -> None:
    """Registry, server and observers hang: deregister, closing, cutting off and notify at most, from the hurry on."""
    budget = StopBudget()
    routine = stage.routine(budget)
    stage.register(routine)
    stage.registry.faults.add(None, HANG_FOREVER)
    for step in SERVER_STEPS:
        stage.server.before[step] = stage.hang
    for when in When:
        routine.notifier.add(stage.hanging("observer"), when=when)
    stage.server.request("endless", 1000.0)
    report = _hurry_at(stage, routine, at)
    assert stage.elapsed <= at + 1.0 + budget.part("closing") + CUTTING + 1.0 + 1e-6
    assert report.is_complete


# --- stop(), by whom and how often ----------------------------------------------------------------------------------


def test_the_first_reason_stands(stage: Stage) -> None:
    """Later ones join."""
    routine = stage.routine()
    routine.request_stop("first")
    routine.request_stop("second")
    assert routine.stop("third").reason == "first"


def test_everybody_who_stops_joins_the_same_stop(stage: Stage) -> None:
    """Twenty threads at once: one pass through the phases, one complete report for all."""
    routine = stage.routine()
    stage.register(routine)
    routine.notifier.add(stage.noting("told"))
    barrier = threading.Barrier(20)

    def stop(number: int) -> ShutdownReport:
        barrier.wait()
        return routine.stop(f"caller {number}")

    tasks = [stage.spawn(functools.partial(stop, number)) for number in range(20)]
    reports = [task.result() for task in tasks]
    assert all(report == reports[0] for report in reports)
    assert reports[0].is_clean
    assert stage.journal.count("told") == 1
    assert sum(isinstance(event, events.StopRequested) for event in stage.events) == 1


def test_stopping_again_afterwards_returns_the_same_report(stage: Stage) -> None:
    """Idempotent."""
    routine = stage.routine()
    assert routine.stop() == routine.stop("again")


def test_stop_from_inside_a_request_returns_at_once(stage: Stage) -> None:
    """The stop waits for that request, so the request must not wait for the stop; its answer is still sent."""
    routine = stage.routine()

    def handle() -> ShutdownReport:
        with stage.server.in_flight.track("shutdown"):
            report = routine.stop("the shutdown call")
            stage.clock.sleep(2.0)
            return report

    report = stage.spawn(handle).result()
    assert not report.is_complete
    final = routine.wait()
    assert final is not None
    assert final.is_clean
    assert stage.elapsed == pytest.approx(2.0)


def test_stop_from_a_helper_thread_of_a_request_waits(stage: Stage) -> None:
    """Only the serving thread itself is known to be waited for."""
    routine = stage.routine()
    stage.server.request("other", 1.0)
    assert stage.spawn(routine.stop).result().is_complete


def test_wait_gives_up_after_its_timeout(stage: Stage) -> None:
    """None says that the stop has not ended."""
    routine = stage.routine()
    assert routine.wait(0.5) is None
    stage.server.request("long", 2.0)
    routine.request_stop("me")
    assert routine.wait(1.0) is None
    report = routine.wait(10.0)
    assert report is not None
    assert report.is_complete
    assert stage.elapsed == pytest.approx(2.5)


def test_the_report_so_far_grows_phase_by_phase(stage: Stage) -> None:
    """Whoever looks meanwhile sees what has ended, and how long it has been going on."""
    routine = stage.routine(StopBudget(floor=2.0))
    assert (routine.report.phase, routine.report.elapsed, routine.report.phases) == (Phase.SERVING, 0.0, ())
    stage.register(routine)
    routine.request_stop("me")
    stage.clock.sleep(1.0)
    report = routine.report
    assert report.phase is Phase.PROPAGATING
    assert report.elapsed == pytest.approx(1.0)
    assert [each.phase for each in report.phases] == [Phase.DEREGISTERING]
    assert report.removals[0].outcome is RemovalOutcome.CONFIRMED


def test_repr_shows_phase_requests_and_time(stage: Stage) -> None:
    """For a debugger, and for the watchdog's first line."""
    routine = stage.routine(StopBudget(grace_period=10))
    assert repr(routine) == "<StopRoutine SERVING in_flight=0>"
    stage.server.request("long", 3.0)
    routine.request_stop("me")
    stage.clock.sleep(2.0)
    assert repr(routine) == "<StopRoutine DRAINING in_flight=1 remaining=8.0s>"
    routine.wait()
    assert repr(routine) == "<StopRoutine STOPPED in_flight=0>"


# --- the watchdog ---------------------------------------------------------------------------------------------------


def test_a_stop_in_time_is_no_business_of_the_watchdog(stage: Stage) -> None:
    """Armed, disarmed by its owner, silent."""
    routine = stage.routine(has_watchdog=True)
    stage.server.request("long", 5.0)
    routine.stop()
    stage.watchdog.disarm()
    stage.clock.sleep(100.0)
    assert stage.exits == []


def test_the_watchdog_stays_armed_after_the_stop_until_told(stage: Stage) -> None:
    """Threads that do not end would keep the process after the stop, too."""
    routine = stage.routine(has_watchdog=True)
    routine.stop()
    stage.clock.sleep(28.9)
    assert stage.exits == []
    stage.clock.sleep(0.2)
    stage.clock.settle()
    assert stage.exits == [70]


def test_the_watchdog_ends_a_stop_that_a_sink_blocks(stage: Stage, capfd: pytest.CaptureFixture[str]) -> None:
    """A sink runs in the stop's own thread: nothing but the watchdog can help, half the margin before the end."""
    exits: list[tuple[float, int]] = []

    def block(event: events.Event) -> None:
        if isinstance(event, events.PhaseStarted) and event.phase is Phase.CLOSING:
            stage.hang()

    routine = StopRoutine(
        stage.server,
        clock=stage.clock,
        sinks=[block],
        watchdog=stage.new_watchdog(lambda status: exits.append((stage.elapsed, status))),
    )
    stage.adopt(routine)
    routine.request_stop("me")
    stage.clock.sleep(28.9)
    assert exits == []
    stage.clock.sleep(5.0)
    ((exited_at, status),) = exits
    assert exited_at == pytest.approx(29.0)
    assert status == 70
    dump = capfd.readouterr().err
    assert "registry_drain watchdog: <StopRoutine CLOSING in_flight=0 remaining=1.0s> overdue" in dump
    assert "in block" in dump
    assert "registry-drain-stop" in dump


def test_the_stop_is_no_daemon_even_if_a_daemon_asks_for_it(stage: Stage) -> None:
    """The thread that relays signals is one, and the stop must outlive a main thread that returns."""
    routine = stage.routine(StopBudget(floor=1))
    stage.register(routine)
    asker = threading.Thread(target=routine.request_stop, args=("daemon",), daemon=True)
    asker.start()
    asker.join()
    (thread,) = [each for each in threading.enumerate() if each.name == "registry-drain-stop"]
    assert not thread.daemon
    routine.wait()


def test_a_hurry_at_the_very_end_of_the_drain_leaves_the_observers_their_time(stage: Stage) -> None:
    """A cut-off that hangs has what the drain had left, not more, even then."""
    stage.server.before["cut_off"] = stage.hang
    stage.server.request("endless", 1000.0)
    routine = stage.routine(StopBudget(notify=0.4))
    routine.notifier.add(stage.lasting(0.3, "told"), name="told", time_limit=0.35)
    drain_ends = ALL - 0.4
    report = _hurry_at(stage, routine, drain_ends - CUTTING - 0.01)
    assert stage.elapsed <= ALL
    assert report.observers[0].outcome is Outcome.COMPLETED
