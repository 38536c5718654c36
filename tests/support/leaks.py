"""What a test left behind: threads that keep a process alive, or that are ours, and child processes."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from tests.support.processes import undertaker_pid

_OURS = "registry-drain"


def guarded_threads() -> set[threading.Thread]:
    """Return the running threads that must not outlive a test: non-daemon ones, and daemons of this package.

    Daemon threads of others are let be: client libraries end theirs in their own time.
    """
    return {
        thread
        for thread in threading.enumerate()
        if thread is not threading.main_thread() and (not thread.daemon or thread.name.startswith(_OURS))
    }


def child_processes() -> dict[int, str]:
    """Return the command lines of this process' children by pid, zombies included (without /proc: none)."""
    children: dict[int, str] = {}
    for tasks in Path("/proc/self/task").glob("*/children"):
        try:
            pids = tasks.read_text().split()
        except OSError:  # the thread has just ended
            continue
        for pid in map(int, pids):
            command = _command_line(pid)
            # multiprocessing keeps these two for the rest of the process' life, by design.
            is_multiprocessing = "multiprocessing.resource_tracker" in command or "forkserver" in command
            if pid != undertaker_pid() and pid != os.getpid() and not is_multiprocessing:
                children[pid] = command
    return children


def _command_line(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return ""
    return b" ".join(words).decode(errors="replace").strip() or "(exited, not waited for)"
