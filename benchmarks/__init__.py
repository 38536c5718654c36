"""Speed claims, each a program that prints a ratio against a baseline in the same run: ``python -m benchmarks.NAME``.

The exit status is 1 if the goal named at the top of the file is missed.
"""

from __future__ import annotations

import subprocess
import threading

_HANGS_AFTER = 60.0


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
