"""How instances are written into ZooKeeper: one file per ecosystem, chosen by the URL's option ``layout``.

A layout is pure: names and bytes in, names and bytes out. It knows no ZooKeeper client, so it can be tested without a
server. To add one, implement :class:`~registry_drain.registries.zookeeper.layouts.base.Layout` and list it in
:data:`LAYOUTS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from registry_drain.registries.zookeeper.layouts.auto import AutoLayout
from registry_drain.registries.zookeeper.layouts.base import Layout, NodeContent, NodeTree
from registry_drain.registries.zookeeper.layouts.curator import CuratorLayout
from registry_drain.registries.zookeeper.layouts.endpoint_named import (
    ArmeriaLayout,
    KingPinLayout,
    PlainLayout,
    RpcxLayout,
)
from registry_drain.registries.zookeeper.layouts.kratos import KratosLayout
from registry_drain.registries.zookeeper.layouts.nerve import NerveLayout
from registry_drain.registries.zookeeper.layouts.serverset import ServerSetLayout
from registry_drain.registries.zookeeper.layouts.url_named import DUBBO, SOFA

_ALL: tuple[Layout, ...] = (
    CuratorLayout(),
    ServerSetLayout(),
    DUBBO,
    SOFA,
    NerveLayout(),
    KratosLayout(),
    RpcxLayout(),
    ArmeriaLayout(),
    KingPinLayout(),
    PlainLayout(),
)

LAYOUTS: Mapping[str, Layout] = MappingProxyType({layout.name: layout for layout in _ALL})
"""Every layout by its name in a URL."""

AUTO = AutoLayout(_ALL)
"""Recognises each node by itself; lists and removes, and registers nothing."""

DEFAULT_LAYOUT = CuratorLayout.name
"""Curator's, because Spring Cloud, Dubbo's application mode and Armeria all read it."""

__all__ = ["AUTO", "DEFAULT_LAYOUT", "LAYOUTS", "AutoLayout", "CuratorLayout", "Layout", "NodeContent", "NodeTree"]
