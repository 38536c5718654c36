"""The decoy: holding new connections off a TCP listener without privileges.

Theory of operation: listeners on one address that set ``SO_REUSEPORT`` share its connections (``socket(7)``), and a
program attached to the group (``SO_ATTACH_REUSEPORT_CBPF``) chooses the one that gets each. The decoy is a second
listener on the address. It is *sealed*: it demands a signature (``TCP_MD5SIG_EXT``, RFC 2385) of everybody, so the
kernel drops every SYN that it is given. The program gives it every SYN, and the listener nothing new; segments of
handshakes under way find their listener without being asked about. A client's kernel tries again after a second, as
for any lost SYN, and by then the port refuses it.

Rules:

1. ``SO_REUSEPORT`` is set on the listener only now. Set before the bind, it would let a second process of the same user
   bind the port while we serve, and take half of its connections.
2. A group that others have joined (several processes on one port) is left alone: the program would hold off the clients
   of all of them. An address that was bound without ``SO_REUSEPORT`` has no others.
3. The decoy is closed after the listener. While it stands, clients are held off; once both are closed, refused.
4. While connections that were accepted before are open it can only be bound if they allow it, by ``SO_REUSEADDR``,
   which they have from their listener: :func:`allow_decoy` sets it, early.

Sources: net/core/sock_reuseport.c, net/ipv4/inet_connection_sock.c (binding), net/ipv4/tcp_ipv4.c (signatures) of
Linux 6.18; TCP_MD5SIG_EXT since 4.13, SO_ATTACH_REUSEPORT_CBPF since 4.5.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
from contextlib import suppress
from pathlib import Path

from registry_drain.servers.listener.packet_program import FLAGS, IS_PURE_SYN, Program, attach_program, is_tcp

logger = logging.getLogger(__name__)

# asm-generic/socket.h and linux/tcp.h; Python has no names for them, or not in every version.
_ATTACH_REUSEPORT_CBPF = 51
_TCP_MD5SIG_EXT = 32

_NETWORK_HEADER = 0xFFF00000  # SKF_NET_OFF, linux/filter.h: offsets from here count from the IP header.
_IPV6_HEADER = 40
_LISTENER, _DECOY = 0, 1  # places in the group, in order of joining
_STEER_PURE_SYN: Program = (
    (0x30, 0, 0, _NETWORK_HEADER),  # load the IP version
    (0x54, 0, 0, 0xF0),
    (0x15, 0, 3, 0x40),  # is it 4?
    (0xB1, 0, 0, _NETWORK_HEADER),  # then the header says its length; go on from behind it
    (0x50, 0, 0, _NETWORK_HEADER + FLAGS),  # load the flags
    (0x05, 0, 0, 1),
    (0x30, 0, 0, _NETWORK_HEADER + _IPV6_HEADER + FLAGS),  # else load the flags from behind IPv6's
    *IS_PURE_SYN,
    (0x06, 0, 0, _DECOY),
    (0x06, 0, 0, _LISTENER),  # else the last ACK of a handshake by SYN cookies, that nobody remembers
)

_ANY_IPV6 = bytes(16)
_ANY_MAPPED = bytes(10) + b"\xff\xff" + bytes(4)  # IPv4 clients, as a dual-stack listener sees them
_SOCKADDR_STORAGE = 128


def allow_decoy(sock: socket.socket) -> None:
    """Let a decoy be bound beside connections that are accepted from ``sock`` from now on. Never raises."""
    if is_tcp(sock):
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)


def open_decoy(listener: socket.socket) -> socket.socket | None:
    """Open a decoy and steer all new connections to it; None if that cannot be had. The caller closes it."""
    if not is_tcp(listener):
        return None
    try:
        had_reuseport = listener.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)
        if had_reuseport and not _is_alone(listener):
            logger.debug("no decoy: other listeners share the port of %r", listener)
            return None
        decoy = socket.socket(listener.family, socket.SOCK_STREAM)
    except OSError:
        return None
    try:
        _seal(decoy)
        _take_after(decoy, listener)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        decoy.bind(listener.getsockname())
        decoy.listen(0)
        # Until here the listener gets half of the new connections, and the others are dropped: nobody is lost.
        attach_program(listener, _ATTACH_REUSEPORT_CBPF, _STEER_PURE_SYN)
    except OSError as error:
        logger.debug("no decoy for %r: %s", listener, error)
        decoy.close()
        with suppress(OSError):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, had_reuseport)
        return None
    return decoy


def _seal(decoy: socket.socket) -> None:
    """Demand of every client a signature that none has: struct tcp_md5sig, for a prefix of no bits."""
    if decoy.family == socket.AF_INET:
        anybody = [struct.pack("=H", socket.AF_INET)]
    else:
        anybody = [struct.pack("=HHI16s", socket.AF_INET6, 0, 0, each) for each in (_ANY_IPV6, _ANY_MAPPED)]
    has_prefix, prefix_length, key = 1, 0, os.urandom(16)
    for address in anybody:
        rest = struct.pack("=BBHi80s", has_prefix, prefix_length, len(key), 0, key)
        decoy.setsockopt(socket.IPPROTO_TCP, _TCP_MD5SIG_EXT, address.ljust(_SOCKADDR_STORAGE, b"\0") + rest)


def _take_after(decoy: socket.socket, listener: socket.socket) -> None:
    """Make the decoy alike in what decides which group it joins, and whether it may be bound."""
    decoy.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    decoy.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if listener.family == socket.AF_INET6:
        is_v6_only = listener.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
        decoy.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, is_v6_only)
    device = listener.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16).rstrip(b"\0")
    if device:
        decoy.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device)


def _is_alone(listener: socket.socket) -> bool:
    """Return whether nobody else listens on the very address; False if that cannot be told."""
    # proc(5): the local address is the second column, the state the fourth (0A: listening), the inode the tenth.
    # Listeners come first.
    name = "tcp" if listener.family == socket.AF_INET else "tcp6"
    ours = str(os.fstat(listener.fileno()).st_ino).encode()
    address_of: dict[bytes, bytes] = {}
    with Path("/proc/thread-self/net", name).open("rb") as table:
        next(table)
        for line in table:
            columns = line.split()
            if columns[3] != b"0A":
                break
            address_of[columns[9]] = columns[1]
    address = address_of.pop(ours, None)
    return address is not None and address not in address_of.values()
