"""The goodbye, and making sure of it; letting go of kazoo's threads and sockets. See rules 3, 5 and 6 of the folder."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from typing import Protocol

from registry_drain.clock import Clock, Deadline
from registry_drain.errors import RegistryError, RegistryTimeoutError, RegistryUnavailableError
from registry_drain.registries.zookeeper.client import SessionClient, let_go, send_goodbye
from registry_drain.registries.zookeeper.session.state import SessionPhase, SessionState
from registry_drain.registries.zookeeper.settings import SessionSettings

log = logging.getLogger(__name__)

_LONGEST_HOLD = 5.0
"""Seconds until a session that somebody forgot to let go of is let go."""
GOODBYE_PATIENCE = 1.5
"""Seconds until rule 6: an ensemble that elects a leader has hung up by then, and a busy one has answered. As long
may the first new connection take."""


class Resumed(Protocol):
    """The session by another connection: what is used of a :class:`ZooKeeperSession` here."""

    @property
    def is_dead(self) -> bool:
        """Whether the server is known to have ended the session."""
        ...

    def wait_connected(self, deadline: Deadline) -> None:
        """Wait until it is connected, or raise."""
        ...

    def begin_end(self) -> None:
        """Say goodbye, and let go."""
        ...

    def wait_dead(self, deadline: Deadline) -> bool:
        """Wait until it is over; return whether it is dead."""
        ...


class SessionEnding:
    """See the module. Thread-safe.

    Args:
        settings: of the session.
        clock: measures every wait.
        state: of the session.
        client: whose connection it is.
        resume: continues the session by a new connection, to the servers that it is given.
    """

    def __init__(
        self,
        settings: SessionSettings,
        clock: Clock,
        state: SessionState,
        client: SessionClient,
        resume: Callable[[SessionSettings], Resumed],
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._state = state
        self._client = client
        self._resume = resume
        self._is_goodbye_said = False
        self._patience = GOODBYE_PATIENCE
        self._release = threading.Event()
        self._stopped = threading.Event()

    def begin(self) -> None:
        """Say goodbye, drop whatever is queued, and let go, in a thread of its own. Returns at once; idempotent."""
        self._begin(only_if_connected=False)
        self._release.set()

    def say_goodbye(self) -> None:
        """Send the goodbye if the session is connected, and hold the rest of :meth:`begin`, which must follow."""
        self._begin(only_if_connected=True)

    def _begin(self, *, only_if_connected: bool) -> None:
        if self._state.begin_ending(only_if_connected=only_if_connected):
            self._is_goodbye_said = send_goodbye(self._client)
            threading.Thread(target=self._let_go, name="registry-drain-zookeeper-close", daemon=True).start()

    def _let_go(self) -> None:
        try:
            if self._is_goodbye_said:
                self._clock.wait(self._release, _LONGEST_HOLD)
            let_go(self._client, is_goodbye_said=self._is_goodbye_said)
        except Exception:
            # Whatever kazoo trips over, the session's time-out ends what we could not.
            log.debug("closing a connection to %s failed", self._settings.url, exc_info=True)
        finally:
            self._state.note_over()
            self._stopped.set()

    def wait_stopped(self, deadline: Deadline) -> bool:
        """Wait until every resource was let go of; return whether it was."""
        return deadline.wait(self._stopped)

    def make_sure(self, deadline: Deadline) -> None:
        """Say goodbye, and return when the server is known to have ended the session. See rule 5.

        Raises:
            RegistryUnavailableError: that is not known by the deadline, or not yet.
            PermissionRefusedError: it takes credentials to say it again, which are not good any more.
        """
        state = self._state
        self.say_goodbye()
        is_under_way = self._is_goodbye_said and state.phase in {SessionPhase.CONNECTED, SessionPhase.OVER}
        if not is_under_way:
            self.begin()
        if state.key is None:  # nothing could be said elsewhere
            deadline.wait(state.over)
        elif is_under_way:
            deadline.capped(GOODBYE_PATIENCE).wait(state.over)
        if state.is_dead:
            return
        self.begin()
        if deadline.is_past:
            raise RegistryTimeoutError(f"{self._settings.url}: closing the session was not answered in time")
        try:
            self._say_it_elsewhere(deadline)
        except RegistryError:
            if not state.is_dead:  # it was not answered meanwhile, either
                raise
        state.note_dead()

    def _say_it_elsewhere(self, deadline: Deadline) -> None:
        """Say it again by a new connection; see rule 6."""
        others = self._settings.avoiding(self._state.notes.server)
        if others is not self._settings:
            # The other half of the time is for the case that only the silent one comes back.
            with contextlib.suppress(RegistryUnavailableError):
                return self._end_resumed(others, deadline.capped(deadline.remaining() / 2))
        return self._end_resumed(self._settings, deadline)

    def _end_resumed(self, settings: SessionSettings, deadline: Deadline) -> None:
        # Each attempt may take twice as long as the one before: a server that hangs is left, a slow one is waited for.
        deadline = deadline.capped(self._patience)
        self._patience *= 2
        resumed = self._resume(settings)
        try:
            try:
                resumed.wait_connected(deadline)
            except RegistryError:
                # It may be over because it has expired, which is just as well.
                if not resumed.is_dead:
                    raise
                return
            resumed.begin_end()
            if not resumed.wait_dead(deadline):
                raise RegistryUnavailableError(f"{self._settings.url}: the connection broke while closing the session")
        finally:
            resumed.begin_end()
