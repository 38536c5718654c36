"""Clocks and deadlines: the real one waits for events, the fake one makes time pass without waiting."""

from __future__ import annotations

import math
import threading
import time
from typing import Any

import pytest

from registry_drain.clock import SYSTEM_CLOCK, Clock, Deadline
from registry_drain.testing.bench import Call, until
from registry_drain.testing.clock import FakeClock

SLACK = 5.0
"""Real seconds that a busy machine may take for what should take none."""
PATIENCE = 30.0
"""Real seconds that only end a hang."""
ROUNDING = 1e-6
"""Seconds; the end of a wait is computed from what is left of a deadline."""


@pytest.fixture(params=["system", "fake"])
def clock(request: pytest.FixtureRequest) -> Clock:
    """Return each clock in turn: what holds for one holds for the other."""
    return SYSTEM_CLOCK if request.param == "system" else FakeClock()


def test_wait_ends_with_its_event(clock: Clock) -> None:
    """An event that is set ends the wait long before its limit."""
    event = threading.Event()
    Call(event.set)
    began = time.monotonic()
    assert clock.wait(event, None) is True
    assert clock.wait(event, 60) is True
    assert time.monotonic() - began < SLACK


@pytest.mark.parametrize("timeout", [0.01, 0.0, -1.0])
def test_wait_ends_with_its_limit(clock: Clock, timeout: float) -> None:
    """Without the event the limit ends the wait; none left is a look."""
    began_at = clock.now()
    assert clock.wait(threading.Event(), timeout) is False
    assert clock.now() - began_at >= timeout - ROUNDING


@pytest.mark.parametrize("timeout", [0.0, -1.0])
def test_wait_without_time_still_sees_its_event(clock: Clock, timeout: float) -> None:
    """An event that is set already is seen, even with no time left."""
    event = threading.Event()
    event.set()
    assert clock.wait(event, timeout) is True


def test_sleep_passes_time(clock: Clock) -> None:
    """Sleeping takes at least what was asked; nothing for less than nothing."""
    began_at = clock.now()
    clock.sleep(0.01)
    clock.sleep(-1)
    assert clock.now() - began_at >= 0.01 - ROUNDING


def test_deadline_counts_down(clock: Clock) -> None:
    """What is left becomes less, never less than nothing."""
    deadline = Deadline.after(0.02, clock)
    assert 0 < deadline.remaining() <= 0.02
    assert deadline.wait(threading.Event()) is False
    assert deadline.remaining() < ROUNDING
    past = Deadline(clock.now() - 1, clock)
    assert past.is_past
    assert past.remaining() == 0.0


def test_deadline_is_capped_by_the_earlier_one() -> None:
    """A step's own limit counts where it is shorter, the whole one's where not."""
    clock = FakeClock(autojump=False)
    deadline = Deadline.after(5, clock)
    assert deadline.capped(1).at == clock.now() + 1
    assert deadline.capped(60) == deadline
    assert deadline.capped(math.inf) == deadline


def test_deadline_waits_for_its_event() -> None:
    """An event ends the wait early."""
    event = threading.Event()
    event.set()
    assert Deadline.after(60).wait(event) is True


def test_repr_shows_what_is_left() -> None:
    """Log lines show the seconds left."""
    clock = FakeClock(autojump=False)
    assert repr(Deadline.after(2.5, clock)) == "<Deadline remaining=2.500s>"
    assert repr(SYSTEM_CLOCK) == "<SystemClock>"
    assert repr(clock) == "<FakeClock now=1000.000 waiting=0>"


def test_fake_hour_takes_no_time() -> None:
    """An hour of sleep takes a moment."""
    clock = FakeClock()
    began = time.monotonic()
    clock.sleep(3600)
    assert clock.now() == 4600
    assert clock.unix_time() == 4600
    assert time.monotonic() - began < SLACK


def test_fake_clock_jumps_to_the_earliest_limit() -> None:
    """Of several waiters the earliest wakes first, and each sees its own instant."""
    clock = FakeClock(autojump=False)  # nobody jumps before all three wait
    order: list[tuple[float, float]] = []

    class Waiters(dict[object, Any]):
        """Stops the jumping whenever somebody wakes, until the test has seen who it was."""

        def __delitem__(self, who: object) -> None:
            super().__delitem__(who)
            clock._autojump = False

    def sleep(seconds: float) -> None:
        clock.wait(threading.Event(), seconds)
        order.append((seconds, clock.now()))

    clock._waiters = Waiters()
    calls = [Call(lambda seconds=seconds: sleep(seconds)) for seconds in (3.0, 1.0, 2.0)]  # type: ignore[misc]
    until(lambda: clock.waiting == 3, PATIENCE, "all wait")
    for count in (1, 2, 3):
        clock._autojump = True
        until(lambda: len(order) == count, PATIENCE, "the next one wakes")  # noqa: B023 - used at once
    for call in calls:
        call.result(PATIENCE, "a sleeper")
    assert order == [(1.0, 1001.0), (2.0, 1002.0), (3.0, 1003.0)]


def test_fake_clock_without_autojump_waits_to_be_told() -> None:
    """Time stands still until advance; then those whose limit is reached wake, and nobody else."""
    clock = FakeClock(autojump=False)
    short = Call(lambda: clock.wait(threading.Event(), 1))
    long = Call(lambda: clock.wait(threading.Event(), 2))
    until(lambda: clock.waiting == 2, SLACK, "both wait")
    clock.advance(1)
    assert short.result(SLACK, "the short wait") is False
    assert long.is_alive()
    clock.advance(1)
    assert long.result(SLACK, "the long wait") is False
    assert clock.waiting == 0


def test_fake_clock_never_jumps_to_infinity() -> None:
    """Who waits without end waits for the event; others' limits still come."""
    clock = FakeClock()
    event = threading.Event()
    endless = Call(lambda: clock.wait(event, math.inf))
    clock.sleep(5)
    assert clock.now() == 1005
    event.set()
    assert endless.result(SLACK, "the endless wait") is True
    assert clock.now() == 1005


def test_system_clock_sees_events_of_other_threads_at_once() -> None:
    """The main thread's wait looks for signals now and then, and still ends with its event."""
    event = threading.Event()
    waiter = Call(lambda: SYSTEM_CLOCK.wait(event, 60))
    event.set()
    assert waiter.result(SLACK, "the wait") is True
    assert SYSTEM_CLOCK.unix_time() == pytest.approx(time.time(), abs=SLACK)


def test_fake_clock_does_not_jump_over_somebody_who_is_due() -> None:
    """A waiter whose event is set has only not been given the processor yet: time stands still for it."""
    clock = FakeClock()
    due = threading.Event()
    due.set()
    with clock._changed:
        clock._waiters["slow"] = clock._now + 5.0, due
    waiter = threading.Thread(target=clock.wait, args=(threading.Event(), 1.0), daemon=True)
    waiter.start()
    until(lambda: clock.waiting == 2, 20.0, "both wait")
    waiter.join(0.1)
    assert clock.now() == 1000.0
    with clock._changed:
        del clock._waiters["slow"]
    waiter.join(20)
    assert clock.now() == 1001.0
