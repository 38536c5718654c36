"""Removing somebody else's node, exactly as it was shown, and proving it gone.

ZooKeeper has no delete that compares the owner; ``delete(version)`` is the best there is, and a node that is re-created
starts again at version 0. So each delete is preceded, on the same session, by a consistent read that compares what
never repeats: the transaction that created the node, and its owner. Between the two lies one round trip (about 1 ms).
In it only a *plain* re-creation can be mistaken for what was shown; this package's own take-overs always change the
version (see :mod:`registry_drain.registries.zookeeper.node`).

The folder stays, even if it is empty: neither Curator nor ServerSets delete theirs, and somebody may be about to
register in it. Container nodes, which newer Curators make, are removed by ZooKeeper itself.
"""

from __future__ import annotations

from typing import Any

from kazoo.exceptions import BadVersionError, NoNodeError, NotEmptyError

from registry_drain.clock import Deadline
from registry_drain.errors import (
    InstanceNotFoundError,
    LiveOwnerError,
    PermissionRefusedError,
    RegistryDataError,
    RegistryDrainError,
    RegistryUnavailableError,
)
from registry_drain.registries.base import RegistryEntry, Removal, RemovalOutcome
from registry_drain.registries.retry import retrying
from registry_drain.registries.zookeeper.node_stat import owner_of, version_of
from registry_drain.registries.zookeeper.session import ZooKeeperSession, read_stat, session_text
from registry_drain.registries.zookeeper.session_client import client_of
from registry_drain.registries.zookeeper.settings import SessionSettings
from registry_drain.registries.zookeeper.shared import SharedSession


def gone_already(entry: RegistryEntry, url: str) -> InstanceNotFoundError:
    """Return what is said of an entry that is gone before anything was sent."""
    return InstanceNotFoundError(f"{entry} is gone: there is no {entry.locator} on {url}")


def held_by_its_owner(entry: RegistryEntry, client: str = "") -> LiveOwnerError:
    """Return what is said of an entry whose session lives, unless it is to be removed by force."""
    whence = f" of the client {client}" if client else ""
    return LiveOwnerError(
        f"{entry} is held by session {entry.owner}{whence}, which is alive: stop its process", yields_to_force=True
    )


def refusal(entry: RegistryEntry, stat: Any, *, force: bool) -> RegistryDrainError | None:
    """Return why the node with ``stat`` is not to be removed in place of ``entry``, or None if it is."""
    if version_of(stat) != entry.version:
        owner = owner_of(stat)
        who = f"by session {session_text(owner)}" if owner else "as a persistent node"
        return LiveOwnerError(f"{entry.locator} was registered anew {who} since it was listed")
    if owner_of(stat) and not force:
        return held_by_its_owner(entry)
    if stat.numChildren:
        return RegistryDataError(f"{entry.locator} has {stat.numChildren} children: it is a folder, not an instance")
    return None


def removed(entry: RegistryEntry, stat: Any, url: str, attempts: int, now: float) -> Removal | None:
    """Return what a consistent read after the delete proves: ``stat`` is what it showed; None if it proves nothing."""
    if stat is None:
        detail = f"{entry.locator} is gone"
        if entry.is_ephemeral is False:
            detail += f"; it was persistent: {_comes_back(entry)}"
        return Removal(str(entry), url, RemovalOutcome.CONFIRMED, detail, attempts, now)
    if version_of(stat) == entry.version:
        return None
    owner = session_text(owner_of(stat))
    who = "its owner put it back" if owner == entry.owner else f"session {owner} has registered there"
    return Removal(
        str(entry), url, RemovalOutcome.SUCCESSOR, f"what was listed is gone, and {who}", attempts, confirmed_at=now
    )


def unconfirmed(entry: RegistryEntry, error: RegistryDrainError, url: str, attempts: int) -> Removal:
    """Return what is said when the delete was sent, and ``error`` came instead of the proof."""
    detail = f"{error}; look again with entries(), and remove it again if it is still listed"
    return Removal(str(entry), url, RemovalOutcome.UNCONFIRMED, detail, attempts)


def _comes_back(entry: RegistryEntry) -> str:
    """Say what would put a persistent node back."""
    if entry.layout in {"dubbo", "sofa"}:
        return "its provider, or whoever wrote it by hand (dynamic=false), puts it back when it starts again"
    if entry.layout == "rpcx":
        return "an rpcx server that still runs puts it back at its next update"
    if entry.layout == "curator":
        return "its process (serviceType STATIC or PERMANENT) puts it back when it starts or reconnects"
    return "whoever wrote it puts it back when it registers again"


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
            return unconfirmed(self._entry, error, self._settings.url, self._attempts)
        raise AssertionError("retrying() returns or raises")

    def _delete(self, session: ZooKeeperSession, deadline: Deadline, *, force: bool) -> None:
        stat = read_stat(session, self._path, deadline)
        if stat is None:
            if self._attempts:
                return  # an earlier delete was applied and its answer lost
            raise gone_already(self._entry, self._settings.url)
        if self._attempts and version_of(stat) != self._entry.version:
            return  # likewise, and somebody has registered since: the proof tells
        if (error := refusal(self._entry, stat, force=force)) is not None:
            if isinstance(error, LiveOwnerError) and error.yields_to_force:
                error = held_by_its_owner(self._entry, client_of(self._entry.owner, self._settings, deadline))
            raise error
        session.wait_connected(deadline)
        self._attempts += 1
        try:
            session.call(lambda client: client.delete_async(self._path, stat.version), deadline=deadline)
        except NoNodeError:
            return  # its owner was faster
        except (BadVersionError, NotEmptyError) as error:
            # Somebody writes to it or replaces it: compare again.
            raise RegistryUnavailableError(f"{self._settings.url}: {self._path} changed just now") from error
        except PermissionRefusedError:
            raise
        except BaseException:  # Ctrl-C too
            # The delete may still lie in kazoo's queue and would run after a reconnect, perhaps on a successor's node.
            session.begin_end()
            raise

    def _prove(self, session: ZooKeeperSession, deadline: Deadline) -> Removal:
        stat = read_stat(session, self._path, deadline)
        removal = removed(self._entry, stat, self._settings.url, self._attempts, deadline.clock.now())
        if removal is None:
            raise RegistryUnavailableError(f"{self._settings.url}: {self._path} is still there")
        return removal
