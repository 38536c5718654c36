"""Removing many nodes, exactly as they were shown, with a fraction of the round trips.

Theory of operation. Entries are taken in chunks. For each chunk, on one session and back to back: a consistent look
that tells which of them still are what was shown; one transaction that deletes those, each with the version of its
data; and a consistent read that proves them gone. Rules:

1. *One look may stand for many.* A folder's stat counts the creations and deletions in it. While it is what it was when
   the folder was listed, every node in it is the one that was listed: one request for a folder instead of one for each
   node. Our own deletions are counted along. If anybody else's is among them each node is looked at.
2. *A chunk is deleted or it is not*: that is what a transaction promises, and why an interruption leaves nothing half
   removed. If one node spoils it (changed or gone just now, or protected), all are looked at again and deleted one by
   one, pipelined, so that the others go all the same.
3. *What was not answered ends its session*, which drops kazoo's queue: a late delete could hit a successor. The next
   attempt looks again, on another session.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from kazoo.exceptions import NoNodeError

from registry_drain.clock import Deadline
from registry_drain.errors import (
    InstanceNotFoundError,
    PermissionRefusedError,
    RegistryUnavailableError,
)
from registry_drain.registries.abilities import RemovalResult
from registry_drain.registries.base import RegistryEntry
from registry_drain.registries.retry import retrying
from registry_drain.registries.zookeeper.layouts.base import join
from registry_drain.registries.zookeeper.listing import ListedFolders, checked, listing_of, parent_of
from registry_drain.registries.zookeeper.node_stat import FolderState, folder_state, version_of
from registry_drain.registries.zookeeper.removal import gone_already, held_by_its_owner, refusal, removed, unconfirmed
from registry_drain.registries.zookeeper.session import Request, ZooKeeperSession
from registry_drain.registries.zookeeper.settings import SessionSettings
from registry_drain.registries.zookeeper.shared import SharedSession

_MOST_IN_CHUNK = 250
"""Nodes. More hardly go faster, and the others' requests wait behind a transaction."""
_MOST_BYTES_IN_CHUNK = 250_000
"""Of paths: a request may have about 1 MB (jute.maxbuffer), and Dubbo's names are long."""
_WORTH_A_FOLDER = 3
"""Nodes of one folder from which on asking for the folder is less than asking for each of them."""

OnResult = Callable[[RegistryEntry, RemovalResult], None]


class BulkRemoval:
    """One call of :meth:`registry_drain.registries.abilities.BulkRegistry.remove_many`."""

    def __init__(
        self,
        settings: SessionSettings,
        shared: SharedSession,
        listed: ListedFolders,
        on_result: OnResult,
        *,
        force: bool,
    ) -> None:
        self._settings = settings
        self._shared = shared
        self._listed = listed
        self._on_result = on_result
        self._force = force

    def run(self, entries: Sequence[RegistryEntry], deadline: Deadline) -> None:
        """Remove each and prove it; see the protocol."""
        for chunk in _chunks(entries):
            _ChunkRemoval(chunk, self._settings, self._shared, self._listed, self._on_result, force=self._force).run(
                deadline
            )


def _chunks(entries: Sequence[RegistryEntry]) -> Iterator[list[RegistryEntry]]:
    """Yield the entries folder by folder, some at a time, and never a path twice at once."""
    chunk: dict[str, RegistryEntry] = {}
    twice: list[RegistryEntry] = []
    size = 0
    for entry in sorted(entries, key=lambda each: parent_of(each.locator)):
        if entry.locator in chunk:
            twice.append(entry)
            continue
        if len(chunk) == _MOST_IN_CHUNK or size + len(entry.locator) > _MOST_BYTES_IN_CHUNK:
            yield list(chunk.values())
            chunk, size = {}, 0
        chunk[entry.locator] = entry
        size += len(entry.locator.encode())
    if chunk:
        yield list(chunk.values())
    for entry in twice:
        yield [entry]


class _ChunkRemoval:
    """One chunk, until each of it has its result."""

    def __init__(
        self,
        chunk: Sequence[RegistryEntry],
        settings: SessionSettings,
        shared: SharedSession,
        listed: ListedFolders,
        on_result: OnResult,
        *,
        force: bool,
    ) -> None:
        self._left = {entry.locator: entry for entry in chunk}
        self._attempts: dict[str, int] = {}
        self._settings = settings
        self._shared = shared
        self._listed = listed
        self._on_result = on_result
        self._force = force

    def run(self, deadline: Deadline) -> None:
        """Retry inside the deadline until nothing is left."""
        try:
            for attempt in retrying(deadline):
                with attempt, self._shared.borrow() as session:
                    self._try(session, deadline)
        except RegistryUnavailableError as error:
            if not self._attempts:
                raise
            for entry in list(self._left.values()):
                attempts = self._attempts.get(entry.locator, 0)
                tried = unconfirmed(entry, error, self._settings.url, attempts)
                self._settle(entry, tried if attempts else error)

    def _try(self, session: ZooKeeperSession, deadline: Deadline) -> None:
        states, versions = self._look(session, deadline)
        if versions and not self._delete_together(session, versions, deadline):
            # Somebody changed one of them: rule 2.
            states, versions = {}, self._look_at_each(session, list(self._left.values()), deadline)
            self._delete_each(session, versions, deadline)
        self._prove(session, states, deadline)
        if self._left:
            raise RegistryUnavailableError(f"{self._settings.url}: {len(self._left)} nodes are still there")

    def _settle(self, entry: RegistryEntry, result: RemovalResult) -> None:
        # Struck off first: whatever on_result raises, it is called once for each.
        del self._left[entry.locator]
        self._on_result(entry, result)

    # --- looking ------------------------------------------------------------------------------------------------------

    def _by_folder(self) -> dict[str, list[RegistryEntry]]:
        folders: dict[str, list[RegistryEntry]] = {}
        for entry in self._left.values():
            folders.setdefault(parent_of(entry.locator), []).append(entry)
        return folders

    def _look(self, session: ZooKeeperSession, deadline: Deadline) -> tuple[dict[str, FolderState], dict[str, int]]:
        """Settle what is not to be removed; return the state of quiet folders, and the data versions of what is."""
        folders = self._by_folder()
        asked = [folder for folder, entries in folders.items() if len(entries) >= _WORTH_A_FOLDER]
        answers = self._read(session, [_stat_of(folder) for folder in asked], deadline)
        states: dict[str, FolderState] = {}
        versions: dict[str, int] = {}
        for folder, stat in zip(asked, answers, strict=True):
            entries = folders[folder]
            state = folder_state(stat) if stat is not None else None
            known = self._listed.unchanged(folder, state, entries) if state is not None else None
            if state is None or known is None:
                continue
            states[folder] = state
            for entry in folders.pop(folder):
                if entry.is_ephemeral is not False and not self._force:
                    self._settle(entry, held_by_its_owner(entry))
                else:
                    versions[entry.locator] = known[entry.locator]
        others = [entry for entries in folders.values() for entry in entries]
        return states, versions | self._look_at_each(session, others, deadline)

    def _look_at_each(
        self, session: ZooKeeperSession, entries: Sequence[RegistryEntry], deadline: Deadline
    ) -> dict[str, int]:
        """Settle what is not to be removed; return the data versions of what is."""
        stats = self._read(session, [_stat_of(entry.locator) for entry in entries], deadline)
        versions: dict[str, int] = {}
        for entry, stat in zip(entries, stats, strict=True):
            if entry.locator in self._attempts and (stat is None or version_of(stat) != entry.version):
                continue  # an earlier delete was applied and its answer lost: the proof tells
            if stat is None:
                self._settle(entry, gone_already(entry, self._settings.url))
            elif (error := refusal(entry, stat, force=self._force)) is not None:
                self._settle(entry, error)
            else:
                versions[entry.locator] = stat.version
        return versions

    def _read(self, session: ZooKeeperSession, requests: list[Request], deadline: Deadline) -> list[Any]:
        """Return the answers of a consistent read."""
        if not requests:
            return []
        first = requests[0]

        def synced(client: Any) -> Any:
            # Its answer is not waited for; see read_stat().
            client.sync_async("/")
            return first(client)

        return session.call_each([synced, *requests[1:]], deadline=deadline)

    # --- deleting -----------------------------------------------------------------------------------------------------

    def _delete_together(self, session: ZooKeeperSession, versions: dict[str, int], deadline: Deadline) -> bool:
        """Return whether the transaction was applied."""

        def delete_all(client: Any) -> Any:
            transaction = client.transaction()
            for path, version in versions.items():
                transaction.delete(path, version)
            return transaction.commit_async()

        [results] = self._write(session, [delete_all], versions, deadline)
        if isinstance(results, list) and not any(isinstance(result, Exception) for result in results):
            return True
        for path in versions:
            self._forget_attempt(path)
        return False

    def _delete_each(self, session: ZooKeeperSession, versions: dict[str, int], deadline: Deadline) -> None:
        requests = [_deletion(path, version) for path, version in versions.items()]
        answers = self._write(session, requests, versions, deadline)
        for path, answer in zip(versions, answers, strict=True):
            if isinstance(answer, PermissionRefusedError):
                self._forget_attempt(path)
                self._settle(self._left[path], answer)
            elif isinstance(answer, Exception) and not isinstance(answer, NoNodeError):
                # It changed just now, or has children: the next look tells.
                self._forget_attempt(path)

    def _forget_attempt(self, path: str) -> None:
        self._attempts[path] -= 1
        if not self._attempts[path]:
            del self._attempts[path]

    def _write(
        self, session: ZooKeeperSession, requests: list[Request], paths: dict[str, int], deadline: Deadline
    ) -> list[Any]:
        session.wait_connected(deadline)
        for path in paths:
            self._attempts[path] = self._attempts.get(path, 0) + 1
        try:
            return session.call_each(requests, deadline=deadline)
        except BaseException:  # Ctrl-C too: rule 3
            session.begin_end()
            raise

    # --- proving ------------------------------------------------------------------------------------------------------

    def _prove(self, session: ZooKeeperSession, states: dict[str, FolderState], deadline: Deadline) -> None:
        """Settle what is proven gone; what is not stays left."""
        folders = self._by_folder()
        asked = [folder for folder, entries in folders.items() if len(entries) >= _WORTH_A_FOLDER]
        answers = self._read(session, [listing_of(folder) for folder in asked], deadline)
        for folder, answer in zip(asked, answers, strict=True):
            if isinstance(answer, PermissionRefusedError):
                continue  # exists() needs no permission
            names, state = checked(answer)
            gone = {entry.locator for entry in folders[folder]} - {join(folder, name) for name in names}
            before = states.get(folder)
            if before is not None and state == FolderState(before.czxid, before.changes + len(gone)):
                self._listed.advance(folder, before, state)
            for path in gone:
                self._settle_by(self._left[path], None, deadline)
        others = [entry for entry in self._left.values() if self._attempts.get(entry.locator)]
        stats = self._read(session, [_stat_of(entry.locator) for entry in others], deadline)
        for entry, stat in zip(others, stats, strict=True):
            self._settle_by(entry, stat, deadline)

    def _settle_by(self, entry: RegistryEntry, stat: Any, deadline: Deadline) -> None:
        attempts = self._attempts.get(entry.locator, 0)
        if stat is None and not attempts:
            # It was refused permission, or spoilt a transaction, and its owner was faster.
            self._settle(entry, gone_already(entry, self._settings.url))
            return
        removal = removed(entry, stat, self._settings.url, attempts, deadline.clock.now())
        if removal is not None:
            self._settle(entry, removal)


def refuse_strangers(entries: Sequence[RegistryEntry], base: str, url: str, on_result: OnResult) -> list[RegistryEntry]:
    """Settle entries that do not stand below ``base``, and return the others."""
    ours = []
    for entry in entries:
        if entry.locator.startswith(join(base, "")):
            ours.append(entry)
        else:
            on_result(entry, InstanceNotFoundError(f"{entry} at {entry.locator!r} was not listed by {url}"))
    return ours


def _stat_of(path: str) -> Request:
    return lambda client: client.exists_async(path)


def _deletion(path: str, version: int) -> Request:
    return lambda client: client.delete_async(path, version)
