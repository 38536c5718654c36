"""The server transports that can be drained: those with a listening socket."""

from __future__ import annotations

import socket
from typing import Any

from registry_drain.errors import ConfigurationError


def listening_transport(transport: Any) -> Any:
    """Return ``transport``, a TServerSocket.

    Raises:
        ConfigurationError: it is something else.
    """
    if not hasattr(transport, "handle"):
        raise ConfigurationError(f"{type(transport).__name__} has no listening socket: use TServerSocket")
    return transport


def listening_socket(transport: Any) -> socket.socket:
    """Return the transport's listening socket; it is bound unless it listens already.

    Raises:
        OSError: the address cannot be bound.
    """
    if transport.handle is None:
        try:
            transport.listen()
        except OSError:
            transport.close()  # It keeps a socket that could not be bound, and would pass for listening.
            raise
    sock: socket.socket = transport.handle
    return sock


def do_nothing() -> None:
    """Stand in for ``listen()``, which ``serve()`` calls again."""
