"""What a node's stat says: who owns it, which node it is, and whether a folder's content has changed."""

from __future__ import annotations

from typing import Any, NamedTuple

from registry_drain.registries.zookeeper.session import session_text

_CONTAINER = -(1 << 63)
"""The ``ephemeralOwner`` of a container node, which belongs to nobody (ZooKeeper, EphemeralType.java).

TTL nodes have a mark too, but share it with the sessions of a server whose id is 255: they count as ephemeral, so that
removing one needs ``force``.
"""


def owner_of(stat: Any) -> int:
    """Return the id of the session that holds a node; 0 if it is persistent."""
    return 0 if stat.ephemeralOwner == _CONTAINER else int(stat.ephemeralOwner)


def version_of(stat: Any) -> str:
    """Return what differs after every re-creation of a node. Its version number does not."""
    return f"{stat.czxid:x}-{session_text(stat.ephemeralOwner)}"


class FolderState(NamedTuple):
    """What is equal if, and only if, nothing was created or deleted in a folder in between.

    Attributes:
        czxid: tells the folder from another one at its path.
        changes: how many creations and deletions there were in it: ``cversion``, as a stat shows it.
    """

    czxid: int
    changes: int


def folder_state(stat: Any) -> FolderState:
    """Return the state of a folder."""
    return FolderState(stat.czxid, stat.cversion)
