"""Calls repeated until their deadline: the first attempt counts as one, and what it said is not lost."""

from __future__ import annotations

import pytest

from registry_drain.clock import Deadline
from registry_drain.errors import PermissionRefusedError, RegistryTimeoutError, RegistryUnavailableError
from registry_drain.registries.retry import persistently
from registry_drain.testing.clock import FakeClock
from tests.registries.test_retry import Flaky


@pytest.fixture
def clock() -> FakeClock:
    """Return a clock that costs no time."""
    return FakeClock()


def test_an_answer_at_once_is_one_attempt(clock: FakeClock) -> None:
    """What is between two attempts comes after this one, too."""
    call = Flaky(clock)
    attempts: list[int] = []
    assert persistently(call, Deadline.after(5, clock), lambda: attempts.append(len(call.called_at))) == "done"
    assert attempts == [1]


def test_between_comes_once_after_each_attempt(clock: FakeClock) -> None:
    """The first one, the failed ones, and the last one."""
    call = Flaky(clock, RegistryUnavailableError("reset"), RegistryTimeoutError("slow"))
    attempts: list[int] = []
    assert persistently(call, Deadline.after(5, clock), lambda: attempts.append(len(call.called_at))) == "done"
    assert attempts == [1, 2, 3]


@pytest.mark.parametrize("is_first", [True, False])
def test_what_a_retry_cannot_help_is_not_tried_again(clock: FakeClock, *, is_first: bool) -> None:
    """A refusal is raised as it is, be it the first answer or a later one."""
    refused = PermissionRefusedError("no")
    call = Flaky(clock, *([] if is_first else [RegistryUnavailableError("reset")]), refused)
    with pytest.raises(PermissionRefusedError) as caught:
        persistently(call, Deadline.after(5, clock))
    assert caught.value is refused
    assert not call.errors
    assert len(call.called_at) == (1 if is_first else 2)


def test_an_error_is_told_instead_of_the_time_limits_that_followed_it(clock: FakeClock) -> None:
    """The first attempt's, too: "no leader" is what the operator must read, and what came last is its cause."""
    no_leader, slow = RegistryUnavailableError("no leader"), RegistryTimeoutError("slow")
    call = Flaky(clock, no_leader, slow, forever=True)
    with pytest.raises(RegistryUnavailableError) as caught:
        persistently(call, Deadline.after(5, clock))
    assert caught.value is no_leader
    assert caught.value.__cause__ is slow
    assert len(call.called_at) > 3


def test_the_last_of_several_such_errors_is_told(clock: FakeClock) -> None:
    """It is what is wrong now."""
    no_leader = RegistryUnavailableError("no leader")
    call = Flaky(clock, RegistryUnavailableError("reset"), no_leader, RegistryTimeoutError("slow"), forever=True)
    with pytest.raises(RegistryUnavailableError) as caught:
        persistently(call, Deadline.after(5, clock))
    assert caught.value is no_leader


@pytest.mark.parametrize("attempts", [1, 2])
def test_what_between_raises_ends_everything(clock: FakeClock, attempts: int) -> None:
    """A fence that has fallen: unchanged, and no further attempt."""
    call = Flaky(clock, RegistryUnavailableError("down"), forever=True)

    def at_that_attempt() -> None:
        if len(call.called_at) == attempts:
            raise ValueError("fenced")

    with pytest.raises(ValueError, match="fenced"):
        persistently(call, Deadline.after(5, clock), at_that_attempt)
    assert len(call.called_at) == attempts
