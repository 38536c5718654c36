"""What can go wrong with one request, and a script of when it does.

A request is a :class:`Step`. Before it is made the script is asked for a :class:`Fault`; most requests get none.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from enum import Enum

from registry_drain.errors import (
    PermissionRefusedError,
    RegistryDrainError,
    RegistryTimeoutError,
    RegistryUnavailableError,
)


class Step(Enum):
    """The requests a registration makes, and its two calls that the stop routine makes."""

    WRITE = "write"
    """The request that lists the instance."""
    DELETE = "delete"
    """The request that removes one, our own or another's."""
    READ = "read"
    """A consistent read: the proof of absence, ``entries``, and the first list of a watch."""
    FENCE = "fence"
    """The call itself: an error here breaks the protocol, as a faulty backend would."""
    ON_SHUTDOWN = "on_shutdown"
    """The call itself, before its first request."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to one request: first the delay, then (or not) the effect, then (or not) the error.

    Attributes:
        name: for ``repr`` and failure messages.
        delay: seconds of the registry's clock; infinity until released.
        ignores_deadline: whether the delay goes on past the deadline and past a cancellation, as a client without
            timeouts would. Otherwise it ends there in a RegistryTimeoutError, without effect.
        takes_effect: whether the request is carried out.
        error: what is raised in the end; None answers as if all were well.
    """

    name: str
    delay: float = 0.0
    ignores_deadline: bool = False
    takes_effect: bool = True
    error: type[RegistryDrainError] | None = None

    def __repr__(self) -> str:
        """Show the name."""
        return f"<Fault {self.name}>"


UNAVAILABLE = Fault("unavailable", takes_effect=False, error=RegistryUnavailableError)
"""Refused or reset at once; nothing happened."""
TIMEOUT = Fault("timeout", takes_effect=False, error=RegistryTimeoutError)
"""Reported at once; nothing happened."""
REPLY_LOST = Fault("reply lost", error=RegistryTimeoutError)
"""The request was carried out, its caller hears of a timeout."""
REFUSED = Fault("refused", takes_effect=False, error=PermissionRefusedError)
"""The credentials are refused."""
LIE = Fault("lie", takes_effect=False)
"""Acknowledged and not done; a read answers that nothing is listed."""
HANG = Fault("hang", delay=float("inf"))
"""No answer until the deadline, then a timeout; nothing happened."""
HANG_FOREVER = Fault("hang forever", delay=float("inf"), ignores_deadline=True)
"""No answer at all, whatever the deadline, until ``release`` or ``close`` of the registry."""


def slow(seconds: float) -> Fault:
    """Return a fault that answers rightly after ``seconds``, or times out at the deadline."""
    return Fault(f"slow by {seconds:g} s", delay=seconds)


def late(seconds: float) -> Fault:
    """Return a fault that answers rightly after ``seconds``, even if the deadline is past by then."""
    return Fault(f"late by {seconds:g} s", delay=seconds, ignores_deadline=True)


@dataclass(slots=True)
class _Rule:
    step: Step | None
    fault: Fault
    skip: int
    times: float


class FaultScript:
    """Which requests meet which fault. Thread-safe; may be changed while requests are made."""

    def __init__(self) -> None:
        """Start without faults."""
        self._lock = threading.Lock()
        self._rules: list[_Rule] = []

    def add(self, step: Step | None, fault: Fault, *, skip: int = 0, times: int | None = None) -> None:
        """Let requests of kind ``step`` (None: any) meet ``fault``.

        The first ``skip`` such requests from now on pass, the next ``times`` (None: all) meet the fault. Of several
        rules that fit a request, the one that was added last counts; all of them count the request.
        """
        with self._lock:
            self._rules.append(_Rule(step, fault, skip, float("inf") if times is None else times))

    def clear(self) -> None:
        """Forget every rule: the registry is well again. Requests that hang go on hanging."""
        with self._lock:
            self._rules.clear()

    def next_fault(self, step: Step) -> Fault | None:
        """Count one request and return its fault, if any."""
        met: Fault | None = None
        with self._lock:
            for rule in self._rules:
                if rule.step not in {None, step}:
                    continue
                if rule.skip > 0:
                    rule.skip -= 1
                elif rule.times > 0:
                    rule.times -= 1
                    met = rule.fault
        return met
