"""Making a server on asyncio streams drainable.

Theory of operation: as it comes, ``asyncio.Server.close()`` resets what waits in the accept backlog and leaves
connections to whoever knows of them: ``wait_closed()`` returns at once up to Python 3.11, waits for idle clients for
ever from 3.12.1 on, and ``close_clients()`` (3.13) loses answers that are being written. So this adapter makes the
server itself, with a protocol that tells which handler is at work on which connection
(:mod:`~registry_drain.servers.asyncio_streams.connection`), and stops it as every server is stopped: hold clients off,
let the loop accept what waits, close, drain.

Rules:

1. The server lives in one loop: the application's (``use_loop``, which :func:`registry_drain.serve_async` calls), or
   one of its own. Everything happens there; the members, which other threads call, hand over and wait.
2. A loop that is closed has no connections left: then there is nothing to drain, and nothing to cut off.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import socket
import ssl
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from registry_drain.clock import SYSTEM_CLOCK, Clock, Deadline
from registry_drain.errors import ConfigurationError, ServerError
from registry_drain.servers.asyncio_listeners import close_later, close_listeners, duplicates, shut
from registry_drain.servers.asyncio_streams.connections import AsyncioConnections
from registry_drain.servers.asyncio_streams.streams import ClientConnected, TrackedStreamProtocol
from registry_drain.servers.base import ListenerClosure
from registry_drain.servers.connections import IDLE_QUIET, LINGER, SPREAD
from registry_drain.servers.event_loop import ServerLoop
from registry_drain.servers.in_flight import InFlight, InFlightRequest
from registry_drain.servers.listener import ROUND_TRIP, bound_address, hold_off

T = TypeVar("T")
logger = logging.getLogger(__name__)

_START_LIMIT_S = 30.0
"""For binding, which may look a host name up."""
_CLOSE_LIMIT_S = 0.2
"""For closing a listener when there is no time left; the loop may be slow, and what it accepts last is served."""
_CUT_OFF_LIMIT_S = 1.0
_GRACE_S = 0.1
"""A step ends in the loop by its deadline; its result may take this much longer to be here."""


class AsyncioServer:
    """Serves connections as :func:`asyncio.start_server` does, and can be drained. Thread-safe.

    Args:
        client_connected_cb: called with a reader and a writer for each connection; a coroutine function, normally.
        host: to bind; None: every address. Several are given as a sequence.
        port: to bind; 0: a free one.
        path: of a Unix socket, instead of the two.
        sock: a listening or bound socket, instead of all three.
        ssl: for TLS.
        limit: of the reader's buffer, in bytes.
        idle_quiet: seconds without a byte before the drain closes an idle connection.
        spread: seconds over which idle connections are closed if there are thousands, so that their clients do not all
            come back elsewhere at once; 0: at once.
        clock: for the instants of requests.
        options: others of :meth:`asyncio.loop.create_server`: ``backlog``, ``reuse_address``, ….

    Raises:
        ConfigurationError: nothing to listen on, or too much.
    """

    def __init__(
        self,
        client_connected_cb: ClientConnected,
        host: str | list[str] | None = None,
        port: int | None = None,
        *,
        path: str | os.PathLike[str] | None = None,
        sock: socket.socket | None = None,
        ssl: ssl.SSLContext | None = None,
        limit: int = 2**16,
        idle_quiet: float = IDLE_QUIET,
        spread: float = SPREAD,
        clock: Clock = SYSTEM_CLOCK,
        **options: Any,
    ) -> None:
        if sum(each is not None for each in (port, path, sock)) != 1:
            raise ConfigurationError("an AsyncioServer listens on host and port, or on path=, or on sock=: give one")
        self._handler = client_connected_cb
        self._limit = limit
        self._path = path
        self._options: dict[str, Any] = {"ssl": ssl, "backlog": 100, **options}
        if path is None:
            self._options |= {"sock": sock} if sock is not None else {"host": host, "port": port}
        self._in_flight = InFlight(clock=clock)
        self._connections = AsyncioConnections(
            clock=clock,
            stop_state=self._in_flight.stop_state,
            handler_name=getattr(client_connected_cb, "__name__", "") or "(unnamed)",
            idle_quiet=idle_quiet,
            linger=LINGER,
            spread=spread,
        )
        self._in_flight.include(self._connections)
        self._loop = ServerLoop("registry-drain-asyncio")
        self._lock = threading.Lock()
        self._close_lock = threading.Lock()
        self._server: asyncio.AbstractServer | None = None
        self._listeners: list[socket.socket] = []
        self._closure: ListenerClosure | None = None
        self._is_started = False

    @property
    def in_flight(self) -> InFlight:
        """The server's requests."""
        return self._in_flight

    @property
    def connections(self) -> AsyncioConnections:
        """The open connections."""
        return self._connections

    def use_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Serve in the application's loop. Before :meth:`start`, which must then be called in another thread."""
        self._loop.use(loop)

    def start(self) -> tuple[str, int]:
        """Bind, listen and serve; return the bound address and port. Not in the loop's own thread.

        Raises:
            OSError: the address cannot be bound.
            ServerError: started or stopped before.
        """
        with self._lock:
            if self._is_started or self._closure is not None:
                raise ServerError(f"{self!r} was started or stopped before: make a new one to serve again")
            self._is_started = True
        self._loop.start()
        try:
            bound = self._loop.call(self._listen, Deadline.after(_START_LIMIT_S))
        except BaseException:
            self._loop.stop()
            raise
        with self._lock:
            was_stopped = self._closure is not None
        if was_stopped:
            # By a stop that found nothing to close yet.
            self._close(self._server, Deadline.after(0.0))
            self._loop.stop()
            raise ServerError(f"{self!r} was stopped while it was starting")
        return bound

    async def _listen(self) -> tuple[str, int]:
        loop = asyncio.get_running_loop()
        self._in_flight.add_loop_thread(threading.get_ident())
        if self._path is None:
            server = await loop.create_server(self._new_protocol, **self._options)
        else:
            server = await loop.create_unix_server(self._new_protocol, self._path, **self._options)
        self._server = server
        self._listeners = duplicates([each.fileno() for each in server.sockets])
        return bound_address(self._listeners[0])

    def _new_protocol(self) -> TrackedStreamProtocol:
        return TrackedStreamProtocol(self._connections.accept(), self._handler, self._limit)

    def close_listener(self, deadline: Deadline) -> ListenerClosure:
        """Stop accepting; what is in the backlog is served. See :meth:`DrainableServer.close_listener`."""
        # Held during the whole close: a second caller waits for the first one's outcome.
        with self._close_lock:
            with self._lock:
                closure, server = self._closure, self._server
                if closure is None and server is None:
                    closure = self._closure = ListenerClosure("never started")
            if closure is None:
                closure = self._close(server, deadline)
                with self._lock:
                    self._closure = closure
            return closure

    def _close(self, server: asyncio.AbstractServer | None, deadline: Deadline) -> ListenerClosure:
        listeners, self._listeners = self._listeners, []

        async def close() -> ListenerClosure:
            if self._path is not None and isinstance(server, asyncio.Server):
                return await self._close_unix(server, listeners, deadline)
            return await close_listeners(listeners, server.close if server else _nothing, deadline)

        closure = self._in_loop(close, max(deadline.remaining(), _CLOSE_LIMIT_S))
        if closure is not None:
            return closure
        # The loop is blocked, or was closed by its owner: what has not been accepted is lost.
        if server is not None:
            self._loop.call_soon(server.close)
        for each in listeners:
            shut(each)
            each.close()
        return ListenerClosure("close", is_clean=False)

    async def _close_unix(
        self, server: asyncio.Server, listeners: list[socket.socket], deadline: Deadline
    ) -> ListenerClosure:
        """Close the listener of a Unix socket.

        It is shut as soon as nothing waits, and not before: one that is shut looks readable for ever, so that nobody
        could tell when it is empty, and the loop would not rest. What comes in the moment between is accepted here.
        """
        loop = asyncio.get_running_loop()
        poller = select.poll()
        for each in listeners:
            poller.register(each, select.POLLIN)
        while poller.poll(0) and not deadline.is_past:  # noqa: ASYNC110 - what the loop accepts
            await asyncio.sleep(0)
        for each in server.sockets:
            loop.remove_reader(each.fileno())
        accepted: list[socket.socket] = []
        methods = [hold_off(each).method for each in listeners]
        for each in listeners:
            with suppress(OSError):  # nothing waits any more
                while True:
                    accepted.append(each.accept()[0])
        if accepted:
            await asyncio.wait([loop.create_task(self._adopt(each)) for each in accepted], timeout=ROUND_TRIP)
        await close_later(server.close)
        for each in listeners:
            each.close()
        return ListenerClosure(", ".join(dict.fromkeys(methods)), len(accepted))

    async def _adopt(self, sock: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(self._new_protocol, sock, ssl=self._options["ssl"])
        except OSError as error:
            logger.info("a connection that was accepted last was lost: %s", error)

    def drain(self, deadline: Deadline) -> bool:
        """Let handlers finish, close idle connections. See :meth:`DrainableServer.drain`."""
        if not self._loop.is_open:
            return True
        return bool(self._in_loop(lambda: self._connections.drain(deadline), deadline.remaining()))

    def cut_off(self) -> tuple[InFlightRequest, ...]:
        """Cancel what is left, await it, close it. See :meth:`DrainableServer.cut_off`."""
        self.close_listener(Deadline.after(0.0))
        before = tuple(self._connections.requests()) if self._loop.is_open else ()
        cut = self._in_loop(self._connections.cut_off, _CUT_OFF_LIMIT_S)
        self._loop.stop()
        return before if cut is None else cut

    def _in_loop(self, work: Callable[[], Coroutine[Any, Any, T]], seconds: float) -> T | None:
        """Return the result of ``work()``; None if the loop does not answer in time, or is closed."""
        if not self._loop.is_open:
            return None
        try:
            return self._loop.call(work, Deadline.after(seconds + _GRACE_S))
        except TimeoutError:
            return None

    def __repr__(self) -> str:
        """Show the loop and the counts."""
        return f"<AsyncioServer {self._loop!r} connections={len(self._connections)} in_flight={self._in_flight.count}>"


def _nothing() -> None:
    """Close nothing."""
