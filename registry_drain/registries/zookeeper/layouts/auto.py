"""No layout of its own: believes, for each node, the layout that recognises it.

For trees in which many systems write. It lists and removes; it registers nothing, because somebody has to choose how.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from registry_drain.errors import ConfigurationError
from registry_drain.instance import ServiceInstance
from registry_drain.registries.zookeeper.layouts.base import Layout, NodeContent, Recognition

_LARGEST = 65_536
"""Bytes of data; no system writes instances that are longer, and reading megabytes of other things as JSON is slow."""


class AutoLayout:
    """See the module.

    Args:
        layouts: what it chooses from. Of those that are equally sure, the first one.
    """

    name: ClassVar[str] = "auto"
    is_sequential: ClassVar[bool] = False

    def __init__(self, layouts: Sequence[Layout]) -> None:
        self._layouts = tuple(layouts)

    def layout_of(self, node_name: str, data: bytes) -> Layout | None:
        """Return the layout that recognises a node best, or None if none does."""
        if len(data) > _LARGEST:
            return None
        best, sureness = None, Recognition.NONE
        for layout in self._layouts:
            found = layout.recognises(node_name, data)
            if found > sureness:
                best, sureness = layout, found
        return best

    def folder(self, service: str) -> str:
        """Return the service's own name, as most do."""
        return service

    def node_name(self, instance: ServiceInstance) -> str:
        """Refuse: see the module."""
        raise _unchosen(self._layouts, instance)

    def encode(self, instance: ServiceInstance, registered_at: float) -> bytes:
        """Refuse: see the module."""
        del registered_at
        raise _unchosen(self._layouts, instance)

    def decode(self, node_name: str, data: bytes) -> NodeContent:
        """Read a node by the layout that recognises it."""
        layout = self.layout_of(node_name, data)
        if layout is None:
            return NodeContent(node_name, problem="no layout recognises it")
        return layout.decode(node_name, data)

    def recognises(self, node_name: str, data: bytes) -> Recognition:
        """As sure as the surest."""
        layout = self.layout_of(node_name, data)
        return Recognition.NONE if layout is None else layout.recognises(node_name, data)

    def __repr__(self) -> str:
        """Name what it chooses from."""
        return f"<AutoLayout of {', '.join(layout.name for layout in self._layouts)}>"


def _unchosen(layouts: Sequence[Layout], instance: ServiceInstance) -> ConfigurationError:
    names = ", ".join(sorted(layout.name for layout in layouts))
    return ConfigurationError(
        f"layout=auto registers nothing, because somebody has to choose how {instance} is written: one of {names}"
    )
