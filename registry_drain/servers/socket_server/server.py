"""Drains ``socketserver.TCPServer`` and ``ThreadingTCPServer``, and servers derived from them.

Theory of operation: the user's own server object runs, with its handler class and whatever it overrides. Two of its
methods are replaced on the instance: ``get_request``, which hands out a
:class:`~registry_drain.servers.socket_server.tracked_socket.TrackedSocket` for each connection, and
``finish_request``, which runs in the serving thread and tells where the handler begins and ends. What the
socket sees the handler do tells requests and boundaries.

At a boundary with nothing sent the connection is idle, and is closed as
:mod:`registry_drain.servers.connections.connection` says: the handler reads an end of file, as it would from a client
that left.

Rules:

1. ``serve_forever`` is left by an exception from ``get_request``; ``shutdown()`` would deadlock in the wrong thread,
   and wait for a busy handler in a server without threads.
2. The listening descriptor is closed only when ``serve_forever`` is left: until then its selector may look at the
   number, which must not become another socket's. It refuses connections from the moment it is shut down.
3. ``server_close()``, the user's hook for cleaning up, is called last, and only if no handler is stuck: it joins them.
"""

from __future__ import annotations

import logging
import math
import socket
import socketserver
import ssl
import threading
from typing import Any

from registry_drain.clock import SYSTEM_CLOCK, Clock, Deadline
from registry_drain.errors import ConfigurationError, ServerError
from registry_drain.servers.base import ListenerClosure
from registry_drain.servers.connections import IDLE_QUIET, SPREAD, Connections, join_threads
from registry_drain.servers.current_request import serving
from registry_drain.servers.in_flight import InFlight, InFlightRequest
from registry_drain.servers.listener import DrainableListener, ListenerStoppedError, bound_address, prepare
from registry_drain.servers.socket_server.tracked_socket import TrackedSocket
from registry_drain.servers.socket_server.tracked_tls import HANDSHAKE_TIMEOUT, TrackedTlsSocket, shake_hands_later

logger = logging.getLogger(__name__)

_LEAVE_LIMIT = 0.050
"""Seconds that closing the listener waits for ``serve_forever`` to leave; connections are refused before that."""

_Accepted = tuple[TrackedSocket, Any]


class SocketServer:
    """Makes a ``socketserver.TCPServer`` (with threads or without) drainable.

    Give it the server object before anybody runs it; the adapter binds it if that was left open, runs its
    ``serve_forever`` in a thread of its own, and calls its ``server_close`` in the end. The file of a Unix socket is
    removed then. Thread-safe.

    Args:
        server: the user's own; not a UDP or a forking one.
        clock: for the instants of requests.
        idle_quiet: seconds without a byte before an idle connection is closed by the drain.
        spread: seconds over which idle connections are closed if there are thousands, so that their clients do not all
            reconnect at the same instant; 0: all at once.
        handshake_timeout: seconds that a client has to begin, and again to end, its TLS handshake, where the server's
            listening socket was wrapped by an :class:`ssl.SSLContext`.

    Raises:
        ConfigurationError: a kind of server that this adapter cannot drain.
    """

    def __init__(
        self,
        server: socketserver.TCPServer,
        *,
        clock: Clock = SYSTEM_CLOCK,
        idle_quiet: float = IDLE_QUIET,
        spread: float = SPREAD,
        handshake_timeout: float = HANDSHAKE_TIMEOUT,
    ) -> None:
        if not math.isfinite(handshake_timeout) or handshake_timeout <= 0:
            raise ConfigurationError(f"handshake_timeout is {handshake_timeout!r}: give seconds, more than 0")
        self._handshake_timeout = handshake_timeout
        if not isinstance(server, socketserver.TCPServer) or server.socket_type != socket.SOCK_STREAM:
            raise ConfigurationError(f"{type(server).__name__} is not a socketserver.TCPServer: it has no connections")
        if isinstance(server, getattr(socketserver, "ForkingMixIn", ())):
            raise ConfigurationError(
                f"{type(server).__name__} serves in child processes, where requests cannot be counted from here: "
                "use ThreadingMixIn instead of ForkingMixIn"
            )
        self._server = server
        self._in_flight = InFlight(clock=clock)
        self._connections = Connections(
            clock=clock, idle_quiet=idle_quiet, stop_state=self._in_flight.stop_state, spread=spread
        )
        self._in_flight.include(self._connections)
        self._get_one = server.get_request
        self._finish_one = server.finish_request
        self._lock = threading.Lock()
        self._listener: DrainableListener[_Accepted] | None = None
        self._closure: ListenerClosure | None = None
        self._thread = threading.Thread(target=self._serve, name="registry-drain-socketserver", daemon=True)
        self._has_left = threading.Event()
        self._is_freed = False

    _plain_class: type[TrackedSocket] = TrackedSocket
    _tls_class: type[TrackedTlsSocket] = TrackedTlsSocket

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
                prepare(self._server.socket)
                self._server.server_bind()
                self._server.server_activate()
            shake_hands_later(self._server.socket)
            self._listener = DrainableListener(self._server.socket, self._accept, removes_path=False)
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
        if self._listener is not None:
            # After server_close(), in which users remove the file themselves, and may expect to find it.
            self._listener.remove_path()
        return cut

    def _accept(self) -> _Accepted:
        sock, address = self._get_one()
        return self._adopt(sock), address

    def _adopt(self, sock: socket.socket) -> TrackedSocket:
        if type(sock) is ssl.SSLSocket:
            return self._tls_class.adopt_tls(sock, self._connections)
        return self._plain_class.adopt(sock, self._connections)

    def _finish_request(self, request: TrackedSocket, client_address: Any) -> None:
        # In the serving thread, around the handler.
        connection = request.connection
        connection.thread = threading.current_thread()
        if isinstance(request, TrackedTlsSocket) and not request.shake_hands(self._handshake_timeout):
            return
        serving.set(connection)
        try:
            self._finish_one(request, client_address)
        finally:
            serving.set(None)
            connection.namer = str  # the handler's: with this circle broken its files are closed at once
            if isinstance(request, TrackedTlsSocket):
                request.say_goodbye()

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
