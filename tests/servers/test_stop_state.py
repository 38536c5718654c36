"""What handlers may know of the stop: told once for each phase, and again when it is hurried."""

from __future__ import annotations

import logging

import pytest

from registry_drain.phases import Phase
from registry_drain.servers.stop_state import StopState
from registry_drain.testing.clock import FakeClock


@pytest.mark.parametrize(
    ("phase", "is_stopping", "is_delisted", "is_draining"),
    [
        (Phase.SERVING, False, False, False),
        (Phase.DEREGISTERING, True, False, False),
        (Phase.PROPAGATING, True, True, False),
        (Phase.CLOSING, True, True, False),
        (Phase.DRAINING, True, True, True),
        (Phase.NOTIFYING, True, True, True),
        (Phase.STOPPED, True, True, True),
    ],
)
def test_what_each_phase_means(phase: Phase, is_stopping: bool, is_delisted: bool, is_draining: bool) -> None:
    """Not ready from the start, clients sent away once delisted, streams ended once the listener is closed."""
    state = StopState(lambda: 0.0)
    state.enter(phase)
    assert (state.is_stopping, state.is_delisted, state.is_draining) == (is_stopping, is_delisted, is_draining)


def test_time_left() -> None:
    """None before the stop, then what the clock leaves of it, never below zero."""
    clock = FakeClock()
    state = StopState(clock.now)
    assert state.time_left() is None
    state.enter(Phase.DEREGISTERING, clock.now() + 10)
    assert state.time_left() == pytest.approx(10)
    clock.advance(4)
    state.enter(Phase.PROPAGATING)
    assert state.time_left() == pytest.approx(6)
    state.hurry(clock.now())
    assert state.time_left() == 0
    clock.advance(1)
    assert state.time_left() == 0


def test_watchers_are_told_each_phase_once() -> None:
    """A phase that is over is not entered again: an adapter's own drain comes after the routine's word."""
    told: list[Phase] = []
    state = StopState(lambda: 0.0)
    state.watch(told.append)
    for phase in (Phase.DEREGISTERING, Phase.DRAINING, Phase.DRAINING, Phase.CLOSING):
        state.enter(phase)
    assert told == [Phase.DEREGISTERING, Phase.DRAINING]
    state.hurry(1.0)
    assert told[2:] == [Phase.DRAINING]
    assert state.cut_off_at == 1.0


def test_a_watcher_that_fails_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The next one is told all the same."""
    told: list[Phase] = []
    state = StopState(lambda: 0.0)
    state.watch(lambda _phase: 1 / 0)
    state.watch(told.append)
    with caplog.at_level(logging.ERROR):
        state.enter(Phase.PROPAGATING)
    assert told == [Phase.PROPAGATING]
    assert "failed at PROPAGATING" in caplog.text
