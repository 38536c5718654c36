"""How the parent of a server's processes commands them, and how they notice that it has gone.

Theory of operation: two pipes whose writing ends only the parent holds. A byte in one, which nobody ever reads, means
*drain*; in the other, *end now*. Pollers of any number see it at once, and see the end of file when the parent is
killed. Should some other child of the parent have inherited the writing ends (a fork without an exec), there is the
parent's process id to look at as well, once a second.

A third channel hands connections over that the parent took from the backlog while it closed the listener: sockets as
ancillary data (``unix(7)``), in packets, so that whichever child reads next takes a whole one.
"""

from __future__ import annotations

import os
import select
import socket
from contextlib import suppress

LOOK_EVERY = 1.0
"""Seconds between two looks whether the parent process is still there."""


class Controls:
    """Both ends of everything, made before the fork; each side then closes what it does not use."""

    def __init__(self) -> None:
        self.drain, self._drain_end = os.pipe()
        self.cut, self._cut_end = os.pipe()
        self.takers, self.giver = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.parent_pid = os.getpid()

    def keep_childs_ends(self) -> None:
        """In the child: close what only the parent may hold."""
        os.close(self._drain_end)
        os.close(self._cut_end)
        self.giver.close()

    def say_drain(self) -> None:
        """Tell every process below. Idempotent enough: a second byte says the same."""
        with suppress(OSError):
            os.write(self._drain_end, b"!")

    def say_cut(self) -> None:
        """Tell every process below to end."""
        with suppress(OSError):
            os.write(self._cut_end, b"!")

    def close(self) -> None:
        """In the parent: close all. Once."""
        for descriptor in (self.drain, self._drain_end, self.cut, self._cut_end):
            os.close(descriptor)
        self.takers.close()
        self.giver.close()

    def give(self, sock: socket.socket, timeout: float) -> bool:
        """Hand a connection to the children; False if nobody had room for it within ``timeout`` seconds."""
        self.giver.settimeout(timeout)
        try:
            socket.send_fds(self.giver, [b"!"], [sock.fileno()])
        except TimeoutError:
            return False
        return True

    def give_no_more(self) -> None:
        """Say that nothing follows. Idempotent."""
        with suppress(OSError):
            self.giver.shutdown(socket.SHUT_WR)

    def take(self, *, is_blocking: bool) -> socket.socket | None:
        """Take a connection that was handed over; None if nothing follows.

        Raises:
            BlockingIOError: there is none now.
        """
        flags = socket.MSG_CMSG_CLOEXEC | (0 if is_blocking else socket.MSG_DONTWAIT)
        _, descriptors, _, _ = socket.recv_fds(self.takers, 1, 1, flags)
        return socket.socket(fileno=descriptors[0]) if descriptors else None


def is_set(descriptor: int) -> bool:
    """Whether the parent has spoken on this pipe, or has gone."""
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    return bool(poller.poll(0))
