"""Where a socket listens, which sockets of this process listen, and how much waits in their backlogs."""

from __future__ import annotations

import os
import select
import socket
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

_TCP_INFO_UNACKED = struct.Struct("=24xI")
"""``tcpi_unacked`` of struct tcp_info (linux/tcp.h): on a listening socket, the connections in its backlog."""

# linux/netlink.h, linux/sock_diag.h and linux/unix_diag.h
_NETLINK_HEADER = struct.Struct("=IHHII")
_NETLINK_SOCK_DIAG = 4
_NETLINK_REQUEST = 1
_SOCK_DIAG_BY_FAMILY = 20
_UNIX_DIAG_REQUEST = struct.Struct("=BB2xIIIQ")
_UNIX_DIAG_SHOW_QUEUE = 0x10
_UNIX_DIAG_ANSWER_SIZE = 16
_UNIX_DIAG_QUEUE = struct.Struct("=HHI4x")
_UNIX_DIAG_QUEUE_ATTRIBUTE = 4
_ANY_COOKIE = 0xFFFFFFFFFFFFFFFF


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
    for sock in own_sockets():
        inode = os.fstat(sock.fileno()).st_ino
        if inode not in found and _listens_on(sock, where):
            found[inode] = sock
        else:
            sock.close()
    return list(found.values())


def own_sockets() -> Iterator[socket.socket]:
    """Yield duplicates of this process' sockets; the caller closes each. None where there is no ``/proc/self/fd``.

    Files are left alone: closing a duplicate of a file's descriptor releases the locks that this process holds on it
    (``fcntl(2)``), a database's for one.
    """
    try:
        descriptors = [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]
    except FileNotFoundError:
        return
    for descriptor in descriptors:
        sock = _duplicate(descriptor)
        if sock is not None:
            yield sock


def _duplicate(descriptor: int) -> socket.socket | None:
    """Return a socket object of our own for a descriptor; None if it is no socket, or closed meanwhile."""
    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            return None
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
    """Return how many connections wait to be accepted; None where the kernel does not say (not Linux, mostly)."""
    try:
        if listener.family == socket.AF_UNIX:
            return _unix_backlog_length(listener)
        info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_UNACKED.size)
    except (OSError, AttributeError):
        return None
    return int(_TCP_INFO_UNACKED.unpack(info)[0]) if len(info) == _TCP_INFO_UNACKED.size else None


def has_backlog(*listeners: socket.socket) -> bool:
    """Return whether a connection waits to be accepted from one of the listeners; does not block.

    For accept loops that are not ours, while clients are held off. Polling alone does not tell it of Unix sockets: shut
    for reading, they poll as readable for ever.
    """
    poller = select.poll()
    by_descriptor = {listener.fileno(): listener for listener in listeners}
    by_descriptor.pop(-1, None)  # closed
    for descriptor in by_descriptor:
        poller.register(descriptor, select.POLLIN)
    for descriptor, _ in poller.poll(0):
        if by_descriptor[descriptor].family != socket.AF_UNIX or backlog_length(by_descriptor[descriptor]) != 0:
            return True
    return False


def _unix_backlog_length(listener: socket.socket) -> int | None:
    """Ask the kernel's socket diagnosis (``sock_diag(7)``), as ``ss`` does."""
    inode = os.fstat(listener.fileno()).st_ino
    request = _UNIX_DIAG_REQUEST.pack(socket.AF_UNIX, 0, 0xFFFFFFFF, inode, _UNIX_DIAG_SHOW_QUEUE, _ANY_COOKIE)
    header = _NETLINK_HEADER.pack(_NETLINK_HEADER.size + len(request), _SOCK_DIAG_BY_FAMILY, _NETLINK_REQUEST, 0, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _NETLINK_SOCK_DIAG) as netlink:
        netlink.send(header + request)
        answer = netlink.recv(4096, socket.MSG_DONTWAIT)  # The kernel answers before ``send`` returns.
    _, kind, *_ = _NETLINK_HEADER.unpack_from(answer)
    place = _NETLINK_HEADER.size + _UNIX_DIAG_ANSWER_SIZE
    if kind != _SOCK_DIAG_BY_FAMILY or len(answer) < place + _UNIX_DIAG_QUEUE.size:
        return None
    _, attribute, waiting = _UNIX_DIAG_QUEUE.unpack_from(answer, place)
    return int(waiting) if attribute == _UNIX_DIAG_QUEUE_ATTRIBUTE else None
