"""Drains ``socketserver`` servers. ``server`` is the adapter, ``tracked_socket`` what it hands to request handlers."""

from registry_drain.servers.socket_server.server import SocketServer
from registry_drain.servers.socket_server.tracked_socket import TrackedSocket

__all__ = ["SocketServer", "TrackedSocket"]
