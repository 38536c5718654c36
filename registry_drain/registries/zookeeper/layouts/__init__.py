"""How instances are written into ZooKeeper: one file per ecosystem, chosen by the URL's option ``layout``.

A layout is pure: names and bytes in, names and bytes out. It knows no ZooKeeper client, so it can be tested without a
server. To add one, implement :class:`~registry_drain.registries.zookeeper.layouts.base.Layout` and list it in
:data:`LAYOUTS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from registry_drain.registries.zookeeper.layouts.base import Layout, NodeContent, NodeTree
from registry_drain.registries.zookeeper.layouts.curator import CuratorLayout

LAYOUTS: Mapping[str, Layout] = MappingProxyType({layout.name: layout for layout in (CuratorLayout(),)})
"""Every layout by its name in a URL."""

DEFAULT_LAYOUT = CuratorLayout.name
"""Curator's, because Spring Cloud, Dubbo's application mode and Armeria all read it."""

__all__ = ["DEFAULT_LAYOUT", "LAYOUTS", "CuratorLayout", "Layout", "NodeContent", "NodeTree"]
