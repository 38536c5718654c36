"""A listener that closes without resetting a connection.

Theory of operation: the kernel completes handshakes by itself and queues the connections (the backlog, ``listen(2)``).
Closing the listener resets everything in that queue, requests already sent included. So a close has three steps: *hold
off* new connections while handshakes under way complete; accept for one more round trip, and on until the queue is
empty; and only then shut the listener.

How new connections are held off, :mod:`~registry_drain.servers.listener.hold_off` says.

Rules:

1. While the listener is being stopped, the accept loop no longer touches it: the stopping thread accepts, and hands the
   connections over. So a single-threaded server that is busy with a request cannot keep the backlog waiting.
2. ``close()`` alone is never enough. As long as another thread sleeps in ``accept`` or ``poll`` on the descriptor, the
   kernel keeps the socket listening. ``shutdown()`` ends the listening at once and wakes the sleeper with EINVAL
   (Linux); that would reset a backlog, but by then it is empty. On systems whose listeners refuse ``shutdown``, it is
   ``close`` that wakes the sleeper.
3. Every connection belongs to somebody when :meth:`DrainableListener.stop` returns: handed over, or registered by the
   accept loop. A drain that begins then misses none.
"""

from __future__ import annotations

import queue
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from registry_drain.clock import Deadline
from registry_drain.servers.base import ListenerClosure
from registry_drain.servers.listener.bound_path import BoundPath
from registry_drain.servers.listener.hold_off import ROUND_TRIP, HoldOff, hold_off, prepare
from registry_drain.servers.listener.listening_socket import ListeningSocket

T = TypeVar("T")

_OVERTIME_S = 0.050
"""A stop that has no time left (a second signal) still takes what the kernel has accepted: a matter of microseconds."""


class ListenerStoppedError(BaseException):
    """Ends an accept loop. Not an Exception: the serve loops of server libraries log those, and go on."""


class DrainableListener(Generic[T]):
    """One listening socket and its accept loop.

    :meth:`accept` is for one thread, the server's own; :meth:`stop` may be called from any other, any number of times.

    Args:
        sock: the listening socket, in blocking mode. It stays the caller's to close, once ``accept`` has raised.
        accept_one: accepts one connection from ``sock`` (blocking as ``sock`` does), makes it known to whoever drains
            connections, and returns what the accept loop wants. Must be callable from two threads at once.
        hold_offs: the methods to try, best first; None: all.
        removes_path: whether stopping calls :meth:`remove_path`.
    """

    def __init__(
        self,
        sock: socket.socket,
        accept_one: Callable[[], T],
        *,
        hold_offs: Sequence[HoldOff] | None = None,
        removes_path: bool = True,
    ) -> None:
        prepare(sock)
        self._sock = sock
        self._path = BoundPath(sock)
        self._removes_path = removes_path
        self._accept_one = accept_one
        self._hold_offs = hold_offs
        self._handed_over: queue.SimpleQueue[T | None] = queue.SimpleQueue()
        self._is_stopping = False
        self._is_outside = threading.Event()
        self._is_outside.set()
        self._stop_lock = threading.Lock()
        self._closure: ListenerClosure | None = None

    def accept(self) -> T:
        """Return the next connection, waiting for one.

        Raises:
            ListenerStoppedError: the listener is shut and everything that was in its backlog has been returned.
            OSError: from accepting, while the listener is not being stopped.
        """
        # Outside is cleared before the flag is read, and stop() sets the flag before it waits for outside: so either we
        # see the flag here, or stop() sees that we are inside.
        self._is_outside.clear()
        try:
            if not self._is_stopping:
                return self._accept_one()
        except OSError:
            if not self._is_stopping:
                raise
        finally:
            self._is_outside.set()
        item = self._handed_over.get()
        if item is None:
            self._handed_over.put(None)  # for a loop that asks again
            raise ListenerStoppedError
        return item

    def stop(self, deadline: Deadline) -> ListenerClosure:
        """Stop listening without resetting what is in the backlog, which ``accept`` goes on to return.

        Idempotent: later calls return the first one's outcome, concurrent ones wait for it. When this returns the
        kernel refuses connections. Takes ``ROUND_TRIP``, longer only while connections keep coming; at the deadline
        what is still in the backlog is lost, and ``is_clean`` is False.
        """
        # Held during the whole stop, unlike other locks here: it guards nothing that a request or an accept loop needs,
        # only that two stops do not interleave.
        with self._stop_lock:
            if self._closure is None:
                self._closure = self._stop(deadline)
            return self._closure

    def remove_path(self) -> None:
        """Remove the file of a Unix socket, if it is still this socket's and nobody keeps the socket. Idempotent.

        After :meth:`stop`.
        """
        self._path.remove()

    def _stop(self, deadline: Deadline) -> ListenerClosure:
        # First, for a Unix socket's accept fails from the moment in which clients are held off.
        self._is_stopping = True
        if isinstance(self._sock, ListeningSocket) and self._sock.keeper:
            self._path.forget()
            return self._leave(self._sock, deadline)
        held = hold_off(self._sock, self._hold_offs)
        if self._removes_path:
            self.remove_path()
        # From here on nobody's accept may block: the accept loop could take what our poll has seen.
        self._sock.settimeout(0.0)
        accepted, is_clean = self._take_backlog(deadline, 0.0 if held.is_final else ROUND_TRIP)
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            # Not Linux: only close() ends the listening, and wakes whoever sleeps in accept.
            self._sock.close()
        held.close()
        # The accept loop may hold a connection that it has not made known yet.
        is_outside = self._is_outside.wait(_OVERTIME_S) or deadline.wait(self._is_outside)
        self._handed_over.put(None)
        return ListenerClosure(held.method, accepted, is_clean and is_outside)

    def _leave(self, sock: ListeningSocket, deadline: Deadline) -> ListenerClosure:
        """Stop accepting from a socket that another process has too: what is in the backlog is that one's."""
        sock.shutdown(socket.SHUT_RDWR)  # wakes our accept loop, and does nothing to the kernel's socket
        is_outside = self._is_outside.wait(_OVERTIME_S) or deadline.wait(self._is_outside)
        self._handed_over.put(None)
        return ListenerClosure(sock.keeper, 0, is_outside)

    def _take_backlog(self, deadline: Deadline, round_trip: float) -> tuple[int, bool]:
        # Real time besides the deadline's: this waits for packets on a wire, and they do not jump.
        started_at = time.monotonic()
        poller = select.poll()
        poller.register(self._sock, select.POLLIN)
        accepted = 0
        while True:
            elapsed = time.monotonic() - started_at
            if deadline.is_past and elapsed >= _OVERTIME_S:
                return accepted, False
            left = min(max(round_trip - elapsed, 0.0), deadline.remaining())
            if not poller.poll(left * 1000):
                if left == 0:
                    return accepted, True
                continue
            try:
                item = self._accept_one()
            except BlockingIOError:
                # The accept loop was faster; or it is a Unix socket, which polls as readable once it is shut.
                if left == 0:
                    return accepted, True
                continue
            except OSError:
                # The client is gone (ECONNABORTED), or we are out of descriptors (EMFILE) until a request ends.
                time.sleep(0.001)
                continue
            accepted += 1
            self._handed_over.put(item)

    def __repr__(self) -> str:
        """Show whether it listens."""
        state = "listening" if not self._is_stopping else "stopping" if self._closure is None else self._closure.method
        return f"<DrainableListener {state}>"
