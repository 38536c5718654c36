"""A worker's listener that can be left without anybody noticing.

Theory of operation: all workers accept from one socket that they share. A worker that goes should take nothing more
from it, and lose nothing that it has taken. An event loop accepts in one turn and serves in the next; closing the
listener between the two drops the connection (cpython#109564). So the gate is closed first, and the listener later.

Once the master has shut the listener for everybody, accepting fails with EINVAL, which worker classes take for a bug of
theirs and die of. Behind the gate that is nothing to accept.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable
from typing import Any


class Gate:
    """Open, then closed. Every listener of a worker stands behind the same."""

    def __init__(self) -> None:
        """Begin open."""
        self.is_closed = False


class GatedListener(socket.socket):
    """A listening socket that has nothing to accept once its gate is closed."""

    gate: Gate

    @classmethod
    def adopt(cls, sock: socket.socket, gate: Gate) -> GatedListener:
        """Take over ``sock``, descriptor and all; it is empty afterwards."""
        timeout = sock.gettimeout()
        listener = cls(sock.family, sock.type, sock.proto, fileno=sock.detach())
        listener.settimeout(timeout)
        listener.gate = gate
        return listener

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept; see :meth:`socket.socket.accept`."""
        if self.gate.is_closed:
            raise BlockingIOError(errno.EAGAIN, "this worker accepts no more")
        try:
            return super().accept()
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            raise BlockingIOError(errno.EAGAIN, "nobody listens any more") from error


def put_behind(gate: Gate, listeners: Iterable[Any]) -> None:
    """Put gunicorn's listeners, which hold their socket in an attribute, behind ``gate``; others are left alone."""
    for listener in listeners:
        sock = getattr(listener, "sock", None)
        if type(sock) is socket.socket:
            listener.sock = GatedListener.adopt(sock, gate)
