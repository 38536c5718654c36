"""A socket that knows where messages begin and end, without knowing the protocol.

Theory of operation: it sees what its handler does.

- The first bytes after a boundary begin a request.
- A handler that reads again *after having written* has answered: that is the end of the request and the next boundary.
  One that reads again without having written is still collecting the message.
- A message that is already in ``rfile``'s buffer begins the next request at once.
- A handler that returns, or marks its requests (:func:`~registry_drain.servers.current_request.mark_request`), needs no
  guess.
"""

from __future__ import annotations

import errno
import io
import logging
import socket
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from registry_drain.servers.connections import Connection, Connections

if TYPE_CHECKING:
    from socket import _SendableFile

    from _typeshed import ReadableBuffer, WriteableBuffer

logger = logging.getLogger(__name__)

_R = TypeVar("_R")


class TrackedSocket(socket.socket):
    """The handler's ``self.request``: a socket that knows where messages begin and end.

    Reads return an end of file once the drain has closed the connection.
    """

    connection: Connection

    @classmethod
    def adopt(cls, sock: socket.socket, connections: Connections) -> TrackedSocket:
        """Take over ``sock``, which is empty afterwards.

        Raises:
            OSError: it is more than a socket, and what it does besides (TLS) would be lost.
        """
        if type(sock) is not socket.socket:
            logger.error("refused a connection: %s is not supported by SocketServer", type(sock).__name__)
            sock.close()
            raise OSError(errno.EPROTONOSUPPORT, f"{type(sock).__name__} is not supported")
        timeout = sock.gettimeout()
        tracked = cls(sock.family, sock.type, sock.proto, fileno=sock.detach())
        tracked.settimeout(timeout)
        tracked.begin(connections)
        return tracked

    def begin(self, connections: Connections) -> None:
        """Be one of ``connections`` from now on."""
        self.connection = Connection(connections, self, is_guessed=True)
        connections.add(self.connection)

    def at_read(self) -> None:
        """Note that the handler asks for more input: it has answered, if it has written since the request began."""
        connection = self.connection
        if connection.received == connection.boundary:
            connection.has_answered = False  # what was written without a request: a greeting
        elif connection.has_answered and not connection.is_marked:
            connection.end_request()

    def _receive(self, receive: Callable[[], _R], count: Callable[[_R], int], nothing: _R) -> _R:
        connection = self.connection
        self.at_read()
        if connection.is_half_closed and not connection.may_serve():
            connection.discard_input()
            return nothing
        if connection.is_in_mark or connection.received != connection.boundary:
            result = receive()  # in the middle of a message
            connection.received += count(result)
            return result
        connection.is_waiting = True
        try:
            result = receive()
        finally:
            connection.is_waiting = False
        if received := count(result):
            connection.received += received
            if connection.is_half_closed and not connection.may_serve():
                connection.discard_input()
                return nothing
            connection.begin_request()
        return result

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        """Read; see :meth:`socket.socket.recv`."""
        if flags & socket.MSG_PEEK:
            return super().recv(bufsize, flags)  # takes nothing, so it begins nothing
        receive = super().recv
        return self._receive(lambda: receive(bufsize, flags), len, b"")

    def recv_into(self, buffer: WriteableBuffer, nbytes: int = 0, flags: int = 0) -> int:
        """Read; see :meth:`socket.socket.recv_into`."""
        receive = super().recv_into
        return self._receive(lambda: receive(buffer, nbytes, flags), int, 0)

    def send(self, data: ReadableBuffer, flags: int = 0, /) -> int:
        """Write; see :meth:`socket.socket.send`."""
        self.connection.has_answered = True
        return super().send(data, flags)

    def sendall(self, data: ReadableBuffer, flags: int = 0, /) -> None:
        """Write; see :meth:`socket.socket.sendall`."""
        self.connection.has_answered = True
        super().sendall(data, flags)

    def sendmsg(self, buffers: Iterable[ReadableBuffer], *args: Any) -> int:
        """Write; see :meth:`socket.socket.sendmsg`."""
        self.connection.has_answered = True
        return super().sendmsg(buffers, *args)

    def sendfile(self, file: _SendableFile, offset: int = 0, count: int | None = None) -> int:
        """Write; see :meth:`socket.socket.sendfile`."""
        self.connection.has_answered = True
        return super().sendfile(file, offset, count)

    def makefile(self, mode: str = "r", buffering: int | None = None, **text: Any) -> Any:
        """Make a file; see :meth:`socket.socket.makefile`. A buffered binary reader tells what it has read ahead."""
        if mode not in {"rb", "br"} or buffering == 0:
            return super().makefile(mode, buffering, **text)  # type: ignore[call-overload]
        size = io.DEFAULT_BUFFER_SIZE if buffering is None or buffering < 0 else buffering
        return _TrackedReader(self, super().makefile("rb", 0), size)

    def close(self) -> None:
        """Close; files made from this socket keep it open until they are closed, too."""
        self.connection.close()
        super().close()
        if self.fileno() < 0:
            self.connection.closed()


class _TrackedReader(io.BufferedReader):
    """The handler's ``rfile``: counts what it has read ahead, and says when the handler asks for more.

    Iterating calls ``readline``, as it does for every subclass.
    """

    def __init__(self, sock: TrackedSocket, raw: io.RawIOBase, size: int) -> None:
        super().__init__(raw, size)
        self._tracked = sock

    def _read(self, read: Callable[[], _R], count: Callable[[_R], int]) -> _R:
        connection = self._tracked.connection
        self._tracked.at_read()
        received_before = connection.received
        given = 0
        try:
            result = read()
            given = count(result)
        finally:
            connection.leftover += connection.received - received_before - given
        return result

    def read(self, size: int | None = -1, /) -> bytes:
        return self._read(lambda: io.BufferedReader.read(self, size), len)

    def read1(self, size: int = -1, /) -> bytes:
        return self._read(lambda: io.BufferedReader.read1(self, size), len)

    def readline(self, size: int | None = -1, /) -> bytes:
        return self._read(lambda: io.BufferedReader.readline(self, size), len)

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        return self._read(lambda: io.BufferedReader.readinto(self, buffer), int)

    def readinto1(self, buffer: WriteableBuffer, /) -> int:
        return self._read(lambda: io.BufferedReader.readinto1(self, buffer), int)

    def peek(self, size: int = 0, /) -> bytes:
        return self._read(lambda: io.BufferedReader.peek(self, size), lambda _: 0)
