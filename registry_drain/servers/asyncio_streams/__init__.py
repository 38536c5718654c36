"""Servers on asyncio streams: :class:`AsyncioServer`.

``server`` is the adapter, ``connections`` the set of its connections and their drain, ``connection`` one of them, and
``streams`` the reader and the writer that a handler gets.
"""

from registry_drain.servers.asyncio_streams.server import AsyncioServer

__all__ = ["AsyncioServer"]
