"""Drains thriftpy2's asyncio server, ``TAsyncServer``.

Its ``close()`` drops whoever waits in the backlog or has just been accepted, and cuts or waits for the rest, depending
on the Python. Theory of operation: its transports, protocols and processor are used as they are, and its server object
is not run: connections are accepted here, so that each is known from the moment when the kernel gave it to us;
asyncio's own server loses those that it has accepted and not begun to serve.

The event loop is to every connection what a serving thread is to one in the other servers. A stream reader of ours
(:mod:`~registry_drain.servers.thriftpy2.aio_stream`) counts the bytes as they come, the processor's calls mark the
boundaries (:mod:`~registry_drain.servers.thriftpy2.boundaries`), and
:class:`~registry_drain.servers.connections.Connections` closes by the same rules.

Rules:

1. ``client_timeout`` covers a whole connection, as it does without us: set it to None, or longer than they live.
2. A task is cancelled only by the cut-off, or by that timeout; cancelled tasks are awaited.

Sources: ``thriftpy2/contrib/aio/server.py``, ``socket.py`` of thriftpy2 0.7; cpython#109564.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

from thriftpy2.contrib.aio.processor import TAsyncProcessor
from thriftpy2.contrib.aio.server import TAsyncServer
from thriftpy2.transport import TTransportException

from registry_drain.clock import SYSTEM_CLOCK, Clock, Deadline
from registry_drain.errors import ConfigurationError, ServerError
from registry_drain.servers.base import ListenerClosure
from registry_drain.servers.connections import IDLE_QUIET, Connection, Connections
from registry_drain.servers.current_request import serving
from registry_drain.servers.event_loop import ServerLoop
from registry_drain.servers.in_flight import InFlight, InFlightRequest
from registry_drain.servers.listener import DrainableListener, bound_address
from registry_drain.servers.thriftpy2.aio_stream import CountingReader, TrackedStream, hang_up
from registry_drain.servers.thriftpy2.boundaries import end_if_closed, hooked_processor, note_request, unread_in

logger = logging.getLogger(__name__)

_START_LIMIT_S = 10.0
_END_LIMIT_S = 1.0
"""Seconds for the loop to do what never waits for a request, and for cancelled tasks to end."""
_LOOK_AFTER_S = 0.005
"""Seconds for tasks whose sockets were shut to end by themselves."""


class Thriftpy2AioServer:
    """Makes a ``TAsyncServer`` drainable.

    Give it the server object (``make_aio_server`` returns one) instead of running it. With
    :func:`registry_drain.serve_async` it lives in the application's event loop, with :func:`registry_drain.serve` in
    one of its own. Members may be called from any thread but the loop's.

    Args:
        server: the user's own.
        health_check_methods: names of methods whose calls are no sign that callers still know this instance.
        clock: for the instants of requests.
        idle_quiet: seconds without a byte before an idle connection is closed by the drain.

    Raises:
        ConfigurationError: it is another kind of server.
    """

    def __init__(
        self,
        server: TAsyncServer,
        *,
        health_check_methods: Collection[str] = (),
        clock: Clock = SYSTEM_CLOCK,
        idle_quiet: float = IDLE_QUIET,
    ) -> None:
        if not isinstance(server, TAsyncServer):
            raise ConfigurationError(f"{type(server).__name__} is not a TAsyncServer: use Thriftpy2Server")
        self._server: Any = server
        self._trans: Any = server.trans
        self._health_check_methods = frozenset(health_check_methods)
        self._in_flight = InFlight(clock=clock)
        self._connections = Connections(
            clock=clock, idle_quiet=idle_quiet, corks_answers=True, stop_state=self._in_flight.stop_state
        )
        self._in_flight.include(self._connections)
        self._processor = hooked_processor(
            server.processor, self._mark_boundaries, self._name_requests, TAsyncProcessor
        )
        self._lock = threading.Lock()
        self._closing = threading.Lock()
        self._loop = ServerLoop("registry-drain-thriftpy2")
        self._running: asyncio.AbstractEventLoop | None = None
        self._loop_thread: threading.Thread | None = None
        self._sock: socket.socket | None = None
        self._listener: DrainableListener[None] | None = None
        self._closure: ListenerClosure | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def in_flight(self) -> InFlight:
        """The server's requests, named by method."""
        return self._in_flight

    @property
    def connections(self) -> Connections:
        """The open connections."""
        return self._connections

    def use_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Serve in the application's event loop; see :class:`ServerLoop`."""
        self._loop.use(loop)

    def start(self) -> tuple[str, int]:
        """Bind, listen and serve; return the bound address and port.

        Raises:
            OSError: the address cannot be bound.
            ServerError: started or stopped before; or the application's event loop is closed.
            TimeoutError: it does not answer.
        """
        with self._lock:
            if self._listener is not None or self._closure is not None:
                raise ServerError(f"{self!r} was started or stopped before: make a new server object to serve again")
            try:
                self._trans.listen()
            except OSError:
                self._trans.raw_sock.close()
                raise
            sock: socket.socket = self._trans.raw_sock
            sock.settimeout(0.0)
            self._sock = sock
            try:
                self._loop.start()
                self._loop.call(self._begin, Deadline.after(_START_LIMIT_S))
            except BaseException:
                # Nobody would ever accept, and clients that connect would wait for their answers.
                self._sock = None
                sock.close()
                self._loop.stop()
                raise
            self._listener = DrainableListener(sock, self._accept_one)
            return bound_address(sock)

    def close_listener(self, deadline: Deadline) -> ListenerClosure:
        """Stop accepting; what is in the backlog is served. See :meth:`DrainableServer.close_listener`."""
        # Held during the whole close: a second caller waits for the first one's outcome.
        with self._closing:
            with self._lock:
                listener, sock = self._listener, self._sock
                if listener is None or sock is None:
                    self._closure = ListenerClosure("never started")
                    return self._closure
            if self._closure is None:
                self._closure = self._close(listener, sock, deadline)
            return self._closure

    def _close(self, listener: DrainableListener[None], sock: socket.socket, deadline: Deadline) -> ListenerClosure:
        has_let_go = False
        if self._loop.is_open:
            with suppress(TimeoutError, ServerError):
                # From now on this thread accepts.
                self._loop.call(self._let_go_of_listener, Deadline.after(max(deadline.remaining(), _END_LIMIT_S)))
                has_let_go = True
        closure = listener.stop(deadline)
        if has_let_go or not self._loop.is_open:
            sock.close()
        else:
            # A loop that is late would still watch the number, which could be another socket's by then.
            self._loop.call_soon(self._close_in_loop)
        return closure

    def drain(self, deadline: Deadline) -> bool:
        """Let calls finish, close idle connections. See :meth:`DrainableServer.drain`."""
        return self._connections.drain(deadline)

    def cut_off(self) -> tuple[InFlightRequest, ...]:
        """Shut what is left, cancel its tasks, and end a loop of ours. See :meth:`DrainableServer.cut_off`."""
        self.close_listener(Deadline.after(0.0))
        cut = self._connections.cut_off()
        if self._loop.is_open:
            try:
                self._loop.call(self._end_tasks, Deadline.after(2 * _END_LIMIT_S))
            except TimeoutError:
                logger.warning("%r: the event loop does not answer; a handler blocks it", self)
        self._loop.stop()
        if self._sock is not None and not self._loop.is_open:
            self._sock.close()  # if the loop has ended before it came to that
        return cut

    # --- in the loop ----------------------------------------------------------------------------------------------

    async def _begin(self) -> None:
        self._running = loop = asyncio.get_running_loop()
        self._loop_thread = threading.current_thread()
        if self._sock is not None:
            loop.add_reader(self._sock.fileno(), self._accept_all)

    async def _let_go_of_listener(self) -> None:
        if self._sock is not None and self._sock.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._sock.fileno())

    def _close_in_loop(self) -> None:
        if self._sock is not None and self._sock.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._sock.fileno())
            self._sock.close()

    def _accept_all(self) -> None:
        try:
            while True:
                self._accept_one()
        except (BlockingIOError, ConnectionAbortedError):
            pass
        except OSError as error:
            logger.warning("%r: cannot accept: %s", self, error)

    def _accept_one(self) -> None:
        # In the loop, or, while the listener is being closed, in the thread that closes it.
        loop, listening = self._running, self._sock
        if loop is None or listening is None:
            raise BlockingIOError
        sock, _ = listening.accept()
        sock.settimeout(0.0)
        connection = Connection(self._connections, sock)
        connection.is_timed = bool(self._health_check_methods) or not connection.has_kernel_times
        connection.thread = self._loop_thread
        connection.is_sure = self._trans.ssl_context is None  # Its handshake may take its time.
        connection.is_waiting = True  # Nobody sleeps in a read: whether it is busy, the bytes tell.
        self._connections.add(connection)
        loop.call_soon_threadsafe(self._begin_to_serve, connection)

    def _begin_to_serve(self, connection: Connection) -> None:
        task = asyncio.get_running_loop().create_task(self._serve_connection(connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve_connection(self, connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        reader = CountingReader(connection)
        protocol = asyncio.StreamReaderProtocol(reader)
        context: ssl.SSLContext | None = self._trans.ssl_context
        try:
            transport, _ = await loop.connect_accepted_socket(lambda: protocol, connection.sock, ssl=context)
        except OSError as error:
            if not connection.is_half_closed:
                logger.warning("no TLS with %s: %s", connection.peer, error)
            connection.close()
            connection.sock.close()
            connection.closed()
            return
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        try:
            await asyncio.wait_for(self._serve_stream(connection, reader, writer), self._trans.client_timeout)
        except asyncio.TimeoutError:
            logger.info("%s: client_timeout is over", connection.peer)
        finally:
            await hang_up(connection, writer)

    async def _serve_stream(self, connection: Connection, reader: CountingReader, writer: asyncio.StreamWriter) -> None:
        # As TAsyncServer.handle does it.
        server = self._server
        client = TrackedStream(connection, reader, writer)
        serving.set(connection)
        _client.set(client)
        itrans, otrans = server.itrans_factory.get_transport(client), server.otrans_factory.get_transport(client)
        iprot, oprot = server.iprot_factory.get_protocol(itrans), server.oprot_factory.get_protocol(otrans)
        try:
            while not reader.at_eof():
                await self._processor.process(iprot, oprot)
        except TTransportException:
            pass
        except Exception:
            logger.exception("%r: a connection has failed", self)

    def _mark_boundaries(self, process: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        async def process_one(iprot: Any, oprot: Any) -> None:
            client = _client.get()
            if client is not None:
                await client.end_message(iprot)
            await process(iprot, oprot)

        return process_one

    def _name_requests(self, process_in: Callable[[Any], Any], *, is_first: bool) -> Callable[[Any], Any]:
        health_checks, connections = self._health_check_methods, self._connections

        async def process_in_named(iprot: Any) -> Any:
            client = _client.get()
            if client is None:
                return await process_in(iprot)
            connection = client.connection
            # On the path of every request, hence spelled out: the common case of what else is called.
            if is_first:
                if connections.is_draining or client.unsent():
                    await client.end_message(iprot)
                else:
                    connection.boundary = client.given - unread_in(iprot.trans)
                    connection.name = ""
                    if connection.is_half_closed:
                        end_if_closed(connection)
            call = await process_in(iprot)
            if connection.is_timed or connection.is_half_closed or connections.is_draining:
                note_request(connection, call[0], health_checks)
            else:
                connection.name = call[0]
                connection.served += 1
            return call

        return process_in_named

    async def _end_tasks(self) -> None:
        left = set(self._tasks)
        if left:
            # Their sockets are shut: those that read end by themselves, and need no cancelling.
            _, left = await asyncio.wait(left, timeout=_LOOK_AFTER_S)
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=_END_LIMIT_S)

    def __repr__(self) -> str:
        """Show the counts."""
        return f"<Thriftpy2AioServer connections={len(self._connections)} in_flight={self._in_flight.count}>"


_client: ContextVar[TrackedStream | None] = ContextVar("registry_drain.thriftpy2.aio", default=None)
"""What the current task serves."""
