"""Instants that runs of a command at different times, on different hosts, can compare: for what is kept in a file.

Theory of operation: the wall clock is set, forwards and backwards; the time since the machine's boot is not, and counts
while it sleeps, too, but means nothing after the next boot or on another host. So both are kept. Between two moments of
the same boot the second one counts. Otherwise it is the wall clock, which never counts backwards: a negative
difference is none at all.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
"""proc(5), under /proc/sys/kernel/random: one random UUID for each boot; Linux only."""


@dataclass(frozen=True, slots=True)
class Moment:
    """One instant.

    Attributes:
        wall: UNIX seconds.
        boot: which boot of which machine; empty if the system does not say.
        ticks: seconds since that boot, those of sleep included (``CLOCK_BOOTTIME``).
    """

    wall: float
    boot: str = ""
    ticks: float = 0.0

    @classmethod
    def now(cls) -> Moment:
        """Return the present one."""
        try:
            boot = _BOOT_ID.read_text(encoding="ascii").strip()
            ticks = time.clock_gettime(time.CLOCK_BOOTTIME)
        except (OSError, ValueError, AttributeError):  # no Linux: the wall clock has to do
            return cls(time.time())
        return cls(time.time(), boot, ticks)

    @classmethod
    def of(cls, raw: object) -> Moment:
        """Take it from what :meth:`raw` wrote.

        Raises:
            ValueError: it is something else.
        """
        if not isinstance(raw, list) or len(raw) != 3:
            raise ValueError("no moment")
        wall, boot, ticks = raw
        if not isinstance(boot, str) or not all(is_seconds(each) for each in (wall, ticks)):
            raise ValueError("no moment")
        return cls(float(wall), boot, float(ticks))

    def raw(self) -> list[object]:
        """Return it JSON-ready."""
        return [self.wall, self.boot, self.ticks]

    def elapsed_since(self, earlier: Moment) -> float:
        """Return the seconds that have passed at least, never below zero."""
        if self.boot and self.boot == earlier.boot:
            return max(self.ticks - earlier.ticks, 0.0)
        return max(self.wall - earlier.wall, 0.0)

    def not_before(self, earlier: Moment) -> Moment:
        """Return this moment, with a wall clock that does not go back behind ``earlier``'s.

        So that a clock which is set back, and later forwards again, counts the same time once.
        """
        return self if self.wall >= earlier.wall else Moment(earlier.wall, self.boot, self.ticks)


def is_seconds(value: object) -> bool:
    """Whether ``value`` is a finite number, not below zero."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
