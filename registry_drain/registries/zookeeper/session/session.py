"""What callers see of one session; see the folder for the theory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from registry_drain.clock import Clock, Deadline
from registry_drain.errors import PermissionRefusedError
from registry_drain.registries.zookeeper.client import SessionKey, new_client
from registry_drain.registries.zookeeper.refusal import Need
from registry_drain.registries.zookeeper.session.calls import Request, SessionCalls
from registry_drain.registries.zookeeper.session.ending import SessionEnding
from registry_drain.registries.zookeeper.session.state import SessionState, session_text
from registry_drain.registries.zookeeper.session_errors import SessionErrors
from registry_drain.registries.zookeeper.settings import Cancellation, SessionSettings

log = logging.getLogger(__name__)


class ZooKeeperSession:
    """One session; begins to connect when it is made. Thread-safe.

    Args:
        settings: where, and how long.
        clock: measures every wait.
        on_change: called from kazoo's threads when the phase changes; must only set an event.
        resume: continue this session instead of beginning one.
    """

    def __init__(
        self,
        settings: SessionSettings,
        clock: Clock,
        *,
        on_change: Callable[[], None] | None = None,
        resume: SessionKey | None = None,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._state = SessionState(resume, on_change or (lambda: None))
        self._client = new_client(settings, resume, self._state.notes)
        self._errors = SessionErrors(settings, settings.read_credential(), self._client)
        self._calls = SessionCalls(settings, self._state, self._client, self._errors)
        self._ending = SessionEnding(settings, clock, self._state, self._client, self._resumed)
        self._client.add_listener(self._listen)
        self._client.start_async()

    def __repr__(self) -> str:
        """Show the phase and the id, never the password."""
        key = self._state.key
        return f"<ZooKeeperSession {session_text(key.id) if key else 'new'} {self._state.phase.value}>"

    @property
    def id(self) -> int | None:
        """The session's id, signed as ``ephemeralOwner`` is; None before it was connected."""
        key = self._state.key
        return key.id if key else None

    @property
    def is_over(self) -> bool:
        """Whether this object is of no more use, or somebody ends it, or it was inherited by a fork."""
        return self._state.is_over

    @property
    def is_dead(self) -> bool:
        """Whether the server is known to have ended the session, and with it every ephemeral node of it."""
        return self._state.is_dead

    def _listen(self, state: object) -> None:
        self._state.listen(state, self._client)

    # --- calls --------------------------------------------------------------------------------------------------------

    def call(self, *requests: Request, deadline: Deadline, cancellation: Cancellation | None = None) -> list[Any]:
        """Send ``requests`` back to back, which costs one round trip, and return their answers in order.

        ZooKeeper keeps the order of one session's requests, so that e.g. a ``sync`` counts for the read behind it.

        Raises:
            One of ``ANSWERS``: the first request that was answered so.
            RegistryUnavailableError: not connected by the deadline, or the connection was lost: the requests may or may
                not have taken effect. Retryable.
            RegistryTimeoutError: no answer in time; the requests may take effect later. See rule 3.
            PermissionRefusedError: the credentials do not suffice.
        """
        answers = self.call_each(requests, deadline=deadline, cancellation=cancellation)
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers

    def call_each(
        self, requests: Sequence[Request], *, deadline: Deadline, cancellation: Cancellation | None = None
    ) -> list[Any]:
        """Send many requests, some at a time, and return an answer for each: its value, or the exception.

        The exceptions are those of ``ANSWERS`` and PermissionRefusedError; the others of :meth:`call` are raised.
        """
        return self._calls.call_each(requests, deadline, cancellation or Cancellation())

    def refused(
        self, need: Need | None, deadline: Deadline, cancellation: Cancellation | None = None
    ) -> PermissionRefusedError:
        """Return an error that says who lacks ``need``, and who has it, as far as the access list may be read."""
        return self._calls.refused(need, deadline, cancellation or Cancellation())

    def wait_connected(self, deadline: Deadline, cancellation: Cancellation | None = None) -> None:
        """Wait until the session is connected.

        Raises:
            RegistryUnavailableError: it was not by the deadline, or it is over.
            PermissionRefusedError: the server refused the credentials.
        """
        self._calls.wait_connected(deadline, cancellation or Cancellation())

    # --- the end ------------------------------------------------------------------------------------------------------

    def begin_end(self) -> None:
        """Say goodbye, drop whatever is queued, and let go of kazoo's threads and sockets. Returns at once; idempotent.

        Letting go may block for long, and so has a thread of its own.
        """
        self._ending.begin()

    def say_goodbye(self) -> None:
        """Send the goodbye if the session is connected, and hold the rest of :meth:`begin_end`, which must follow.

        For whoever counts milliseconds: ending kazoo's three threads, and starting the one that does, takes longer than
        ZooKeeper takes to end the session. It is started while the goodbye travels, and waits.
        """
        self._ending.say_goodbye()

    def wait_stopped(self, deadline: Deadline) -> bool:
        """Wait until the thread of :meth:`begin_end` has let go of every resource; return whether it has."""
        return self._ending.wait_stopped(deadline)

    def wait_dead(self, deadline: Deadline) -> bool:
        """Wait, behind :meth:`begin_end`, until this object is over; return whether the session is dead.

        Raises:
            PermissionRefusedError: the server refused the credentials, and heard no goodbye.
        """
        deadline.wait(self._state.over)
        if self._state.is_refused:
            raise self._errors.credentials_refused()
        return self.is_dead

    def end(self, deadline: Deadline) -> None:
        """End the session and return when the server is known to have ended it, and removed its nodes. Idempotent.

        :meth:`begin_end` must follow, whatever comes of it.

        Raises:
            RegistryUnavailableError: that is not known by the deadline, or not yet. Retryable: a further call resumes
                the session and tries again.
        """
        self._ending.make_sure(deadline)

    def _resumed(self, settings: SessionSettings) -> ZooKeeperSession:
        return ZooKeeperSession(settings, self._clock, resume=self._state.key)

    def elsewhere(self) -> ZooKeeperSession:
        """Return another session, with another server if there is one."""
        return ZooKeeperSession(self._settings.avoiding(self._state.notes.server), self._clock)


def read_stat(session: ZooKeeperSession, path: str, deadline: Deadline) -> Any:
    """Return a node's stat by a consistent read, or None: one round trip, and every earlier write counts."""

    def synced(client: Any) -> Any:
        # Its answer is not waited for, because kazoo brings it through one more thread. The server answers in order:
        # when the read is answered, the sync was, and what loses one loses both.
        client.sync_async(path)
        return client.exists_async(path)

    [stat] = session.call(synced, deadline=deadline)
    return stat
