"""Speed claims, each a program that prints a ratio against a baseline in the same run: ``python -m benchmarks.NAME``.

The exit status is 1 if the goal named at the top of the file is missed.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress

_HANGS_AFTER = 60.0
_PROCESSORS = sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else []


def keep_apart(server: subprocess.Popen[str] | subprocess.Popen[bytes]) -> None:
    """Give a server that has just been started one processor, and the clients here another; where there are two.

    Left to itself the kernel moves both about, which is worth some percent to whoever is lucky.
    """
    if len(_PROCESSORS) < 2:
        return
    with suppress(ProcessLookupError):
        os.sched_setaffinity(server.pid, _PROCESSORS[-1:])
        os.sched_setaffinity(0, _PROCESSORS[:1])


def take_turns(bare: Callable[[], float], ours: Callable[[], float], batches: int) -> list[tuple[float, float]]:
    """Run that many batches of each, there and back; return the seconds that both took side by side, pair by pair."""
    times = []
    for _ in range(batches // 2):
        times.append((bare(), ours()))
        second, first = ours(), bare()
        times.append((first, second))
    return times


def throughput_ratio(times: Iterable[tuple[float, float]]) -> float:
    """Return the throughput of the second as a share of the first's, from the seconds that both took side by side.

    The median of the pairs' ratios: what slows the machine down for longer than a pair hits both, and what is shorter
    hits few pairs. Between two rounds it differs by half as much as the ratio of the fastest batches.
    """
    return statistics.median(first / second for first, second in times)


def wait_for_exit(process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> int:
    """Wait for the process and return its status, the moment it exits; end it should it hang.

    ``Popen.wait`` with a time limit looks only every 50 ms, which is more than what is measured here.
    """
    guard = threading.Timer(_HANGS_AFTER, process.kill)
    guard.start()
    try:
        return process.wait()
    finally:
        guard.cancel()
