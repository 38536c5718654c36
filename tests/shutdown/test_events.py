"""What a stop says while it happens, and sinks that misbehave."""

from __future__ import annotations

import logging

import pytest

from registry_drain.errors import RegistryDrainError
from registry_drain.phases import STOP_ORDER, Outcome, Phase
from registry_drain.registries.base import Removal, RemovalOutcome
from registry_drain.servers.in_flight import InFlightRequest
from registry_drain.shutdown import events
from registry_drain.shutdown.budget import StopBudget
from registry_drain.shutdown.observers import ObserverResult, When
from registry_drain.shutdown.routine import StopRoutine
from registry_drain.testing.faults import REFUSED, Step
from tests.shutdown.stage import Stage

FAILED = ObserverResult("cache", When.DRAINED, Outcome.FAILED, 0.5, "RuntimeError: no")
FINE = ObserverResult("cache", When.DRAINED, Outcome.COMPLETED, 0.5)
REQUESTS = (InFlightRequest("add", "10.0.0.9:1", 0.0, 1), InFlightRequest("", "", 0.0, 1))


def test_phases_come_in_pairs_and_in_order(stage: Stage) -> None:
    """Each started, each ended, with what was planned and what became of it."""
    routine = stage.routine()
    stage.register(routine)
    report = routine.stop("me")
    pairs = [each for each in stage.events if isinstance(each, events.PhaseStarted | events.PhaseEnded)]
    expected: list[events.Event] = []
    for phase in report.phases:
        expected.append(events.PhaseStarted(phase.phase, phase.planned))
        expected.append(events.PhaseEnded(phase.phase, phase.outcome, phase.actual, phase.detail))
    assert pairs == expected
    assert [each.phase for each in report.phases] == list(STOP_ORDER)


def test_everything_that_happens_is_said_inside_its_phase(stage: Stage) -> None:
    """Removals while deregistering, cut-off requests while draining, observers where they are told."""
    routine = stage.routine(StopBudget(grace_period=10))
    stage.register(routine)
    stage.server.request("endless", 100.0)
    routine.notifier.add(lambda: None, name="consumer", when=When.DRAINING_STARTS)
    routine.notifier.add(lambda: None, name="cache")
    routine.stop("me")
    said = [f"{type(each).__name__} {getattr(each, 'phase', Phase.SERVING).name}" for each in stage.events]
    assert said == [
        "StopRequested SERVING",
        "PhaseStarted DEREGISTERING",
        "InstanceRemoved SERVING",
        "PhaseEnded DEREGISTERING",
        "PhaseStarted PROPAGATING",
        "PhaseEnded PROPAGATING",
        "PhaseStarted CLOSING",
        "PhaseEnded CLOSING",
        "PhaseStarted DRAINING",
        "ObserverTold SERVING",
        "RequestsCutOff SERVING",
        "PhaseEnded DRAINING",
        "PhaseStarted NOTIFYING",
        "ObserverTold SERVING",
        "PhaseEnded NOTIFYING",
    ]


@pytest.mark.parametrize("error", [ValueError("broken"), SystemExit(1)])
def test_a_sink_that_raises_is_logged_and_stops_nothing(
    stage: Stage, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    """Neither the stop nor the other sinks: even a sys.exit() in a sink would end the stop's thread silently."""

    def break_down(_event: events.Event) -> None:
        raise error

    routine = StopRoutine(stage.server, clock=stage.clock, sinks=[break_down, stage.events.append])
    stage.register(routine)
    assert routine.stop().is_clean
    assert isinstance(stage.events[-1], events.PhaseEnded)
    assert stage.events[-1].phase is Phase.NOTIFYING
    assert "event sink" in caplog.text


def test_a_second_signal_is_said_once(stage: Stage) -> None:
    """However often it is pressed."""
    routine = stage.routine()
    stage.server.request("long", 5.0)
    routine.request_stop("one")
    stage.clock.sleep(1.0)
    routine.hurry("two")
    routine.hurry("three")
    routine.wait()
    routine.hurry("too late")
    assert [each for each in stage.events if isinstance(each, events.StopHurried)] == [events.StopHurried("two")]


def test_a_displaced_handler_is_said(stage: Stage) -> None:
    """With what to do about it."""
    stage.routine().report_displaced("SIGTERM", "app.on_term")
    (event,) = stage.events
    assert event == events.SignalHandlerDisplaced("SIGTERM", "app.on_term")
    assert "install it before serve()" in str(event)


@pytest.mark.parametrize(
    ("event", "is_warning", "line"),
    [
        (events.StopRequested("SIGTERM", 30.0), False, "stop requested (SIGTERM), grace period 30 s"),
        (events.StopHurried("SIGINT"), True, "stop hurried (SIGINT): skipping every wait"),
        (events.PhaseStarted(Phase.DRAINING, 9.5), False, "DRAINING: at most 9.5 s"),
        (events.PhaseEnded(Phase.DRAINING, Outcome.COMPLETED, 1.5, ""), False, "DRAINING: completed after 1.500 s"),
        (
            events.PhaseEnded(Phase.DRAINING, Outcome.TIMED_OUT, 1.5, "1 cut off"),
            True,
            "DRAINING: out of time after 1.500 s: 1 cut off",
        ),
        (
            events.InstanceRemoved(Removal("calc", "consul://c", RemovalOutcome.CONFIRMED)),
            False,
            "deregistering calc at consul://c: confirmed",
        ),
        (
            events.InstanceRemoved(Removal("calc", "", RemovalOutcome.UNCONFIRMED, "no answer")),
            True,
            "deregistering calc: unconfirmed: no answer",
        ),
        (events.RequestsCutOff(REQUESTS), True, "cut off 2 in flight: add from 10.0.0.9:1, request from unknown"),
        (events.ObserverTold(FINE), False, "observer cache: completed after 0.500 s"),
        (events.ObserverTold(FAILED), True, "observer cache: failed after 0.500 s: RuntimeError: no"),
    ],
)
def test_each_event_is_one_log_line_of_the_right_level(
    caplog: pytest.LogCaptureFixture, event: events.Event, is_warning: bool, line: str
) -> None:
    """A person should look at warnings, and only at those."""
    with caplog.at_level(logging.INFO, logger="registry_drain"):
        events.log_event(event)
    (record,) = caplog.records
    assert record.name == "registry_drain"
    assert record.levelno == (logging.WARNING if is_warning else logging.INFO)
    assert record.getMessage() == line


def test_the_default_sink_is_the_log(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """A stop that went wrong is in the log without anybody having set anything up."""
    routine = StopRoutine(stage.server, clock=stage.clock)
    stage.register(routine)
    stage.registry.faults.add(Step.DELETE, REFUSED)
    with caplog.at_level(logging.INFO, logger="registry_drain"):
        report = routine.stop()
    assert "stop requested" in caplog.text
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert any("refused" in line for line in warnings)
    assert not report.is_clean


def test_the_stop_does_not_swallow_an_error_of_a_step(stage: Stage) -> None:
    """An exception in the routine's own code would be a failed phase, said and reported."""

    def fail() -> None:
        raise RegistryDrainError("closing failed")

    stage.server.before["close_listener"] = fail
    stage.routine().stop()
    ended = [each for each in stage.events if isinstance(each, events.PhaseEnded)]
    (closing,) = [each for each in ended if each.phase is Phase.CLOSING]
    assert (closing.outcome, closing.detail) == (
        Outcome.FAILED,
        "registry_drain.errors.RegistryDrainError: closing failed",
    )
