"""Durations as people write them: ``90``, ``90s``, ``10m``, ``1h30m``, ``2d``."""

from __future__ import annotations

import argparse
import re

_UNITS = {"d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0}
_PATTERN = re.compile(r"(?:(\d{1,4})d)?(?:(\d{1,6})h)?(?:(\d{1,7})m)?(?:(\d{1,9}(?:\.\d{1,6})?)s?)?", re.ASCII)
LONGEST = 365 * 86_400.0
"""Seconds."""


def duration(text: str) -> float:
    """Convert an argument to seconds, more than none.

    Raises:
        argparse.ArgumentTypeError: it is no duration.
    """
    found = _PATTERN.fullmatch(text)
    seconds = sum(
        float(count) * length
        for count, length in zip(found.groups() if found else (), _UNITS.values(), strict=False)
        if count
    )
    if not 0 < seconds <= LONGEST:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration: write it as 90s, 10m, 1h30m or 2d")
    return seconds
