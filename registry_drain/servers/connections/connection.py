"""One connection of a server that blocks a thread for each, and how it is closed politely.

Theory of operation: a serving thread notes how many bytes it has been given (``received``) and how many of them belong
to messages that have been answered (``boundary``). While the two are equal and it sleeps in a read (``is_waiting``),
the connection is *idle*; otherwise it is busy. That is all a request costs: some attributes of the connection, written
by its own thread; no lock, no system call, no wake-up pipe. Whoever asks adds the connections up.

An idle connection is closed by the drain when it is *quiet*. The kernel says so itself (``TCP_INFO``, ``tcp(7)``):
nothing has come or gone for ``idle_quiet`` seconds, and of all bytes that ever arrived the serving thread has noted
every one. (It may be on its way back from ``recv``, waiting for the interpreter lock, with a request in its hands; only
the count of bytes shows that.) Then comes our FIN; within microseconds, so the window in which a request can still
cross it is the network's and not ours. A client that sends all the same reads an end of file and not a reset, for what
it sends is read and thrown away for ``linger`` seconds; ``shutdown(SHUT_RD)`` then wakes the serving thread, which
leaves as after any client's departure. A busy connection is half-closed by its own thread, right behind the answer.

Rules:

1. Who decides? The serving thread adds to ``received`` and *then* looks at ``is_half_closed``; the drain sets
   ``is_half_closed``, *then* looks at ``received``, and takes the flag back if the thread was faster. The drain does
   both under the connection's lock, so a thread that sees the flag asks :meth:`Connection.may_serve`, which waits for
   the verdict. A thread that sees no flag takes no lock.
2. Only the serving thread closes a descriptor; others only shut it down, and hold the connection's lock while they do,
   so that the number cannot have become another socket's. The lock is never held across anything that blocks.
3. Bytes are read and thrown away only after our FIN: before it every byte belongs to a request that will be answered.
4. While draining, answers are corked (``TCP_CORK``): the answer's last segment leaves together with our FIN, so that a
   client cannot see the one without the other, and send its next request in between. An answer that was faster than
   the cork is not followed by a FIN, for its client may be sending already: the connection is closed when quiet, or
   behind its next answer. Only where one message has one answer, and it is written at once.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from registry_drain.servers.connections.tcp import TcpInfo, cork, has_tcp_info, peer_name, pending_bytes, tcp_info
from registry_drain.servers.in_flight import InFlightRequest
from registry_drain.servers.stop_state import StopState

if TYPE_CHECKING:
    from registry_drain.servers.connections.drain import Connections

UNSURE_QUIET = 0.200
"""The same, where not every byte could be accounted for. Linux repeats a lost segment after 200 ms at the least
(TCP_RTO_MIN), so that the rest of a message is not merely late.
"""

NEW_QUIET = 0.500
"""The same, for a connection that has never carried a request, counted from when the drain has first seen it idle: its
client has connected for something, and may wait for a processor as long as we did.
"""


class Connection:
    """One accepted connection, as seen by its serving thread and by the drain.

    Unless said otherwise, methods are the serving thread's, and attributes are written by it and read by anybody.

    Attributes:
        sock: its socket.
        peer: the client, as ``host:port``.
        thread: the serving thread, once there is one.
        received: how many bytes the serving thread has been given; it adds to it after each read.
        boundary: how many of them belong to messages that were answered.
        leftover: how many were read ahead of the message being served; they begin the next one.
        is_corked: the serving thread corked the answer before it was written.
        is_waiting: it sleeps in a read, or is about to; whether at a boundary, the two above tell.
        name: the request in flight, once it is known.
        namer: names it where nobody has stored a name; asked from any thread.
        started_at: when its first bytes were there.
        arrived_at: when the last request arrived that was no health check.
        served: how many requests have arrived, health checks not counted.
        is_half_closed: our FIN is out, unless the drain takes it back: ask :meth:`may_serve`.
        has_answered: something was written since the request began. Only where the adapter needs to guess.
        is_in_mark: the handler says that it is serving a request, whatever it reads or writes.
        is_marked: the handler marks its requests, so nothing is guessed any more.
        is_guessed: whether boundaries are guessed from reads and writes: the adapter does not know the protocol.
        is_timed: whether the serving thread notes ``started_at`` and ``arrived_at``; else the kernel is asked.
        is_sure: whether ``boundary`` leaves out bytes that were read ahead; otherwise ``leftover`` may not be known.
        when_draining: is called when draining begins, by the thread that drains.
    """

    __slots__ = (
        "_is_closed",
        "_is_over",
        "_lock",
        "_quiet_since",
        "_served_when_asked",
        "arrived_at",
        "boundary",
        "connections",
        "has_answered",
        "is_corked",
        "is_guessed",
        "is_half_closed",
        "is_in_mark",
        "is_marked",
        "is_sure",
        "is_timed",
        "is_waiting",
        "leftover",
        "name",
        "namer",
        "peer",
        "received",
        "served",
        "sock",
        "started_at",
        "thread",
        "when_draining",
    )

    def __init__(self, connections: Connections, sock: socket.socket, *, is_guessed: bool = False) -> None:
        """Describe ``sock``; :meth:`Connections.add` takes it in."""
        self.sock = sock
        self.peer = peer_name(sock)
        self.thread: threading.Thread | None = None
        self.received = 0
        self.boundary = 0
        self.leftover = 0
        self.is_corked = False
        self.is_waiting = False
        self.name = ""
        self.namer: Callable[[], str] = str
        self.started_at = 0.0
        self.arrived_at: float | None = None
        self.served = 0
        self.is_half_closed = False
        self.has_answered = False
        self.is_in_mark = False
        self.is_marked = False
        self.is_guessed = is_guessed
        self.is_timed = True
        self.is_sure = True
        self.when_draining: Callable[[], None] | None = None
        self.connections = connections
        self._lock = threading.Lock()
        self._is_closed = False
        self._is_over = False
        self._quiet_since: tuple[int, float] | None = None
        self._served_when_asked = 0

    @property
    def has_kernel_times(self) -> bool:
        """Whether the kernel tells when data arrived."""
        return has_tcp_info(self.sock)

    @property
    def is_busy(self) -> bool:
        """Whether a request is in flight, be it that only its first byte has come, or none. From any thread."""
        return self.received != self.boundary or not self.is_waiting

    def begin_request(self, name: str = "") -> None:
        """Note that a message has begun to arrive."""
        self.started_at = self.arrived_at = self.connections.now()
        self.served += 1
        self.name = name

    @property
    def stop_state(self) -> StopState:
        """The server's. From any thread."""
        return self.connections.stop_state

    def identify(self, name: str, *, is_health_check: bool = False) -> None:
        """Name the request in flight, if there is one.

        A health check's arrival is taken back. Its instant stays: doubt lengthens the propagation wait.
        """
        if self.is_busy:
            self.name = name
            self.served -= is_health_check

    def end_request(self) -> None:
        """Note that the answer is written: the thread is at a message boundary.

        While draining the connection is half-closed now, unless more was sent already.
        """
        self.boundary = self.received - self.leftover
        self.name = ""
        self.has_answered = False
        if self.connections.is_draining:
            self.close_behind_answer()
        if self.leftover and self.is_guessed:
            self.begin_request()

    def begin_mark(self) -> None:
        """Note that the handler says that it serves a request."""
        self.is_marked = self.is_in_mark = True
        if self.received == self.boundary and self.is_guessed:
            self.begin_request()  # Nobody has asked for it: the handler has something to say by itself.

    def end_mark(self) -> None:
        """Note that the handler says that it has served a request."""
        self.is_in_mark = False
        if self.is_guessed:
            self.end_request()

    def close_behind_answer(self) -> None:
        """Half-close, unless the next message was sent already, or may be on its way, or nothing was served yet."""
        info = tcp_info(self.sock)
        if self.received != self.boundary or self._has_pending(info):
            self.cork(is_corked=False)
        elif self.served and (not self.connections.corks_answers or self.is_corked or info is None or info.unsent):
            self.half_close()

    def may_serve(self) -> bool:
        """Whether what was read may be served and answered: False if our FIN is out."""
        with self._lock:
            return not self.is_half_closed

    def discard_input(self) -> None:
        """After our FIN: read and throw away until the client's FIN or the end of lingering."""
        with contextlib.suppress(OSError):
            # The base class' recv: on a TLS socket too this is about the wire, not about the contents.
            while not self._is_over and socket.socket.recv(self.sock, 65536):
                pass

    def close(self) -> None:
        """Note that the descriptor is about to be closed; follow with :meth:`closed`. Idempotent."""
        self.ask_arrival()
        with self._lock:
            self._is_closed = True

    def ask_arrival(self) -> None:
        """Bring ``arrived_at`` up to date, if the kernel knows it and a request has arrived. From any thread."""
        if not self.is_timed and self.served != self._served_when_asked:
            self._served_when_asked = self.served
            self.arrived_at = self._data_arrived_at() or self.arrived_at

    def describe(self) -> InFlightRequest:
        """Return the request in flight. From any thread."""
        started_at = self.started_at
        name = self.name or self.namer()
        if not self.is_timed or (not name and not self.is_guessed):
            # A message of which only the beginning is here began no later than its last bytes came.
            started_at = self._data_arrived_at() or self.connections.now()
        thread_id = (self.thread.ident or 0) if self.thread is not None else 0
        return InFlightRequest(name or "(unnamed)", self.peer, started_at, thread_id)

    def _data_arrived_at(self) -> float | None:
        info = tcp_info(self.sock)
        return None if info is None else self.connections.now() - info.last_received_ms / 1000

    def closed(self) -> None:
        """Note that the descriptor is closed. Idempotent."""
        self.connections.remove(self)

    def half_close(self) -> None:
        """Send our FIN, behind what was written."""
        with self._lock:
            self.is_half_closed = True
            self._shut(socket.SHUT_WR)
        self.connections.linger(self)

    def close_if_quiet(self, seconds: float) -> bool:
        """Half-close if idle and quiet; return whether that was done now. From the drain."""
        if self.received != self.boundary or not self.is_waiting:
            return False
        with self._lock:
            # Looked at in here only: another thread's FIN is not ours to take back.
            if self.is_half_closed:
                return False
            # See rule 1. From the kernel's answer to our FIN nothing releases the interpreter lock.
            self.is_half_closed = True
            if self._is_closed or self.is_busy or not self._is_quiet(seconds):
                self.is_half_closed = False
                return False
            self._shut(socket.SHUT_WR)
        self.connections.linger(self)
        return True

    def end_lingering(self) -> None:
        """Wake the serving thread from a read, for ever. From any thread."""
        self._is_over = True
        with self._lock:
            self._shut(socket.SHUT_RD)

    def cut(self) -> None:
        """Shut both directions, in the middle of whatever goes on. From any thread."""
        self._is_over = True
        with self._lock:
            self.is_half_closed = True
            self._shut(socket.SHUT_RDWR)

    def cork(self, *, is_corked: bool) -> None:
        """Hold back, or let go, the answer's last segment. From any thread."""
        if self.connections.corks_answers:
            with self._lock:
                if not self._is_closed:
                    cork(self.sock, is_corked=is_corked)

    def _has_pending(self, info: TcpInfo | None) -> bool:
        """Whether bytes have arrived that the serving thread, which asks, has not been given yet."""
        if info is not None and info.arrived == self.received:
            # Unlike FIONREAD, this did not release the interpreter lock: with many threads it may take milliseconds to
            # get it back, and the answer would be out of date by the time our FIN follows.
            return False
        return pending_bytes(self.sock) > 0

    def _is_quiet(self, seconds: float) -> bool:
        """Whether nothing arrived for so long, and nothing that arrived before is on its way to the serving thread."""
        if not self.is_sure:
            seconds = max(seconds, UNSURE_QUIET)
        if not self.served:
            seconds = max(seconds, NEW_QUIET)
        info = tcp_info(self.sock)
        if info is None:
            return self._has_been_quiet(seconds)
        quiet_ms = min(info.last_received_ms, info.last_sent_ms)
        if info.arrived == self.received and self.served:
            return quiet_ms >= seconds * 1000
        # A new one's time in a backlog is no sign of anything: nobody could have answered it. And with others, either
        # bytes are on their way to the serving thread, or it reads in a way that is not counted (TLS, os.read).
        # What has waited for long, in a backlog, may have been read this moment: the thread gets the time to say so.
        unsure = max(seconds, UNSURE_QUIET)
        return self._has_been_quiet(unsure) and quiet_ms >= unsure * 1000

    def _has_been_quiet(self, seconds: float) -> bool:
        # Nothing waits in the kernel, and nothing has been read since we first looked. All there is without TCP_INFO.
        now = time.monotonic()
        if pending_bytes(self.sock) or self._quiet_since is None or self._quiet_since[0] != self.received:
            self._quiet_since = (self.received, now)
        return now - self._quiet_since[1] >= seconds

    def _shut(self, how: int) -> None:
        if not self._is_closed:
            # If the client has reset it, the serving thread finds out by itself.
            with contextlib.suppress(OSError):
                socket.socket.shutdown(self.sock, how)

    def __repr__(self) -> str:
        """Show the peer and the state."""
        state = "half-closed" if self.is_half_closed else "busy" if self.is_busy else "idle"
        return f"<Connection {self.peer} {state}>"
