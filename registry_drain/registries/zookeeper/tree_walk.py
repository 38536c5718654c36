"""``layout=auto``: walking a tree in which anything may stand, and finding the instances in it.

Theory of operation. Level by level: all folders of a level are listed, and all nodes in them read, pipelined. A node
is an entry if a layout recognises its name and bytes; one that has children is looked into, and is an entry only if a
layout is sure of it (with a problem: it cannot be removed). Rules:

1. *What looks like an instance is never hidden*: a leaf that no layout recognises is an entry, with a problem, if it
   stands beside instances and is somebody's (ephemeral) or has data; a node, or a folder, that the credentials may not
   read is one wherever it stands, since nobody can say that it is none. Everything else (configuration, locks,
   elections) is none of our business, and is left out.
2. *Bounded.* More than ``MOST_NODES`` nodes, or no end by the deadline, is an error that says how to ask for less: half
   a tree would be taken for all of it. What lies deeper than ``MOST_LEVELS`` is an entry with a problem.
3. Nodes and folders that vanish while they are being read were never there.
4. The service of an entry is its folder's path below the base, without Dubbo's and SOFA's ``/providers``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from registry_drain.clock import Deadline
from registry_drain.errors import (
    PermissionRefusedError,
    RegistryDataError,
    RegistryTimeoutError,
    RegistryUnavailableError,
)
from registry_drain.registries.base import RegistryEntry
from registry_drain.registries.zookeeper.layouts import AutoLayout
from registry_drain.registries.zookeeper.layouts.base import Recognition, join
from registry_drain.registries.zookeeper.listing import (
    NO_WAY_IN,
    Listing,
    ReadNode,
    checked,
    entry_of,
    listing_of,
    parent_of,
    read_nodes,
    visible,
)
from registry_drain.registries.zookeeper.session import ZooKeeperSession

MOST_NODES = 200_000
"""About a minute of reading. Trees of services are smaller by far; other things in the same ensemble may not be."""
MOST_LEVELS = 20
"""Below the base; the deepest known, Aurora's ServerSets, have six."""
_AT_ONCE = 2_000
"""Nodes whose data are held in memory together."""
_PROVIDERS = "providers"
_BESIDE_PROVIDERS = frozenset({_PROVIDERS, "consumers", "configurators", "routers", "configs", "overrides"})
"""What Dubbo and SOFA-RPC keep in an interface's folder. Only the first holds instances, and the others may be many."""


class TreeWalk:
    """One walk. Made by :func:`walk`."""

    def __init__(self, session: ZooKeeperSession, base: str, layout: AutoLayout, url: str, deadline: Deadline) -> None:
        self._session = session
        self._base = base
        self._layout = layout
        self._url = url
        self._deadline = deadline
        self._seen = 0
        self._listing = Listing()

    def run(self, start: str) -> Listing:
        """Walk what lies below ``start``, which is the base or lies below it.

        Raises:
            PermissionRefusedError: ``start`` may not be listed.
            RegistryDataError: too many nodes.
            RegistryTimeoutError: too little time.
            RegistryUnavailableError: retryable.
        """
        try:
            self._session.call(lambda client: client.sync_async(start), deadline=self._deadline)
            level = [start]
            for _ in range(MOST_LEVELS):
                level = self._walk_level(level)
                if not level:
                    return self._listing
        except RegistryUnavailableError as error:
            if not self._deadline.is_past or not self._seen:
                raise
            raise RegistryTimeoutError(
                f"{self._url}: {self._seen} nodes below {start} were read in the time allowed, and there are more:"
                " allow more time, or name a path further down"
            ) from error
        self._note_problem(
            level[0],
            f"not looked into, like {len(level) - 1} others so deep: more than {MOST_LEVELS} levels below {start}",
        )
        return self._listing

    def _walk_level(self, folders: Sequence[str]) -> list[str]:
        """Read what is in ``folders``; return those of it that may hold more."""
        answers = self._session.call_each([listing_of(folder) for folder in folders], deadline=self._deadline)
        deeper: list[str] = []
        paths: list[str] = []
        for folder, answer in zip(folders, answers, strict=True):
            if isinstance(answer, PermissionRefusedError):
                if folder == folders[0] and not self._seen:
                    raise answer
                self._note_problem(folder, NO_WAY_IN, refused="children")
                continue
            names, state = checked(answer)
            if state is not None:
                self._listing.folders[folder] = state
            if _PROVIDERS in names and _BESIDE_PROVIDERS.issuperset(names):
                names = [_PROVIDERS]
            paths += [join(folder, name) for name in visible(folder, names)]
        self._seen += len(paths)
        if self._seen > MOST_NODES:
            raise RegistryDataError(
                f"{self._url}: more than {MOST_NODES} nodes below {self._base}: name a path further down"
            )
        strangers: list[RegistryEntry] = []
        for start in range(0, len(paths), _AT_ONCE):
            chosen = paths[start : start + _AT_ONCE]
            for path, node in zip(chosen, read_nodes(self._session, chosen, self._deadline), strict=True):
                if node is not None:
                    self._judge(path, node, deeper, strangers)
        with_instances = {parent_of(entry.locator) for entry in self._listing.entries if not entry.problem}
        self._listing.entries += [each for each in strangers if parent_of(each.locator) in with_instances]
        return deeper

    def _judge(self, path: str, node: ReadNode, deeper: list[str], strangers: list[RegistryEntry]) -> None:
        """Tell what a node is; see the module."""
        name, data = path.rpartition("/")[2], node.data or b""
        self._listing.data_versions[path] = node.stat.version
        layout = self._layout.layout_of(name, data)
        entry = entry_of(self.service_of(parent_of(path)), name, path, node, layout or self._layout)
        if node.stat.numChildren:
            deeper.append(path)
            if layout is not None and layout.recognises(name, data) is Recognition.SURE:
                problem = f"it has {node.stat.numChildren} children, as no instance has"
                self._listing.entries.append(replace(entry, problem=problem))
        elif layout is not None:
            self._listing.entries.append(entry)
        elif node.data is None:
            self._listing.entries.append(replace(entry, layout=""))
        elif data or entry.is_ephemeral:
            strangers.append(replace(entry, layout=""))

    def service_of(self, folder: str) -> str:
        """Return what the instances in ``folder`` are instances of; see rule 4."""
        below = folder.removeprefix(self._base.rstrip("/")).strip("/")
        below = below.removesuffix(_PROVIDERS).rstrip("/") if f"/{below}".endswith(f"/{_PROVIDERS}") else below
        if below:
            return below
        # The base itself is the folder of a service.
        return folder.removesuffix(f"/{_PROVIDERS}").rpartition("/")[2] or "/"

    def _note_problem(self, path: str, problem: str, *, refused: Literal["", "children"] = "") -> None:
        [node] = read_nodes(self._session, [path], self._deadline)
        if node is not None:
            entry = entry_of(self.service_of(parent_of(path)), path.rpartition("/")[2], path, node, self._layout)
            unknown = replace(entry, problem=problem, layout="", address="", port=0, health="", refused=refused)
            self._listing.entries.append(unknown)


def walk(
    session: ZooKeeperSession, base: str, layout: AutoLayout, url: str, service: str | None, deadline: Deadline
) -> Listing:
    """List the instances of ``service``, or of all, below ``base``.

    ``service`` is a folder's path below the base; see rule 4. Only that folder is walked.

    Raises:
        Those of :meth:`TreeWalk.run`.
    """
    if service is None:
        return TreeWalk(session, base, layout, url, deadline).run(base)
    whole = TreeWalk(session, base, layout, url, deadline)
    is_base = service == whole.service_of(base)
    listing = whole.run(base if is_base else join(base, service))
    entries = [entry for entry in listing.entries if entry.service == service]
    return Listing(entries, listing.folders, listing.data_versions)
