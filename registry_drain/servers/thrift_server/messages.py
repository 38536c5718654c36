"""Where Thrift's messages begin and end, on the path of every call.

Theory of operation: a ``TSocket`` gets a ``read`` and a ``write`` of ours, which count bytes, and a protocol a
``readMessageBegin``, which marks the boundary. The methods of a plain TSocket do little but call the socket's; doing
that ourselves pays for the counting, so that a request costs one more Python call: 1 % of a server that only echoes.

There are three kinds of ``readMessageBegin``: the common one leaves the times of requests to the kernel; one tells
health checks from requests, and therefore notes the times itself; and one takes over when draining begins.

A buffered transport may hold the beginning of the next message, which the socket cannot know. It is looked for at each
boundary while draining, but not before, where it would cost every request. So a connection that went idle before the
drain is closed after ``UNSURE_QUIET`` instead: half a message that is followed by nothing for longer than TCP takes to
repeat a lost segment is not going to be completed. A framed transport takes whole frames, and never holds anything.
"""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import Any

from thrift.transport.TTransport import CReadableTransport, TFramedTransport, TTransportException

from registry_drain.servers.connections import Connection

Header = tuple[str, int, int]
ReadHeader = Callable[[], Header]
"""``readMessageBegin``: the method's name, the kind of message, its number."""


def read_from(connection: Connection) -> Callable[[int], bytes]:
    """Return a ``read`` in place of a plain TSocket's."""
    receive = connection.sock.recv

    def read(size: int) -> bytes:
        try:
            data = receive(size)
        except OSError as error:
            raise _transport_error("read from", connection, error) from error
        if not data:
            raise TTransportException(TTransportException.END_OF_FILE, f"{connection.peer} has closed the connection")
        connection.received += len(data)
        return data

    return read


def write_to(connection: Connection) -> Callable[[bytes], None]:
    """Return a ``write`` in place of a plain TSocket's."""
    send = connection.sock.send

    def write(data: bytes) -> None:
        # Not sendall, whose time limit is for all of it: a large answer may take longer than a server's timeout.
        try:
            sent = send(data)
            while sent < len(data):
                sent += send(memoryview(data)[sent:])
        except OSError as error:
            raise _transport_error("write to", connection, error) from error

    return write


def _transport_error(what: str, connection: Connection, error: OSError) -> Exception:
    kind = TTransportException.TIMED_OUT if isinstance(error, TimeoutError) else TTransportException.UNKNOWN
    mapped: Exception = TTransportException(kind, f"cannot {what} {connection.peer}: {error}", error)
    return mapped


def count_reads(connection: Connection, read_as_before: Callable[[int], bytes]) -> Callable[[int], bytes]:
    """Return a ``read`` that does what a socket of the user's own kind does, and counts."""

    def read(size: int) -> bytes:
        data = read_as_before(size)
        connection.received += len(data)
        return data

    return read


# The next two are on the path of every request, hence spelled out: Connection's methods of the same meaning would cost
# a call each. A request costs one call, for the function itself, and a few attributes.


def watch_only(connection: Connection, read_header: ReadHeader, _: frozenset[str]) -> ReadHeader:
    """Return a ``readMessageBegin`` that leaves the times to the kernel, and trusts that nothing was read ahead."""

    def read_message_begin() -> Header:
        connection.boundary = connection.received
        connection.name = ""
        header = read_header()
        if connection.is_half_closed:
            end_if_closed(connection)
        connection.name = header[0]
        connection.served += 1
        return header

    return read_message_begin


def watch_and_time(connection: Connection, read_header: ReadHeader, health_checks: frozenset[str]) -> ReadHeader:
    """Return the same that tells health checks from requests, and notes the time of each."""
    now = connection.connections.now

    def read_message_begin() -> Header:
        connection.boundary = connection.received
        connection.name = ""
        header = read_header()
        if connection.is_half_closed:
            end_if_closed(connection)
        connection.name = header[0]
        connection.started_at = now()
        if header[0] not in health_checks:
            connection.arrived_at = connection.started_at
            connection.served += 1
        return header

    return read_message_begin


def watch_drain(
    connection: Connection,
    read_header: ReadHeader,
    health_checks: frozenset[str],
    unread: Callable[[], int] | None,
) -> ReadHeader:
    """Return the same for the time of draining: closes behind answers, and looks for what was read ahead."""

    def read_message_begin() -> Header:
        connection.leftover = 0 if unread is None else unread()
        connection.is_sure = True
        connection.end_request()
        end_if_closed(connection)
        header = read_header()
        end_if_closed(connection)
        connection.name = header[0]
        connection.started_at = connection.connections.now()
        if header[0] not in health_checks:
            connection.arrived_at = connection.started_at
            connection.served += 1
        connection.cork(is_corked=True)
        connection.is_corked = True
        return header

    return read_message_begin


def end_if_closed(connection: Connection) -> None:
    """End the serve loop of a connection whose answers could not be sent any more."""
    if not connection.may_serve():
        connection.discard_input()
        raise TTransportException(TTransportException.END_OF_FILE, "closed by the drain")


def unread_in(*transports: Any) -> Callable[[], int] | None:
    """Return what tells how many bytes of a next message the transports hold; None if they cannot hold any."""
    buffers: list[Any] = []
    for transport in transports:
        is_buffer = isinstance(transport, CReadableTransport) and not isinstance(transport, TFramedTransport)
        if is_buffer and isinstance(transport.cstringio_buf, BytesIO) and transport not in buffers:
            buffers.append(transport)
    if not buffers:
        return None
    return lambda: sum(_unread(transport.cstringio_buf) for transport in buffers)


def _unread(buffer: BytesIO) -> int:
    return len(buffer.getvalue()) - buffer.tell()
