"""One connection of an asyncio server: whether a request is in flight on it, and how it is closed politely.

Theory of operation: the handler's reader and writer (:mod:`~registry_drain.servers.asyncio_streams.streams`) tell of
each read and each write, as the tracked socket of the socketserver adapter does:

- The first bytes after a boundary begin a request.
- A handler that reads again *after having written* has answered: that is the end of the request and the next boundary.
  One that reads again without having written is still collecting the message.
- Bytes that are in the reader's buffer at a boundary begin the next request at once.
- A handler that returns, or marks its requests (:func:`~registry_drain.servers.current_request.mark_request`), needs no
  guess.

The connection is idle while a read waits at a boundary. The drain closes it then, once it is quiet: our FIN, and for
``linger`` seconds what arrives is thrown away, so that a request which crossed the FIN meets an end of file and not a
reset; then the waiting read ends, as if the client had left. A busy connection is half-closed at the read behind its
answer, unless more has been sent by then.

Rules:

1. Everything here runs in the loop's thread, so nothing can come between a look and the FIN behind it. Others only read
   attributes.
2. The kernel may hold bytes that the loop has not read yet: it is asked before the FIN.
3. After our FIN what the handler writes is thrown away: it would raise, in a handler that only says goodbye.
4. TLS has no half-close: there, the connection is closed, with close_notify.
"""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING, Any

from registry_drain.instance import format_endpoint
from registry_drain.servers.connections import NEW_QUIET, pending_bytes, unacknowledged_bytes
from registry_drain.servers.in_flight import InFlightRequest
from registry_drain.servers.stop_state import StopState

if TYPE_CHECKING:
    from registry_drain.servers.asyncio_streams.connections import AsyncioConnections


class AsyncioConnection:
    """One accepted connection, as its handler and the drain see it.

    Attributes:
        peer: the client, as ``host:port``; empty until the connection is made.
        task: that of the handler, once there is one.
        received: how many bytes have been given to the reader, which adds to it.
        boundary: how many of them belong to messages that were answered.
        writes: how often something was written, which the writer counts.
        is_in_mark: the handler says that it is serving a request, whatever it reads or writes.
        is_half_closed: our FIN is out.
        served: how many requests have arrived, health checks not counted.
        arrived_at: when the last of them did.
    """

    def __init__(self, connections: AsyncioConnections) -> None:
        """Stand for a connection that has just been accepted."""
        self.peer = ""
        self.task: asyncio.Task[object] | None = None
        self.received = 0
        self.boundary = 0
        self.writes = 0
        self.is_in_mark = False
        self.is_half_closed = False
        self.served = 0
        self.arrived_at: float | None = None
        self._connections = connections
        self._reader: Any = None
        self._transport: asyncio.Transport | None = None
        self._name = ""
        self._started_at = connections.now()
        self._accepted_at = time.monotonic()
        self._answered_from = 0
        self._quiet_since = (-1, 0, 0.0)
        self._thread_id = threading.get_ident()
        self._is_marked = False
        self._is_lost = False
        self._has_lingered = False
        self._has_task_ended = False

    # --- the life of a connection -----------------------------------------------------------------------------------

    @property
    def transport(self) -> asyncio.Transport | None:
        """What carries it; None before the handshake has ended."""
        return self._transport

    @property
    def age(self) -> float:
        """Seconds since it was accepted."""
        return time.monotonic() - self._accepted_at

    def connected(self, transport: asyncio.Transport, reader: asyncio.StreamReader) -> None:
        """Note that the connection can be used."""
        self._transport, self._reader = transport, reader
        self.peer = _peer_name(transport)
        self._connections.connected(self)

    @property
    def is_too_late(self) -> bool:
        """Whether its handshake has ended after everything was cut off."""
        return self._connections.is_cut_off

    def replaced(self, transport: asyncio.Transport) -> None:
        """Note that the handler has changed to TLS."""
        self._transport = transport

    def serve(self, task: asyncio.Task[object]) -> None:
        """Note the handler's task."""
        self.task = task
        task.add_done_callback(self._ended)

    def _ended(self, _task: asyncio.Task[object]) -> None:
        self._has_task_ended = True
        if self._has_lingered and self._transport is not None:
            self._transport.close()
        self._look_whether_over()

    def lost(self) -> None:
        """Note that the transport is closed; the handler may still be at work."""
        self._is_lost = True
        self._look_whether_over()

    def _look_whether_over(self) -> None:
        if self._is_lost and (self.task is None or self._has_task_ended):
            self._connections.remove(self)

    # --- its requests -----------------------------------------------------------------------------------------------

    @property
    def stop_state(self) -> StopState:
        """The server's."""
        return self._connections.stop_state

    @property
    def is_busy(self) -> bool:
        """Whether a request is in flight, be it that only its first byte has come, or none. From any thread."""
        if self._transport is None or self._has_task_ended:
            return False
        # asyncio's reader tells nobody that a read waits, nor how much it holds; so its own attributes are looked at.
        return self.received != self.boundary or self._reader._waiter is None  # noqa: SLF001

    def begin_request(self) -> None:
        """Note that the first bytes of a message have come."""
        self._started_at = self.arrived_at = self._connections.now()
        self.served += 1
        self._name = ""
        self._answered_from = self.writes

    def _end_request(self) -> None:
        leftover = len(self._reader._buffer)  # noqa: SLF001 - see is_busy
        self.boundary = self.received - leftover
        self._name = ""
        if leftover:
            self.begin_request()
        elif self._connections.is_draining and self.served and not self._pending():
            self.half_close()

    def begin_read(self) -> None:
        """Note that the handler asks for input."""
        if self.task is None:
            self.task = asyncio.current_task()  # the handler is no coroutine, and has made a task of its own
        if self.received == self.boundary or self.writes == self._answered_from or self._is_marked:
            return
        if self._reader._buffer or self._connections.is_draining:  # noqa: SLF001 - see is_busy
            self._end_request()
        else:
            self.boundary = self.received

    def identify(self, name: str, *, is_health_check: bool = False) -> None:
        """Name the request in flight, if there is one. A health check's arrival is taken back, but for its instant."""
        if self.is_busy:
            self._name = name
            self.served -= is_health_check

    def begin_mark(self) -> None:
        """Note that the handler says that it serves a request."""
        self._is_marked = self.is_in_mark = True
        if self.received == self.boundary:
            self.begin_request()  # Nobody has asked for it: the handler has something to say by itself.

    def end_mark(self) -> None:
        """Note that the handler says that it has served a request."""
        self.is_in_mark = False
        self._end_request()

    def describe(self) -> InFlightRequest:
        """Return the request in flight. From any thread."""
        name = self._name or self._connections.handler_name
        return InFlightRequest(name, self.peer, self._started_at, self._thread_id)

    # --- its end ----------------------------------------------------------------------------------------------------

    def close_if_quiet(self, seconds: float) -> bool:
        """Half-close if idle and quiet; return whether that was done."""
        if self._transport is None or self.is_half_closed or self.is_busy:
            return False
        if not self.served:
            seconds = max(seconds, NEW_QUIET)
        now = time.monotonic()
        received, writes, since = self._quiet_since
        if (received, writes) != (self.received, self.writes):
            self._quiet_since = (self.received, self.writes, now)
        elif now - since >= seconds and not self._pending():
            self.half_close()
            return True
        return False

    def half_close(self) -> None:
        """Send our FIN, behind what was written."""
        transport = self._transport
        if transport is None or self.is_half_closed:
            return
        self.is_half_closed = True
        if transport.is_closing():
            return
        later = asyncio.get_running_loop().call_later
        if not transport.can_write_eof():
            transport.close()
            later(self._connections.linger, self._end_tls, transport, False)  # noqa: FBT003 - call_later takes no names
            return
        try:
            transport.write_eof()
        except OSError:  # The client has reset it.
            transport.abort()
            return
        later(self._connections.linger, self._end_lingering)

    def _end_lingering(self) -> None:
        self._has_lingered = True
        if self._is_lost or self._transport is None:
            return
        if self._reader is not None and not self._reader.at_eof():
            self._reader.feed_eof()
        if self.task is None or self._has_task_ended:
            self._transport.close()

    def _end_tls(self, transport: asyncio.Transport, was_sent: bool) -> None:  # noqa: FBT001 - see its caller
        """Close behind our close_notify; asyncio would wait for the client's, 30 s by default.

        Once everything has been sent and acknowledged, in two looks: between them the loop writes what it still has.
        """
        if self._is_lost:
            return
        sock = transport.get_extra_info("socket")
        is_sent = not transport.get_write_buffer_size() and (sock is None or not unacknowledged_bytes(sock))
        if is_sent and was_sent:
            transport.abort()
        else:
            asyncio.get_running_loop().call_later(self._connections.linger, self._end_tls, transport, is_sent)

    def abort(self) -> None:
        """Close at once, in the middle of whatever goes on."""
        self.is_half_closed = True
        if self._transport is not None:
            self._transport.abort()

    def _pending(self) -> int:
        """Return how many bytes wait in the kernel, which the loop has not read yet."""
        sock = None if self._transport is None else self._transport.get_extra_info("socket")
        return 0 if sock is None else pending_bytes(sock)

    def __repr__(self) -> str:
        """Show the peer and the state."""
        state = "half-closed" if self.is_half_closed else "busy" if self.is_busy else "idle"
        return f"<AsyncioConnection {self.peer} {state}>"


def _peer_name(transport: asyncio.Transport) -> str:
    address = transport.get_extra_info("peername")
    if isinstance(address, tuple):
        return format_endpoint(address[0], address[1])
    return str(address or "")
