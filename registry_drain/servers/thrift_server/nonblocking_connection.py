"""A connection of a ``TNonblockingServer``, and the two collections that bring it into being and into work.

Theory of operation: the loop reads whole messages and writes answers; a worker handles one message of a connection at a
time. What is on the path of every request is spelled out here, and paid for by what the library wastes there: a queue
in Python where there is one in C, a lock to read one attribute, in each turn of the loop for each connection.

Rules:

1. Bytes count when they are read; a message is answered when its last byte is written, or its ``oneway`` handler has
   returned.
2. What the library's methods read without a lock here, ``ready`` writes last: a status says that the rest is in place.

Source: ``thrift/server/TNonblockingServer.py`` of Apache Thrift 0.25.
"""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Callable
from typing import Any

from thrift.server import TNonblockingServer as library  # noqa: N813 - a module

from registry_drain.servers.connections import Connection, Connections
from registry_drain.servers.current_request import serving

_FRAME_HEAD = 4
_WAIT_LEN, _SEND_ANSWER, _CLOSED = library.WAIT_LEN, library.SEND_ANSWER, library.CLOSED
_READING = frozenset({library.WAIT_LEN, library.WAIT_MESSAGE})
_Header = tuple[str, int, int]
"""The method's name, the kind of message, its number."""
_current_thread = threading.current_thread
_read, _write, _ready = library.Connection.read, library.Connection.write, library.Connection.ready
_put = queue.SimpleQueue.put
"""On the path of every request, where looking them up costs."""


class Clients(dict[int, Any]):
    """The server's connections by descriptor; each is made a tracked one when it is put in."""

    def __init__(self, track: Callable[[Any], TrackedConnection]) -> None:
        """Start empty; ``track`` makes a connection of the library's one of ours."""
        super().__init__()
        self._track = track

    def __setitem__(self, descriptor: int, connection: Any) -> None:
        """Put a connection in."""
        super().__setitem__(descriptor, self._track(connection))


class Tasks(queue.SimpleQueue[list[Any]]):
    """The workers' queue, which makes each message tell its connection when it is served."""

    def put(self, item: list[Any], *_: Any) -> None:
        """Put what the library makes of a message: processor, protocols, transport of the answer, callback."""
        ready = item[4]
        if ready is not None:
            connection: TrackedConnection = ready.__self__
            protocol = item[1]
            # A connection has one message in work at a time.
            connection.read_header = protocol.readMessageBegin
            protocol.readMessageBegin = connection.begin_message
        _put(self, item)


def _no_message() -> _Header:
    raise AssertionError("no message is in work")


class TrackedConnection(library.Connection):  # type: ignore[misc]  # thrift is not annotated
    """A connection that tells the drain what it does.

    Attributes:
        tracked: what the drain knows of it.
        read_header: the ``readMessageBegin`` of the message in work.
        begin_message: stands in for it.
    """

    def __init__(
        self,
        connection: Any,
        connections: Connections,
        loop_thread: threading.Thread,
        max_frame_size: int,
        health_checks: frozenset[str],
    ) -> None:
        """Take over a connection of the library's, which has not been used yet."""
        super().__init__(connection.socket, connection.wake_up, max_frame_size)
        self._plain: socket.socket = connection.socket
        self._connections = connections
        self._health_checks = health_checks
        self.tracked = Connection(connections, self._plain)
        self.tracked.thread = self._loop_thread = loop_thread
        self.tracked.is_waiting = True  # Nobody sleeps in a read: whether it is busy, the bytes tell.
        self.tracked.is_timed = bool(health_checks) or not self.tracked.has_kernel_times
        self.read_header: Callable[[], _Header] = _no_message
        self.begin_message = self._begin_timed if self.tracked.is_timed else self._begin
        connections.add(self.tracked)

    def is_readable(self) -> bool:
        """Whether the loop should read."""
        return self.status in _READING

    def is_writeable(self) -> bool:
        """Whether the loop should write."""
        return bool(self.status == _SEND_ANSWER)

    def is_closed(self) -> bool:
        """Whether the loop should forget it."""
        return bool(self.status == _CLOSED)

    def _begin(self) -> _Header:
        """Read a message's header, in a worker's thread; leave the times to the kernel."""
        header = self.read_header()
        tracked = self.tracked
        tracked.thread = _current_thread()
        tracked.served += 1
        tracked.name = header[0]
        serving.set(tracked)
        return header

    def _begin_timed(self) -> _Header:
        """Do the same, tell health checks from requests, and note the times."""
        header = self.read_header()
        tracked = self.tracked
        tracked.thread = _current_thread()
        tracked.started_at = arrived_at = self._connections.now()
        if header[0] not in self._health_checks:
            tracked.arrived_at = arrived_at
            tracked.served += 1
        tracked.name = header[0]
        serving.set(tracked)
        return header

    def read(self) -> None:
        """Read what is there. In the loop's thread."""
        tracked = self.tracked
        # What made it readable was in the kernel before we looked, so a drain that looks after us finds it.
        if tracked.is_half_closed and not tracked.may_serve():
            self._discard()
            return
        before = len(self._rbuf)
        _read(self)
        # What _unserved() returns, on the path of every request.
        after = len(self._rbuf)
        for message in self.received:
            after += _FRAME_HEAD + message.len
        tracked.received += after - before

    def _discard(self) -> None:
        """Read and throw away behind our end, until the client's."""
        try:
            if not self._plain.recv(65536):
                self.close()
        except BlockingIOError:
            pass
        except OSError:
            self.close()

    def write(self) -> None:
        """Write the answer, or more of it. In the loop's thread."""
        tracked = self.tracked
        if not self._connections.is_draining:
            _write(self)
            if self.status == _WAIT_LEN:
                # A drain that begins just now finds the connection idle, and closes it as such.
                tracked.thread = self._loop_thread
                tracked.name = ""
                tracked.boundary = tracked.received - (self._unserved() if self.received else len(self._rbuf))
            return
        if not tracked.is_corked:
            tracked.cork(is_corked=True)
            tracked.is_corked = True
        _write(self)
        if self.status == _WAIT_LEN:
            self._end_request()

    def ready(self, all_ok: bool, message: bytes) -> None:  # noqa: FBT001 - its signature
        """Take a call's answer. In a worker's thread."""
        if self.status == _CLOSED:
            return  # It was cut off.
        if all_ok and not message:
            self._end_request()  # oneway
        _ready(self, all_ok, message)

    def _end_request(self) -> None:
        tracked = self.tracked
        tracked.leftover = self._unserved()
        tracked.thread = self._loop_thread
        tracked.end_request()
        tracked.is_corked = False

    def _unserved(self) -> int:
        """Return how many bytes have been read of messages that have not been handed to a worker yet."""
        unserved = len(self._rbuf)
        if self.received:
            unserved += sum(_FRAME_HEAD + message.len for message in self.received)
        return unserved

    def close(self) -> None:
        """Close the socket."""
        self.begin_message = _no_message  # a cycle, which would outlive the connection
        self.tracked.close()
        super().close()
        self.tracked.closed()
