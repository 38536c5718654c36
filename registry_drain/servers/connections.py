"""The open connections of a server that blocks one thread per connection, and how they are closed politely.

Theory of operation: a connection is *idle* while its serving thread sleeps in a read at a message boundary, and busy
otherwise. Idle ones stand in one dict. Whoever takes a connection out of it owns what happens next: the serving thread,
because a message has come, or the drain, because it closes the connection. Removal from a dict is atomic, so a request
costs no lock, no extra system call and no wake-up pipe, and the drain looks at the idle connections only.

An idle connection is closed when it is *quiet*. The kernel says so itself (``TCP_INFO``, ``tcp(7)``): nothing has
arrived for ``idle_quiet`` seconds, and of all the bytes that ever arrived the serving thread has seen every one. (It
may be on its way back from ``recv``, waiting for the interpreter lock, with a request in its hands; only the count of
bytes shows that.) Then comes our FIN; within microseconds, so the window in which a request can still cross it is the
network's and not ours. A client that sends all the same reads an end of file and not a reset, for what it sends is read
and thrown away for ``linger`` seconds, and ``shutdown(SHUT_RD)`` then wakes the serving thread, which leaves like after
any client's departure. A busy connection is half-closed by its own thread, right behind the answer.

==============  =======================================  ============================================================
state           is in                                    is left by
==============  =======================================  ============================================================
busy            ``_open``                                its thread: back to the boundary, behind the answer, or gone
idle            ``_open``, ``_idle``                     whoever takes it out of ``_idle``
half-closed     ``_open``, ``_half_closed``              its thread, at the client's FIN or woken when lingering ends
==============  =======================================  ============================================================

Rules:

1. Only the serving thread closes a descriptor; others only shut it down, and hold the connection's lock while they do,
   so that the number cannot have become another socket's. The lock is never held across anything that blocks.
2. Bytes are read and thrown away only after our FIN: before it every byte belongs to a request that will be answered.
3. While draining, answers are corked (``TCP_CORK``): the answer's last segment leaves together with our FIN, so that a
   client cannot see the one without the other. Only where one message has one answer, and it is written at once.
"""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct
import termios
import threading
import time
from collections import deque
from collections.abc import Callable

from registry_drain.clock import Deadline
from registry_drain.instance import format_endpoint
from registry_drain.servers.in_flight import InFlight, InFlightRequest

IDLE_QUIET = 0.020
"""Seconds without a byte before an idle connection is closed: in 2,000 closes against clients sending around the very
moment, 20 ms lost none; no quiet period, 256.
"""

LINGER = 0.020
"""Seconds to go on reading after our FIN, so that a request that crossed it meets an end of file and not a reset."""

_STEP = 0.005
"""Seconds between two looks of the drain; closing itself is not paced by it."""

_UNSEEN_LIMIT = 10
"""After this many quiet periods bytes that were never accounted for are not on their way to the serving thread: the
handler has read them by a way that cannot be seen (TLS, ``os.read``).
"""

_JOIN_PATIENCE_S = 0.100
_JOIN_LIMIT_S = 2.0
"""Bounds of what cutting off adds to a stop: the first with a stuck handler, the second with thousands of threads."""

_TCP_INFO = getattr(socket, "TCP_INFO", None)
_TCP_INFO_SIZE = 136
_LAST_DATA_RECV = struct.Struct("=I")  # milliseconds, at offset 52 of struct tcp_info (linux/tcp.h)
_BYTES_RECEIVED = struct.Struct("=Q")  # at offset 128; Linux 4.1 and later
_INT = struct.Struct("i")
_TCP_CORK = getattr(socket, "TCP_CORK", None)


class Connection:
    """One accepted connection, as seen by its serving thread and by the drain.

    Unless said otherwise, methods are the serving thread's. Attributes are read by both and written by the serving
    thread.

    Attributes:
        sock: its socket.
        peer: the client, as ``host:port``.
        thread: the serving thread, once there is one.
        received: how many bytes the serving thread has been given; it adds to it after each read.
        key: of the request in flight; 0 if there is none.
        is_half_closed: our FIN is out: nothing can be answered any more.
        leftover: bytes that were read ahead of the message being served; they begin the next one.
        has_answered: something was written since the request began. Only where the adapter needs to guess.
        is_marked: the handler marks its requests, so nothing is guessed any more.
        ends_at_marks: whether a mark's end is the request's, or the protocol knows better.
    """

    __slots__ = (
        "_is_closed",
        "_is_over",
        "_lock",
        "_quiet_since",
        "connections",
        "ends_at_marks",
        "has_answered",
        "is_half_closed",
        "is_marked",
        "key",
        "leftover",
        "peer",
        "received",
        "sock",
        "thread",
    )

    def __init__(self, connections: Connections, sock: socket.socket, *, ends_at_marks: bool = False) -> None:
        """Describe ``sock``; :meth:`Connections.add` takes it in."""
        self.sock = sock
        self.peer = _peer_name(sock)
        self.thread: threading.Thread | None = None
        self.received = 0
        self.key = 0
        self.is_half_closed = False
        self.leftover = 0
        self.has_answered = False
        self.is_marked = False
        self.ends_at_marks = ends_at_marks
        self.connections = connections
        self._lock = threading.Lock()
        self._is_closed = False
        self._is_over = False
        self._quiet_since: tuple[int, float] | None = None

    def begin_request(self, name: str = "") -> None:
        """Note that a message has begun to arrive."""
        self.key = self.connections.in_flight.begin(name, self.peer)

    def end_request(self) -> None:
        """Note that the answer is written; while draining, half-close the connection unless more was sent already."""
        self.connections.in_flight.end(self.key)
        self.key = 0
        if self.connections.is_draining:
            if self.leftover or _pending_bytes(self.sock):
                self.cork(is_corked=False)
            else:
                self.half_close()

    def end_marked(self) -> None:
        """Note the end of a mark of the handler's."""
        if self.ends_at_marks:
            self.end_request()

    def enter_idle(self) -> None:
        """Note that the thread is about to sleep in a read at a message boundary."""
        self.connections.idle[self] = True

    def leave_idle(self) -> bool:
        """Take the connection back from the idle ones; False if the drain has closed it, and nothing read may be
        served.
        """
        return self.connections.idle.pop(self, False)

    def discard_input(self) -> None:
        """After our FIN: read and throw away until the client's FIN or the end of lingering."""
        try:
            # The base class' recv: on a TLS socket too this is about the wire, not about the contents.
            while not self._is_over and socket.socket.recv(self.sock, 65536):
                pass
        except OSError:
            pass

    def close(self) -> None:
        """Note that the descriptor is about to be closed; follow with :meth:`closed`. Idempotent."""
        with self._lock:
            self._is_closed = True
        if self.key:
            self.connections.in_flight.end(self.key)
            self.key = 0
        self.connections.idle.pop(self, None)

    def closed(self) -> None:
        """Note that the descriptor is closed. Idempotent."""
        self.connections.remove(self)

    def half_close(self) -> None:
        """Send our FIN, behind what was written. For the serving thread, or for who took it out of the idle ones."""
        self.is_half_closed = True
        self.connections.half_closed[self] = time.monotonic()
        self._shut(socket.SHUT_WR)

    def end_lingering(self) -> None:
        """Wake the serving thread from a read, for ever. From any thread."""
        self._is_over = True
        self._shut(socket.SHUT_RD)

    def cut(self) -> None:
        """Shut both directions, in the middle of whatever goes on. From any thread."""
        self.is_half_closed = self._is_over = True
        self._shut(socket.SHUT_RDWR)

    def cork(self, *, is_corked: bool) -> None:
        """Hold back, or let go, the answer's last segment. From any thread."""
        if _TCP_CORK is not None and self.connections.corks_answers:
            with self._lock:
                if not self._is_closed and self.sock.family != socket.AF_UNIX:
                    self.sock.setsockopt(socket.IPPROTO_TCP, _TCP_CORK, is_corked)

    def is_quiet(self, seconds: float) -> bool:
        """Whether nothing has arrived for so long, and nothing that arrived before is on its way to the serving thread.

        From the drain. A True is good for the next microseconds only.
        """
        try:
            if _TCP_INFO is not None and self.sock.family != socket.AF_UNIX:
                info = self.sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _TCP_INFO_SIZE)
                if len(info) == _TCP_INFO_SIZE:
                    last_ms: int = _LAST_DATA_RECV.unpack_from(info, 52)[0]
                    arrived: int = _BYTES_RECEIVED.unpack_from(info, 128)[0]
                    if arrived == self.received:
                        return last_ms >= seconds * 1000
                    return last_ms >= seconds * 1000 * _UNSEEN_LIMIT and not _pending_bytes(self.sock)
            return self._has_been_quiet(seconds)
        except OSError:
            return False

    def _has_been_quiet(self, seconds: float) -> bool:
        # Without TCP_INFO: nothing waits in the kernel, and nothing has been read since we first looked.
        now = time.monotonic()
        if _pending_bytes(self.sock) or self._quiet_since is None or self._quiet_since[0] != self.received:
            self._quiet_since = (self.received, now)
        return now - self._quiet_since[1] >= seconds

    def _shut(self, how: int) -> None:
        with self._lock:
            if not self._is_closed:
                # If the client has reset it, the serving thread finds out by itself.
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(self.sock, how)

    def __repr__(self) -> str:
        """Show the peer and the state."""
        state = "half-closed" if self.is_half_closed else "busy" if self.key else "open"
        return f"<Connection {self.peer} {state}>"


class Connections:
    """All open connections of one server. Thread-safe.

    Args:
        in_flight: the server's requests.
        idle_quiet: seconds without a byte before the drain closes an idle connection.
        linger: seconds to go on reading after our FIN.
        corks_answers: whether an answer and the FIN behind it may leave as one; see rule 3.
    """

    def __init__(
        self,
        in_flight: InFlight,
        *,
        idle_quiet: float = IDLE_QUIET,
        linger: float = LINGER,
        corks_answers: bool = False,
    ) -> None:
        self.in_flight = in_flight
        self.corks_answers = corks_answers
        self.idle: dict[Connection, bool] = {}
        self.half_closed: dict[Connection, float] = {}
        self._open: dict[Connection, None] = {}
        self._idle_quiet = idle_quiet
        self._linger = linger
        self._is_draining = False
        self._emptied = threading.Event()
        self._leaving: deque[threading.Thread] = deque()

    @property
    def is_draining(self) -> bool:
        """Whether connections are closed behind their answers."""
        return self._is_draining

    def __len__(self) -> int:
        """How many connections are open, those that wait for a serving thread included."""
        return len(self._open)

    def add(self, connection: Connection) -> None:
        """Take in a connection that was just accepted; it is busy until its thread says otherwise."""
        self._open[connection] = None

    def remove(self, connection: Connection) -> None:
        """Forget a connection whose descriptor is closed."""
        self.half_closed.pop(connection, None)
        self._open.pop(connection, None)
        if self._is_draining:
            if connection.thread is not None:
                self._leaving.append(connection.thread)
            if not self._open:
                self._emptied.set()

    def drain(self, deadline: Deadline) -> bool:
        """Close idle connections once quiet, and busy ones behind their answers; return whether all are gone.

        At the deadline the rest is left as it is, and still closes behind its answers.
        """
        self._is_draining = True
        for connection in self._open.copy():
            if connection not in self.idle:
                connection.cork(is_corked=True)
        while self._open:
            began_at = time.monotonic()
            self._emptied.clear()
            self._close_quiet()
            self._end_lingering()
            if not self._open:
                break
            if deadline.is_past:
                return False
            # Looking at thousands of connections takes a while: leave the processor to the requests for as long.
            deadline.clock.wait(self._emptied, min(max(_STEP, time.monotonic() - began_at), deadline.remaining()))
        return True

    def _close_quiet(self) -> None:
        for connection in self.idle.copy():
            if connection.is_quiet(self._idle_quiet) and self.idle.pop(connection, False):
                connection.half_close()

    def _end_lingering(self) -> None:
        now = time.monotonic()
        for connection, since in self.half_closed.copy().items():
            if now - since >= self._linger:
                # Once is enough, and its thread may need a while to leave.
                self.half_closed.pop(connection, None)
                connection.end_lingering()

    def cut_off(self) -> tuple[InFlightRequest, ...]:
        """Shut every connection that is left; return what was cut. Connections nobody serves are closed here."""
        self._is_draining = True
        cut = list(self.in_flight.snapshot())
        for connection in self._open.copy():
            if connection.thread is None and not connection.key and _pending_bytes(connection.sock):
                cut.append(InFlightRequest("(not yet read)", connection.peer, self.in_flight.now(), 0))
            connection.cut()
            if connection.thread is None:
                connection.close()
                connection.sock.close()
                connection.closed()
        return tuple(cut)

    def threads(self) -> list[threading.Thread]:
        """Return the serving threads that have not ended, those that are about to included."""
        threads = [connection.thread for connection in self._open.copy() if connection.thread is not None]
        return [thread for thread in {*threads, *self._leaving.copy()} if thread.is_alive()]

    def __repr__(self) -> str:
        """Show the counts."""
        return f"<Connections open={len(self._open)} idle={len(self.idle)} half_closed={len(self.half_closed)}>"


def join_threads(threads: Callable[[], list[threading.Thread]]) -> bool:
    """Wait until no other thread is left, as long as one ends now and then; return whether all have ended.

    Args:
        threads: returns those that are still alive.
    """
    # Real time: these threads have been woken and have nothing left to do but to end, or they are stuck in a handler.
    until = time.monotonic() + _JOIN_LIMIT_S
    progress_at, left = time.monotonic(), -1
    while alive := [thread for thread in threads() if thread is not threading.current_thread()]:
        now = time.monotonic()
        if len(alive) != left:
            progress_at, left = now, len(alive)
        if now >= min(until, progress_at + _JOIN_PATIENCE_S):
            return False
        alive[-1].join(_STEP)
    return True


def _peer_name(sock: socket.socket) -> str:
    try:
        address = sock.getpeername()
    except OSError:
        return ""  # It is gone already.
    return format_endpoint(address[0], address[1]) if isinstance(address, tuple) else str(address)


def _pending_bytes(sock: socket.socket) -> int:
    """Return how many bytes wait in the kernel; none on a socket that is closed.

    By FIONREAD: a peek would wait on a socket with a timeout, which Python polls even under MSG_DONTWAIT.
    """
    try:
        (count,) = _INT.unpack(fcntl.ioctl(sock.fileno(), termios.FIONREAD, _INT.pack(0)))
    except (OSError, ValueError):
        return 0
    return int(count)
