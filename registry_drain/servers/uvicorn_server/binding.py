"""The listening sockets that a ``uvicorn.Config`` asks for.

uvicorn's own ``bind_socket`` ends the process when an address is in use; an adapter raises.
"""

from __future__ import annotations

import errno
import os
import socket
from contextlib import suppress
from pathlib import Path

import uvicorn

from registry_drain.servers.listener import prepare


def bind(config: uvicorn.Config) -> list[socket.socket]:
    """Return bound sockets, not yet listening: by ``fd``, ``uds``, or each address of ``host`` and ``port``.

    Raises:
        OSError: an address cannot be bound.
    """
    if config.fd is not None:
        return [socket.socket(fileno=os.dup(config.fd))]
    if config.uds is not None:
        return [_bind_unix(config.uds)]
    return _bind_tcp(config.host, config.port)


def _bind_unix(path: str) -> socket.socket:
    with suppress(FileNotFoundError):
        if Path(path).is_socket():
            Path(path).unlink()  # a predecessor's, as asyncio's create_unix_server takes it
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(path)
        Path(path).chmod(0o666)
    except OSError:
        sock.close()
        raise
    return sock


def _bind_tcp(host: str | None, port: int) -> list[socket.socket]:
    sockets: list[socket.socket] = []
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    try:
        for family, kind, protocol, _, address in dict.fromkeys(found):
            try:
                sock = socket.socket(family, kind, protocol)
            except OSError:  # no IPv6 here
                continue
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            prepare(sock)
            # With port 0 the first one's is taken for all of them: "localhost" is one address to its callers.
            chosen = port or (sockets[0].getsockname()[1] if len(sockets) > 1 else 0)
            sock.bind((address[0], chosen, *address[2:]))
    except OSError:
        for sock in sockets:
            sock.close()
        raise
    if not sockets:
        raise OSError(errno.EADDRNOTAVAIL, f"{host}:{port} has no address that could be bound")
    return sockets
