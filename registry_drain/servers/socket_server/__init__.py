"""Drains ``socketserver`` servers.

``server`` is the adapter, ``tracked_socket`` what it hands to request handlers, ``tracked_tls`` the same over TLS.
"""

from registry_drain.servers.socket_server.server import SocketServer
from registry_drain.servers.socket_server.tracked_socket import TrackedSocket
from registry_drain.servers.socket_server.tracked_tls import HANDSHAKE_TIMEOUT, TrackedTlsSocket

__all__ = ["HANDSHAKE_TIMEOUT", "SocketServer", "TrackedSocket", "TrackedTlsSocket"]
