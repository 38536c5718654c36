"""Drains ``socketserver.TCPServer`` and ``ThreadingTCPServer``, and servers derived from them.

Theory of operation: the user's own server object runs, with its handler class and whatever it overrides. Two of its
methods are replaced on the instance: ``get_request``, which hands out a :class:`TrackedSocket` for each connection, and
``finish_request``, which runs in the serving thread and tells where the handler begins and ends. The socket sees what
the handler does:

- The first bytes after a boundary begin a request.
- A handler that reads again *after having written* has answered: that is the end of the request and the next boundary.
  One that reads again without having written is still collecting the message.
- A message that is already in ``rfile``'s buffer begins the next request at once.
- A handler that returns, or marks its requests (:func:`~registry_drain.servers.current_request.mark_request`), needs no
  guess.

At a boundary with nothing sent the connection is idle, and is closed as :mod:`registry_drain.servers.connections` says:
the handler reads an end of file, as it would from a client that left.

Rules:

1. ``serve_forever`` is left by an exception from ``get_request``; ``shutdown()`` would deadlock in the wrong thread,
   and wait for a busy handler in a server without threads.
2. The listening descriptor is closed only when ``serve_forever`` is left: until then its selector may look at the
   number, which must not become another socket's. It refuses connections from the moment it is shut down.
3. ``server_close()``, the user's hook for cleaning up, is called last, and only if no handler is stuck: it joins them.
"""

from __future__ import annotations

import errno
import io
import logging
import socket
import socketserver
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from registry_drain.clock import SYSTEM_CLOCK, Clock, Deadline
from registry_drain.errors import ConfigurationError, ServerError
from registry_drain.servers.base import ListenerClosure
from registry_drain.servers.connections import IDLE_QUIET, Connection, Connections, join_threads
from registry_drain.servers.current_request import serving
from registry_drain.servers.in_flight import InFlight, InFlightRequest
from registry_drain.servers.listener import DrainableListener, ListenerStoppedError, bound_address

if TYPE_CHECKING:
    from socket import _SendableFile

    from _typeshed import ReadableBuffer, WriteableBuffer

logger = logging.getLogger(__name__)

_R = TypeVar("_R")

_LEAVE_LIMIT = 0.050
"""Seconds that closing the listener waits for ``serve_forever`` to leave; connections are refused before that."""


_Accepted = tuple["TrackedSocket", Any]


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
            sock.close()
            logger.error("refused a connection: %s is not supported by SocketServer yet", type(sock).__name__)
            raise OSError(errno.EPROTONOSUPPORT, f"{type(sock).__name__} is not supported")
        timeout = sock.gettimeout()
        tracked = cls(sock.family, sock.type, sock.proto, fileno=sock.detach())
        tracked.settimeout(timeout)
        tracked.connection = Connection(connections, tracked, is_guessed=True)
        connections.add(tracked.connection)
        return tracked

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
        return self._receive(lambda: socket.socket.recv(self, bufsize, flags), len, b"")

    def recv_into(self, buffer: WriteableBuffer, nbytes: int = 0, flags: int = 0) -> int:
        """Read; see :meth:`socket.socket.recv_into`."""
        return self._receive(lambda: socket.socket.recv_into(self, buffer, nbytes, flags), int, 0)

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


class SocketServer:
    """Makes a ``socketserver.TCPServer`` (with threads or without) drainable.

    Give it the server object before anybody runs it; the adapter binds it if that was left open, runs its
    ``serve_forever`` in a thread of its own, and calls its ``server_close`` in the end. Thread-safe.

    Args:
        server: the user's own; not a UDP or a forking one.
        clock: for the instants of requests.
        idle_quiet: seconds without a byte before an idle connection is closed by the drain.

    Raises:
        ConfigurationError: a kind of server that this adapter cannot drain.
    """

    def __init__(
        self, server: socketserver.TCPServer, *, clock: Clock = SYSTEM_CLOCK, idle_quiet: float = IDLE_QUIET
    ) -> None:
        if not isinstance(server, socketserver.TCPServer) or server.socket_type != socket.SOCK_STREAM:
            raise ConfigurationError(f"{type(server).__name__} is not a socketserver.TCPServer: it has no connections")
        if isinstance(server, getattr(socketserver, "ForkingMixIn", ())):
            raise ConfigurationError(
                f"{type(server).__name__} serves in child processes, where requests cannot be counted from here: "
                "use ThreadingMixIn instead of ForkingMixIn"
            )
        self._server = server
        self._connections = Connections(clock=clock, idle_quiet=idle_quiet)
        self._in_flight = InFlight(clock=clock)
        self._in_flight.include(self._connections)
        self._get_one = server.get_request
        self._finish_one = server.finish_request
        self._lock = threading.Lock()
        self._listener: DrainableListener[_Accepted] | None = None
        self._closure: ListenerClosure | None = None
        self._thread = threading.Thread(target=self._serve, name="registry-drain-socketserver", daemon=True)
        self._has_left = threading.Event()
        self._is_freed = False

    @property
    def in_flight(self) -> InFlight:
        """The server's requests."""
        return self._in_flight

    @property
    def connections(self) -> Connections:
        """The open connections."""
        return self._connections

    def start(self) -> tuple[str, int]:
        """Bind and listen (unless the server does already) and serve; return the bound address and port.

        Raises:
            OSError: the address cannot be bound.
            ServerError: started or stopped before.
        """
        with self._lock:
            if self._listener is not None or self._closure is not None:
                raise ServerError(f"{self!r} was started or stopped before: make a new server object to serve again")
            if not self._server.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                self._server.server_bind()
                self._server.server_activate()
            self._listener = DrainableListener(self._server.socket, self._accept)
            # On the instance: the class may serve elsewhere without us.
            self._server.get_request = self._listener.accept  # type: ignore[method-assign]
            self._server.finish_request = self._finish_request  # type: ignore[method-assign, assignment]
            self._thread.start()
            return bound_address(self._server.socket)

    def close_listener(self, deadline: Deadline) -> ListenerClosure:
        """Stop accepting; what is in the backlog is served. See :meth:`DrainableServer.close_listener`."""
        with self._lock:
            listener = self._listener
            if listener is None:
                self._server.socket.close()
                self._closure = ListenerClosure("never started")
                return self._closure
        closure = listener.stop(deadline)
        # Normally serve_forever leaves at once and the descriptor is closed; without threads it may be in a request.
        deadline.clock.wait(self._has_left, min(_LEAVE_LIMIT, deadline.remaining()))
        return closure

    def drain(self, deadline: Deadline) -> bool:
        """Let handlers finish, close idle connections. See :meth:`DrainableServer.drain`."""
        return self._connections.drain(deadline)

    def cut_off(self) -> tuple[InFlightRequest, ...]:
        """Shut what is left, end the threads, call ``server_close()``. See :meth:`DrainableServer.cut_off`."""
        self.close_listener(Deadline.after(0.0))
        cut = self._connections.cut_off()
        has_ended = join_threads(self._threads)
        with self._lock:
            must_free, self._is_freed = has_ended and not self._is_freed, has_ended or self._is_freed
        if must_free:
            self._server.server_close()
        return cut

    def _accept(self) -> _Accepted:
        sock, address = self._get_one()
        return TrackedSocket.adopt(sock, self._connections), address

    def _finish_request(self, request: TrackedSocket, client_address: Any) -> None:
        # In the serving thread, around the handler.
        connection = request.connection
        connection.thread = threading.current_thread()
        serving.connection = connection
        try:
            self._finish_one(request, client_address)
        finally:
            serving.connection = None

    def _serve(self) -> None:
        try:
            self._server.serve_forever()
        except ListenerStoppedError:
            pass
        except Exception:
            logger.exception("%r: serve_forever failed; nothing is accepted any more", self)
        finally:
            self._server.socket.close()
            self._has_left.set()

    def _threads(self) -> list[threading.Thread]:
        return [*self._connections.threads(), *([self._thread] if self._thread.is_alive() else [])]

    def __repr__(self) -> str:
        """Show the wrapped server's kind and the counts."""
        return (
            f"<SocketServer {type(self._server).__name__} connections={len(self._connections)} "
            f"in_flight={self._in_flight.count}>"
        )
