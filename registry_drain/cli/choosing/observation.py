"""Looking at a registry once, or for as long as it takes, to learn which instances have been critical for how long.

What a look proves is in :mod:`registry_drain.cli.choosing.critical_since`; here is when to look, and what people are
told.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from registry_drain.cli.choosing.critical_since import CriticalSince, can_be_proven
from registry_drain.cli.choosing.moment import Moment
from registry_drain.cli.command.entries import age
from registry_drain.cli.command.output import Output
from registry_drain.clock import Clock, Deadline
from registry_drain.errors import ConfigurationError
from registry_drain.registries.base import RegistryEntry

LOOK_EVERY = 0.5
"""Seconds between two looks: with the time that they take less than ``critical_since.CLOSE``, on a good day, so that a
check whose output changes all the time does not begin again each time."""
_CHECKED = {"passing", "warning", "critical"}
"""What only a registry says that checks; ``maintenance`` stands in ZooKeeper's nodes, too."""

Read = Callable[[], Sequence[RegistryEntry]]


def observed(
    read: Read, since: CriticalSince, seconds: float, *, waits: bool, output: Output, clock: Clock
) -> Sequence[RegistryEntry]:
    """Return what ``read`` shows, after one look or, with ``waits``, once nothing critical is younger than ``seconds``.

    It waits for ``seconds`` at most: whatever starts again meanwhile stays too young.

    Raises:
        ConfigurationError: the registry does not check health, or what was seen cannot be remembered.
        RegistryError: what ``read`` raises.
    """
    ends = Deadline.after(seconds, clock)
    never = threading.Event()
    entries: Sequence[RegistryEntry] = ()
    is_told = False
    while True:
        is_last = ends.is_past
        asked_at = Moment.now()
        entries = read()
        _require_health(entries)
        since.note(entries, asked_at)
        young = [entry for entry in since.younger(entries, seconds) if can_be_proven(entry)]
        if not waits or not young:
            return entries
        if is_last:
            return entries
        if not is_told:
            ends = Deadline.after(_missing(young, since, seconds), clock)
            output.remark(f"{_count(young)} critical for less than {age(seconds)}: looking for {age(ends.remaining())}")
            is_told = True
        ends.capped(LOOK_EVERY).wait(never)


def too_young(entries: Sequence[RegistryEntry], since: CriticalSince, seconds: float) -> str:
    """Return in one line what those of ``entries`` lack that are critical for less; empty if there are none."""
    young = since.younger(entries, seconds)
    provable = [entry for entry in young if can_be_proven(entry)]
    if len(provable) < len(young):
        unknown = next(entry for entry in young if not can_be_proven(entry))
        return f"{unknown} is critical, and its registry does not say whether it was so all the time"
    if not provable:
        return ""
    oldest = max(since.age(entry) or 0.0 for entry in provable)
    left = _missing(provable, since, seconds)
    return f"{_count(provable)} seen critical for {age(oldest)} so far: run again in {age(left)}, or with --observe"


def _missing(young: Sequence[RegistryEntry], since: CriticalSince, seconds: float) -> float:
    """Return after how many seconds all of ``young`` will be old enough, if nothing changes."""
    # Rounded up: who comes back at that second must not be a second too early.
    return float(int(seconds - min(since.age(entry) or 0.0 for entry in young)) + 1)


def _count(entries: Sequence[RegistryEntry]) -> str:
    return str(entries[0]) if len(entries) == 1 else f"{len(entries)} instances"


def _require_health(entries: Sequence[RegistryEntry]) -> None:
    if entries and not any(entry.health in _CHECKED or entry.checks for entry in entries):
        raise ConfigurationError(
            "--critical-for: this registry checks no health, so nothing in it is ever critical: leave it out, or find"
            " what is dead by `registry-drain sweep --unreachable`"
        )
