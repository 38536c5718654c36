"""Retrying a Consul call until its deadline, and saying afterwards what was wrong instead of that time ran out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from registry_drain.clock import Deadline
from registry_drain.errors import RegistryDrainError, RegistryTimeoutError

T = TypeVar("T")


def persistently(call: Callable[[], T], deadline: Deadline, between: Callable[[], None] | None = None) -> T:
    """Return what ``call`` returns, repeated by the rules of :func:`registry_drain.registries.retry.retrying`.

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
    # Only now: most calls never need it, and loading it takes as long as the rest of a command.
    from registry_drain.registries.retry import retrying

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
