"""The one session with which a registry reads, removes others' nodes and watches."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from registry_drain.clock import Clock, Deadline
from registry_drain.errors import RegistryUnavailableError
from registry_drain.registries.zookeeper.session import ZooKeeperSession
from registry_drain.registries.zookeeper.settings import SessionSettings


class SharedSession:
    """The one session with which a registry reads: made when first needed, replaced when it is over. Thread-safe."""

    def __init__(self, settings: SessionSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._lock = threading.Lock()
        self._session: ZooKeeperSession | None = None
        self._is_closed = False

    def get(self) -> ZooKeeperSession:
        """Return the session, connected or connecting. Sends nothing and waits for nothing.

        Raises:
            RegistryUnavailableError: it was closed.
            ConfigurationError: the file with the credentials cannot be read (any more).
        """
        session = self._current()
        if session is not None:
            return session
        made = ZooKeeperSession(self._settings, self._clock)
        with self._lock:
            if not self._is_closed and (self._session is None or self._session.is_over):
                # The one before is over; ending it stops kazoo from going on under a session that nobody uses.
                surplus, self._session = self._session, made
            else:
                surplus = made
        if surplus is not None:
            surplus.begin_end()
        # Once more through the front door: another thread may have been first, or the registry be closed by now.
        return self._current() or made

    def _current(self) -> ZooKeeperSession | None:
        with self._lock:
            if self._is_closed:
                raise RegistryUnavailableError(f"{self._settings.url}: this registry was closed")
            return None if self._session is None or self._session.is_over else self._session

    @contextmanager
    def borrow(self) -> Iterator[ZooKeeperSession]:
        """Give the session or, when this was closed, one of the caller's own that is closed afterwards."""
        with self._lock:
            is_closed = self._is_closed
        if not is_closed:
            yield self.get()
            return
        session = ZooKeeperSession(self._settings, self._clock)
        try:
            yield session
        finally:
            session.begin_end()

    def close(self, deadline: Deadline) -> None:
        """Close the session; waits for it until the deadline. Idempotent."""
        with self._lock:
            self._is_closed = True
            session, self._session = self._session, None
        if session is not None:
            session.begin_end()
            session.wait_stopped(deadline)
