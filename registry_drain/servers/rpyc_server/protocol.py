"""RPyC's protocol, telling a :class:`Connection` where messages begin and end, and what is asked for.

Theory of operation: an RPyC connection is symmetric. Either side sends requests and replies; while a handler waits for
its client's reply (a callback) it serves what comes meanwhile. So a connection is busy as long as any message is being
dispatched, in whatever thread and however nested; at the end of the outermost one everything that was read has been
dealt with. Messages are read exactly, never ahead.

Rules:

1. One call of a client is several messages: its attribute is looked up, then it is called, then its proxies are
   released. Only behind the answer to a *call* is a draining connection closed: behind a lookup the call would be lost.
2. Nor behind the first such answer: what a client has sent behind its call may still be held back by its kernel (Nagle;
   RPyC does not set TCP_NODELAY), and comes when the answer acknowledges the call. If nothing comes the connection is
   idle, and is closed as such.
3. For the same reason as in 1 only calls count as arrivals; everything is in flight while it is served.
4. What is on the path of every call is spelled out, and takes no turn through RPyC's own methods where these do more
   than is needed here: that pays for the counting.

Sources: ``rpyc/core/protocol.py``, ``rpyc/core/channel.py`` and ``rpyc/core/stream.py`` of RPyC 6.0.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable
from typing import Any

from rpyc.core import Channel, SocketStream, consts
from rpyc.core.netref import BaseNetref

from registry_drain.servers.connections import Connection
from registry_drain.servers.current_request import serving

CALLS = frozenset({consts.HANDLE_CALL, consts.HANDLE_CALLATTR})

_NAMES = {
    value: name.removeprefix("HANDLE_").lower()
    for name, value in vars(consts).items()
    if name.startswith("HANDLE_") and isinstance(value, int)
}
_FRAME_HEADER, _HEAD_SIZE, _TAIL_SIZE = Channel.FRAME_HEADER, Channel.FRAME_HEADER.size, len(Channel.FLUSHER)


class TrackedStream(SocketStream):  # type: ignore[misc]  # rpyc is not annotated
    """A stream that counts what is read, and reads an end of file once the drain has closed the connection."""

    def __init__(self, sock: Any, connection: Connection) -> None:
        """Read from ``sock``, which may be the connection's own, or the TLS socket that was made of it."""
        super().__init__(sock)
        self.connection = connection
        connection.sock = sock

    def read(self, count: int) -> bytes:
        """See :meth:`SocketStream.read`."""
        data: bytes = b""
        if count <= self.MAX_IO_CHUNK:
            try:
                data = self.sock.recv(count)
            except OSError:
                data = b""  # What it means the library's own says, below.
        if len(data) < count:
            data += super().read(count - len(data))
        connection = self.connection
        connection.received += count
        if connection.is_half_closed and not connection.may_serve():
            connection.discard_input()
            raise EOFError("the server has closed the connection")
        return data

    def close(self) -> None:
        """See :meth:`SocketStream.close`."""
        self.connection.close()
        super().close()
        self.connection.closed()


class TrackedChannel(Channel):  # type: ignore[misc]  # rpyc is not annotated
    """A channel that knows how much of what was read belongs to whole messages."""

    def __init__(self, channel: Any, connection: Connection) -> None:
        """Take the place of ``channel``."""
        super().__init__(TrackedStream(channel.stream.sock, connection), channel.compress)
        self.connection = connection
        self.complete = 0

    def poll(self, timeout: Any) -> bool:
        """See :meth:`Channel.poll`. Who waits without a limit need not ask the kernel first: reading waits as well."""
        return timeout is None or not getattr(timeout, "finite", True) or bool(self.stream.poll(timeout))

    def recv(self) -> bytes:
        """See :meth:`Channel.recv`."""
        read = self.stream.read
        length, is_compressed = _FRAME_HEADER.unpack(read(_HEAD_SIZE))
        data: bytes = read(length + _TAIL_SIZE)[:length]
        self.complete = self.connection.received
        return zlib.decompress(data) if is_compressed else data


def name_of(function: Any) -> str:
    """Return the name of what a client calls."""
    # A client's own object, which it has handed back, would have to be asked across the network.
    name = "" if isinstance(function, BaseNetref) else getattr(function, "__name__", "")
    return str(name).removeprefix("exposed_") or "call"


def _named(handle: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Return a handler that names what is in flight, unless it is a part of something that has a name."""

    def handle_named(protocol: Any, *args: Any) -> Any:
        if protocol.drained is not None and not protocol.drained.name:
            protocol.drained.name = name
        return handle(protocol, *args)

    return handle_named


def tracked(protocol: Any) -> Any:  # noqa: C901 - a class with short methods
    """Return a subclass of a service's protocol, which tracks connections that an adapter has accepted."""
    dispatch, call = protocol._dispatch, protocol._handle_call  # noqa: SLF001 - what it is made to override

    class TrackedProtocol(protocol):  # type: ignore[misc]  # rpyc is not annotated
        """Without a connection in :data:`serving` (a client's, in the same process) it is what it was."""

        def __init__(self, root: Any, channel: Any, config: Any = None) -> None:
            connection = serving.get()
            self.drained = connection if isinstance(connection, Connection) else None
            if self.drained is not None:
                channel = TrackedChannel(channel, self.drained)
                self._depth_lock = threading.Lock()
                self._depth = 0
                self._has_called = False
                self._has_answered_late = False
            super().__init__(root, channel, {} if config is None else config)

        @classmethod
        def _request_handlers(cls) -> dict[int, Callable[..., Any]]:
            handlers = super()._request_handlers()
            return {
                number: handle if number in CALLS else _named(handle, _NAMES.get(number, str(number)))
                for number, handle in handlers.items()
            }

        def _dispatch(self, data: bytes) -> None:
            connection = self.drained
            if connection is None:
                dispatch(self, data)
                return
            channel = self._channel  # gone from the protocol once the client has said goodbye
            # As a rule the thread is this connection's, and knows.
            token = None if serving.get() is connection else serving.set(connection)
            with self._depth_lock:
                self._depth += 1
            try:
                dispatch(self, data)
            finally:
                if token is not None:
                    serving.reset(token)
                with self._depth_lock:
                    self._depth -= 1
                    if self._depth == 0:
                        if connection.connections.is_draining:
                            self._end_message(connection, channel)
                        else:
                            # A drain that begins just now finds the connection idle, and closes it as such.
                            connection.boundary = channel.complete
                            connection.name = ""
                            self._has_called = False

        def _end_message(self, connection: Connection, channel: TrackedChannel) -> None:
            """Note the end of a message while draining."""
            connection.leftover = connection.received - channel.complete
            may_close = self._has_called and self._has_answered_late
            self._has_answered_late = self._has_answered_late or self._has_called
            self._has_called = False
            if may_close:
                connection.end_request()
                return
            # The drain holds back an answer's last segment, for the end of the connection to go with it. Not this one;
            # and it has to leave before the connection counts as idle, or it would be closed as quiet.
            connection.cork(is_corked=False)
            connection.boundary = channel.complete
            connection.name = ""
            connection.cork(is_corked=True)

        def _handle_call(self, obj: Any, args: Any, kwargs: Any = ()) -> Any:
            connection = self.drained
            if connection is not None:
                self._has_called = True
                connection.name = name_of(obj)
                connection.started_at = connection.arrived_at = connection.connections.now()
                connection.served += 1
            return call(self, obj, args, kwargs)

    return TrackedProtocol
