"""The end of every session that may hold our node, and the proof, read over another session, that it is gone."""

from __future__ import annotations

from typing import Any

from registry_drain.clock import Clock, Deadline
from registry_drain.errors import PermissionRefusedError, RegistryDrainError, RegistryUnavailableError
from registry_drain.registries.base import Removal, RemovalOutcome
from registry_drain.registries.membership import Membership
from registry_drain.registries.retry import persistently
from registry_drain.registries.zookeeper.registration.worker import Worker, log
from registry_drain.registries.zookeeper.session import read_stat, session_text
from registry_drain.registries.zookeeper.settings import SessionSettings
from registry_drain.registries.zookeeper.shared import SharedSession

_PATIENCE = 1.5
"""Seconds for the shared session's answer, which a healthy server gives in milliseconds. A session whose server hangs
learns of it late: kazoo waits for two thirds of the session's time-out."""


class OwnRemoval:
    """One removal of our own node, behind the fence. Not reusable; one thread."""

    def __init__(
        self, membership: Membership, worker: Worker, settings: SessionSettings, shared: SharedSession, clock: Clock
    ) -> None:
        self._membership = membership
        self._node = worker.node
        self._removed = worker.removed
        self._settings = settings
        self._shared = shared
        self._clock = clock
        self._attempts = 0
        self._is_ended = False

    def run(self, deadline: Deadline) -> Removal:
        """Remove our node and nobody else's; failures are an outcome."""
        removal, lasts = self._membership.removal, f"{self._settings.session_timeout:g} s"
        if not self._node.was_written:
            return removal(RemovalOutcome.NOT_REGISTERED)
        try:
            return persistently(lambda: self._once(deadline), deadline)
        except PermissionRefusedError as error:
            if self._is_ended:
                detail = f"its session is closed, but: {error}"
                return removal(RemovalOutcome.UNVERIFIABLE, detail, self._attempts)
            # The session was lost, and the credentials are no longer good enough to resume it.
            detail = f"{error}; ZooKeeper removes it {lasts} after it last heard from us"
            return removal(RemovalOutcome.REFUSED, detail, self._attempts)
        except RegistryDrainError as error:
            detail = f"{error}; ZooKeeper removes it after {lasts} without us"
            return removal(RemovalOutcome.UNCONFIRMED, detail, self._attempts)

    def _once(self, deadline: Deadline) -> Removal:
        self._attempts += 1
        for session in reversed(self._node.sessions):  # the newest holds the node
            session.end(deadline)
        self._is_ended = True
        return self._prove(deadline)

    def _prove(self, deadline: Deadline) -> Removal:
        """Say what a consistent read shows, now that no session of ours lives. Raises as long as ours is shown."""
        removal, path = self._membership.removal, self._node.path
        if path is None:
            # A sequential create whose answer never came: its session is dead, and nobody else has such a name.
            return removal(RemovalOutcome.CONFIRMED, "its session is closed", self._attempts, self._clock.now())
        stat = self._stat(path, deadline)
        now = self._clock.now()
        if stat is None:
            detail = self._removed.added_to(f"{path} is gone")
            return removal(RemovalOutcome.CONFIRMED, detail, self._attempts, now)
        owner = session_text(stat.ephemeralOwner)
        if stat.ephemeralOwner in self._node.session_ids:
            raise RegistryUnavailableError(f"{self._settings.url}: {path} still belongs to our session {owner}")
        holder = f"session {owner}" if stat.ephemeralOwner else "a persistent node"
        return removal(RemovalOutcome.SUCCESSOR, f"{path} is held by {holder} now", self._attempts, now)

    def _stat(self, path: str, deadline: Deadline) -> Any:
        """Read a stat with the shared session; if its server is silent, with another session and another server."""
        with self._shared.borrow() as session:
            try:
                return read_stat(session, path, deadline.capped(_PATIENCE))
            except RegistryUnavailableError as error:
                if deadline.is_past:
                    raise
                log.debug("%s: %s; asking another server", self._membership, error)
            other = session.elsewhere()
        try:
            return read_stat(other, path, deadline.capped(deadline.remaining() / 2))
        finally:
            other.begin_end()
