"""What handlers read from: the interpreter's own buffered reader, around a file that notes where requests begin.

It costs less than a :class:`~registry_drain.servers.socket_server.TrackedSocket` that has to guess, and it says how
much of the next request was read ahead.
"""

from __future__ import annotations

import io
import socket
from typing import TYPE_CHECKING, Any

from registry_drain.servers.connections import Connection
from registry_drain.servers.socket_server import TrackedSocket, TrackedTlsSocket

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


class HttpSocket(TrackedSocket):
    """The handler's socket: cheaper than one that has to guess, since handlers of ours say where a request ends."""

    def guess_no_more(self) -> None:
        """Let the handler write without anybody noting that it did; what is noted there serves only to guess."""
        self.send = super(TrackedSocket, self).send  # type: ignore[method-assign]
        self.sendall = super(TrackedSocket, self).sendall  # type: ignore[method-assign]

    def makefile(self, mode: str = "r", buffering: int | None = None, **text: Any) -> Any:
        """Make a file; the handler's ``rfile`` is the interpreter's own reader, around a :class:`TrackedFile`."""
        if mode not in {"rb", "br"} or buffering == 0:
            return super().makefile(mode, buffering, **text)
        size = io.DEFAULT_BUFFER_SIZE if buffering is None or buffering < 0 else buffering
        self._io_refs += 1  # type: ignore[attr-defined]  # as socket.makefile does; SocketIO.close takes it back
        return io.BufferedReader(TrackedFile(self), size)


class HttpTlsSocket(HttpSocket, TrackedTlsSocket):  # type: ignore[misc]  # typeshed names parameters differently
    """The same over TLS."""


class TrackedFile(socket.SocketIO):
    """What ``rfile`` reads from; while somebody looks how much it has read ahead, there is nothing.

    Attributes:
        is_looked_at: somebody does.
        is_lone_head: whether only one whole head has come since the last request: to look what was read ahead takes
            longer.
    """

    # An instance of a class from io has a dict that the interpreter's fast paths know nothing of.
    __slots__ = ("_connection", "_receive_into", "is_lone_head", "is_looked_at")

    def __init__(self, sock: HttpSocket) -> None:
        super().__init__(sock, "r")
        self.is_looked_at = self.is_lone_head = False
        self._connection = sock.connection
        self._receive_into = super(TrackedSocket, sock).recv_into  # past what a socket that guesses does besides

    def readinto(self, buffer: WriteableBuffer, /) -> int | None:
        """Read, in the serving thread; what comes at a boundary begins a request."""
        if self.is_looked_at:
            return None
        connection = self._connection
        is_over: bool = connection.is_half_closed
        if is_over or not connection.is_marked or connection.received != connection.boundary:
            self.is_lone_head = False
            return super().readinto(buffer)
        connection.is_waiting = True
        try:
            received = self._receive_into(buffer)
        finally:
            connection.is_waiting = False
        if received:
            connection.received += received
            if connection.is_half_closed and not connection.may_serve():
                connection.discard_input()
                return 0
            connection.begin_request()
            contents: Any = buffer  # a buffered reader's is a memoryview
            self.is_lone_head = received > 3 and bytes(contents[:received]).find(b"\r\n\r\n") == received - 4
        return received


def read_ahead(rfile: Any, connection: Connection) -> int:
    """Return how many bytes ``rfile`` has that nobody has taken; a reader that is not ours keeps count by itself."""
    raw = getattr(rfile, "raw", None)
    if not isinstance(raw, TrackedFile):
        return connection.leftover
    sock = connection.sock
    decrypted = sock.read_ahead() if isinstance(sock, TrackedTlsSocket) else 0
    raw.is_looked_at = True
    try:
        return len(rfile.peek(1)) + decrypted
    finally:
        raw.is_looked_at = False
