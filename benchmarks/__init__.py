"""Speed claims, each a program that prints a ratio against a baseline in the same run: ``python -m benchmarks.NAME``.

The exit status is 1 if the goal named at the top of the file is missed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
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
