"""Drains RPyC's ``ThreadedServer``, ``ThreadPoolServer`` and ``OneShotServer``.

Theory of operation: RPyC's own ``close()`` cuts every client. So the adapter runs the accept loop itself, and gives
each connection to the server's own ``_accept_method``; the service's protocol is replaced by one that tells of messages
and requests (:mod:`~registry_drain.servers.rpyc_server.protocol`). How an idle and a busy connection is closed,
:mod:`registry_drain.servers.connections.connection` says: RPyC has no goodbye that a client which does not wait for
anything would see, so it is the end of file.

Rules:

1. A pool's connection is served by whichever worker takes it, and waited for by the polling thread in between.
2. ``close()`` comes last, when every thread has ended: a pool's joins them, without a limit.
3. A pool finds its connections by descriptor, and one that a client's goodbye has closed belongs to the next client at
   once. So a worker remembers which connection it serves, and drops that one: RPyC's own would drop the next client's.
"""

from __future__ import annotations

import logging
import socket
import threading
from contextlib import suppress
from typing import Any

from rpyc.utils.server import ForkingServer, OneShotServer, Server, ThreadedServer, ThreadPoolServer

from registry_drain.clock import SYSTEM_CLOCK, Clock, Deadline
from registry_drain.errors import ConfigurationError
from registry_drain.servers.connections import Connection, join_threads
from registry_drain.servers.connections.adapter import BlockingServerAdapter
from registry_drain.servers.current_request import serving
from registry_drain.servers.in_flight import InFlightRequest
from registry_drain.servers.listener import DrainableListener
from registry_drain.servers.rpyc_server.protocol import tracked

logger = logging.getLogger(__name__)

IDLE_QUIET = 0.1
"""Seconds without a byte before an idle connection is closed by the drain. RPyC does not set TCP_NODELAY: what a client
has sent already, its kernel may hold back until ours acknowledges what it sent before, for up to 40 ms.
"""

_CLOSE_LIMIT_S = 1.0

Accepted = tuple[socket.socket, Connection]


class RpycServer(BlockingServerAdapter):
    """Makes an RPyC server drainable. Thread-safe.

    Give it the server object before anybody calls its ``start()``; the adapter does what that does, in a thread of its
    own, and calls its ``close()`` in the end. Services, authenticators (TLS) and protocol settings stay as they are.

    Args:
        server: the user's own ThreadedServer, ThreadPoolServer or OneShotServer.
        clock: for the instants of requests.
        idle_quiet: seconds without a byte before an idle connection is closed by the drain.

    Raises:
        ConfigurationError: a kind of server, or a setting, that this adapter cannot drain.
    """

    def __init__(self, server: Server, *, clock: Clock = SYSTEM_CLOCK, idle_quiet: float = IDLE_QUIET) -> None:
        if not isinstance(server, (ThreadedServer, ThreadPoolServer, OneShotServer)):
            kind = type(server).__name__
            if isinstance(server, ForkingServer):
                raise ConfigurationError(
                    f"{kind} serves in child processes, where requests cannot be counted from here: use ThreadedServer"
                )
            raise ConfigurationError(f"{kind} cannot be drained: use ThreadedServer, ThreadPoolServer or OneShotServer")
        if server.protocol_config.get("bind_threads"):
            raise ConfigurationError("bind_threads serves one connection in several threads: leave it out")
        super().__init__("registry-drain-rpyc", clock, idle_quiet)
        self._server: Any = server
        self._accepted: dict[socket.socket, Connection] = {}
        self._serve_client = getattr(server, "_authenticate_and_serve_client", None)
        self._is_freed = False

    def _listen(self) -> socket.socket:
        server = self._server
        server.listener.settimeout(None)
        server._listen()  # noqa: SLF001 - what start() calls first
        self._replace_protocol(server)
        return server.listener  # type: ignore[no-any-return]  # rpyc is not annotated

    def _replace_protocol(self, server: Any) -> None:
        service = server.service
        protocol = tracked(service._protocol)  # noqa: SLF001 - RPyC's own place for it
        if isinstance(service, type):
            # Its instances are made for each connection. A class of our own, for it may serve elsewhere without us.
            server.service = type(service.__name__, (service,), {"_protocol": protocol, "__doc__": service.__doc__})
        else:
            service._protocol = protocol  # noqa: SLF001

    def _install(self, _listener: DrainableListener[Any]) -> None:
        server = self._server
        if isinstance(server, ThreadPoolServer):
            server._serve_requests = self._serve_pooled  # noqa: SLF001
            self._wait_for_more = server._add_inactive_connection  # noqa: SLF001
            server._add_inactive_connection = self._wait_pooled  # noqa: SLF001
        else:
            server._authenticate_and_serve_client = self._serve_connection  # noqa: SLF001
        if isinstance(server, OneShotServer):
            self._close_server = server.close
            server.close = _do_nothing

    def _accept(self) -> Accepted:
        sock, _ = self._server.listener.accept()
        sock.settimeout(None)
        # An answer that the kernel kept until an earlier one is acknowledged (Nagle) would be corked when the drain
        # begins, and the client would wait for it until its connection is closed as idle. Unix sockets have none.
        with suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = Connection(self._connections, sock)
        # Always: its thread, or a pool's polling thread, waits for messages, or has read what it serves.
        connection.is_waiting = True
        self._connections.add(connection)
        return sock, connection

    def _run_server(self) -> None:
        server, listener = self._server, self._listener
        assert listener is not None  # noqa: S101 - made by start()
        server._register()  # noqa: SLF001 - what start() does next
        while True:
            sock, connection = listener.accept()
            server.clients.add(sock)
            if isinstance(server, ThreadPoolServer):
                self._accept_pooled(sock, connection)
                continue
            self._accepted[sock] = connection
            server._accept_method(sock)  # noqa: SLF001
            if isinstance(server, OneShotServer):
                self.close_listener(Deadline.after(_CLOSE_LIMIT_S))

    def _serve_connection(self, sock: socket.socket) -> None:
        """Serve one connection to its end, in a thread of its own."""
        connection = self._accepted.pop(sock)
        connection.thread = threading.current_thread()
        token = serving.set(connection)
        try:
            # It logs what goes wrong, and raises it as well, for nobody.
            with suppress(Exception):
                assert self._serve_client is not None  # noqa: S101 - only a pool has none
                self._serve_client(sock)
        finally:
            serving.reset(token)
            connection.close()
            sock.close()
            connection.closed()

    def _accept_pooled(self, sock: socket.socket, connection: Connection) -> None:
        server = self._server
        connection.thread = server.polling_thread
        token = serving.set(connection)
        try:
            server._accept_method(sock)  # noqa: SLF001
        finally:
            serving.reset(token)
        if sock.fileno() < 0 and connection.sock is sock:
            connection.close()  # refused by the authenticator, and closed
            connection.closed()

    def _serve_pooled(self, descriptor: int) -> None:
        """Serve what has come on one connection of the pool, in a worker: RPyC's ``_serve_requests``; see rule 3."""
        server = self._server
        protocol = server.fd_to_conn.get(descriptor)
        if protocol is None:
            return  # dropped meanwhile
        protocol.drained.thread = threading.current_thread()
        # Busy before anything is read: what has waited for the polling thread's next look is not new, and while it is
        # being read nothing else would tell that the connection is not quiet.
        protocol.drained.is_waiting = False
        for _ in range(server.request_batch_size):
            try:
                has_served = protocol.poll()
            except EOFError:
                self._drop_pooled(descriptor, protocol)
                return
            except Exception:
                self._queue_pooled(descriptor, protocol)
                raise
            if not has_served:
                self._wait_pooled(descriptor)
                return
        self._queue_pooled(descriptor, protocol)

    def _drop_pooled(self, descriptor: int, protocol: Any) -> None:
        if self._server.fd_to_conn.get(descriptor) is protocol:
            del self._server.fd_to_conn[descriptor]
        protocol.close()

    def _queue_pooled(self, descriptor: int, protocol: Any) -> None:
        """Let the workers serve others first."""
        if self._server.fd_to_conn.get(descriptor) is protocol:
            self._server._active_connection_queue.put(descriptor)  # noqa: SLF001

    def _wait_pooled(self, descriptor: int) -> None:
        """Have the polling thread wait for more."""
        connection = self._pooled(descriptor)
        if connection is not None:
            # Before it can come to the next worker.
            connection.thread = self._server.polling_thread
            connection.is_waiting = True
        self._wait_for_more(descriptor)

    def _pooled(self, descriptor: int) -> Connection | None:
        connection: Connection | None = getattr(self._server.fd_to_conn.get(descriptor), "drained", None)
        return connection

    def cut_off(self) -> tuple[InFlightRequest, ...]:
        """Shut what is left, end the threads, call ``close()``. See :meth:`DrainableServer.cut_off`."""
        self.close_listener(Deadline.after(0.0))
        server = self._server
        cut = self._connections.cut_off()
        server.active = False
        if isinstance(server, ThreadPoolServer) and self._listener is not None:
            for _ in server.workers:
                server._active_connection_queue.put(None)  # noqa: SLF001
        has_ended = join_threads(self._threads)
        if isinstance(server, ThreadPoolServer):
            self._close_pooled()
        with self._lock:
            must_free, self._is_freed = has_ended and not self._is_freed, has_ended or self._is_freed
        # A pool that was never started has no threads, which its close() would join.
        if must_free and not (isinstance(server, ThreadPoolServer) and self._listener is None):
            getattr(self, "_close_server", server.close)()
        return cut

    def _close_pooled(self) -> None:
        """Close what no worker will come to any more."""
        for descriptor, protocol in list(self._server.fd_to_conn.items()):
            if protocol.drained.thread is self._server.polling_thread:
                del self._server.fd_to_conn[descriptor]
                with suppress(Exception):  # the client is gone; and on_disconnect() is somebody else's code
                    protocol.close()

    def _close_transport(self) -> None:
        self._server.listener.close()

    def _own_threads(self) -> list[threading.Thread]:
        polling = getattr(self._server, "polling_thread", None)
        return [*getattr(self._server, "workers", ()), *([polling] if polling is not None else [])]

    def __repr__(self) -> str:
        """Show the wrapped server's kind and the counts."""
        return (
            f"<RpycServer {type(self._server).__name__} connections={len(self._connections)} "
            f"in_flight={self._in_flight.count}>"
        )


def _do_nothing() -> None:
    """Stand in for ``close()``, which a OneShotServer calls behind its one client."""
