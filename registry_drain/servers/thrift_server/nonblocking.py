"""Drains Apache Thrift's ``TNonblockingServer``: one thread for all sockets, a pool for the calls.

Its own ``stop()`` only ends ``serve()``: the listener stays open, and answers are lost, since only the loop writes.
Theory of operation: the loop goes on, in a thread of ours, until the drain is over. It is to every connection what a
serving thread is to one in the other servers, so :class:`~registry_drain.servers.connections.Connections` closes them
by the same rules: half-closed behind an answer, or when idle and quiet; then read until the linger time is over, when
the loop sees the end of the input and closes the socket.

Three things are replaced on the server: ``clients``, which makes each connection one of
:mod:`~registry_drain.servers.thrift_server.nonblocking_connection`; ``tasks``, through which each message passes on its
way to a worker; and, when the listener is to be closed, ``handle``, around which the loop then does what others ask of
it.

Rules:

1. The listener leaves the loop's poll *before* it is sealed: once shut it would be readable for ever, and the loop has
   no place for that. From then on the stopping thread accepts, and hands over through a queue. A loop that is too late
   for that finds it closed: one turn of ``serve()`` fails, and the loop goes on without the listener.
2. Sockets are closed by the loop alone, but for that of a call whose processor has failed: the library closes it in
   the worker, when the loop does not poll it.

Source: ``thrift/server/TNonblockingServer.py`` of Apache Thrift 0.25.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections import deque
from collections.abc import Callable, Collection
from typing import Any

from thrift.server import TNonblockingServer as library  # noqa: N813 - a module
from thrift.server.TNonblockingServer import TNonblockingServer
from thrift.transport.TSSLSocket import TSSLServerSocket

from registry_drain.clock import SYSTEM_CLOCK, Clock, Deadline
from registry_drain.errors import ConfigurationError, ServerError
from registry_drain.servers.base import ListenerClosure
from registry_drain.servers.connections import IDLE_QUIET, Connections, join_threads
from registry_drain.servers.in_flight import InFlight, InFlightRequest
from registry_drain.servers.listener import DrainableListener, bound_address
from registry_drain.servers.thrift_server.nonblocking_connection import Clients, Tasks, TrackedConnection
from registry_drain.servers.thrift_server.transport import do_nothing, listening_socket, listening_transport

logger = logging.getLogger(__name__)

_OVERTIME_S = 0.050
"""The least that the loop gets to let go of the listener: it never waits for a request."""


class ThriftNonblockingServer:
    """Makes a ``TNonblockingServer`` drainable.

    Give it the server object before anybody calls its ``serve()``; the adapter does, in a thread of its own.
    Thread-safe.

    Args:
        server: the user's own, on a ``TServerSocket``. TLS is not possible with it.
        health_check_methods: names of methods whose calls are no sign that callers still know this instance.
        clock: for the instants of requests.
        idle_quiet: seconds without a byte before an idle connection is closed by the drain.

    Raises:
        ConfigurationError: a kind of server or server transport that this adapter cannot drain.
    """

    def __init__(
        self,
        server: Any,
        *,
        health_check_methods: Collection[str] = (),
        clock: Clock = SYSTEM_CLOCK,
        idle_quiet: float = IDLE_QUIET,
    ) -> None:
        kind = type(server).__name__
        if not isinstance(server, TNonblockingServer):
            raise ConfigurationError(f"{kind} is not a TNonblockingServer: use ThriftServer({kind}(...))")
        if isinstance(server.socket, TSSLServerSocket):
            raise ConfigurationError(
                f"{kind} reads sockets as if they were not TLS, and loses connections: use TThreadedServer with "
                f"{type(server.socket).__name__}"
            )
        self._server: Any = server
        self._transport: Any = listening_transport(server.socket)
        self._health_check_methods = frozenset(health_check_methods)
        self._in_flight = InFlight(clock=clock)
        self._connections = Connections(
            clock=clock, idle_quiet=idle_quiet, corks_answers=True, stop_state=self._in_flight.stop_state
        )
        self._in_flight.include(self._connections)
        self._lock = threading.Lock()
        self._listener: DrainableListener[None] | None = None
        self._listener_descriptor = -1
        self._closure: ListenerClosure | None = None
        self._accepted: deque[TrackedConnection] = deque()
        self._must_let_go = False
        self._has_let_go = threading.Event()
        self._is_freed = False
        self._thread = threading.Thread(target=self._serve, name="registry-drain-thrift", daemon=True)

    @property
    def in_flight(self) -> InFlight:
        """The server's requests, named by method."""
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
            sock = listening_socket(self._transport)
            self._listener_descriptor = sock.fileno()
            self._listener = DrainableListener(sock, self._accept_for_loop)
            server = self._server
            self._transport.listen = do_nothing
            server.tasks = Tasks()
            server.clients = Clients(self._track)
            self._handle_once: Callable[[], None] = server.handle
            self._thread.start()
            return bound_address(sock)

    def close_listener(self, deadline: Deadline) -> ListenerClosure:
        """Stop accepting; what is in the backlog is served. See :meth:`DrainableServer.close_listener`."""
        with self._lock:
            listener = self._listener
            if listener is None:
                self._transport.close()
                self._closure = ListenerClosure("never started")
                return self._closure
        self._must_let_go = True
        self._server.handle = self._handle  # serve() looks it up in each turn.
        self._wake_up()
        self._has_let_go.wait(max(deadline.remaining(), _OVERTIME_S))
        closure = listener.stop(deadline)
        self._transport.close()
        return closure

    def drain(self, deadline: Deadline) -> bool:
        """Let calls finish, close idle connections. See :meth:`DrainableServer.drain`."""
        return self._connections.drain(deadline)

    def cut_off(self) -> tuple[InFlightRequest, ...]:
        """Shut what is left and end the threads, the workers' included. See :meth:`DrainableServer.cut_off`."""
        self.close_listener(Deadline.after(0.0))
        cut = self._connections.cut_off()
        with self._lock:
            must_free, self._is_freed = not self._is_freed, True
        if must_free:
            self._free()
        return cut

    def _free(self) -> None:
        server = self._server
        if self._thread.is_alive():
            server.stop()
            join_threads(lambda: [self._thread] if self._thread.is_alive() else [])
        for _ in range(server.threads):
            server.tasks.put([None, None, None, None, None])  # as its close() does
        join_threads(self._workers)
        for end in (server._read, server._write):  # noqa: SLF001 - nothing of its own closes them
            end.close()

    def _workers(self) -> list[threading.Thread]:
        return [
            thread
            for thread in threading.enumerate()
            if isinstance(thread, library.Worker) and thread.queue is self._server.tasks
        ]

    # --- the loop's thread ----------------------------------------------------------------------------------------

    def _serve(self) -> None:
        try:
            self._serve_to_the_end()
        except Exception:
            logger.exception("%r: serve() failed; nothing is served any more", self)
        finally:
            self._has_let_go.set()
            for connection in (*self._server.clients.values(), *self._accepted):
                connection.close()

    def _serve_to_the_end(self) -> None:
        server = self._server
        try:
            server.serve()
        except Exception:
            if not self._must_let_go or self._has_let_go.is_set():
                raise
            # The listener was closed under a loop that was late. That is no reason to lose what it serves.
            self._let_go_of_listener()
            while not server._stop:  # noqa: SLF001 - serve() would forget a stop() that has come meanwhile
                server.handle()

    def _handle(self) -> None:
        """Stand in for the server's own ``handle``, one turn of the loop."""
        if self._must_let_go and not self._has_let_go.is_set():
            self._let_go_of_listener()
        while self._accepted:
            connection = self._accepted.popleft()
            self._server.clients[connection.fileno()] = connection
        self._handle_once()

    def _let_go_of_listener(self) -> None:
        if self._server.poll is not None:
            with contextlib.suppress(KeyError):
                self._server.poll.unregister(self._listener_descriptor)
        # It polls something in place of the listener: that end of a pair to which nobody ever writes.
        self._server.socket = _NoListener(self._server._write)  # noqa: SLF001
        self._has_let_go.set()

    def _track(self, connection: Any) -> TrackedConnection:
        if isinstance(connection, TrackedConnection):
            return connection
        return TrackedConnection(
            connection, self._connections, self._thread, self._server.max_frame_size, self._health_check_methods
        )

    # --- the stopping thread --------------------------------------------------------------------------------------

    def _accept_for_loop(self) -> None:
        sock, _ = self._transport.handle.accept()
        # Known to the drain from now on; what it has to say, the loop hears.
        self._accepted.append(self._track(library.Connection(sock, self._server.wake_up)))
        self._wake_up()

    def _wake_up(self) -> None:
        with contextlib.suppress(OSError):  # closed already
            self._server.wake_up()

    def __repr__(self) -> str:
        """Show the counts."""
        return f"<ThriftNonblockingServer connections={len(self._connections)} in_flight={self._in_flight.count}>"


class _NoListener:
    """Stands in for the server transport when the listener is somebody else's to close."""

    def __init__(self, never_accepts: socket.socket) -> None:
        self.handle = never_accepts

    def listen(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing: the handle is the server's own."""
