"""A listening socket that may belong to several processes at once: ours, and the one before, after or above us.

Theory of operation: processes that have inherited one listening socket have descriptors of the *same* socket. Its
backlog, its filters, even its blocking mode exist once. So whoever leaves while another one stays must do nothing to
it: no ``shutdown()``, no ``listen(0)``, no filter, just stop accepting and close the descriptor; what waits in the
backlog is the other's. :class:`ListeningSocket` knows its *keeper*, if there is one, and refuses to do those things
then, so that a server or an adapter may treat it as it treats any listening socket.

Rules:

1. The kernel's socket never blocks (``O_NONBLOCK`` is shared: one process would change it for all). The blocking mode
   that Python code asks for is made here, by ``poll``.
2. Two processes are woken by one connection, and one of them gets it. In blocking mode ``accept`` waits on for the
   next one. A single-threaded event loop must therefore set its listener non-blocking, and expect BlockingIOError, as
   asyncio does.
3. Closing a descriptor wakes nobody who waits in ``accept``, and ``shutdown`` is not for a kept socket: a pipe does.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
import time
from contextlib import suppress
from typing import Any

from registry_drain.servers.listener.address import bound_address

_keepers: dict[int, str] = {}
"""By the socket's inode, so that duplicates of a kept socket are kept too."""
_left: set[int] = set()
"""Inodes of kept sockets that this process accepts nothing from any more."""
_lock = threading.Lock()


class ListeningSocket(socket.socket):
    """A listening stream socket that can be handed to another process while it is used. Thread-safe as sockets are.

    Attributes:
        name: what the next process finds it by.
    """

    def __init__(
        self,
        family: int = -1,
        type: int = -1,  # noqa: A002 - socket's own name
        proto: int = -1,
        fileno: int | None = None,
        *,
        name: str = "",
    ) -> None:
        """As :class:`socket.socket`."""
        super().__init__(family, type, proto, fileno)
        self.name = name
        self._keeper = ""
        self._wanted_timeout: float | None = None
        self._is_shut = False
        self._process_id = os.getpid()
        self._woken, self._waker = socket.socketpair()
        self._inode = os.fstat(self.fileno()).st_ino
        super().settimeout(0.0)

    @property
    def keeper(self) -> str:
        """Who keeps the socket when this process leaves it, as the report says it; empty if nobody does."""
        return self._keeper or keeper_of(self)

    def keep_for(self, keeper: str) -> None:
        """Note that the socket outlives its use here; empty: that it is this process' own."""
        self._keeper = keeper  # known when it is closed, too
        with _lock:
            if keeper:
                _keepers[self._inode] = keeper
            else:
                _keepers.pop(self._inode, None)
                _left.discard(self._inode)

    def accept(self) -> tuple[socket.socket, Any]:
        """Return the next connection, waiting as long as ``settimeout`` has said.

        Raises:
            BlockingIOError: non-blocking, and there is none.
            TimeoutError: none came in time.
            OSError: (EINVAL) the socket was shut, here or in the kernel.
        """
        timeout = self._wanted_timeout
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            if timeout == 0.0 and self._inode in _left:
                raise BlockingIOError(errno.EAGAIN, "left to another process")
            if self._is_shut:
                raise OSError(errno.EINVAL, "the listening socket is shut")
            try:
                return super().accept()
            except BlockingIOError:
                if timeout == 0.0:
                    raise
            self._wait(until)

    def _wait(self, until: float | None) -> None:
        if self._process_id != os.getpid():
            # Forked: the pair is the parent's too, which would wake us for ever.
            self._process_id = os.getpid()
            self._close_pair()
            self._woken, self._waker = socket.socketpair()
        poller = select.poll()
        try:
            poller.register(self, select.POLLIN)
            poller.register(self._woken, select.POLLIN)
        except ValueError as error:
            raise OSError(errno.EBADF, "the listening socket is closed") from error
        if not poller.poll(None if until is None else max(until - time.monotonic(), 0.0) * 1000):
            raise TimeoutError("timed out")

    def _wake(self) -> None:
        self._is_shut = True
        with suppress(OSError):  # closed by another thread just now
            self._waker.send(b"\0")

    def _close_pair(self) -> None:
        self._woken.close()
        self._waker.close()

    def shutdown(self, how: int) -> None:
        """End every ``accept`` here; and the listening itself, unless somebody keeps the socket."""
        if not self.keeper:
            super().shutdown(how)
        self._wake()

    def listen(self, backlog: int = socket.SOMAXCONN, /) -> None:
        """Set the length of the backlog, unless somebody keeps the socket."""
        if not self.keeper:
            super().listen(backlog)

    def settimeout(self, value: float | None, /) -> None:
        """As :meth:`socket.socket.settimeout`, for this process alone."""
        self._wanted_timeout = value

    def setblocking(self, flag: bool, /) -> None:  # noqa: FBT001 - socket's own signature
        """As :meth:`socket.socket.setblocking`, for this process alone."""
        self._wanted_timeout = None if flag else 0.0

    def gettimeout(self) -> float | None:
        """Return what :meth:`settimeout` was given."""
        return self._wanted_timeout

    def getblocking(self) -> bool:
        """Return whether ``accept`` waits."""
        return self._wanted_timeout != 0.0

    def close(self) -> None:
        """Close the descriptor; an ``accept`` that waits ends."""
        self._wake()
        super().close()
        self._close_pair()

    def detach(self) -> int:
        """Give the descriptor away, in non-blocking mode; an ``accept`` that waits ends."""
        self._wake()
        self._close_pair()
        return super().detach()

    def __repr__(self) -> str:
        """Show the name, the address and the keeper."""
        if self.fileno() < 0:
            return f"<ListeningSocket {self.name!r} closed>"
        return f"<ListeningSocket {self.name!r} at {bound_address(self)} keeper={self.keeper!r}>"


def keeper_of(listener: socket.socket) -> str:
    """Return who keeps a listening socket (or the one it is a duplicate of) when this process leaves it; or nothing.

    An adapter that does more to a listener than close it asks first, and then leaves it alone.
    """
    if not _keepers:
        return ""
    try:
        return _keepers.get(os.fstat(listener.fileno()).st_ino, "")
    except OSError:  # closed
        return ""


def leave(listener: socket.socket) -> bool:
    """Accept nothing more from a kept socket, or the one that this is a duplicate of; return whether it is one.

    For event loops, whose listener is closed some turns after the last connection was accepted: until then a
    non-blocking ``accept`` finds nothing.
    """
    if not keeper_of(listener):
        return False
    _left.add(os.fstat(listener.fileno()).st_ino)
    return True
