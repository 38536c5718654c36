"""How new connections are held off a listening socket, while those that the kernel has accepted are still served.

By the first method that works:

=====================  ==============  ==============================================================================
method                 needs           while held off, a client's connect
=====================  ==============  ==============================================================================
``shutdown(SHUT_RD)``  AF_UNIX         is refused
``SYN filter``         CAP_NET_ADMIN   is dropped by a socket filter (``SO_ATTACH_FILTER``, ``socket(7)``); its kernel
                       (new kernels)   tries again after 1 s (RFC 6298) and is refused cleanly
``decoy``              nothing         the same, by :mod:`~registry_drain.servers.listener.decoy`
``listen(0)``          nothing         is still accepted now and then, one at a time, until the last moment: under a
                                       connect storm about one reset in three stops remains
=====================  ==============  ==============================================================================
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from registry_drain.servers.listener.decoy import allow_decoy, open_decoy
from registry_drain.servers.listener.listening_socket import keeper_of
from registry_drain.servers.listener.packet_program import FLAGS, IS_PURE_SYN, Program, attach_program, is_tcp


def _nothing() -> None:
    """Release nothing."""


@dataclass(frozen=True)
class HeldOff:
    """New connections are held off a listener.

    Attributes:
        method: how; shown in the report (``ListenerClosure.method``).
        release: gives back what the method needs besides the listener.
        is_final: nothing is under way any more: what is in the backlog now is all that will ever come.
    """

    method: str
    release: Callable[[], None] = _nothing
    is_final: bool = False

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
_DROP_PURE_SYN: Program = (
    # It is run at the first byte of the TCP header.
    (0x30, 0, 0, FLAGS),  # load the flags
    *IS_PURE_SYN,
    (0x06, 0, 0, 0),  # then keep 0 bytes: drop
    (0x06, 0, 0, 0xFFFFFFFF),  # else keep all
)


def hold_off_by_shutdown(listener: socket.socket) -> HeldOff | None:
    """Shut a Unix socket for reading: nobody gets in any more, and what is in the backlog can still be accepted.

    On Linux, by net/unix/af_unix.c: connecting and shutting down exclude each other. Those who wait in ``connect`` for
    a place in a full backlog are refused when the socket is closed, at the latest.
    """
    if listener.family != socket.AF_UNIX:
        return None
    try:
        # The kernel's: to those who accept, a ListeningSocket that they may go on with must not look shut.
        socket.socket.shutdown(listener, socket.SHUT_RD)
    except OSError:  # ENOTCONN where listeners cannot be shut down
        return None
    return HeldOff("shutdown(SHUT_RD)", is_final=True)


def hold_off_by_filter(listener: socket.socket) -> HeldOff | None:
    """Drop new SYNs in the kernel, for IPv4, IPv6 and dual-stack listeners alike."""
    if not is_tcp(listener):
        return None
    try:
        attach_program(listener, _ATTACH_FILTER, _DROP_PURE_SYN)
    except OSError:  # EPERM without CAP_NET_ADMIN
        return None
    return HeldOff("SYN filter")


def hold_off_by_decoy(listener: socket.socket) -> HeldOff | None:
    """Steer new SYNs to a second listener that drops them."""
    decoy = open_decoy(listener)
    return None if decoy is None else HeldOff("decoy", decoy.close)


def hold_off_by_backlog(listener: socket.socket) -> HeldOff | None:
    """Shrink the queue to one place, as listen(2) may be called again."""
    try:
        listener.listen(0)
    except OSError:
        return None
    return HeldOff("listen(0)")


DEFAULT_HOLD_OFFS: tuple[HoldOff, ...] = (
    hold_off_by_shutdown,
    hold_off_by_filter,
    hold_off_by_decoy,
    hold_off_by_backlog,
)
"""Best first."""


def hold_off(listener: socket.socket, methods: Sequence[HoldOff] | None = None) -> HeldOff:
    """Hold off new connections by the first of ``methods`` that works; its method is ``"close"`` if none does.

    What is in the backlog, and handshakes under way, are not touched: go on accepting for :data:`ROUND_TRIP`, and on
    until nothing comes; close the listener; and then :meth:`HeldOff.close` what this returned. Does not block.

    It is done to the socket, whoever shares it: other descriptors, other processes. Only one that somebody keeps
    (:class:`~registry_drain.servers.listener.listening_socket.ListeningSocket`) is left alone; the keeper is named.
    """
    keeper = keeper_of(listener)
    if keeper:
        # Another process listens on it too: it accepts what is in the backlog, and nothing may be done to the socket.
        return HeldOff(keeper, is_final=True)
    chosen = DEFAULT_HOLD_OFFS if methods is None else methods
    return next((held for method in chosen if (held := method(listener)) is not None), HeldOff("close"))


def prepare(sock: socket.socket) -> None:
    """Make ready a listening socket: allow it a decoy later. Idempotent, never raises.

    Call it before the first connection is accepted, best before ``bind``; :class:`DrainableListener` does it by itself.
    Without it, and where ``SO_REUSEADDR`` was not set otherwise, a decoy cannot be had while connections are open. All
    it does is to set that option, which on Linux lets nobody share the port.
    """
    allow_decoy(sock)
