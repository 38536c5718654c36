"""What callers are told where the server listens on every address, as it does in a container."""

from __future__ import annotations

import socket

WILDCARDS = {"0.0.0.0", "::"}  # noqa: S104 - compared with, not bound


def own_address(host: str) -> str:
    """Return the address of this host's name, which is the container's own in a container; empty for no wildcard."""
    return socket.gethostbyname(socket.gethostname()) if host in WILDCARDS else ""
