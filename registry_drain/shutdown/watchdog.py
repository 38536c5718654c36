"""The end of a stop that does not end: dump every thread's stack, and exit.

Theory of operation: a thread of ours waits for the deadline. It needs the interpreter's lock; code that never gives
that back (a C extension that hangs) would hang the watchdog too, so the C timer of :mod:`faulthandler`, which needs no
lock, is set a second behind it.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
from collections.abc import Callable

from registry_drain.clock import Clock, Deadline
from registry_drain.shutdown.report import EXIT_WATCHDOG

_BACKUP_AFTER = 1.0
"""Seconds that the C timer stands behind ours."""
_DUMP_LIMIT = 0.5
"""Seconds for writing the stacks: stderr may be a full pipe that nobody reads."""


def _exit_now(status: int) -> None:
    os._exit(status)


class Watchdog:
    """Ends this process at a deadline unless it is told not to. Thread-safe.

    Args:
        exit_process: called with :data:`EXIT_WATCHDOG`; default :func:`os._exit`. Tests put their own.
    """

    def __init__(self, exit_process: Callable[[int], None] = _exit_now) -> None:
        """Begin disarmed."""
        self._exit_process = exit_process
        self._disarmed = threading.Event()
        self._thread: threading.Thread | None = None
        self._has_backup = False

    def arm(self, deadline: Deadline, describe: Callable[[], str]) -> None:
        """End the process at ``deadline``; ``describe`` gives the first line of what is then written to stderr."""
        self._thread = threading.Thread(
            target=self._watch, args=(deadline, describe), name="registry-drain-watchdog", daemon=True
        )
        self._thread.start()
        if self._exit_process is _exit_now and sys.__stderr__ is not None:
            try:
                faulthandler.dump_traceback_later(deadline.remaining() + _BACKUP_AFTER, exit=True, file=sys.__stderr__)
            except (OSError, ValueError, RuntimeError):
                # stderr has no descriptor (a captured or closed stream): the thread alone has to do.
                return
            self._has_backup = True

    def disarm(self) -> None:
        """Let the process live. Idempotent; does nothing before :meth:`arm`."""
        self._disarmed.set()
        if self._has_backup:
            faulthandler.cancel_dump_traceback_later()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(_BACKUP_AFTER)

    def _watch(self, deadline: Deadline, describe: Callable[[], str]) -> None:
        clock: Clock = deadline.clock
        if clock.wait(self._disarmed, deadline.remaining()):
            return
        dump = threading.Thread(target=_dump, args=(describe,), name="registry-drain-watchdog-dump", daemon=True)
        dump.start()
        dump.join(_DUMP_LIMIT)
        if not self._disarmed.is_set():
            self._exit_process(EXIT_WATCHDOG)


def _dump(describe: Callable[[], str]) -> None:
    if sys.__stderr__ is None:
        return
    print(f"registry_drain watchdog: {describe()}; every thread's stack follows", file=sys.__stderr__, flush=True)
    faulthandler.dump_traceback(file=sys.__stderr__, all_threads=True)
