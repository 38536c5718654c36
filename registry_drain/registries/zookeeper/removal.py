"""Removing somebody else's node, exactly as it was shown, and proving it gone.

ZooKeeper has no delete that compares the owner; ``delete(version)`` is the best there is, and a node that is re-created
starts again at version 0. So each delete is preceded, on the same session, by a consistent read that compares what
never repeats: the transaction that created the node, and its owner. Between the two lies one round trip (about 1 ms).
In it only a *plain* re-creation can be mistaken for what was shown; this package's own take-overs always change the
version (see :mod:`registry_drain.registries.zookeeper.node`).
"""

from __future__ import annotations

from kazoo.exceptions import BadVersionError, NoNodeError, NotEmptyError

from registry_drain.clock import Deadline
from registry_drain.errors import (
    InstanceNotFoundError,
    LiveOwnerError,
    RegistryDataError,
    RegistryUnavailableError,
)
from registry_drain.registries.base import RegistryEntry, Removal, RemovalOutcome
from registry_drain.registries.retry import retrying
from registry_drain.registries.zookeeper.node_stat import owner_of, version_of
from registry_drain.registries.zookeeper.session import ZooKeeperSession, read_stat, session_text
from registry_drain.registries.zookeeper.settings import SessionSettings
from registry_drain.registries.zookeeper.shared import SharedSession


class EntryRemoval:
    """One call of :meth:`registry_drain.registries.base.Registry.remove`."""

    def __init__(self, entry: RegistryEntry, settings: SessionSettings, shared: SharedSession) -> None:
        self._entry = entry
        self._settings = settings
        self._shared = shared
        self._path = entry.locator
        self._attempts = 0

    def run(self, deadline: Deadline, *, force: bool) -> Removal:
        """Remove and prove; see the protocol."""
        try:
            for attempt in retrying(deadline):
                with attempt, self._shared.borrow() as session:
                    self._delete(session, deadline, force=force)
                    return self._prove(session, deadline)
        except RegistryUnavailableError as error:
            if not self._attempts:
                raise
            detail = f"{error}; look again with entries(), and remove it again if it is still listed"
            return self._result(RemovalOutcome.UNCONFIRMED, detail)
        raise AssertionError("retrying() returns or raises")

    def _delete(self, session: ZooKeeperSession, deadline: Deadline, *, force: bool) -> None:
        stat = read_stat(session, self._path, deadline)
        if stat is None:
            if self._attempts:
                return  # an earlier delete was applied and its answer lost
            raise InstanceNotFoundError(f"{self._entry} is gone: there is no {self._path} on {self._settings.url}")
        if version_of(stat) != self._entry.version:
            if self._attempts:
                return  # likewise, and somebody has registered since: the proof tells
            raise LiveOwnerError(
                f"{self._path} was registered anew by session {session_text(stat.ephemeralOwner)} since it was listed"
            )
        if owner_of(stat) and not force:
            raise LiveOwnerError(
                f"{self._entry} is held by session {self._entry.owner}, which is alive: stop its process",
                yields_to_force=True,
            )
        if stat.numChildren:
            raise RegistryDataError(f"{self._path} has {stat.numChildren} children: it is a folder, not an instance")
        session.wait_connected(deadline)
        self._attempts += 1
        try:
            session.call(lambda client: client.delete_async(self._path, stat.version), deadline=deadline)
        except NoNodeError:
            return  # its owner was faster
        except (BadVersionError, NotEmptyError) as error:
            # Somebody writes to it or replaces it: compare again.
            raise RegistryUnavailableError(f"{self._settings.url}: {self._path} changed just now") from error
        except RegistryUnavailableError:
            # The delete may still lie in kazoo's queue and would run after a reconnect, perhaps on a successor's node.
            session.begin_end()
            raise

    def _prove(self, session: ZooKeeperSession, deadline: Deadline) -> Removal:
        stat = read_stat(session, self._path, deadline)
        now = deadline.clock.now()
        if stat is None:
            return self._result(RemovalOutcome.CONFIRMED, f"{self._path} is gone", now)
        if version_of(stat) == self._entry.version:
            raise RegistryUnavailableError(f"{self._settings.url}: {self._path} is still there")
        owner = session_text(stat.ephemeralOwner)
        who = "its owner put it back" if owner == self._entry.owner else f"session {owner} has registered there"
        return self._result(RemovalOutcome.SUCCESSOR, f"what was listed is gone, and {who}", now)

    def _result(self, outcome: RemovalOutcome, detail: str, confirmed_at: float | None = None) -> Removal:
        return Removal(str(self._entry), self._settings.url, outcome, detail, self._attempts, confirmed_at)
