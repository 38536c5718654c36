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

Sources: ``rpyc/core/protocol.py``, ``rpyc/core/channel.py`` and ``rpyc/core/stream.py`` of RPyC 6.0.
"""

from __future__ import annotations

import threading
from typing import Any

from rpyc.core import Channel, SocketStream, consts

from registry_drain.servers.connections import Connection
from registry_drain.servers.current_request import serving

CALLS = frozenset({consts.HANDLE_CALL, consts.HANDLE_CALLATTR})

_NAMES = {
    value: name.removeprefix("HANDLE_").lower()
    for name, value in vars(consts).items()
    if name.startswith("HANDLE_") and isinstance(value, int)
}


class TrackedStream(SocketStream):  # type: ignore[misc]  # rpyc is not annotated
    """A stream that counts what is read, and reads an end of file once the drain has closed the connection."""

    def __init__(self, sock: Any, connection: Connection) -> None:
        """Read from ``sock``, which may be the connection's own, or the TLS socket that was made of it."""
        super().__init__(sock)
        self.connection = connection
        connection.sock = sock

    def read(self, count: int) -> bytes:
        """See :meth:`SocketStream.read`."""
        connection = self.connection
        if connection.is_half_closed and not connection.may_serve():
            connection.discard_input()
            raise EOFError("the server has closed the connection")
        data: bytes = super().read(count)
        connection.received += count
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
        self.complete = 0

    def recv(self) -> bytes:
        """See :meth:`Channel.recv`."""
        data: bytes = super().recv()
        self.complete = self.stream.connection.received
        return data


def label_of(local_objects: Any, handler: int, boxed: Any) -> str:
    """Return a request's name: the function's or the method's, or what is done.

    What the client has sent may be of any form; RPyC answers it.
    """
    name = ""
    try:
        if handler == consts.HANDLE_CALL:
            name = getattr(local_objects[boxed[1][0][1]], "__name__", "")
        elif handler == consts.HANDLE_CALLATTR:
            name = boxed[1][1][1]
    except Exception:  # noqa: BLE001, S110 - as said
        pass
    return str(name).removeprefix("exposed_") or _NAMES.get(handler, str(handler))


def tracked(protocol: Any) -> Any:  # noqa: C901 - a class with short methods
    """Return a subclass of a service's protocol, which tracks connections that an adapter has accepted."""

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

        def _dispatch(self, data: bytes) -> None:
            if self.drained is None:
                super()._dispatch(data)
                return
            channel = self._channel  # gone from the protocol once the client has said goodbye
            with self._depth_lock:
                self._depth += 1
            try:
                super()._dispatch(data)
            finally:
                with self._depth_lock:
                    self._depth -= 1
                    if self._depth == 0:
                        self._end_message(self.drained, channel)

        def _end_message(self, connection: Connection, channel: TrackedChannel) -> None:
            connection.leftover = connection.received - channel.complete
            is_draining = connection.connections.is_draining
            may_close = self._has_called and (self._has_answered_late or not is_draining)
            self._has_answered_late = self._has_answered_late or (self._has_called and is_draining)
            self._has_called = False
            if may_close:
                connection.end_request()
                return
            if is_draining:
                # The drain holds back an answer's last segment, for the end of the connection to go with it. Not this
                # one; and it has to leave before the connection counts as idle, or it would be closed as quiet.
                connection.cork(is_corked=False)
            connection.boundary = channel.complete
            connection.name = ""
            if is_draining:
                connection.cork(is_corked=True)

        def _dispatch_request(self, seq: int, raw_args: Any) -> None:
            connection = self.drained
            if connection is not None and isinstance(raw_args, tuple) and raw_args:
                is_call = raw_args[0] in CALLS
                arrived_at = connection.arrived_at
                name = connection.name
                connection.begin_request(label_of(self._local_objects, raw_args[0], raw_args[-1]))
                if is_call:
                    self._has_called = True
                else:
                    connection.served -= 1
                    connection.arrived_at = arrived_at
                    connection.name = name or connection.name
                token = serving.set(connection)
                try:
                    super()._dispatch_request(seq, raw_args)
                finally:
                    serving.reset(token)
                return
            super()._dispatch_request(seq, raw_args)

    return TrackedProtocol
