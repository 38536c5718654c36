"""How new connections are held off a listening socket, while those that the kernel has accepted are still served.

By the first method that works:

=================  ==============  =============================================================================
method             needs           while held off, a client's connect
=================  ==============  =============================================================================
``SYN filter``     CAP_NET_ADMIN   is dropped by a socket filter (``SO_ATTACH_FILTER``, ``socket(7)``); its kernel
                                   retries after 1 s (RFC 6298) and is refused cleanly
``listen(0)``      nothing         is still accepted now and then, one at a time, until the last moment: under a
                                   connect storm about one reset in three stops remains
=================  ==============  =============================================================================
"""

from __future__ import annotations

import ctypes
import socket
import struct
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass


def _nothing() -> None:
    """Release nothing."""


@dataclass(frozen=True)
class HeldOff:
    """New connections are held off a listener.

    Attributes:
        method: how; shown in the report (``ListenerClosure.method``).
        release: gives back what the method needs besides the listener.
    """

    method: str
    release: Callable[[], None] = _nothing

    def close(self) -> None:
        """Release what holding off needed. Idempotent, never raises; from any thread.

        Not before the listener has stopped listening (is shut down or closed), or clients get in again.
        """
        self.release()


HoldOff = Callable[[socket.socket], "HeldOff | None"]
"""Hold off new connections of a listening socket; None if it cannot be done here.

Handshakes under way must complete. It must not raise, and must leave the listener as it was when it returns None.
"""

ROUND_TRIP = 0.010
"""Seconds to go on accepting: the last ACK of a handshake may be one round trip away. 10 ms is ten times that of a data
centre; with it, 100 of 100 measured stops under a connect storm lost nothing.
"""

_ATTACH_FILTER = 26  # SO_ATTACH_FILTER, asm-generic/socket.h; Python has no name for it.
# Classic BPF, run at the first byte of the TCP header: drop segments with SYN set and ACK clear (RFC 9293, 3.1).
_DROP_PURE_SYN = (
    (0x30, 0, 0, 13),  # load the flags
    (0x54, 0, 0, 0x12),  # and SYN|ACK
    (0x15, 0, 1, 0x02),  # is it SYN alone?
    (0x06, 0, 0, 0),  # then keep 0 bytes: drop
    (0x06, 0, 0, 0xFFFFFFFF),  # else keep all
)


def hold_off_by_filter(listener: socket.socket) -> HeldOff | None:
    """Drop new SYNs in the kernel, for IPv4, IPv6 and dual-stack listeners alike."""
    if not sys.platform.startswith("linux"):
        return None
    program = b"".join(struct.pack("HBBI", *step) for step in _DROP_PURE_SYN)
    buffer = ctypes.create_string_buffer(program)
    # struct sock_fprog: an unsigned short and, aligned, a pointer.
    fprog = struct.pack("HP", len(_DROP_PURE_SYN), ctypes.addressof(buffer))
    try:
        if listener.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL) != socket.IPPROTO_TCP:
            return None
        listener.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, fprog)
    except OSError:  # EPERM without CAP_NET_ADMIN
        return None
    return HeldOff("SYN filter")


def hold_off_by_backlog(listener: socket.socket) -> HeldOff | None:
    """Shrink the queue to one place, as listen(2) may be called again."""
    try:
        listener.listen(0)
    except OSError:
        return None
    return HeldOff("listen(0)")


DEFAULT_HOLD_OFFS: tuple[HoldOff, ...] = (hold_off_by_filter, hold_off_by_backlog)
"""Best first."""


def hold_off(listener: socket.socket, methods: Sequence[HoldOff] | None = None) -> HeldOff:
    """Hold off new connections by the first of ``methods`` that works; its method is ``"close"`` if none does.

    What is in the backlog, and handshakes under way, are not touched: go on accepting for :data:`ROUND_TRIP`, and on
    until nothing comes; close the listener; and then :meth:`HeldOff.close` what this returned. Does not block.
    """
    chosen = DEFAULT_HOLD_OFFS if methods is None else methods
    return next((held for method in chosen if (held := method(listener)) is not None), HeldOff("close"))


def prepare(sock: socket.socket) -> None:
    """Make ready a TCP socket that will listen, before it is bound; whoever binds a listener himself calls it.

    Not needed for holding off, but some methods do better with it. Never raises.
    """
