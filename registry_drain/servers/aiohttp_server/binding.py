"""The listening socket of an aiohttp application: a TCP address, or a Unix socket's path."""

from __future__ import annotations

import socket
from contextlib import suppress
from pathlib import Path

from registry_drain.servers.listener import prepare


def bind(host: str, port: int) -> socket.socket:
    """Return a bound socket, not yet listening; an empty ``host`` is every address, IPv6 included where there is any.

    Raises:
        OSError: the address cannot be bound.
    """
    is_dual = not host and socket.has_dualstack_ipv6()
    any_address = "::" if is_dual else "0.0.0.0"  # noqa: S104 - what was asked for
    found = socket.getaddrinfo(host or any_address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, address = found[0]
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if is_dual:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        prepare(sock)
        sock.bind(address)
    except OSError:
        sock.close()
        raise
    return sock


def bind_path(path: str) -> socket.socket:
    """Return a socket bound to a path; a predecessor's socket there is replaced, as asyncio does it.

    Raises:
        OSError: it cannot be bound.
    """
    with suppress(FileNotFoundError):
        if Path(path).is_socket():
            Path(path).unlink()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(path)
    except OSError:
        sock.close()
        raise
    return sock
