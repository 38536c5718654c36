"""The end of a stop that does not end: dump every thread's stack, and exit.

Theory of operation: a thread of ours waits for the deadline. It needs the interpreter's lock; code that never gives
that back (a C extension that hangs) would hang the watchdog too, so the C timer of :mod:`faulthandler`, which needs no
lock, is set behind it. Its exit status is 1, which cannot be chosen.

Standard error may be a full pipe that nobody reads, and must not keep us: our thread leaves the writing to another, and
writes nothing while it holds the lock (:func:`faulthandler.dump_traceback` does, and would hold it for ever). The timer
writes to a description of its own that never blocks.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import threading
import traceback
from collections.abc import Callable

from registry_drain.clock import Clock, Deadline
from registry_drain.shutdown.report import EXIT_WATCHDOG

_DUMP_LIMIT = 0.5
"""Seconds at most for writing the stacks, and half of the room if that is less."""
_BACKUP_AT = 0.75
"""When the C timer ends the process: this part of the room after our thread should have."""
_LEAST_ROOM = 0.1
_JOIN_LIMIT = 1.0


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
        self._is_decided = threading.Event()  # disarmed, or overdue
        self._is_dumped = threading.Event()
        self._threads: list[threading.Thread] = []
        self._has_backup = False
        self._backup_fd: int | None = None

    def arm(self, deadline: Deadline, describe: Callable[[], str], *, room: float = 1.0) -> None:
        """End the process at ``deadline``, and at the latest ``room`` seconds after it.

        ``describe`` gives the first line of what is then written to stderr.
        """
        room = max(room, _LEAST_ROOM)
        thread = threading.Thread(
            target=self._watch, args=(deadline, room), name="registry-drain-watchdog", daemon=True
        )
        # Started now: Python 3.12.0 and 3.12.1 start no thread any more once the main thread has ended (gh-113964).
        dump = threading.Thread(
            target=self._dump, args=(deadline.clock, describe), name="registry-drain-watchdog-dump", daemon=True
        )
        thread.start()
        self._threads.append(thread)
        dump.start()
        self._threads.append(dump)
        if self._exit_process is _exit_now:
            self._set_backup(deadline.remaining() + room * _BACKUP_AT)

    def _set_backup(self, timeout: float) -> None:
        try:
            self._backup_fd = _open_stderr_without_blocking()
            faulthandler.dump_traceback_later(timeout, exit=True, file=self._backup_fd)
        except (AttributeError, OSError, ValueError, RuntimeError):
            # stderr is missing, or has no descriptor (a captured or closed stream): the thread alone has to do.
            self._close_backup()
            return
        self._has_backup = True

    def _close_backup(self) -> None:
        fd, self._backup_fd = self._backup_fd, None
        if fd is not None:
            os.close(fd)

    def disarm(self) -> None:
        """Let the process live. Idempotent; does nothing before :meth:`arm`."""
        self._disarmed.set()
        if self._has_backup:
            self._has_backup = False
            faulthandler.cancel_dump_traceback_later()
            self._close_backup()
        self._is_decided.set()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(_JOIN_LIMIT)

    def _watch(self, deadline: Deadline, room: float) -> None:
        clock: Clock = deadline.clock
        if clock.wait(self._disarmed, deadline.remaining()):
            return
        self._is_decided.set()
        self._is_dumped.wait(min(_DUMP_LIMIT, room / 2))
        if not self._disarmed.is_set():
            self._exit_process(EXIT_WATCHDOG)

    def _dump(self, clock: Clock, describe: Callable[[], str]) -> None:
        clock.wait(self._is_decided)
        if not self._disarmed.is_set():
            _dump(describe)
        self._is_dumped.set()


def _open_stderr_without_blocking() -> int:
    fd = sys.__stderr__.fileno()  # type: ignore[union-attr] # None raises, which the caller expects
    try:
        return os.open(f"/dev/fd/{fd}", os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        # A socket, or a pipe of another user's: then a full one would keep the timer too.
        return os.dup(fd)


def _dump(describe: Callable[[], str]) -> None:
    if sys.__stderr__ is None:
        return
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    lines = [f"registry_drain watchdog: {describe()}; every thread's stack follows\n"]
    for ident, frame in sys._current_frames().items():  # noqa: SLF001 - the documented way to look at other threads
        lines.append(f"\nThread {names.get(ident, 'not of Python')} ({ident:#x}), most recent call last:\n")
        lines += traceback.format_stack(frame)
    left = "".join(lines).encode(errors="backslashreplace")
    with contextlib.suppress(OSError, ValueError):
        fd = sys.__stderr__.fileno()
        while left:
            left = left[os.write(fd, left) :]
