"""The seam between the ZooKeeper backend and the many ways in which systems write instances into ZooKeeper.

Systems differ in four things, and a layout answers exactly those: in which folder a service's nodes lie, how a node is
named (and whether ZooKeeper appends a sequence number), what its bytes say, and what they mean. Some keep everything in
the bytes (Curator, ServerSet), some in the node's name (Dubbo, rpcx); hence :meth:`Layout.decode` is given both.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol, runtime_checkable

from registry_drain.errors import ConfigurationError
from registry_drain.instance import ServiceInstance

# What org.apache.zookeeper.common.PathUtils.validatePath refuses. Java counts in UTF-16, so that every character
# beyond U+FFFF is a pair of refused surrogates.
_REFUSED = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\uf8ff\ufff0-\uffff\U00010000-\U0010ffff]")


@dataclass(frozen=True, slots=True)
class NodeContent:
    """What one node says. Fields it does not have are empty; see RegistryEntry for their meaning.

    ``registered_at`` is UNIX seconds. ``problem`` says why the node could not be read in full.
    """

    id: str
    address: str = ""
    port: int = 0
    tags: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict, hash=False)
    health: str = ""
    registered_at: float | None = None
    problem: str = ""
    endpoints: tuple[tuple[str, int], ...] = ()


class Recognition(IntEnum):
    """How sure a layout is that a node was written in its way. The surest one is believed."""

    NONE = 0
    LIKELY = 1
    """The form fits, and little else is written like that."""
    SURE = 2
    """Several things fit that nothing else has together."""


class Layout(Protocol):
    """How one ecosystem writes instances. Pure, immutable and thread-safe."""

    @property
    def name(self) -> str:
        """Its name in a registry URL."""
        ...

    @property
    def is_sequential(self) -> bool:
        """Whether ZooKeeper appends a sequence number to :meth:`node_name`.

        If so a restart never meets its predecessor's node, and nothing is ever taken over.
        """
        ...

    def folder(self, service: str) -> str:
        """Return where the nodes of ``service`` lie, relative to the base: ``name``, or ``name/providers``.

        Its first segment is always the service's name: listing all services means listing the base.
        """
        ...

    def node_name(self, instance: ServiceInstance) -> str:
        """Return the name of the instance's node, or what precedes its sequence number."""
        ...

    def encode(self, instance: ServiceInstance, registered_at: float) -> bytes:
        """Return the node's data. ``registered_at`` is UNIX seconds, the same after every re-creation."""
        ...

    def decode(self, node_name: str, data: bytes) -> NodeContent:
        """Return what a node says. Never raises: foreign bytes become a ``problem``."""
        ...

    def recognises(self, node_name: str, data: bytes) -> Recognition:
        """Say how sure it is that a node is an instance in this layout, for a tree in which anything may stand.

        Stricter than :meth:`decode`, which is told that it is one: other systems' configuration, and chance, must not
        look like an instance, because an instance is something that may be removed. Never raises.
        """
        ...


@dataclass(frozen=True, slots=True)
class Switched:
    """A node's data with its instance out of rotation, or in it.

    Attributes:
        data: the new data; everything that is not the switch is as it was.
        how: the name of the switch.
        detail: who does not look at it, if that is known.
    """

    data: bytes
    how: str
    detail: str = ""


@runtime_checkable
class SwitchableLayout(Layout, Protocol):
    """A layout whose data have a switch that takes an instance out of rotation: it stays listed and is not called."""

    def switched(self, node_name: str, data: bytes, *, is_out: bool) -> Switched:
        """Return the data with the switch set; :meth:`decode` of it shows the health ``maintenance``, or none.

        Raises:
            RegistryDataError: the data are not in this layout, or of a system that has no such switch.
        """
        ...


def check_node_name(what: str, name: str) -> str:
    """Return ``name`` if ZooKeeper takes it as one segment of a path.

    Raises:
        ConfigurationError: naming the character.
    """
    if name in {"", ".", ".."} or "/" in name:
        raise ConfigurationError(f"{what} {name!r} cannot be one segment of a ZooKeeper path")
    if found := _REFUSED.search(name):
        raise ConfigurationError(f"{what} {name!r} holds {found.group()!r}, which ZooKeeper refuses in paths")
    return name


def check_path(what: str, path: str) -> str:
    """Return ``path`` without slashes around it if ZooKeeper takes it.

    Raises:
        ConfigurationError: naming the segment and the character.
    """
    stripped = path.strip("/")
    for segment in stripped.split("/") if stripped else ():
        check_node_name(f"in the {what} {path!r}, segment", segment)
    return stripped


@dataclass(frozen=True, slots=True)
class NodeTree:
    """Where one registry's nodes lie: a base path and a layout.

    Attributes:
        base: begins with ``/`` and does not end with it, except for ``/`` itself.
        layout: how services and instances are written below it.
    """

    base: str
    layout: Layout

    @classmethod
    def at(cls, path: str, layout: Layout) -> NodeTree:
        """Return the tree at ``path``; a slash at its end does not count.

        Raises:
            ConfigurationError: if ZooKeeper would refuse the path.
        """
        return cls(f"/{check_path('base path', path)}", layout)

    def folder(self, service: str) -> str:
        """Return the path of the folder that holds the nodes of ``service``."""
        check_node_name("service name", service)
        return join(self.base, self.layout.folder(service))

    def node(self, instance: ServiceInstance) -> str:
        """Return the path of the instance's node (for a sequential layout: what precedes the number)."""
        name = check_node_name("instance id", self.layout.node_name(instance))
        return join(self.folder(instance.service), name)


def join(folder: str, name: str) -> str:
    """Return the path of ``name`` in ``folder``."""
    return f"{folder.rstrip('/')}/{name}"


def parents(path: str) -> list[str]:
    """Return every ancestor of ``path`` below the root, outermost first: ``/a/b/c`` has ``/a`` and ``/a/b``."""
    segments = path.strip("/").split("/")[:-1]
    return ["/" + "/".join(segments[: count + 1]) for count in range(len(segments))]
