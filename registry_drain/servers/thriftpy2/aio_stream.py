"""The two ends of a connection of thriftpy2's asyncio server: what reads from the wire, and what transports read from.

Rules:

1. A message counts as answered when its last byte is with the kernel: asyncio may hold some of it itself. Since Python
   3.11 a TLS transport does not tell of what the one below it holds, so that one is asked.
2. Bytes that come behind our end of the connection are thrown away: they belong to nobody's request.

Source: ``thriftpy2/contrib/aio/socket.py`` of thriftpy2 0.7.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from thriftpy2.contrib.aio.socket import StreamHandler

from registry_drain.servers.connections import Connection, unacknowledged_bytes
from registry_drain.servers.thriftpy2.boundaries import end_if_closed, end_of_file, unread_in

_GOODBYE_LIMIT_S = 1.0
"""Seconds for the TLS goodbye of a connection that is over."""
_FLUSH_STEP = 0.005

_feed_data = asyncio.StreamReader.feed_data


class CountingReader(asyncio.StreamReader):
    """Counts what comes, and throws away what comes behind our end of the connection."""

    def __init__(self, connection: Connection) -> None:
        """Read for ``connection``."""
        super().__init__()
        self._connection = connection

    def feed_data(self, data: Any) -> None:
        """Take what has come."""
        connection = self._connection
        connection.received += len(data)
        if connection.is_half_closed and not connection.may_serve():
            connection.boundary = connection.received
            return
        _feed_data(self, data)


class TrackedStream(StreamHandler):
    """What the transports read from and write to.

    Attributes:
        connection: what the drain knows of it.
        given: how many bytes the transports have been given.
        unsent: tells how many written bytes are not with the kernel yet.
    """

    def __init__(self, connection: Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Stand for ``connection``."""
        super().__init__(reader, writer)  # type: ignore[no-untyped-call]
        self.connection = connection
        self.given = 0
        self.unsent: Callable[[], int] = writer.transport.get_write_buffer_size
        if writer.get_extra_info("ssl_object") is not None:
            self.unsent = partial(_unsent_under_tls, writer.transport)

    async def read(self, size: int) -> bytes:
        """Return at least one byte, and at most ``size``."""
        data: bytes = await self.reader.read(size)
        if not data:
            raise end_of_file(self.connection)
        self.given += len(data)
        return data

    async def end_message(self, iprot: Any) -> None:
        """Note a message boundary: what was begun before has been answered."""
        if self.unsent():
            await self._flushed()
        connection = self.connection
        connection.leftover = connection.received - self.given + unread_in(iprot.trans)
        connection.end_request()
        if connection.is_half_closed:
            end_if_closed(connection)

    async def _flushed(self) -> None:
        """Wait until all that was written is with the kernel."""
        # No event tells of it: drain() returns when there is room again, which is earlier.
        while self.unsent() and not self.writer.transport.is_closing():  # noqa: ASYNC110
            await asyncio.sleep(_FLUSH_STEP)


def _unsent_under_tls(transport: asyncio.WriteTransport) -> int:
    below = getattr(getattr(transport, "_ssl_protocol", None), "_transport", None)
    if below is not None:
        return transport.get_write_buffer_size() + int(below.get_write_buffer_size())
    # uvloop does not show it. While it holds something, the kernel does: it gets more as soon as there is room.
    sock: socket.socket | None = transport.get_extra_info("socket")
    return 0 if sock is None else unacknowledged_bytes(sock)


async def hang_up(connection: Connection, writer: asyncio.StreamWriter) -> None:
    """Close a connection that is over; its TLS goodbye has little time."""
    connection.close()
    try:
        writer.close()
        with suppress(OSError, asyncio.TimeoutError):
            await asyncio.wait_for(writer.wait_closed(), _GOODBYE_LIMIT_S)
    finally:
        writer.transport.abort()
        connection.closed()
