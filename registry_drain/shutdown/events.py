"""What a stop says while it happens: typed events, and the sinks that take them.

Phases come in pairs (started, ended) and in order; what else happens in a phase comes between the two. A sink is a
function of one event, called in the thread where the event happens (the stop's, but a second signal, a displaced
handler and a hand-over come from others): it must not block, since the stop waits for it. If it raises, that is logged
and the stop goes on. ``str(event)`` is its log line; ``is_warning`` says whether a person should look.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from registry_drain.phases import Outcome, Phase
from registry_drain.registries.base import Removal
from registry_drain.servers.in_flight import InFlightRequest
from registry_drain.shutdown.observers import ObserverResult, SoftDrainResult

logger = logging.getLogger("registry_drain")
"""The package's one logger. It is never configured here."""


@dataclass(frozen=True, slots=True)
class StopRequested:
    """The stop begins. ``reason`` is the signal's name or what the caller gave; ``grace_period`` is in seconds."""

    reason: str
    grace_period: float
    is_warning = False

    def __str__(self) -> str:
        return f"stop requested ({self.reason}), grace period {self.grace_period:g} s"


@dataclass(frozen=True, slots=True)
class StopHurried:
    """A second signal: waits are skipped from now on."""

    reason: str
    is_warning = True

    def __str__(self) -> str:
        return f"stop hurried ({self.reason}): skipping every wait"


@dataclass(frozen=True, slots=True)
class PhaseStarted:
    """A phase begins; it may take ``planned`` seconds."""

    phase: Phase
    planned: float
    is_warning = False

    def __str__(self) -> str:
        return f"{self.phase.name}: at most {self.planned:.1f} s"


@dataclass(frozen=True, slots=True)
class PhaseEnded:
    """A phase has ended after ``elapsed`` seconds."""

    phase: Phase
    outcome: Outcome
    elapsed: float
    detail: str

    @property
    def is_warning(self) -> bool:
        """Whether it did not do what it is for."""
        return not self.outcome.is_fine

    def __str__(self) -> str:
        return f"{self.phase.name}: {self.outcome.value} after {self.elapsed:.3f} s{_tail(self.detail)}"


@dataclass(frozen=True, slots=True)
class InstanceRemoved:
    """A registration has ended, well or not: see the removal's outcome."""

    removal: Removal

    @property
    def is_warning(self) -> bool:
        """Whether the instance may still be listed."""
        return not self.removal.is_gone

    def __str__(self) -> str:
        removal = self.removal
        where = f" at {removal.registry}" if removal.registry else ""
        return f"deregistering {removal.subject}{where}: {removal.outcome.value}{_tail(removal.detail)}"


@dataclass(frozen=True, slots=True)
class RequestsCutOff:
    """The drain's deadline came first: these requests were cut."""

    requests: tuple[InFlightRequest, ...]
    is_warning = True

    def __str__(self) -> str:
        names = ", ".join(f"{request.name or 'request'} from {request.peer or 'unknown'}" for request in self.requests)
        return f"cut off {len(self.requests)} in flight: {names}"


@dataclass(frozen=True, slots=True)
class ObserverTold:
    """An observer was told, well or not."""

    result: ObserverResult

    @property
    def is_warning(self) -> bool:
        """Whether it failed or was left behind."""
        return not self.result.outcome.is_fine

    def __str__(self) -> str:
        result = self.result
        return f"observer {result.name}: {result.outcome.value} after {result.elapsed:.3f} s{_tail(result.detail)}"


@dataclass(frozen=True, slots=True)
class SignalHandlerDisplaced:
    """Somebody replaced our handler of ``signal_name`` by ``handler``."""

    signal_name: str
    handler: str
    is_warning = True

    def __str__(self) -> str:
        return (
            f"{self.signal_name} is now handled by {self.handler}: unless that calls ours, the signal will not stop"
            " this server gracefully; install it before serve(), then it is called after the stop"
        )


@dataclass(frozen=True, slots=True)
class HandoverStarted:
    """A new process was started to replace this one: ``argv``, because of ``reason``."""

    pid: int
    reason: str
    argv: tuple[str, ...]
    is_warning = False

    def __str__(self) -> str:
        return f"hand-over requested ({self.reason}): started pid {self.pid}: {' '.join(self.argv)}"


@dataclass(frozen=True, slots=True)
class HandoverFailed:
    """The new process is none; it is ended. ``pid`` is 0 if none was started."""

    pid: int
    why: str
    is_serving_on: bool
    is_warning = True

    def __str__(self) -> str:
        whom = f" to pid {self.pid}" if self.pid else ""
        what = "this process serves on, registered as before" if self.is_serving_on else "both end"
        return f"hand-over{whom} failed: {self.why}; {what}"


@dataclass(frozen=True, slots=True)
class HandedOver:
    """The process ``pid`` listens and is registered in our place: this one stops."""

    pid: int
    is_warning = False

    def __str__(self) -> str:
        return f"handed over to pid {self.pid}"


@dataclass(frozen=True, slots=True)
class RemovedByOperator:
    """Somebody removed our instance from ``registry`` on purpose while we serve: it stays out. ``how`` that is known.

    The process serves whoever still calls, until it is told to rejoin, or stopped. No warning: the registry's own log
    line is one already.
    """

    subject: str
    registry: str
    how: str
    is_warning = False

    def __str__(self) -> str:
        return f"{self.subject} at {self.registry}: {self.how}; serving on without it, until rejoin() or a restart"


@dataclass(frozen=True, slots=True)
class LeftRotation:
    """A soft drain: the instance was taken out of rotation, well or not; its removal follows either way."""

    result: SoftDrainResult

    @property
    def is_warning(self) -> bool:
        """Whether callers were not told."""
        return not self.result.outcome.is_fine

    def __str__(self) -> str:
        result = self.result
        return (
            f"soft drain of {result.subject}: {result.outcome.value} after {result.elapsed:.3f} s{_tail(result.detail)}"
        )


Event = (
    StopRequested
    | StopHurried
    | PhaseStarted
    | PhaseEnded
    | RemovedByOperator
    | LeftRotation
    | InstanceRemoved
    | RequestsCutOff
    | ObserverTold
    | SignalHandlerDisplaced
    | HandoverStarted
    | HandoverFailed
    | HandedOver
)
EventSink = Callable[[Event], None]


def log_event(event: Event) -> None:
    """Write one event to the logger ``registry_drain``, as a warning if a person should look. The default sink."""
    logger.log(logging.WARNING if event.is_warning else logging.INFO, "%s", event)


def _tail(detail: str) -> str:
    return f": {detail}" if detail else ""
