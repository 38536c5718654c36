"""How registry calls are retried: tenacity, inside a deadline, on the injected clock, only what a retry can help.

Retries start quickly because a blip (a leader election, a restarted proxy) is the common case during a deploy, and
spread out with jitter because a whole fleet may be stopping at once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from registry_drain.clock import Deadline
from registry_drain.errors import RegistryDrainError, RegistryTimeoutError

if TYPE_CHECKING:
    import tenacity

T = TypeVar("T")

FIRST_PAUSE = 0.05
"""Seconds; a few round trips inside one data centre."""
LONGEST_PAUSE = 1.0
"""Seconds; a budget of 5 s still gets several attempts."""


def retrying(deadline: Deadline, *, cancelled: threading.Event | None = None) -> tenacity.Retrying:
    """Return a loop of attempts: ``for attempt in`` it, ``with attempt:`` make the call.

    Errors that are not ``retryable`` pass straight through; after the deadline, or once ``cancelled`` is set, the last
    error is raised as it is. The pauses end early when ``cancelled`` is set.
    """
    # Only now: most calls need no second attempt, and loading it takes as long as the rest of a command.
    import tenacity

    never = threading.Event()
    wake = cancelled or never

    def is_over(state: tenacity.RetryCallState) -> bool:
        # A pause that would end past the deadline is not begun: the caller learns at once and can use what is left.
        return wake.is_set() or state.upcoming_sleep >= deadline.remaining()

    def pause(seconds: float) -> None:
        deadline.clock.wait(wake, seconds)

    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(lambda error: isinstance(error, RegistryDrainError) and error.retryable),
        wait=tenacity.wait_random_exponential(multiplier=FIRST_PAUSE, max=LONGEST_PAUSE),
        stop=is_over,
        sleep=pause,
        reraise=True,
    )


def persistently(call: Callable[[], T], deadline: Deadline, between: Callable[[], None] | None = None) -> T:
    """Return what ``call`` returns, repeated by the rules of :func:`retrying`.

    ``between`` is called after each attempt, the last one included; what it raises ends everything, unchanged.

    Raises the last error that was not a time limit, if there was one: the last attempt of many is usually cut off by
    the deadline, and "no leader" is what the operator must read.
    """
    try:
        found = call()
    except RegistryDrainError as error:
        failure = error
    else:
        if between is not None:
            between()
        return found
    return _again(call, failure, deadline, between)


def _again(
    call: Callable[[], T], failure: RegistryDrainError, deadline: Deadline, between: Callable[[], None] | None
) -> T:
    """Go on after an attempt that ended with ``failure``."""
    made: list[RegistryDrainError] = [failure]
    telling: RegistryDrainError | None = None
    attempts = iter(retrying(deadline))
    while True:
        try:
            attempt = next(attempts)
        except RegistryDrainError as error:
            if telling is None or telling is error:
                raise
            raise telling from error
        done: list[T] = []
        with attempt:
            try:
                if made:  # the rules begin with the attempt that was made already
                    raise made.pop()
                done.append(call())
            except RegistryDrainError as error:
                if telling is None or not isinstance(error, RegistryTimeoutError):
                    telling = error
                raise
        if between is not None:
            between()
        if done:
            return done[0]
