"""What the kernel says of an accepted connection, and what it is told to do with an answer.

Sources: ``tcp(7)``, ``unix(7)``; struct tcp_info in linux/tcp.h.
"""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct
import termios
from typing import NamedTuple

from registry_drain.instance import format_endpoint

_TCP_INFO = getattr(socket, "TCP_INFO", None)
_TCP_INFO_FIELDS = struct.Struct("=44xI4xI72xQ8xI")
"""``last_data_sent`` and ``last_data_recv`` (milliseconds), ``bytes_received``, ``notsent_bytes``, as they are there
since Linux 4.6.
"""
_TCP_CORK = getattr(socket, "TCP_CORK", None)
_INT = struct.Struct("i")


class TcpInfo(NamedTuple):
    """What the kernel says of a connection.

    Attributes:
        last_sent_ms: how long ago data was sent, in milliseconds.
        last_received_ms: how long ago data arrived.
        arrived: how many bytes ever have.
        unsent: how many bytes it holds that have not been sent at all.
    """

    last_sent_ms: int
    last_received_ms: int
    arrived: int
    unsent: int


def has_tcp_info(sock: socket.socket) -> bool:
    """Whether the kernel tells when data arrived."""
    return _TCP_INFO is not None and sock.family != socket.AF_UNIX


def tcp_info(sock: socket.socket) -> TcpInfo | None:
    """Return what the kernel says; None where it says nothing, and of a socket that is closed."""
    if not has_tcp_info(sock):
        return None
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO or 0, _TCP_INFO_FIELDS.size)
    except OSError:
        return None
    return TcpInfo(*_TCP_INFO_FIELDS.unpack(info)) if len(info) == _TCP_INFO_FIELDS.size else None


def cork(sock: socket.socket, *, is_corked: bool) -> None:
    """Hold back, or let go, the last segment of what is written, where that can be done."""
    if _TCP_CORK is not None and sock.family != socket.AF_UNIX:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, _TCP_CORK, is_corked)


def pending_bytes(sock: socket.socket) -> int:
    """Return how many bytes wait in the kernel; none on a socket that is closed.

    By FIONREAD: a peek would wait on a socket with a timeout, which Python polls even under MSG_DONTWAIT.
    """
    return _ask(sock, termios.FIONREAD)


def unacknowledged_bytes(sock: socket.socket) -> int:
    """Return how many written bytes the client's kernel does not have yet; none on a socket that is closed."""
    return _ask(sock, termios.TIOCOUTQ)


def _ask(sock: socket.socket, request: int) -> int:
    try:
        (count,) = _INT.unpack(fcntl.ioctl(sock.fileno(), request, _INT.pack(0)))
    except (OSError, ValueError):
        return 0
    return int(count)


def peer_name(sock: socket.socket) -> str:
    """Return the client as ``host:port``; empty if it is gone already, and on most Unix sockets."""
    try:
        address = sock.getpeername()
    except OSError:
        return ""
    return format_endpoint(address[0], address[1]) if isinstance(address, tuple) else str(address)
