"""Where a socket listens, which sockets of this process listen, and how much waits in their backlogs."""

from __future__ import annotations

import os
import socket
import struct
from contextlib import suppress
from pathlib import Path

_TCP_INFO_UNACKED = struct.Struct("=24xI")
"""``tcpi_unacked`` of struct tcp_info (linux/tcp.h): on a listening socket, the connections in its backlog."""


def bound_address(sock: socket.socket) -> tuple[str, int]:
    """Return where a socket listens; for a Unix socket its path, and 0."""
    address = sock.getsockname()
    return (address[0], address[1]) if isinstance(address, tuple) else (str(address), 0)


def listening_sockets(where: int | str) -> list[socket.socket]:
    """Return duplicates of this process' sockets that listen on a TCP port, or on a Unix path; the caller closes them.

    For listeners that somebody else's C code has opened, and that no Python object stands for. What is done to the
    duplicate (a filter, ``listen(0)``) is done to the listener. Empty where there is no ``/proc/self/fd``.
    """
    found: dict[int, socket.socket] = {}  # by inode: a listener may have several descriptors already
    with suppress(FileNotFoundError):
        for entry in list(Path("/proc/self/fd").iterdir()):
            sock = _duplicate(int(entry.name))
            if sock is None:
                continue
            inode = os.fstat(sock.fileno()).st_ino
            if inode not in found and _listens_on(sock, where):
                found[inode] = sock
            else:
                sock.close()
    return list(found.values())


def _duplicate(descriptor: int) -> socket.socket | None:
    """Return a socket object of our own for a descriptor; None if it is no socket, or closed meanwhile."""
    try:
        copy = os.dup(descriptor)
    except OSError:
        return None
    try:
        return socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        return None


def _listens_on(sock: socket.socket, where: int | str) -> bool:
    try:
        if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return False
        path, port = bound_address(sock)
    except OSError:
        return False
    return path == where if sock.family == socket.AF_UNIX else port == where


def backlog_length(listener: socket.socket) -> int | None:
    """Return how many connections wait to be accepted; None where the kernel does not say (not TCP, not Linux)."""
    try:
        info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_UNACKED.size)
    except (OSError, AttributeError):
        return None
    return int(_TCP_INFO_UNACKED.unpack(info)[0]) if len(info) == _TCP_INFO_UNACKED.size else None
