"""How the grace period is split over the phases of a stop.

Theory of operation: one total, ``grace_period``, covers everything, because that is what the orchestrator grants before
it kills. From its end backwards stand the parts that must not be starved: the margin for the exit itself, then the
observers' time. What stands before takes at most its own part, and whatever it leaves unused falls to the drain, then
to the observers::

    0 ── deregister ── ceiling ── closing ── drain … ──────────── notify ──── margin ── grace_period
         at most       at most    at most    until notify's part   until margin          killed

Settings that cannot work are refused where the budget is made.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from registry_drain.clock import Clock, Deadline
from registry_drain.errors import ConfigurationError
from registry_drain.phases import Phase

_SHARES = {"deregister": 1 / 6, "ceiling": 1 / 4, "closing": 1 / 30, "notify": 1 / 6, "margin": 1 / 15}
"""Parts of the grace period for what is left None; with 30 s: 5, 7.5, 1, 5 and 2 s, and 9.5 s at least for the
drain.
"""
_DRAIN_IN_DOUBT = 1 / 6
"""Of the grace period: what the drain keeps of a stop that waits for a registry, if ``drain`` is None; 5 s of 30."""
_PART_OF = {Phase.DEREGISTERING: "deregister", Phase.PROPAGATING: "ceiling", Phase.CLOSING: "closing"}


@dataclass(frozen=True, kw_only=True, slots=True)
class StopBudget:
    """How long each part of a stop may take, in seconds. Immutable; checked when made.

    Parts that are None are a fixed share of ``grace_period``, so that one number is enough.

    Attributes:
        grace_period: the whole stop, from the first signal to the exit. 30 s is what Kubernetes grants
            (``terminationGracePeriodSeconds``); Docker grants 10 s (``stop_grace_period``): say 10 there.
        deregister: leaving all registries and proving it, retries included. Default 1/6.
        floor: serving goes on at least this long after the instance is proven gone. 1 s: watches wake within tens of
            milliseconds, but callers that poll or use DNS usually look once a second. Set it above your callers'
            interval.
        quiet_period: and until no request has arrived for this long. 1 s, for the same reason.
        ceiling: but propagating never takes longer than this, however many callers ignore the registry. Default 1/4.
            While a registry is still asked to remove the instance (it elects a leader, say) and callers still come, it
            may take what the drain can spare, too: all but ``drain``, or but 1/6 of the grace period.
        closing: emptying the accept backlog. Default 1/30; it takes some 10 ms.
        drain: what the drain may take at least, its last twentieth (0.5 s at most) for cutting off what is left; None
            takes whatever the others leave. Refused if that is less.
        notify: reserved for the remaining observers, whatever the drain does. Default 1/6.
        margin: kept free for the report, the exit, and, if it comes to that, the watchdog's stack dump. Default 1/15.
        hurried_deregister: bound on leaving the registries once a second signal has come.
        hurried_notify: bound on all remaining observers together once a second signal has come.

    Raises:
        ConfigurationError: the parts do not fit; the message says which, and what to change.
    """

    grace_period: float = 30.0
    deregister: float | None = None
    floor: float = 1.0
    quiet_period: float = 1.0
    ceiling: float | None = None
    closing: float | None = None
    drain: float | None = None
    notify: float | None = None
    margin: float | None = None
    hurried_deregister: float = 1.0
    hurried_notify: float = 1.0

    def __post_init__(self) -> None:
        """Check each number, then whether they fit together."""
        for setting in fields(self):
            value = getattr(self, setting.name)
            if value is not None and not _is_seconds(value):
                raise ConfigurationError(f"{setting.name}={value!r}: must be a number of seconds, zero or more")
        if self.grace_period <= 0:
            raise ConfigurationError(f"grace_period={self.grace_period!r}: a stop needs more than no time")
        for wait in ("floor", "quiet_period"):
            if getattr(self, wait) > self.part("ceiling"):
                raise ConfigurationError(
                    f"{wait}={getattr(self, wait):g} s is longer than ceiling={self.part('ceiling'):g} s, so it could"
                    f" never be kept: raise ceiling or grace_period, or lower {wait}"
                )
        left = self.grace_period - sum(self.part(name) for name in _SHARES)
        if left < (self.drain or 0) or left <= 0:
            parts = ", ".join(f"{name}={self.part(name):g}" for name in _SHARES)
            need = f"{self.drain:g} s" if self.drain else "more than none"
            raise ConfigurationError(
                f"grace_period={self.grace_period:g} s leaves {left:g} s for the drain, which needs {need}:"
                f" raise grace_period, or lower one of {parts}"
            )

    def part(self, name: str) -> float:
        """Return the seconds of one part, its default worked out."""
        value: float | None = getattr(self, name)
        return _SHARES[name] * self.grace_period if value is None else value

    def when_hurried(self, phase: Phase) -> float:
        """Return the seconds that ``phase`` may take once a second signal has come."""
        return {
            Phase.DEREGISTERING: self.hurried_deregister,
            Phase.CLOSING: self.part("closing"),
            Phase.NOTIFYING: self.hurried_notify,
        }.get(phase, 0.0)

    @property
    def watchdog(self) -> float:
        """Seconds after the stop began at which a process that is still there is ended: half the margin before the
        end.
        """
        return self.grace_period - self.part("margin") / 2


def _is_seconds(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


class Ledger:
    """The budget of one stop, counting from the instant it was asked for. Not shared between threads."""

    def __init__(self, budget: StopBudget, started_at: float, clock: Clock) -> None:
        """Open the ledger of a stop that began at ``started_at`` of ``clock``."""
        self._budget = budget
        self._clock = clock
        self._notify_ends_at = started_at + budget.grace_period - budget.part("margin")
        self._drain_ends_at = self._notify_ends_at - budget.part("notify")

    def deadline(self, phase: Phase) -> Deadline:
        """Return until when ``phase``, beginning now, may take.

        The drain and the observers inherit what came before; nobody may reach into the observers' reserved time.
        """
        if phase is Phase.NOTIFYING:
            return Deadline(self._notify_ends_at, self._clock)
        until_drain_ends = Deadline(self._drain_ends_at, self._clock)
        part = _PART_OF.get(phase)
        return until_drain_ends if part is None else until_drain_ends.capped(self._budget.part(part))

    def deadline_in_doubt(self) -> Deadline:
        """Return until when propagating, beginning now, may take as long as an instance is not proven gone.

        Never earlier than the ceiling. What it takes longer, the drain has less.
        """
        drain = _DRAIN_IN_DOUBT * self._budget.grace_period if self._budget.drain is None else self._budget.drain
        spared = self._drain_ends_at - self._budget.part("closing") - drain
        return Deadline(max(spared, self.deadline(Phase.PROPAGATING).at), self._clock)
