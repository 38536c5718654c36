"""The reader and the writer that a handler gets: asyncio's own, which also tell their connection what is done.

What they add to a request is a few microseconds: some attributes of the connection, and no coroutine around asyncio's.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any

from registry_drain.servers.asyncio_streams.connection import AsyncioConnection
from registry_drain.servers.current_request import serving

if TYPE_CHECKING:
    from ssl import SSLContext

ClientConnected = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[object] | None]
"""What :func:`asyncio.start_server` calls for each connection."""

# On the path of every request they are called by name: super() looks them up each time.
_Reader, _Writer = asyncio.StreamReader, asyncio.StreamWriter


class TrackedReader(asyncio.StreamReader):
    """A reader that tells when its handler asks for input, and when input comes."""

    def __init__(self, connection: AsyncioConnection, limit: int) -> None:
        """Read for ``connection``, in the running loop."""
        super().__init__(limit, asyncio.get_running_loop())
        self._connection = connection

    def feed_data(self, data: Any) -> None:
        """Take what has come; thrown away once our FIN is out."""
        connection = self._connection
        if connection.is_half_closed:
            return
        if connection.received == connection.boundary and not connection.is_in_mark:
            connection.begin_request()
        connection.received += len(data)
        _Reader.feed_data(self, data)

    # These call each other: the first one asks for input; the second does no harm, and costs little. Hence the look
    # before the call.

    def read(self, n: int = -1) -> Coroutine[Any, Any, bytes]:
        """Read; see :meth:`asyncio.StreamReader.read`."""
        connection = self._connection
        if connection.received != connection.boundary or connection.task is None:
            connection.begin_read()
        return _Reader.read(self, n)

    def readline(self) -> Coroutine[Any, Any, bytes]:
        """Read; see :meth:`asyncio.StreamReader.readline`."""
        connection = self._connection
        if connection.received != connection.boundary or connection.task is None:
            connection.begin_read()
        return _Reader.readline(self)

    def readexactly(self, n: int) -> Coroutine[Any, Any, bytes]:
        """Read; see :meth:`asyncio.StreamReader.readexactly`."""
        connection = self._connection
        if connection.received != connection.boundary or connection.task is None:
            connection.begin_read()
        return _Reader.readexactly(self, n)

    def readuntil(self, separator: Any = b"\n") -> Coroutine[Any, Any, bytes]:
        """Read; see :meth:`asyncio.StreamReader.readuntil`."""
        connection = self._connection
        if connection.received != connection.boundary or connection.task is None:
            connection.begin_read()
        return _Reader.readuntil(self, separator)


class TrackedWriter(asyncio.StreamWriter):
    """A writer that tells when its handler writes."""

    def __init__(self, writer: asyncio.StreamWriter, connection: AsyncioConnection, protocol: Any, reader: Any) -> None:
        """Write where ``writer`` does."""
        super().__init__(writer.transport, protocol, reader, asyncio.get_running_loop())
        self._connection = connection
        # One that is thrown away closes its transport (3.12 and later).
        self._original = writer

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write; see :meth:`asyncio.StreamWriter.write`. Thrown away once our FIN is out."""
        connection = self._connection
        if not connection.is_half_closed:
            connection.writes += 1
            _Writer.write(self, data)

    def writelines(self, data: Iterable[bytes | bytearray | memoryview]) -> None:
        """Write; see :meth:`asyncio.StreamWriter.writelines`."""
        if not self._connection.is_half_closed:
            self._connection.writes += 1
            super().writelines(data)

    def write_eof(self) -> None:
        """Half-close; see :meth:`asyncio.StreamWriter.write_eof`."""
        if not self._connection.is_half_closed:
            super().write_eof()

    async def start_tls(self, sslcontext: SSLContext, **options: Any) -> None:
        """Change to TLS; see :meth:`asyncio.StreamWriter.start_tls` (Python 3.11 and later)."""
        await super().start_tls(sslcontext, **options)  # type: ignore[misc] # not in 3.10
        self._connection.replaced(self.transport)  # type: ignore[arg-type]


class TrackedStreamProtocol(asyncio.StreamReaderProtocol):
    """What asyncio makes for each connection; runs the handler in a task of ours."""

    def __init__(self, connection: AsyncioConnection, handler: ClientConnected, limit: int) -> None:
        """Serve ``connection`` with ``handler``, in the running loop."""
        self._connection = connection
        self._handler = handler
        self._reader = TrackedReader(connection, limit)
        super().__init__(self._reader, self._connected, asyncio.get_running_loop())

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = self._connection
        connection.connected(writer.transport, reader)  # type: ignore[arg-type]
        if connection.is_too_late:
            connection.abort()
            return
        token = serving.set(connection)  # What the handler starts inherits it.
        try:
            work = self._handler(reader, TrackedWriter(writer, connection, self, reader))
            if inspect.iscoroutine(work):
                task: asyncio.Task[object] = asyncio.get_running_loop().create_task(work)
                task.add_done_callback(self._handler_ended)
                connection.serve(task)
        finally:
            serving.reset(token)

    def _handler_ended(self, task: asyncio.Task[object]) -> None:
        transport = self._connection.transport
        error = None if task.cancelled() else task.exception()
        if transport is None or (error is None and not task.cancelled()):
            return
        transport.close()
        if error is None:
            return
        # As asyncio's own streams do from 3.12 on. A client whose handler has died must not wait for it.
        context = {"message": "Unhandled exception in client_connected_cb", "exception": error, "transport": transport}
        asyncio.get_running_loop().call_exception_handler(context)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the reader, and the connection."""
        super().connection_lost(exc)
        self._connection.lost()
