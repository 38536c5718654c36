"""Drains thriftpy2's ``TThreadedServer`` and ``TSimpleServer``.

Their ``close()`` only sets a flag, which nobody looks at before the next connection comes. Theory of operation: the
user's own server object runs its own ``serve()``, with four things replaced on it: ``trans.accept``, which hands out
connections until the listener is stopped, then raises a BaseException; ``itrans_factory``, which binds a connection to
the thread that serves it; ``processor``, which marks the boundaries
(:mod:`~registry_drain.servers.thriftpy2.boundaries`); and each client's ``read``, which counts.

A connection is idle when its thread reads at a boundary with nothing read ahead. The same read, while draining, is what
closes it behind its answer. ``client_timeout`` goes on to mean what it meant.

TLS: the handshake is left to a connection's first read, as it happens inside ``accept`` otherwise, where a client that
says nothing holds up all others.

Sources: ``thriftpy2/server.py``, ``thriftpy2/transport/socket.py``, ``sslsocket.py`` of thriftpy2 0.7.
"""

from __future__ import annotations

import logging
import socket
import ssl
import threading
from collections.abc import Callable, Collection
from contextvars import ContextVar
from typing import Any

from thriftpy2.server import TServer, TSimpleServer, TThreadedServer
from thriftpy2.thrift import TProcessor
from thriftpy2.transport import TSocket, TSSLServerSocket, TTransportException

from registry_drain.clock import SYSTEM_CLOCK, Clock
from registry_drain.errors import ConfigurationError
from registry_drain.servers.connections import IDLE_QUIET, Connection
from registry_drain.servers.connections.adapter import BlockingServerAdapter
from registry_drain.servers.connections.handshake import shake_hands_first
from registry_drain.servers.current_request import serving
from registry_drain.servers.listener import DrainableListener
from registry_drain.servers.thriftpy2.boundaries import (
    BlockingReader,
    end_if_closed,
    hooked_processor,
    note_request,
)

logger = logging.getLogger(__name__)


class Thriftpy2Server(BlockingServerAdapter):
    """Makes a thriftpy2 server that blocks drainable.

    Give it the server object (``make_server`` returns one) before anybody calls its ``serve()``; the adapter does, in a
    thread of its own. Handlers, transports and protocols stay as they are. Thread-safe.

    Args:
        server: the user's own TThreadedServer or TSimpleServer.
        health_check_methods: names of methods whose calls are no sign that callers still know this instance.
        clock: for the instants of requests.
        idle_quiet: seconds without a byte before an idle connection is closed by the drain.

    Raises:
        ConfigurationError: a kind of server that this adapter cannot drain.
    """

    def __init__(
        self,
        server: TServer,
        *,
        health_check_methods: Collection[str] = (),
        clock: Clock = SYSTEM_CLOCK,
        idle_quiet: float = IDLE_QUIET,
    ) -> None:
        if not isinstance(server, (TThreadedServer, TSimpleServer)):
            raise ConfigurationError(
                f"{type(server).__name__} cannot be drained: use TThreadedServer or TSimpleServer, or for TAsyncServer "
                "Thriftpy2AioServer"
            )
        super().__init__("registry-drain-thriftpy2", clock, idle_quiet)
        self._server: Any = server
        self._transport: Any = server.trans
        self._accept_one: Callable[[], Any] = self._transport.accept
        self._health_check_methods = frozenset(health_check_methods)

    def _listen(self) -> socket.socket:
        if self._transport.sock is None:
            try:
                self._transport.listen()
            except OSError:
                self._transport.close()
                raise
        if isinstance(self._transport, TSSLServerSocket):
            self._transport.ssl_context = _WithoutHandshake(self._transport.ssl_context)
        sock: socket.socket = self._transport.sock
        return sock

    def _accept(self) -> Any:
        client = self._accept_one()
        self._adopt(client)
        return client

    def _install(self, listener: DrainableListener[Any]) -> None:
        self._transport.listen = _do_nothing
        self._transport.accept = listener.accept
        self._server.itrans_factory = _BindingTransportFactory(self._server.itrans_factory)
        self._server.processor = hooked_processor(
            self._server.processor, self._mark_boundaries, self._name_requests, TProcessor
        )

    def _close_transport(self) -> None:
        self._transport.close()

    def _run_server(self) -> None:
        self._server.serve()

    def _adopt(self, client: Any) -> None:
        """Make a TSocket tell its connection what it reads."""
        connection = Connection(self._connections, client.sock)
        connection.is_timed = bool(self._health_check_methods) or not connection.has_kernel_times
        self._connections.add(connection)
        receive: Callable[[int], bytes] = client.read
        if isinstance(client.sock, ssl.SSLSocket):
            receive = _read_behind_handshake(client, connection)
        elif type(client).read is TSocket.read:
            receive = client.sock.recv  # all that it does, but for the end of file
        reader = BlockingReader(connection, receive)
        close: Callable[[], None] = client.close

        def close_connection() -> None:
            connection.close()
            close()
            connection.closed()

        client.reader, client.read, client.close = reader, reader.read, close_connection

    def _mark_boundaries(self, process: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
        def process_one(iprot: Any, oprot: Any) -> None:
            reader = _reader.get()
            if reader is not None:
                _end_message(reader, iprot)
            process(iprot, oprot)

        return process_one

    def _name_requests(self, process_in: Callable[[Any], Any], *, is_first: bool) -> Callable[[Any], Any]:
        health_checks, connections = self._health_check_methods, self._connections

        def process_in_named(iprot: Any) -> Any:
            reader = _reader.get()
            if reader is None:
                return process_in(iprot)
            connection = reader.connection
            # On the path of every request, hence spelled out: the common case of what else is called.
            if is_first:
                if reader.asks_late and not connections.is_draining:
                    connection.boundary = connection.received
                    connection.name = ""
                    if connection.is_half_closed:
                        end_if_closed(connection)
                else:
                    _end_message(reader, iprot)
            call = process_in(iprot)
            if connection.is_timed or connection.is_half_closed or connections.is_draining:
                note_request(connection, call[0], health_checks)
            else:
                connection.name = call[0]
                connection.served += 1
            return call

        return process_in_named

    def __repr__(self) -> str:
        """Show the wrapped server's kind and the counts."""
        return (
            f"<Thriftpy2Server {type(self._server).__name__} connections={len(self._connections)} "
            f"in_flight={self._in_flight.count}>"
        )


def _end_message(reader: BlockingReader, iprot: Any) -> None:
    """Note a message boundary: what was begun before has been answered."""
    connection = reader.connection
    connection.leftover = reader.unread(iprot.trans)
    connection.end_request()
    if connection.is_half_closed:
        end_if_closed(connection)


_reader: ContextVar[BlockingReader | None] = ContextVar("registry_drain.thriftpy2", default=None)
"""What reads for the connection that the calling thread serves."""


class _BindingTransportFactory:
    """Calls the user's factory, in the thread that is about to serve the connection."""

    def __init__(self, factory: Any) -> None:
        self._factory = factory

    def get_transport(self, client: Any) -> Any:
        transport = self._factory.get_transport(client)
        reader: BlockingReader | None = getattr(client, "reader", None)
        if reader is not None:
            client.read = reader.serve(transport)
            reader.connection.thread = threading.current_thread()
            reader.connection.is_waiting = True  # From now on the thread either reads, or has read what it serves.
            serving.set(reader.connection)
        _reader.set(reader)
        return transport


def _read_behind_handshake(client: Any, connection: Connection) -> Callable[[int], bytes]:
    """Return a ``read`` that shakes hands once, and then reads as the client does."""
    read_as_before: Callable[[int], bytes] = client.read
    is_secured = False

    def read(size: int) -> bytes:
        nonlocal is_secured
        if not is_secured:
            try:
                shake_hands_first(connection, client.sock.do_handshake)
            except (EOFError, OSError) as error:
                if not (connection.is_half_closed or isinstance(error, EOFError)):
                    logger.warning("no TLS with %s: %s", connection.peer, error)
                raise TTransportException(TTransportException.END_OF_FILE, f"no TLS: {error}") from error
            is_secured = True
        return read_as_before(size)

    return read


class _WithoutHandshake:
    """An SSLContext whose sockets shake hands when they are first read from."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context

    def wrap_socket(self, sock: socket.socket, *, server_side: bool) -> ssl.SSLSocket:
        return self._context.wrap_socket(sock, server_side=server_side, do_handshake_on_connect=False)


def _do_nothing() -> None:
    """Stand in for ``listen()``, which ``serve()`` calls again."""
