"""Where thriftpy2's messages begin and end, and how much of the next one has been read ahead.

Theory of operation: its servers call ``processor.process(iprot, oprot)`` in a loop, once per message and at no other
time. Entering it is the message boundary: what was begun before has been answered, and flushed. The first thing it does
is to call its own ``process_in``, which reads the message: leaving that tells the method's name.

What was read ahead stands in a buffer. Transports written in Python show theirs. A framed one written in C hides its
own, so it is given its frames one by one, and what follows is kept here. A buffered one in C is asked
only while draining: for more than it can hold, with a socket that refuses to read. It then says how much has room; what
is missing to its whole size is what it holds, and nothing has changed.

Sources: ``thriftpy2/server.py``, ``thrift.py``, ``transport/cybase.pyx``, ``transport/framed`` of thriftpy2 0.7.
"""

from __future__ import annotations

import copy
import struct
from collections.abc import Callable, Collection
from contextlib import suppress
from io import BytesIO
from typing import Any, Protocol

from thriftpy2.transport import TTransportException

from registry_drain.servers.connections import Connection

_LENGTH = struct.Struct("!i")
_LENGTH_SIZE = 4


class _NotNowError(Exception):
    """Raised in place of reading, to a transport that is only asked how much it holds."""


class BlockingReader:
    """Reads for one connection's transports. For its serving thread.

    Attributes:
        asks_late: what was read ahead is asked for while draining only, and taken for nothing before.
    """

    def __init__(self, connection: Connection, receive: Callable[[int], bytes]) -> None:
        """Read with ``receive``, which raises, or returns nothing, at the end of file."""
        self.connection = connection
        self._receive_any = receive
        self._is_framed_in_c = False
        self._is_buffered_in_c = False
        self.asks_late = False
        self._ahead = b""  # of frames
        self._header = b""
        self._frame_left = 0
        self._room = 0
        self._is_probing = False
        self._asked = 0

    def serve(self, transport: Any) -> Callable[[int], bytes]:
        """Note what the reads are for, and return what reads until the drain begins."""
        kind = type(transport).__name__
        self._is_framed_in_c = kind == "TCyFramedTransport"
        self._is_buffered_in_c = kind == "TCyBufferedTransport"
        self.connection.is_sure = not self._is_buffered_in_c
        self.asks_late = self._is_buffered_in_c
        return self._counting() if self._is_buffered_in_c else self.read

    def _counting(self) -> Callable[[int], bytes]:
        """Return what ``read`` does for a buffered transport in C; it is on the path of every request."""
        connection, receive = self.connection, self._receive_any

        def read(size: int) -> bytes:
            if self._is_probing:
                self._asked = size
                raise _NotNowError
            if size > self._room:  # noqa: PLR1730 - max() would be a call
                self._room = size
            data = receive(size)
            if not data:
                raise end_of_file(connection)
            connection.received += len(data)
            return data

        return read

    def _receive(self, size: int) -> bytes:
        data = self._receive_any(size)
        if not data:
            raise end_of_file(self.connection)
        return data

    def read(self, size: int) -> bytes:
        """Stand in for the socket's own ``read``."""
        if self._is_framed_in_c:
            return self._read_of_frame(size)
        if self._is_probing:
            self._asked = size
            raise _NotNowError
        self._room = max(self._room, size)
        data = self._receive(size)
        self.connection.received += len(data)
        return data

    def _read_of_frame(self, size: int) -> bytes:
        if not self._ahead:
            self._ahead = self._receive(size)
            self.connection.received += len(self._ahead)
        wanted = self._frame_left or _LENGTH_SIZE - len(self._header)
        data, self._ahead = self._ahead[:wanted], self._ahead[wanted:]
        if self._frame_left:
            self._frame_left -= len(data)
        else:
            self._header += data
            if len(self._header) == _LENGTH_SIZE:
                self._frame_left = max(_LENGTH.unpack(self._header)[0], 0)
                self._header = b""
        return data

    def unread(self, transport: Any) -> int:
        """Return how many bytes of a next message have been read ahead, at a boundary."""
        if self._is_framed_in_c:
            return len(self._ahead)
        if not self._is_buffered_in_c:
            return unread_in(transport)
        if not self.connection.connections.is_draining or not self._room:
            return 0
        self.connection.is_sure = True
        self._is_probing = True
        try:
            with suppress(_NotNowError):
                transport.read(2 * self._room)
        finally:
            self._is_probing = False
        return -self._asked % self._room


def end_of_file(connection: Connection) -> Exception:
    """Return what a transport raises when the client has hung up."""
    ended: Exception = TTransportException(TTransportException.END_OF_FILE, f"{connection.peer} has hung up")
    return ended


def unread_in(transport: Any) -> int:
    """Return how many bytes a chain of transports written in Python holds of a next message."""
    unread = 0
    while transport is not None:
        buffer = getattr(transport, "_rbuf", None)
        if isinstance(buffer, BytesIO):
            unread += len(buffer.getvalue()) - buffer.tell()
        transport = getattr(transport, "_trans", None)
    return unread


def note_request(connection: Connection, name: str, health_checks: Collection[str]) -> None:
    """Note that a message has been read, in the thread or task that serves it.

    Raises:
        TTransportException: its answer could not be sent any more; the serve loop ends.
    """
    if connection.is_half_closed:
        end_if_closed(connection)
    connection.name = name
    if connection.is_timed:
        connection.started_at = connection.connections.now()
    if name not in health_checks:
        connection.served += 1
        if connection.is_timed:
            connection.arrived_at = connection.started_at
    if connection.connections.is_draining:
        connection.cork(is_corked=True)
        connection.is_corked = True


def end_if_closed(connection: Connection) -> None:
    """End the serve loop of a connection whose answers could not be sent any more."""
    if not connection.may_serve():
        connection.discard_input()
        raise TTransportException(TTransportException.END_OF_FILE, "closed by the drain")


class NameRequests(Protocol):
    """Makes of a processor's ``process_in`` one that names requests."""

    def __call__(self, process_in: Callable[[Any], Any], *, is_first: bool) -> Callable[[Any], Any]:
        """Return it; ``is_first``: nothing is done in ``process`` before, so that this is the boundary, too."""
        ...


def hooked_processor(
    processor: Any, mark_boundaries: Callable[[Any], Any], name_requests: NameRequests, kind: Any
) -> Any:
    """Return a copy of ``processor`` with its methods replaced by what the two functions make of them.

    A copy, since the user's may serve elsewhere, too. The ``process`` of ``kind``, thriftpy2's own, begins with
    ``process_in``, which then marks the boundary, too: that spares a call. A processor of another making has no
    ``process_in``; what it serves has no name then.
    """
    hooked = copy.copy(processor)
    is_first = getattr(type(processor), "process", None) is kind.process and hasattr(hooked, "process_in")
    if not is_first:
        hooked.process = mark_boundaries(hooked.process)
    if hasattr(hooked, "process_in"):
        hooked.process_in = name_requests(hooked.process_in, is_first=is_first)
    return hooked
