"""Retries: only what a retry can help, inside the deadline, on the injected clock, until cancelled."""

from __future__ import annotations

import threading

import pytest

from registry_drain.clock import Deadline
from registry_drain.errors import PermissionRefusedError, RegistryTimeoutError, RegistryUnavailableError
from registry_drain.registries.retry import FIRST_PAUSE, LONGEST_PAUSE, retrying
from registry_drain.testing.bench import Call, until
from registry_drain.testing.clock import FakeClock


class Flaky:
    """A call that fails some times, and notes when it was made."""

    def __init__(self, clock: FakeClock, *errors: Exception, forever: bool = False) -> None:
        """Raise ``errors`` one after the other, the last one for ever if so told."""
        self.clock, self.errors, self.forever = clock, list(errors), forever
        self.called_at: list[float] = []

    def __call__(self) -> str:
        """Fail or not."""
        self.called_at.append(self.clock.now())
        if self.errors:
            raise self.errors[0] if self.forever and len(self.errors) == 1 else self.errors.pop(0)
        return "done"


def run(call: Flaky, deadline: Deadline, cancelled: threading.Event | None = None) -> str:
    """Make the call with retries."""
    for attempt in retrying(deadline, cancelled=cancelled):
        with attempt:
            return call()
    raise AssertionError


@pytest.fixture
def clock() -> FakeClock:
    """Return a clock that costs no time."""
    return FakeClock()


def test_outages_are_retried(clock: FakeClock) -> None:
    """An outage and a timeout are retried, and the answer is the last attempt's."""
    call = Flaky(clock, RegistryUnavailableError("reset"), RegistryTimeoutError("slow"))
    assert run(call, Deadline.after(5, clock)) == "done"
    assert len(call.called_at) == 3


@pytest.mark.parametrize("error", [PermissionRefusedError("no"), ValueError("a bug"), KeyboardInterrupt()])
def test_what_a_retry_cannot_help_passes(clock: FakeClock, error: BaseException) -> None:
    """A refusal, a bug and Ctrl-C are raised at once, as they are."""
    call = Flaky(clock, error)  # type: ignore[arg-type]
    with pytest.raises(type(error)) as caught:
        run(call, Deadline.after(5, clock))
    assert caught.value is error
    assert len(call.called_at) == 1


def test_the_last_error_is_raised_at_the_deadline(clock: FakeClock) -> None:
    """When time is up the error is the registry's own, and no pause goes past the deadline."""
    error = RegistryUnavailableError("down")
    call = Flaky(clock, error, forever=True)
    deadline = Deadline.after(5, clock)
    with pytest.raises(RegistryUnavailableError, match="down") as caught:
        run(call, deadline)
    assert caught.value is error
    assert clock.now() <= deadline.at
    assert len(call.called_at) > 5


def test_pauses_grow_up_to_a_limit(clock: FakeClock) -> None:
    """The first pauses are short, none is long: a blip costs little, and recovery is noticed."""
    call = Flaky(clock, RegistryUnavailableError("down"), forever=True)
    with pytest.raises(RegistryUnavailableError):
        run(call, Deadline.after(30, clock))
    pauses = [after - before for before, after in zip(call.called_at, call.called_at[1:], strict=False)]
    assert pauses[0] <= FIRST_PAUSE * 2
    assert max(pauses) <= LONGEST_PAUSE + 1e-6
    assert len(set(pauses)) > 2, "pauses are spread: a fleet that stops at once must not retry at once"


@pytest.mark.parametrize("left", [0.0, -1.0])
def test_a_past_deadline_still_allows_one_attempt(clock: FakeClock, left: float) -> None:
    """With no time left there is one attempt, which is up to the call to bound, and no pause."""
    call = Flaky(clock, RegistryUnavailableError("down"), forever=True)
    with pytest.raises(RegistryUnavailableError):
        run(call, Deadline.after(left, clock))
    assert len(call.called_at) == 1
    assert clock.now() == 1000


def test_cancelled_before_it_begins(clock: FakeClock) -> None:
    """Once cancelled nothing is retried."""
    cancelled = threading.Event()
    cancelled.set()
    call = Flaky(clock, RegistryUnavailableError("down"), forever=True)
    with pytest.raises(RegistryUnavailableError):
        run(call, Deadline.after(5, clock), cancelled)
    assert len(call.called_at) == 1


def test_cancelled_in_a_pause() -> None:
    """A pause ends when it is cancelled, and is followed by one more attempt at most."""
    clock = FakeClock(autojump=False)
    cancelled = threading.Event()
    call = Flaky(clock, RegistryUnavailableError("down"), forever=True)
    running = Call(lambda: run(call, Deadline.after(60, clock), cancelled))
    until(lambda: clock.waiting == 1, 5, "the first pause has begun")
    cancelled.set()
    assert isinstance(running.ended(5, "the loop").error, RegistryUnavailableError)
    assert len(call.called_at) <= 2
