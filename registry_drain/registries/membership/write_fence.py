"""The fence of a registration that writes in its callers' threads: once it is up nothing more is written.

Theory of operation: every write asks to begin, and is counted until it has ended, under one lock. Raising the fence
refuses whoever asks later; who began earlier is waited for. So when the count is zero behind the fence, no thread of
ours is registering or renewing, nor ever will.

A forked child has a copy of everything and no right to the instance. It is refused before any lock is touched: a thread
that held it at the fork does not exist there, and would hold it for ever.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from registry_drain.clock import Deadline
from registry_drain.registries.membership.membership import Membership


class WriteFence:
    """See the module. Thread-safe.

    Attributes:
        raised: set when the fence is up. Wait for it; do not set it.
    """

    def __init__(self, membership: Membership) -> None:
        self._membership = membership
        self.raised = threading.Event()
        self._lock = threading.Lock()
        self._writes = 0
        self._quiet = threading.Event()  # no write is under way
        self._quiet.set()
        self._pid = 0  # of the process that wrote first

    @property
    def is_raised(self) -> bool:
        """Whether the stop has begun."""
        return self.raised.is_set()

    @property
    def owner_pid(self) -> int:
        """The process that wrote first; 0 if none has written yet."""
        return self._pid

    @property
    def is_inherited(self) -> bool:
        """Whether this is a forked child's copy of a registration that its parent has made use of."""
        return self._pid not in {0, os.getpid()}

    def check(self) -> None:
        """Return if writing is allowed.

        Raises:
            LiveOwnerError: the fence is up, or this is a forked child.
        """
        if self.is_inherited:
            raise self._membership.inherited(self._pid)
        if self.is_raised:
            raise self._membership.fenced()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Write inside this block; the fence waits for its end.

        Raises:
            LiveOwnerError: see :meth:`check`.
        """
        self.check()
        with self._lock:
            self.check()
            self._pid = os.getpid()
            self._writes += 1
            self._quiet.clear()
        try:
            yield
        finally:
            with self._lock:
                self._writes -= 1
                if not self._writes:
                    self._quiet.set()

    def put_up(self) -> None:
        """Refuse every write from now on. Waits for none; idempotent."""
        self.raised.set()
        if not self.is_inherited:
            # Whoever asked before this has been counted by now: see ``writing``.
            with self._lock:
                return

    def wait_quiet(self, deadline: Deadline) -> bool:
        """Wait until no write is under way, at most until ``deadline``; return whether none is."""
        return deadline.wait(self._quiet)
