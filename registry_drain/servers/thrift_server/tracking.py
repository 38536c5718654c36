"""What is replaced on a Thrift server so that its connections can be drained, whatever runs its serve loop.

Theory of operation: sockets are taken in when they were accepted (:meth:`Tracking.adopt`). ``inputTransportFactory``
runs in the thread that serves the connection, and so binds the two to each other. ``inputProtocolFactory`` makes the
user's own protocols; each one's ``readMessageBegin`` is replaced. Thrift's servers call it in a loop, once per message
and at no other time: entering it is the message boundary, and leaving it tells the method's name. What was begun before
has been answered then: the answer is flushed before the loop comes round.

Sources: ``thrift/server/TServer.py`` and ``thrift/transport/TSocket.py`` of Apache Thrift 0.25.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Collection
from typing import Any

from thrift.transport.TSocket import TSocket

from registry_drain.servers.connections import Connection, Connections
from registry_drain.servers.current_request import serving
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
from registry_drain.servers.thrift_server.tls import read_behind_handshake


class Tracking:
    """Makes sockets and protocols of one server tell ``connections`` what they do.

    Args:
        connections: the server's, in this process.
        health_check_methods: names of methods whose calls are no sign that callers still know this instance.
    """

    def __init__(self, connections: Connections, health_check_methods: Collection[str] = ()) -> None:
        self.connections = connections
        self._health_check_methods = frozenset(health_check_methods)

    def install(self, server: Any, *, get_ready: Callable[[Any], None] | None = None) -> None:
        """Replace the factories of ``server``. ``get_ready`` is called with each client before it is served."""
        server.inputTransportFactory = _BindingTransportFactory(server.inputTransportFactory, get_ready)
        # A copy of the factory, and not a wrapper: the serve loops ask for its type (THeaderProtocolFactory).
        make_protocol = server.inputProtocolFactory.getProtocol
        server.inputProtocolFactory = copy.copy(server.inputProtocolFactory)
        server.inputProtocolFactory.getProtocol = lambda transport: self._watch(make_protocol(transport), transport)

    def adopt(self, client: Any) -> Connection:
        """Make a TSocket tell its connection what it reads, by methods of its own."""
        connection = Connection(self.connections, client.handle)
        self.connections.add(connection)
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
        handshake: Callable[[], None] | None = getattr(client, "late_handshake", None)
        if handshake is not None:
            client.read = read_behind_handshake(client, connection, handshake)
        return connection

    def read_header_of(self, protocol: Any, connection: Connection) -> ReadHeader:  # noqa: ARG002 - for who overrides
        """Return what reads a message's header: the protocol's own."""
        read_header: ReadHeader = protocol.readMessageBegin
        return read_header

    def watch_serving(self, protocol: Any, connection: Connection, read_header: ReadHeader) -> ReadHeader:  # noqa: ARG002
        """Return what stands in for ``protocol.readMessageBegin`` until the drain begins."""
        watch = watch_and_time if connection.is_timed else watch_only
        return watch(connection, read_header, self._health_check_methods)

    def is_health_check(self, name: str) -> bool:
        """Whether calls of this method are no sign that callers still know this instance."""
        return name in self._health_check_methods

    def _watch(self, protocol: Any, transport: Any) -> Any:
        """Make a protocol tell the connection served by this thread where messages begin."""
        connection = serving.get()
        if not isinstance(connection, Connection):
            return protocol
        read_header = self.read_header_of(protocol, connection)
        unread = unread_in(protocol.trans, transport)
        connection.is_sure = unread is None
        connection.is_timed = bool(self._health_check_methods) or not connection.has_kernel_times
        protocol.readMessageBegin = self.watch_serving(protocol, connection, read_header)

        def take_over() -> None:
            protocol.readMessageBegin = watch_drain(connection, read_header, self._health_check_methods, unread)

        # In this order: a drain that begins meanwhile either finds the call, or is seen here.
        connection.when_draining = take_over
        if self.connections.is_draining:
            take_over()
        return protocol


class _BindingTransportFactory:
    """Calls the user's factory, in the thread that is about to serve the connection."""

    def __init__(self, factory: Any, get_ready: Callable[[Any], None] | None) -> None:
        self._factory = factory
        self._get_ready = get_ready

    def getTransport(self, client: Any) -> Any:  # noqa: N802  Thrift's name
        if self._get_ready is not None:
            self._get_ready(client)
        connection: Connection | None = getattr(client, "drained_connection", None)
        serving.set(connection)
        if connection is not None:
            connection.thread = threading.current_thread()
            connection.is_waiting = True  # From now on the thread either reads, or has read what it serves.
        return self._factory.getTransport(client)
