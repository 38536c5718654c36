"""A TLS handshake that is the first thing a serving thread does, as the drain has to see it.

Theory of operation: until its first byte a connection is idle, though not one to be closed at once: its client, that
has just connected, may be busy computing. From the first byte on it is busy, as with half a message: who has begun to
shake hands has something to ask.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from registry_drain.servers.connections.connection import Connection


def shake_hands_first(connection: Connection, shake_hands: Callable[[], object]) -> None:
    """Wait for the client's first byte, then shake hands. In the serving thread, before its first read.

    Raises:
        EOFError: the client, or the drain, has closed the connection before.
        OSError: the client has reset it, or takes longer than the socket's time limit; from ``shake_hands``, too.
    """
    was_sure, connection.is_sure = connection.is_sure, False
    # The base class' recv: this is about the wire, and takes nothing.
    if not socket.socket.recv(connection.sock, 1, socket.MSG_PEEK):
        raise EOFError("closed before a handshake")
    connection.name, connection.is_waiting = "(TLS handshake)", False
    shake_hands()
    connection.name, connection.is_waiting, connection.is_sure = "", True, was_sure
