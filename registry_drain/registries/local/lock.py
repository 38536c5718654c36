"""Locks of the local registry: an open file with an exclusive ``flock(2)``, which ends when its process does.

The lock belongs to the *open file*, which forked children share. So an unlock ends it for all of them, and children
close their copies, lest they keep a killed parent alive.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import ClassVar

from registry_drain.errors import RegistryUnavailableError


class HeldFile:
    """An open file that may be locked. It ends with :meth:`release` or with this process, not with its children.

    A child that another thread forks in the instant between ``open`` and this constructor keeps its copy; so does one
    that C code forks. Then a *killed* parent stays listed until that child ends. Waiting with the fork for a file
    system was the alternative.
    """

    _all: ClassVar[set[HeldFile]] = set()
    _is_hooked: ClassVar[bool] = False

    def __init__(self, fd: int) -> None:
        """Own ``fd``, which is not locked yet."""
        self._fd: int | None = fd
        if not HeldFile._is_hooked:  # not at import: importing changes nothing in the process
            HeldFile._is_hooked = True
            os.register_at_fork(after_in_child=HeldFile._forget_in_child)
        HeldFile._all.add(self)

    @property
    def fd(self) -> int:
        """The descriptor.

        Raises:
            RegistryUnavailableError: released already, or in a forked child.
        """
        if self._fd is None:
            raise RegistryUnavailableError("the file was released meanwhile")
        return self._fd

    @property
    def is_held(self) -> bool:
        """Whether it is open; False in a forked child."""
        return self._fd is not None

    def lock(self) -> bool:
        """Take the exclusive lock if that is possible at once; return whether it was."""
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def release(self) -> None:
        """Unlock, for every process that shares the open file, and close. Idempotent; does nothing in a child."""
        fd = self._forget()
        # Not in the set any more: the number may be another file's directly after the close.
        HeldFile._all.discard(self)
        if fd is not None:
            with contextlib.suppress(OSError):
                fcntl.flock(fd, fcntl.LOCK_UN)
            os.close(fd)

    def _forget(self) -> int | None:
        fd, self._fd = self._fd, None
        return fd

    @classmethod
    def _forget_in_child(cls) -> None:
        # Close only: an unlock would end the parent's lock.
        for held in cls._all:
            fd = held._forget()  # noqa: SLF001 -- its own class
            if fd is not None:
                with contextlib.suppress(OSError):
                    os.close(fd)
        cls._all.clear()


def is_locked(fd: int) -> bool:
    """Return whether somebody holds an exclusive lock on this file, without disturbing anybody who asks the same.

    The shared lock that is taken if not is left to the close of ``fd``.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False
