"""Reading the folders of a chosen layout, and telling what a node is, whoever read it.

A listing also notes the *state* of each folder before its nodes are read: as long as that state stays the same, each of
them is still the one that was read. :class:`ListedFolders` keeps it for whoever removes many of them soon after.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kazoo.exceptions import NoNodeError

from registry_drain.clock import Deadline
from registry_drain.errors import PermissionRefusedError
from registry_drain.registries.base import RegistryEntry
from registry_drain.registries.zookeeper.layouts import NodeTree
from registry_drain.registries.zookeeper.layouts.base import Layout, join
from registry_drain.registries.zookeeper.node_stat import FolderState, folder_state, owner_of, version_of
from registry_drain.registries.zookeeper.session import Request, ZooKeeperSession, session_text

_SYSTEM_NODE = "zookeeper"
"""ZooKeeper's own subtree of the root."""
UNREADABLE = "the credentials may not read it"
NO_WAY_IN = "the credentials may not look into it"


@dataclass(slots=True)
class Listing:
    """What was found: entries, the folders in which they stand, and the version of each node's data, by path."""

    entries: list[RegistryEntry] = field(default_factory=list)
    folders: dict[str, FolderState] = field(default_factory=dict)
    data_versions: dict[str, int] = field(default_factory=dict)


def list_services(session: ZooKeeperSession, tree: NodeTree, service: str | None, deadline: Deadline) -> Listing:
    """Read the folder of ``service``, or of every service, in the layout of ``tree``.

    Raises:
        RegistryUnavailableError: retryable.
        PermissionRefusedError: the access lists do not let us list any of the folders.
        ConfigurationError: ``service`` cannot be part of a path.
    """
    session.call(lambda client: client.sync_async(tree.base), deadline=deadline)
    services = [service] if service is not None else _services(session, tree, deadline)
    folders = [tree.folder(each) for each in services]
    answers = session.call_each([listing_of(folder) for folder in folders], deadline=deadline)
    listing = Listing()
    places: list[tuple[str, str, str]] = []
    may_list_some = any(not isinstance(answer, PermissionRefusedError) for answer in answers)
    for name, folder, answer in zip(services, folders, answers, strict=True):
        if isinstance(answer, PermissionRefusedError) and may_list_some:
            listing.entries.append(RegistryEntry(name, "", problem=NO_WAY_IN, locator=folder, refused="children"))
            continue
        names, state = checked(answer)
        if state is not None:
            listing.folders[folder] = state
        places += [(name, node, join(folder, node)) for node in names]
    nodes = read_nodes(session, [path for _, _, path in places], deadline)
    for (name, node, path), found in zip(places, nodes, strict=True):
        if found is not None:
            listing.entries.append(entry_of(name, node, path, found, tree.layout))
            listing.data_versions[path] = found.stat.version
    return listing


def _services(session: ZooKeeperSession, tree: NodeTree, deadline: Deadline) -> list[str]:
    [answer] = session.call_each([listing_of(tree.base)], deadline=deadline)
    names, _ = checked(answer)
    return visible(tree.base, names)


def visible(folder: str, names: Sequence[str]) -> list[str]:
    """Return ``names`` without ZooKeeper's own subtree."""
    return [name for name in names if folder != "/" or name != _SYSTEM_NODE]


def listing_of(folder: str) -> Request:
    """Return the request for a folder's names and stat."""
    return lambda client: client.get_children_async(folder, include_data=True)


def checked(answer: Any) -> tuple[list[str], FolderState | None]:
    """Return a folder's names and state; one that does not exist has neither."""
    if isinstance(answer, NoNodeError):
        return [], None
    if isinstance(answer, Exception):
        raise answer
    names, stat = answer
    return list(names), folder_state(stat)


# --- nodes ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ReadNode:
    """A node's data, None if the credentials may not read it, and its stat."""

    data: bytes | None
    stat: Any


def read_nodes(session: ZooKeeperSession, paths: Sequence[str], deadline: Deadline) -> list[ReadNode | None]:
    """Read many nodes; None stands for one that has left since its folder was listed."""
    answers = session.call_each([_reading(path) for path in paths], deadline=deadline)
    # exists() needs no permission: who and since when can be told of the others all the same.
    refused = [path for path, answer in zip(paths, answers, strict=True) if isinstance(answer, PermissionRefusedError)]
    stats = dict(zip(refused, session.call_each([_looking(path) for path in refused], deadline=deadline), strict=True))
    nodes: list[ReadNode | None] = []
    for path, answer in zip(paths, answers, strict=True):
        if isinstance(answer, NoNodeError) or (path in stats and stats[path] is None):
            nodes.append(None)
        elif path in stats:
            nodes.append(ReadNode(None, stats[path]))
        elif isinstance(answer, Exception):
            raise answer
        else:
            data, stat = answer
            nodes.append(ReadNode(data or b"", stat))
    return nodes


def entry_of(service: str, node: str, path: str, found: ReadNode, layout: Layout) -> RegistryEntry:
    """Return what stands at ``path``, as ``layout`` reads it.

    ``is_live`` is True for every ephemeral node: its session is alive as far as the servers know, which for a killed
    owner is true until the session's time-out. It is None for persistent nodes, whose owner nobody knows.
    """
    content = layout.decode(node, found.data or b"")
    owner, stat = owner_of(found.stat), found.stat
    return RegistryEntry(
        service=service,
        id=content.id,
        address=content.address,
        port=content.port,
        tags=content.tags,
        metadata=content.metadata,
        owner=session_text(owner) if owner else "",
        is_live=True if owner else None,
        health=content.health,
        registered_at=content.registered_at or stat.ctime / 1000,
        is_ephemeral=bool(owner),
        problem=content.problem if found.data is not None else UNREADABLE,
        locator=path,
        version=version_of(stat),
        endpoints=content.endpoints,
        layout=layout.name,
        refused="" if found.data is not None else "data",
    )


def _reading(path: str) -> Request:
    return lambda client: client.get_async(path)


def _looking(path: str) -> Request:
    return lambda client: client.exists_async(path)


# --- memory -----------------------------------------------------------------------------------------------------------


class ListedFolders:
    """The folders of the latest listings: their state, and which node stood at each path in them. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._folders: dict[str, tuple[FolderState, Mapping[str, tuple[str, int]]]] = {}

    def note(self, listing: Listing, *, is_all: bool) -> None:
        """Keep ``listing``, instead of all before it if it shows everything."""
        nodes: dict[str, dict[str, tuple[str, int]]] = {folder: {} for folder in listing.folders}
        for entry in listing.entries:
            if entry.locator in listing.data_versions:
                version = entry.version, listing.data_versions[entry.locator]
                nodes.setdefault(parent_of(entry.locator), {})[entry.locator] = version
        with self._lock:
            if is_all:
                self._folders.clear()
            for folder, state in listing.folders.items():
                self._folders[folder] = state, nodes[folder]

    def unchanged(self, folder: str, state: FolderState, entries: Iterable[RegistryEntry]) -> dict[str, int] | None:
        """Return the data version of each of ``entries``, if all are what stands in ``folder`` while it has ``state``.

        None: not known, so that each has to be looked at.
        """
        with self._lock:
            known_state, nodes = self._folders.get(folder, (None, {}))
        found = {entry.locator: nodes.get(entry.locator, ("", 0)) for entry in entries}
        is_same = known_state == state and all(found[entry.locator][0] == entry.version for entry in entries)
        return {path: version for path, (_, version) in found.items()} if is_same else None

    def advance(self, folder: str, before: FolderState, after: FolderState) -> None:
        """Take note that ``before`` became ``after`` by what we deleted ourselves, and by nothing else."""
        with self._lock:
            known_state, nodes = self._folders.get(folder, (None, {}))
            if known_state == before:
                self._folders[folder] = after, nodes


def parent_of(path: str) -> str:
    """Return the folder in which ``path`` stands."""
    return path.rpartition("/")[0] or "/"
