"""One connection of hypercorn: whether it is idle, whether more requests wait on it, and how it is said goodbye to.

Theory of operation: hypercorn has a ``TCPServer`` object for each connection, which reads from a ``StreamReader`` and
holds the protocol, HTTP/1.1's or HTTP/2's. Bytes of a further request may be in h11's buffer, in the stream's, or in
the kernel; an HTTP/2 connection is idle when it has no streams.

A goodbye is ``Connection: close`` in HTTP/1.1, and GOAWAY in HTTP/2 (RFC 9113, 6.8), sent while no stream is open and
nothing that has arrived is unread: what has come is served. A stream that crosses the GOAWAY on the wire is above the
last one that it names, so its client knows that it was not served, and sends it elsewhere. The RFC's two steps (GOAWAY
with the highest number there is, and the true one a round trip later) were rejected: a client made with the h2 library,
httpx for one, can read nothing behind a first GOAWAY, and so fails the stream that it believes to be served.

Sources: ``hypercorn/asyncio/tcp_server.py``, ``protocol/h11.py`` and ``protocol/h2.py`` of hypercorn 0.17 and 0.18.
"""

from __future__ import annotations

import asyncio
import select
from contextlib import suppress
from typing import Any

import h2.exceptions
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.events import Event, RawData
from hypercorn.protocol.h2 import H2Protocol

from registry_drain.servers.http.asgi_types import Send

_READING_TURNS = 50
"""Loop turns in which a connection's task reads what has arrived: one for a buffer's fill, some to begin with. A client
that always sends is told behind a later answer.
"""


def protocol_of(send: Send) -> Any:
    """Return hypercorn's protocol object that an application's ``send`` belongs to; None for another server."""
    stream_send = getattr(getattr(send, "__self__", None), "send", None)
    return getattr(stream_send, "__self__", None)


def requests_of(connection: TCPServer) -> int:
    """Return how many requests the connection has carried."""
    protocol = _protocol(connection)
    return 0 if protocol is None else int(protocol.keep_alive_requests)


def is_idle(connection: TCPServer) -> bool:
    """Whether no request is being served, read or waiting on it."""
    protocol = _protocol(connection)
    if protocol is None:  # it has just been accepted
        return not has_unread(connection)
    is_busy = bool(protocol.streams) if isinstance(protocol, H2Protocol) else protocol.stream is not None
    return not is_busy and not has_more(protocol)


def has_more(protocol: Any) -> bool:
    """Whether bytes of a further request are here already."""
    trailing = getattr(getattr(protocol, "connection", None), "trailing_data", None)
    if trailing is not None and trailing[0]:
        return True
    connection = getattr(protocol.send, "__self__", None)
    return isinstance(connection, TCPServer) and has_unread(connection)


def has_unread(connection: TCPServer) -> bool:
    """Whether bytes wait in the stream's buffer or in the kernel; nothing does behind an end of file."""
    if connection.reader.at_eof():
        return False
    if getattr(connection.reader, "_buffer", b""):
        return True
    sock = connection.writer.get_extra_info("socket")
    if sock is None or sock.fileno() < 0:
        return False
    poller = select.poll()
    poller.register(sock.fileno(), select.POLLIN)
    return bool(poller.poll(0))


def is_closing(connection: TCPServer) -> bool:
    """Whether the connection is being closed already."""
    return connection.writer.is_closing()


async def say_goodbye(protocol: Any) -> bool:
    """Send GOAWAY if this is HTTP/2 with no stream open, and was not told yet; return whether it was sent."""
    if not isinstance(protocol, H2Protocol):
        return False
    # Acknowledgements mostly; but what else has come is to be served. It is read while we wait.
    for _ in range(_READING_TURNS):
        if protocol.streams or not has_more(protocol):
            break
        await asyncio.sleep(0)
    if protocol.streams or is_told(protocol) or has_more(protocol):
        return False
    handle = protocol.handle

    async def handle_last(event: Event) -> None:
        # Streams that are begun behind a GOAWAY are their client's to repeat elsewhere; serving them would do it twice.
        # The rest (acknowledgements) the h2 library would take for a protocol error now.
        if not isinstance(event, RawData):
            await handle(event)

    protocol.handle = handle_last  # type: ignore[method-assign]  # on this one connection
    with suppress(h2.exceptions.ProtocolError):  # closed already
        protocol.connection.close_connection()
    await protocol.send(RawData(data=protocol.connection.data_to_send()))
    return True


def is_told(protocol: Any) -> bool:
    """Whether GOAWAY was sent."""
    return "handle" in vars(protocol)


async def close(connection: TCPServer) -> bool:
    """Close an idle connection, or if it is HTTP/2 and was not told yet, tell it; return whether it is closed."""
    protocol = _protocol(connection)
    if protocol is not None and await say_goodbye(protocol):
        return False
    # Its timer is a task that the connection waits for, up to keep_alive_timeout.
    await connection.idle_task.stop()
    connection.writer.close()
    return True


def _protocol(connection: TCPServer) -> Any:
    return getattr(getattr(connection, "protocol", None), "protocol", None)
