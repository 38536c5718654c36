"""Who is told, when, for how long, and what becomes of those that misbehave."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable

import pytest

from registry_drain.clock import Deadline
from registry_drain.errors import ConfigurationError, RegistryUnavailableError
from registry_drain.phases import Outcome, Phase
from registry_drain.registries.base import Removal, RemovalOutcome
from registry_drain.shutdown.budget import StopBudget
from registry_drain.shutdown.observers import ObserverResult, ShutdownNotifier, When
from registry_drain.shutdown.report import ShutdownReport
from tests.shutdown.stage import Stage, phase_report

BUDGET = StopBudget(notify=5.0, margin=2.0)
# An observer's deadline leaves room for its answer to arrive: a tenth, at most 0.25 s.
HEADROOM = 0.25


def result(report: ShutdownReport, name: str) -> ObserverResult:
    """Return what became of one observer."""
    (found,) = (each for each in report.observers if each.name == name)
    return found


class Flusher:
    """An observer with the protocol's method."""

    def __init__(self) -> None:
        """Told nothing yet."""
        self.deadline: Deadline | None = None
        self.remaining = 0.0

    def on_shutdown(self, deadline: Deadline) -> None:
        """Note the deadline."""
        self.deadline, self.remaining = deadline, deadline.remaining()


def test_observers_are_told_in_the_order_they_were_added(stage: Stage) -> None:
    """One after the other, after the drain has ended and what was left was cut."""
    routine = stage.routine()
    for name in ("cache", "pool", "log"):
        routine.notifier.add(stage.noting(name), name=name)
    report = routine.stop()
    assert stage.journal == ["close_listener", "drain", "cut_off", "cache", "pool", "log"]
    assert [(each.name, each.outcome) for each in report.observers] == [
        ("cache", Outcome.COMPLETED),
        ("pool", Outcome.COMPLETED),
        ("log", Outcome.COMPLETED),
    ]


def test_an_observer_waits_for_the_one_before_it(stage: Stage) -> None:
    """They may depend on each other: the pool is closed after the cache has been flushed through it."""
    routine = stage.routine(BUDGET)
    routine.notifier.add(stage.lasting(1.5, "slow"))
    routine.notifier.add(stage.noting("next"))
    routine.stop()
    assert stage.journal[-2:] == ["slow", "next"]
    assert stage.elapsed == pytest.approx(1.5)


def test_an_observer_object_gets_a_deadline_inside_its_limit(stage: Stage) -> None:
    """What ends exactly there is still heard of."""
    routine, flusher = stage.routine(BUDGET), Flusher()
    routine.notifier.add(flusher, time_limit=2.0)
    report = routine.stop()
    assert flusher.remaining == pytest.approx(2.0 - 0.2)
    assert result(report, "Flusher").outcome is Outcome.COMPLETED


def test_observers_told_when_draining_starts_do_not_wait_for_the_drain(stage: Stage) -> None:
    """They run beside it, all at once, while requests are still in flight."""
    routine = stage.routine()
    stage.server.request("long", 3.0)
    routine.notifier.add(
        lambda: stage.note(f"cron {stage.server.in_flight.count}"), name="cron", when=When.DRAINING_STARTS
    )
    routine.notifier.add(stage.lasting(2.0, "consumer"), name="consumer", when=When.DRAINING_STARTS)
    routine.notifier.add(lambda: stage.note(f"flush {stage.server.in_flight.count}"), name="flush")
    report = routine.stop()
    assert "cron 1" in stage.journal
    assert stage.journal.index("close_listener") < stage.journal.index("cron 1")
    assert stage.journal[-3:] == ["consumer", "cut_off", "flush 0"]
    assert stage.elapsed == pytest.approx(3.0)
    assert [(each.name, each.when) for each in report.observers] == [
        ("cron", When.DRAINING_STARTS),
        ("consumer", When.DRAINING_STARTS),
        ("flush", When.DRAINED),
    ]


def test_the_drain_waits_for_those_told_when_it_starts(stage: Stage) -> None:
    """A consumer that finishes its batch has the drain's time for it."""
    routine = stage.routine()
    routine.notifier.add(stage.lasting(4.0, "consumer"), when=When.DRAINING_STARTS)
    routine.notifier.add(stage.noting("flush"))
    assert routine.stop().is_clean
    assert stage.journal[-3:] == ["consumer", "cut_off", "flush"]
    assert stage.elapsed == pytest.approx(4.0)


def test_an_observer_of_the_start_keeps_its_own_limit(stage: Stage) -> None:
    """With nothing in flight, a hanging consumer costs its limit, not the whole drain."""
    routine = stage.routine()
    routine.notifier.add(stage.hanging("consumer"), name="consumer", when=When.DRAINING_STARTS, time_limit=1.25)
    report = routine.stop()
    assert stage.elapsed == pytest.approx(1.25)
    assert result(report, "consumer").outcome is Outcome.TIMED_OUT
    assert report.exit_code == 1


def test_an_exception_is_a_line_of_the_report_and_the_rest_are_told(stage: Stage) -> None:
    """Isolation: one failure is nobody else's."""

    def fail() -> None:
        raise RuntimeError("disk full")

    routine = stage.routine()
    routine.notifier.add(fail, name="cache")
    routine.notifier.add(stage.noting("pool"), name="pool")
    report = routine.stop()
    assert stage.journal[-1] == "pool"
    assert result(report, "cache").detail == "RuntimeError: disk full"
    assert phase_report(report, Phase.NOTIFYING).outcome is Outcome.FAILED
    assert phase_report(report, Phase.NOTIFYING).detail == "not well: cache"
    assert report.exit_code == 1


@pytest.mark.parametrize("when", When)
def test_system_exit_in_an_observer_does_not_end_the_stop(stage: Stage, when: When) -> None:
    """sys.exit() there means well, and would leave the others untold."""

    def leave() -> None:
        raise SystemExit(0)

    routine = stage.routine()
    routine.notifier.add(leave, name="leaver", when=when)
    routine.notifier.add(stage.noting("pool"))
    report = routine.stop()
    assert stage.journal[-1] == "pool"
    assert result(report, "leaver").outcome is Outcome.FAILED


def test_one_that_hangs_is_left_behind_and_named_with_where_it_hangs(stage: Stage) -> None:
    """The report says the function and the line, for whoever must mend it."""
    event = threading.Event()

    def close_pool() -> None:
        event.wait()

    routine = stage.routine(StopBudget(grace_period=3, floor=0, quiet_period=0, notify=0.5))
    # This one hangs in real time, where the clock of the stage would wait for it: a stranger to the clock.
    routine.notifier.add(lambda: _in_a_strange_thread(stage, close_pool), name="pool", time_limit=0.25)
    routine.notifier.add(stage.noting("log"))
    report = routine.stop()
    event.set()
    pool = result(report, "pool")
    assert pool.outcome is Outcome.TIMED_OUT
    assert pool.elapsed == pytest.approx(0.25)
    assert f"still in _in_a_strange_thread() at {__file__}:" in pool.detail
    assert stage.journal[-1] == "log"


def _in_a_strange_thread(stage: Stage, call: Callable[[], None]) -> None:
    thread = threading.Thread(target=call, name="task")
    stage.clock.ignore(thread)
    stage.clock.ignore(threading.current_thread())
    thread.start()
    thread.join()


def test_a_limit_is_the_observers_own_whatever_else_has_time(stage: Stage) -> None:
    """A hang costs its limit, and the later ones have theirs in full."""
    routine, later = stage.routine(BUDGET), Flusher()
    routine.notifier.add(stage.hanging("first"), time_limit=1.5)
    routine.notifier.add(later, time_limit=3.5)
    routine.stop()
    assert stage.elapsed == pytest.approx(1.5)
    assert later.remaining == pytest.approx(3.5 - HEADROOM)


def test_those_without_a_limit_share_what_the_limits_leave(stage: Stage) -> None:
    """Of the 5 s that a drain which took all of its time cannot touch, 2 s are given away; two share the rest."""
    routine, last = stage.routine(BUDGET), Flusher()
    stage.server.request("endless", 1000.0)
    routine.notifier.add(stage.hanging("a"), name="a")
    routine.notifier.add(stage.hanging("b"), name="b", time_limit=2.0)
    routine.notifier.add(last)
    report = routine.stop()
    # Cutting off takes none of the 0.5 s kept for it: more to share.
    spare = 0.5
    assert result(report, "a").elapsed == pytest.approx((5.0 + spare - 2.0) / 2)
    assert result(report, "b").elapsed == pytest.approx(2.0)
    share = (5.0 + spare - 2.0) / 2
    assert last.remaining == pytest.approx(share - share / 10)
    assert stage.elapsed <= 28.0


def test_what_one_does_not_use_falls_to_those_that_share(stage: Stage) -> None:
    """A quick first one leaves all of the rest to the second."""
    routine, second = stage.routine(BUDGET), Flusher()
    routine.notifier.add(stage.noting("quick"))
    routine.notifier.add(second)
    routine.stop()
    # The whole stop but the margin, since nothing took any time.
    assert second.remaining == pytest.approx(28.0 - HEADROOM)


@pytest.mark.parametrize("hanging", range(4))
def test_no_hang_starves_a_later_observer(stage: Stage, hanging: int) -> None:
    """Whichever hangs, after the longest drain: all others complete, and the stop ends in time."""
    routine = stage.routine(BUDGET)
    stage.server.request("endless", 1000.0)
    for index in range(4):
        observer = stage.hanging(f"{index}") if index == hanging else stage.lasting(0.3, f"{index}")
        routine.notifier.add(observer, name=f"{index}", time_limit=1.0 if index % 2 else None)
    report = routine.stop()
    assert [each.name for each in report.observers if each.outcome is Outcome.TIMED_OUT] == [f"{hanging}"]
    assert set(stage.journal) >= {"0", "1", "2", "3"}
    assert stage.elapsed <= 28.0 + 1e-6


@pytest.mark.parametrize("limit", [0, -1, float("inf"), float("nan")])
def test_a_limit_that_is_no_time_is_refused(limit: float) -> None:
    """Where it is added."""
    notifier = ShutdownNotifier(reserved=5.0)
    with pytest.raises(ConfigurationError, match=r"observer pool: time_limit=.*: must be a positive number of seconds"):
        notifier.add(lambda: None, name="pool", time_limit=limit)


def test_limits_that_add_up_to_more_than_the_reserve_are_refused() -> None:
    """The message names the observer, both sums and the two things that can be changed."""
    notifier = ShutdownNotifier(reserved=5.0)
    notifier.add(lambda: None, name="cache", time_limit=3.0)
    with pytest.raises(ConfigurationError) as caught:
        notifier.add(lambda: None, name="pool", time_limit=2.5)
    assert str(caught.value) == (
        "observer pool: the time limits add up to 5.5 s, but only 5 s are reserved for observers:"
        " raise StopBudget(notify=…), or lower a time_limit"
    )
    notifier.add(lambda: None, name="pool", time_limit=2.0)


def test_limits_of_observers_of_the_start_come_from_the_drain_not_from_the_reserve() -> None:
    """They are told beside it."""
    notifier = ShutdownNotifier(reserved=5.0)
    notifier.add(lambda: None, time_limit=20.0, when=When.DRAINING_STARTS)
    notifier.add(lambda: None, time_limit=5.0)


@pytest.mark.parametrize("order", [(None, 5.0), (5.0, None)])
def test_an_observer_that_could_get_no_time_is_refused(order: tuple[float | None, float | None]) -> None:
    """Limits that take all of the reserve leave nothing to one that shares the rest."""
    notifier = ShutdownNotifier(reserved=5.0)
    notifier.add(lambda: None, name="one", time_limit=order[0])
    with pytest.raises(ConfigurationError, match=r"observer two: .* one would get nothing: raise StopBudget"):
        notifier.add(lambda: None, name="two", time_limit=order[1])


def test_adding_after_the_stop_has_begun_is_refused(stage: Stage) -> None:
    """It might never be told, so it must not be taken."""
    routine = stage.routine()
    routine.stop()
    with pytest.raises(ConfigurationError, match="observer pool: too late, the stop has begun"):
        routine.notifier.add(lambda: None, name="pool")
    registration = stage.registry.registration(stage.instance("late"))
    with pytest.raises(ConfigurationError, match=r"registration late \(10\.0\.0\.7:9090\): too late"):
        routine.notifier.add_first(registration)


def test_an_observer_may_call_stop(stage: Stage) -> None:
    """It gets the report so far and goes on: waiting for the stop would be waiting for itself."""
    routine = stage.routine()
    reports: list[ShutdownReport] = []
    for when in When:
        routine.notifier.add(lambda: reports.append(routine.stop("me too")), when=when)
    assert routine.stop("first").is_clean
    assert [report.phase for report in reports] == [Phase.DRAINING, Phase.NOTIFYING]
    assert {report.reason for report in reports} == {"first"}
    assert not any(report.is_complete for report in reports)
    assert stage.elapsed == 0


def test_an_observer_may_stop_another_server_and_waits_for_that(stage: Stage) -> None:
    """The second stop does not wait for the first one's observer, so its report is complete."""
    other_stage_server = Stage(stage.clock)
    other = other_stage_server.routine()
    other_stage_server.server.request("long", 2.0)
    routine = stage.routine()
    reports: list[ShutdownReport] = []
    routine.notifier.add(lambda: reports.append(other.stop()))
    # ... while an observer of the second may name the first without a deadlock.
    other.notifier.add(lambda: reports.append(routine.stop()))
    assert routine.stop().is_clean
    assert [report.is_complete for report in reports] == [False, True]
    assert stage.elapsed == pytest.approx(2.0)
    other_stage_server.close()


async def _coroutine() -> None:
    """Never run."""


def _needs_an_argument(deadline: Deadline) -> None:
    """A mistake: functions are called without arguments."""
    del deadline


class _NeedsNone:
    """A mistake: the method is called with the deadline."""

    def on_shutdown(self) -> None:
        """Never called."""


class _AsyncObserver:
    """A mistake: nobody awaits it."""

    async def on_shutdown(self, deadline: Deadline) -> None:
        """Never awaited."""


@pytest.mark.parametrize(
    ("observer", "message"),
    [
        (42, "42 is no observer"),
        (None, "None is no observer"),
        (_coroutine, "_coroutine is a coroutine function"),
        (_AsyncObserver(), "_AsyncObserver is a coroutine function"),
        (_needs_an_argument, "_needs_an_argument cannot be called as a function without arguments"),
        (_NeedsNone(), r"_NeedsNone cannot be called as on_shutdown\(deadline\)"),
        (Flusher, r"Flusher cannot be called as on_shutdown\(deadline\)"),
    ],
)
def test_what_could_only_fail_in_the_end_is_refused_when_added(observer: object, message: str) -> None:
    """At the end it would be a line in the log of a process that is gone."""
    with pytest.raises(ConfigurationError, match=message) as caught:
        ShutdownNotifier(reserved=5.0).add(observer)  # type: ignore[arg-type] # that is the mistake
    assert "\n" not in str(caught.value)


def test_partials_methods_and_builtins_are_observers(stage: Stage) -> None:
    """Anything that can be called without arguments is one, also without a signature to look at."""
    routine = stage.routine()
    routine.notifier.add(functools.partial(stage.note, "partial"))
    routine.notifier.add(stage.events.copy)
    routine.notifier.add(dict)
    assert routine.stop().is_clean
    assert stage.journal[-1] == "partial"


def test_repr_shows_whom_it_tells(stage: Stage) -> None:
    """For a debugger."""
    routine = stage.routine()
    stage.register(routine, "calculator-1")
    routine.notifier.add(lambda: None, name="pool")
    assert repr(routine.notifier) == ("<ShutdownNotifier first=['calculator-1 (10.0.0.7:9090)'] observers=['pool']>")


class _FirstObserver:
    """A first observer that is no registration, with a fence that does as told."""

    def __init__(self, stage: Stage, fence: Callable[[], object], removal: RemovalOutcome) -> None:
        """Remember."""
        self._stage, self._fence, self._outcome = stage, fence, removal
        self.remaining = -1.0

    def fence(self, deadline: Deadline) -> None:
        """Do as told, until the deadline at most if it is a wait."""
        self._stage.note("fence")
        self.remaining = deadline.remaining()
        self._fence()

    def on_shutdown(self, deadline: Deadline) -> Removal:
        """Say it is gone."""
        self._stage.note("remove")
        self.remaining = deadline.remaining()
        return Removal("me", "here", self._outcome)


def _fail() -> None:
    raise RegistryUnavailableError("no fence")


@pytest.mark.parametrize(
    ("outcome", "reported"),
    [
        (RemovalOutcome.CONFIRMED, RemovalOutcome.UNCONFIRMED),
        (RemovalOutcome.REFUSED, RemovalOutcome.REFUSED),
    ],
)
def test_a_fence_that_fails_does_not_keep_the_instance_listed(
    stage: Stage, outcome: RemovalOutcome, reported: RemovalOutcome
) -> None:
    """It is removed all the same, but nobody may call it gone: something may still put it back."""
    routine = stage.routine()
    routine.notifier.add_first(_FirstObserver(stage, _fail, outcome), name="me")
    report = routine.stop()
    assert stage.journal[:2] == ["fence", "remove"]
    (removal,) = report.removals
    assert removal.outcome is reported
    assert "its fence failed (RegistryUnavailableError: no fence), so it may come back" in removal.detail
    assert report.exit_code == 1


def test_a_slow_fence_leaves_half_of_the_time_for_the_removal(stage: Stage) -> None:
    """A heartbeat that cannot be joined in time is no reason to leave the instance listed."""
    routine = stage.routine(StopBudget(deregister=5.0))
    observer: _FirstObserver

    def join_until_the_deadline() -> None:
        stage.clock.wait(stage.released, observer.remaining)

    observer = _FirstObserver(stage, join_until_the_deadline, RemovalOutcome.CONFIRMED)
    routine.notifier.add_first(observer, name="me")
    assert routine.stop().is_clean
    assert observer.remaining == pytest.approx((5.0 - HEADROOM) / 2)


def test_an_answer_that_is_no_removal_counts_as_unconfirmed(stage: Stage) -> None:
    """A backend that returns None or True has proven nothing."""

    class Careless(_FirstObserver):
        def on_shutdown(self, deadline: Deadline) -> Removal:
            del deadline
            return True  # type: ignore[return-value] # that is the mistake

    routine = stage.routine()
    routine.notifier.add_first(Careless(stage, lambda: None, RemovalOutcome.CONFIRMED), name="me")
    report = routine.stop()
    (removal,) = report.removals
    assert (removal.subject, removal.outcome) == ("me", RemovalOutcome.UNCONFIRMED)
    assert "its answer was True" in removal.detail
    assert "me" in phase_report(report, Phase.DEREGISTERING).detail
    assert report.exit_code == 1
