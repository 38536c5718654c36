"""How registry calls are retried: tenacity, inside a deadline, on the injected clock, only what a retry can help.

Retries start quickly because a blip (a leader election, a restarted proxy) is the common case during a deploy, and
spread out with jitter because a whole fleet may be stopping at once.
"""

from __future__ import annotations

import threading

import tenacity

from registry_drain.clock import Deadline
from registry_drain.errors import RegistryDrainError

FIRST_PAUSE = 0.05
"""Seconds; a few round trips inside one data centre."""
LONGEST_PAUSE = 1.0
"""Seconds; a budget of 5 s still gets several attempts."""


def retrying(deadline: Deadline, *, cancelled: threading.Event | None = None) -> tenacity.Retrying:
    """Return a loop of attempts: ``for attempt in`` it, ``with attempt:`` make the call.

    Errors that are not ``retryable`` pass straight through; after the deadline, or once ``cancelled`` is set, the last
    error is raised as it is. The pauses end early when ``cancelled`` is set.
    """
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
