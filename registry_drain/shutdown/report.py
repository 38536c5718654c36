"""What happened in a stop: for the log, for machines, and as an exit code. Plain data.

The exit code is 0 only if nothing was lost: everybody told, everything finished, and the instance proven gone.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import Enum

from registry_drain.phases import Outcome, Phase
from registry_drain.registries.base import Removal
from registry_drain.shutdown.observers import ObserverResult, SoftDrainResult

EXIT_CLEAN = 0
EXIT_INCOMPLETE = 1
"""The process stopped by itself, but something is in the report."""
EXIT_WATCHDOG = 70
"""``EX_SOFTWARE`` of sysexits(3): the process did not stop by itself and was ended; the stacks are on stderr."""


@dataclass(frozen=True, slots=True)
class PhaseReport:
    """One phase: what it might take, what it took (seconds), and how it ended."""

    phase: Phase
    planned: float
    actual: float
    outcome: Outcome
    detail: str = ""


@dataclass(frozen=True, slots=True)
class CutOffRequest:
    """A request that was not finished: its name, its caller, and for how many seconds it had been served."""

    name: str
    peer: str
    age: float


@dataclass(frozen=True, slots=True)
class LateArrivals:
    """Requests that came after the instance was out of the registry. They were served.

    Attributes:
        count: how many, health checks not counted.
        last_delay: seconds from the removal to the last of them: set ``floor`` above it. None if there were none.
    """

    count: int = 0
    last_delay: float | None = None


@dataclass(frozen=True, slots=True)
class ShutdownReport:
    """One stop, as far as it has come. Complete once ``phase`` is STOPPED.

    Attributes:
        reason: who asked: a signal's name, or what ``stop()`` was given.
        phase: where the stop is.
        grace_period: the whole budget in seconds.
        elapsed: seconds since the stop was asked for.
        is_hurried: whether a second signal skipped the waits.
        phases: those that have ended, in order.
        removals: one for each registration.
        listener: how the listener was closed.
        late_arrivals: see :class:`LateArrivals`.
        cut_off: what was not finished.
        observers: what became of telling each.
        handed_over_to: the process that listens and is registered in our place, if a hand-over caused the stop.
        soft_drains: what became of taking instances out of rotation first, where that was asked for. Failures here lose
            nothing: the removal follows.
    """

    reason: str
    phase: Phase
    grace_period: float
    elapsed: float
    is_hurried: bool = False
    phases: tuple[PhaseReport, ...] = ()
    removals: tuple[Removal, ...] = ()
    listener: str = ""
    late_arrivals: LateArrivals = LateArrivals()
    cut_off: tuple[CutOffRequest, ...] = ()
    observers: tuple[ObserverResult, ...] = ()
    handed_over_to: int | None = None
    soft_drains: tuple[SoftDrainResult, ...] = ()

    @property
    def is_complete(self) -> bool:
        """Whether the stop has ended."""
        return self.phase is Phase.STOPPED

    @property
    def is_clean(self) -> bool:
        """Whether the stop has ended and nothing was lost."""
        return (
            self.is_complete
            and not self.cut_off
            and all(removal.is_gone for removal in self.removals)
            and all(phase.outcome.is_fine for phase in self.phases if phase.phase is not Phase.PROPAGATING)
            and all(observer.outcome.is_fine for observer in self.observers)
        )

    @property
    def exit_code(self) -> int:
        """What the process should exit with: :data:`EXIT_CLEAN` or :data:`EXIT_INCOMPLETE`."""
        return EXIT_CLEAN if self.is_clean else EXIT_INCOMPLETE

    def as_dict(self) -> dict[str, object]:
        """Return everything as JSON-ready data: enums as their lower-case names, times in seconds."""
        plain = dataclasses.asdict(self, dict_factory=_plain)
        return {**plain, "is_complete": self.is_complete, "is_clean": self.is_clean, "exit_code": self.exit_code}

    def __str__(self) -> str:
        """Return the report for a person, a line for each fact, worst news not hidden at the end."""
        verdict = "clean" if self.is_clean else "INCOMPLETE" if self.is_complete else f"so far, in {self.phase.name}"
        hurried = ", hurried" if self.is_hurried else ""
        lines = [f"stopped ({self.reason}{hurried}) in {self.elapsed:.3f} s of {self.grace_period:g} s: {verdict}"]
        for phase in self.phases:
            name, outcome = phase.phase.name.lower(), phase.outcome.value
            lines.append(
                f"  {name:<13} {phase.actual:7.3f} s of {phase.planned:6.3f} s  {_note(outcome, phase.detail)}"
            )
        for drain in self.soft_drains:
            note = _note(drain.outcome.value, drain.detail)
            lines.append(f"  soft drain    {drain.subject}: {note} after {drain.elapsed:.3f} s")
        for removal in self.removals:
            note = _note(removal.outcome.value, removal.detail)
            lines.append(f"  registry      {removal.subject} at {removal.registry or 'unknown'}: {note}")
        if self.handed_over_to is not None:
            lines.append(f"  handed over   to pid {self.handed_over_to}")
        if self.listener:
            lines.append(f"  listener      {self.listener}")
        late = self.late_arrivals
        if late.last_delay is not None:
            lines.append(
                f"  late          {late.count} requests after deregistration, the last {late.last_delay:.3f} s after it"
            )
        for request in self.cut_off:
            who = f"{request.name or 'request'} from {request.peer or 'unknown'}"
            lines.append(f"  cut off       {who}, in flight for {request.age:.3f} s")
        for observer in self.observers:
            note = _note(observer.outcome.value, observer.detail)
            lines.append(
                f"  observer      {observer.name} ({observer.when.value}): {note} after {observer.elapsed:.3f} s"
            )
        return "\n".join(lines)


def _note(outcome: str, detail: str) -> str:
    return f"{outcome}: {detail}" if detail else outcome


def _plain(items: list[tuple[str, object]]) -> dict[str, object]:
    return {key: value.name.lower() if isinstance(value, Enum) else value for key, value in items}
