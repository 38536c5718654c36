"""Drains Apache Thrift's ``TThreadedServer``, ``TThreadPoolServer`` and ``TSimpleServer``.

These have no stop of their own. Theory of operation: the user's own server object runs its own ``serve()``, with its
factories replaced as :mod:`~registry_drain.servers.thrift_server.tracking` says, and ``serverTransport.accept``, which
returns connections until the listener is stopped, then raises a BaseException: the serve loops log an Exception and
go on.

A connection whose ``TSocket`` reads from the wire at a boundary is idle. Everything else, half-received messages
included, is busy. :mod:`registry_drain.servers.connections.connection` says how each is closed.

A pool's workers end by a sentinel each, queued behind the last connection, so that queued clients are served first.

Sources: ``thrift/server/TServer.py`` of Apache Thrift 0.25.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Collection
from typing import Any

from thrift.server.TNonblockingServer import TNonblockingServer
from thrift.server.TProcessPoolServer import TProcessPoolServer
from thrift.server.TServer import TForkingServer, TServer, TSimpleServer, TThreadedServer, TThreadPoolServer

from registry_drain.clock import SYSTEM_CLOCK, Clock
from registry_drain.errors import ConfigurationError
from registry_drain.servers.connections import IDLE_QUIET, SPREAD
from registry_drain.servers.connections.adapter import BlockingServerAdapter
from registry_drain.servers.listener import DrainableListener
from registry_drain.servers.thrift_server.tls import accept_with
from registry_drain.servers.thrift_server.tracking import Tracking
from registry_drain.servers.thrift_server.transport import (
    do_nothing,
    listening_socket,
    listening_transport,
)

_END_OF_WORK = object()
"""Queued for a pool's worker in place of a client."""


class _WorkEndedError(BaseException):
    """Ends a pool's worker. Not an Exception: its loop logs those, and goes on."""


class ThriftServer(BlockingServerAdapter):
    """Makes a Thrift server with threads drainable.

    Give it the server object before anybody calls its ``serve()``; the adapter does, in a thread of its own. Handlers,
    processors, transports and protocols stay as they are: buffered or framed, binary, compact or header. Thread-safe.

    Args:
        server: the user's own TThreadedServer, TThreadPoolServer or TSimpleServer, on a ``TServerSocket``.
        health_check_methods: names of methods whose calls are no sign that callers still know this instance.
        clock: for the instants of requests.
        idle_quiet: seconds without a byte before an idle connection is closed by the drain.
        spread: seconds over which idle connections are closed if there are thousands, so that their clients do not all
            reconnect at the same instant; 0: all at once.

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
        spread: float = SPREAD,
    ) -> None:
        if not isinstance(server, (TThreadedServer, TThreadPoolServer, TSimpleServer)):
            raise ConfigurationError(_refusal(server))
        super().__init__("registry-drain-thrift", clock, idle_quiet, spread)
        self._server: Any = server
        self._transport: Any = listening_transport(server.serverTransport)
        self._tracking = Tracking(self._connections, health_check_methods)
        self._accept_one = accept_with(self._transport)
        self._workers: list[threading.Thread] = []

    def _listen(self) -> socket.socket:
        return listening_socket(self._transport)

    def _accept(self) -> Any:
        client = self._accept_one()
        if client is not None:  # TLS that failed
            self._tracking.adopt(client)
        return client

    def _install(self, listener: DrainableListener[Any]) -> None:
        self._transport.listen = do_nothing
        self._transport.accept = listener.accept
        server = self._server
        self._tracking.install(server, get_ready=_end_work)
        if isinstance(server, TThreadPoolServer):
            self._work: Callable[[], None] = server.serveThread
            server.serveThread = self._serve_thread

    def _close_transport(self) -> None:
        self._transport.close()

    def _run_server(self) -> None:
        try:
            self._server.serve()
        finally:
            # Also after a failure: workers must not wait for clients that cannot come.
            if isinstance(self._server, TThreadPoolServer):
                for _ in range(self._server.threads):
                    self._server.clients.put(_END_OF_WORK)

    def _serve_thread(self) -> None:
        self._workers.append(threading.current_thread())
        with contextlib.suppress(_WorkEndedError):
            self._work()

    def _own_threads(self) -> list[threading.Thread]:
        return self._workers

    def __repr__(self) -> str:
        """Show the wrapped server's kind and the counts."""
        return (
            f"<ThriftServer {type(self._server).__name__} connections={len(self._connections)} "
            f"in_flight={self._in_flight.count}>"
        )


def _end_work(client: Any) -> None:
    if client is _END_OF_WORK:
        raise _WorkEndedError


def _refusal(server: object) -> str:
    kind = type(server).__name__
    if isinstance(server, TNonblockingServer):
        return f"{kind} serves many connections in one thread: use ThriftNonblockingServer({kind}(...))"
    if isinstance(server, (TForkingServer, TProcessPoolServer)):
        return f"{kind} serves in child processes: use ThriftProcessServer({kind}(...))"
    return f"{kind} cannot be drained: use TThreadedServer, TThreadPoolServer or TSimpleServer"
