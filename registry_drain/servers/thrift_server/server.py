"""Drains Apache Thrift's ``TThreadedServer``, ``TThreadPoolServer`` and ``TSimpleServer``.

These have no stop of their own. Theory of operation: the user's own server object runs its own ``serve()``, with three
things replaced on it when it starts.

- ``serverTransport.accept`` returns connections until the listener is stopped, then raises a BaseException: the serve
  loops log an Exception and go on.
- ``inputTransportFactory`` runs in the thread that serves the connection, and so binds the two to each other.
- ``inputProtocolFactory`` makes the user's own protocols; each one's ``readMessageBegin`` is replaced. Thrift's servers
  call it in a loop, once per message and at no other time: entering it is the message boundary, and leaving it tells
  the method's name. What was begun before has been answered then: the answer is flushed before the loop comes round.

A connection whose ``TSocket`` reads from the wire at a boundary is idle. Everything else, half-received messages
included, is busy. :mod:`registry_drain.servers.connections.connection` says how each is closed.

A pool's workers end by a sentinel each, queued behind the last connection, so that queued clients are served first.

Sources: ``thrift/server/TServer.py`` and ``thrift/transport/TSocket.py`` of Apache Thrift 0.25.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import threading
from collections.abc import Callable, Collection
from typing import Any

from thrift.server.TServer import TServer, TSimpleServer, TThreadedServer, TThreadPoolServer
from thrift.transport.TSocket import TSocket

from registry_drain.clock import SYSTEM_CLOCK, Clock, Deadline
from registry_drain.errors import ConfigurationError, ServerError
from registry_drain.servers.base import ListenerClosure
from registry_drain.servers.connections import IDLE_QUIET, Connection, Connections, join_threads
from registry_drain.servers.current_request import serving
from registry_drain.servers.in_flight import InFlight, InFlightRequest
from registry_drain.servers.listener import DrainableListener, ListenerStoppedError, bound_address
from registry_drain.servers.thrift_server.messages import (
    ReadHeader,
    count_reads,
    read_from,
    unread_in,
    watch_and_time,
    watch_drain,
    watch_only,
    write_to,
)

logger = logging.getLogger(__name__)

_END_OF_WORK = object()
"""Queued for a pool's worker in place of a client."""


class _WorkEndedError(BaseException):
    """Ends a pool's worker. Not an Exception: its loop logs those, and goes on."""


class ThriftServer:
    """Makes a Thrift server drainable.

    Give it the server object before anybody calls its ``serve()``; the adapter does, in a thread of its own. Handlers,
    processors, transports and protocols stay as they are: buffered or framed, binary, compact or header. Thread-safe.

    Args:
        server: the user's own TThreadedServer, TThreadPoolServer or TSimpleServer, on a ``TServerSocket``.
        health_check_methods: names of methods whose calls are no sign that callers still know this instance.
        clock: for the instants of requests.
        idle_quiet: seconds without a byte before an idle connection is closed by the drain.

    Raises:
        ConfigurationError: a kind of server or server transport that this adapter cannot drain.
    """

    def __init__(
        self,
        server: TServer,
        *,
        health_check_methods: Collection[str] = (),
        clock: Clock = SYSTEM_CLOCK,
        idle_quiet: float = IDLE_QUIET,
    ) -> None:
        if not isinstance(server, (TThreadedServer, TThreadPoolServer, TSimpleServer)):
            raise ConfigurationError(
                f"{type(server).__name__} cannot be drained: use TThreadedServer, TThreadPoolServer or TSimpleServer"
            )
        if not hasattr(server.serverTransport, "handle"):
            raise ConfigurationError(
                f"{type(server.serverTransport).__name__} has no listening socket: use TServerSocket"
            )
        self._server: Any = server
        self._transport: Any = server.serverTransport
        self._health_check_methods = frozenset(health_check_methods)
        self._in_flight = InFlight(clock=clock)
        self._connections = Connections(
            clock=clock, idle_quiet=idle_quiet, corks_answers=True, stop_state=self._in_flight.stop_state
        )
        self._in_flight.include(self._connections)
        self._accept_one: Callable[[], Any] = self._transport.accept
        self._lock = threading.Lock()
        self._listener: DrainableListener[Any] | None = None
        self._closure: ListenerClosure | None = None
        self._thread = threading.Thread(target=self._serve, name="registry-drain-thrift", daemon=True)
        self._workers: list[threading.Thread] = []

    @property
    def in_flight(self) -> InFlight:
        """The server's requests, named by method."""
        return self._in_flight

    @property
    def connections(self) -> Connections:
        """The open connections, those queued for a pool's workers included."""
        return self._connections

    def start(self) -> tuple[str, int]:
        """Bind and listen (unless the transport does already) and serve; return the bound address and port.

        Raises:
            OSError: the address cannot be bound.
            ServerError: started or stopped before.
        """
        with self._lock:
            if self._listener is not None or self._closure is not None:
                raise ServerError(f"{self!r} was started or stopped before: make a new TServer to serve again")
            if self._transport.handle is None:
                self._listen()
            self._listener = DrainableListener(self._transport.handle, self._accept)
            self._transport.listen = _do_nothing
            self._transport.accept = self._listener.accept
            server = self._server
            server.inputTransportFactory = _BindingTransportFactory(server.inputTransportFactory)
            # A copy of the factory, and not a wrapper: the serve loops ask for its type (THeaderProtocolFactory).
            make_protocol = server.inputProtocolFactory.getProtocol
            server.inputProtocolFactory = copy.copy(server.inputProtocolFactory)
            server.inputProtocolFactory.getProtocol = lambda transport: self._watch(make_protocol(transport), transport)
            if isinstance(server, TThreadPoolServer):
                self._work: Callable[[], None] = server.serveThread
                server.serveThread = self._serve_thread
            self._thread.start()
            return bound_address(self._transport.handle)

    def close_listener(self, deadline: Deadline) -> ListenerClosure:
        """Stop accepting; what is in the backlog is served. See :meth:`DrainableServer.close_listener`."""
        with self._lock:
            listener = self._listener
            if listener is None:
                self._transport.close()
                self._closure = ListenerClosure("never started")
                return self._closure
        closure = listener.stop(deadline)
        # The serve loop no longer touches it: accept() takes what is handed over.
        self._transport.close()
        return closure

    def drain(self, deadline: Deadline) -> bool:
        """Let calls finish, close idle connections. See :meth:`DrainableServer.drain`."""
        return self._connections.drain(deadline)

    def cut_off(self) -> tuple[InFlightRequest, ...]:
        """Shut what is left and end the threads, a pool's workers included. See :meth:`DrainableServer.cut_off`."""
        self.close_listener(Deadline.after(0.0))
        cut = self._connections.cut_off()
        join_threads(self._threads)
        return cut

    def _listen(self) -> None:
        try:
            self._transport.listen()
        except OSError:
            self._transport.close()  # It keeps a socket that could not be bound, and would pass for listening.
            raise

    def _accept(self) -> Any:
        client = self._accept_one()
        if client is not None:  # a TLS handshake that failed
            self._adopt(client)
        return client

    def _adopt(self, client: Any) -> None:
        """Make a TSocket tell its connection what it reads, by methods of its own."""
        connection = Connection(self._connections, client.handle)
        self._connections.add(connection)
        client.drained_connection = connection
        close: Callable[[], None] = client.close

        def close_connection() -> None:
            connection.close()
            close()
            connection.closed()

        client.close = close_connection
        # The methods of a plain TSocket do little but call the socket's. Doing that ourselves pays for the counting.
        kind = type(client)
        client.read = read_from(connection) if kind.read is TSocket.read else count_reads(connection, client.read)
        if kind.write is TSocket.write:
            client.write = write_to(connection)

    def _watch(self, protocol: Any, transport: Any) -> Any:
        """Make a protocol tell the connection served by this thread where messages begin."""
        connection = serving.get()
        if not isinstance(connection, Connection):
            return protocol
        read_header: ReadHeader = protocol.readMessageBegin
        unread = unread_in(protocol.trans, transport)
        connection.is_sure = unread is None
        connection.is_timed = bool(self._health_check_methods) or not connection.has_kernel_times
        watch = watch_and_time if connection.is_timed else watch_only
        protocol.readMessageBegin = watch(connection, read_header, self._health_check_methods)

        def take_over() -> None:
            protocol.readMessageBegin = watch_drain(connection, read_header, self._health_check_methods, unread)

        # In this order: a drain that begins meanwhile either finds the call, or is seen here.
        connection.when_draining = take_over
        if self._connections.is_draining:
            take_over()
        return protocol

    def _serve(self) -> None:
        try:
            self._server.serve()
        except ListenerStoppedError:
            pass
        except Exception:
            logger.exception("%r: serve() failed; nothing is accepted any more", self)
        finally:
            # Also after a failure: workers must not wait for clients that cannot come.
            if isinstance(self._server, TThreadPoolServer):
                for _ in range(self._server.threads):
                    self._server.clients.put(_END_OF_WORK)

    def _serve_thread(self) -> None:
        self._workers.append(threading.current_thread())
        with contextlib.suppress(_WorkEndedError):
            self._work()

    def _threads(self) -> list[threading.Thread]:
        threads = {*self._connections.threads(), *self._workers, self._thread}
        return [thread for thread in threads if thread.is_alive()]

    def __repr__(self) -> str:
        """Show the wrapped server's kind and the counts."""
        return (
            f"<ThriftServer {type(self._server).__name__} connections={len(self._connections)} "
            f"in_flight={self._in_flight.count}>"
        )


class _BindingTransportFactory:
    """Calls the user's factory, in the thread that is about to serve the connection."""

    def __init__(self, factory: Any) -> None:
        self._factory = factory

    def getTransport(self, client: Any) -> Any:  # noqa: N802  Thrift's name
        if client is _END_OF_WORK:
            raise _WorkEndedError
        connection: Connection | None = getattr(client, "drained_connection", None)
        serving.set(connection)
        if connection is not None:
            connection.thread = threading.current_thread()
            connection.is_waiting = True  # From now on the thread either reads, or has read what it serves.
        return self._factory.getTransport(client)


def _do_nothing() -> None:
    """Stand in for ``listen()``, which ``serve()`` calls again."""
