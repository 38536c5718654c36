"""Classic BPF: programs that the kernel runs on each packet for a socket (``socket(7)``, SO_ATTACH_FILTER)."""

from __future__ import annotations

import ctypes
import socket
import struct
import sys
from collections.abc import Sequence

Program = Sequence[tuple[int, int, int, int]]
"""Code, how many steps to jump if true and if false, and operand of each step (linux/filter.h)."""

FLAGS = 13
"""Where the flags are in a TCP header (RFC 9293, 3.1)."""

IS_PURE_SYN: Program = (
    (0x54, 0, 0, 0x12),  # of the flags, loaded before, keep SYN and ACK
    (0x15, 0, 1, 0x02),  # go on with the next step if it is SYN alone, else with the one after
)


def attach_program(sock: socket.socket, option: int, program: Program) -> None:
    """Attach a program by a socket option that takes a ``struct sock_fprog``.

    Raises:
        OSError: the kernel does not want it.
    """
    steps = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in program))
    # struct sock_fprog: an unsigned short and, aligned, a pointer.
    sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("HP", len(program), ctypes.addressof(steps)))


def is_tcp(sock: socket.socket) -> bool:
    """Return whether it is a TCP socket of Linux; not for Multipath TCP, whose listeners are other things below."""
    if not sys.platform.startswith("linux") or sock.family not in {socket.AF_INET, socket.AF_INET6}:
        return False
    try:
        return sock.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL) == socket.IPPROTO_TCP
    except OSError:
        return False
