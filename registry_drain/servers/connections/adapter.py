"""What the adapters of servers that block a thread for each connection have in common: their start and their stop.

Theory of operation: the user's own server object runs its own serve loop in a thread of ours. What is library-specific
are four steps, which a subclass fills in: how to listen, what to replace on the server, how its loop is run, and
which other threads it has.
"""

from __future__ import annotations

import logging
import socket
import threading
from typing import Any

from registry_drain.clock import Clock, Deadline
from registry_drain.errors import ServerError
from registry_drain.servers.base import ListenerClosure
from registry_drain.servers.connections.drain import Connections, join_threads
from registry_drain.servers.connections.spread import SPREAD
from registry_drain.servers.in_flight import InFlight, InFlightRequest
from registry_drain.servers.listener import DrainableListener, ListenerStoppedError, bound_address

logger = logging.getLogger(__name__)


class BlockingServerAdapter:
    """A :class:`~registry_drain.servers.base.DrainableServer` but for the four steps. Thread-safe.

    Args:
        thread_name: of the thread that accepts.
        clock: for the instants of requests.
        idle_quiet: seconds without a byte before an idle connection is closed by the drain.
        spread: seconds over which idle connections are closed if there are thousands; 0: all at once.
    """

    def __init__(self, thread_name: str, clock: Clock, idle_quiet: float, spread: float = SPREAD) -> None:
        self._in_flight = InFlight(clock=clock)
        self._connections = Connections(
            clock=clock,
            idle_quiet=idle_quiet,
            corks_answers=True,
            stop_state=self._in_flight.stop_state,
            spread=spread,
        )
        self._in_flight.include(self._connections)
        self._lock = threading.Lock()
        self._listener: DrainableListener[Any] | None = None
        self._closure: ListenerClosure | None = None
        self._thread = threading.Thread(target=self._serve, name=thread_name, daemon=True)

    def _listen(self) -> socket.socket:
        """Return the listening socket, bound and listening."""
        raise NotImplementedError

    def _accept(self) -> Any:
        """Accept one connection and make it known; see :class:`DrainableListener`."""
        raise NotImplementedError

    def _install(self, listener: DrainableListener[Any]) -> None:
        """Replace what has to be replaced on the server."""
        raise NotImplementedError

    def _close_transport(self) -> None:
        """Close the server's listening socket. Idempotent."""
        raise NotImplementedError

    def _run_server(self) -> None:
        """Run the serve loop; returns, or raises, when it ends."""
        raise NotImplementedError

    def _own_threads(self) -> list[threading.Thread]:
        """Return threads besides those that serve connections and the accepting one."""
        return []

    @property
    def in_flight(self) -> InFlight:
        """The server's requests, named by method."""
        return self._in_flight

    @property
    def connections(self) -> Connections:
        """The open connections, those that no thread serves yet included."""
        return self._connections

    def start(self) -> tuple[str, int]:
        """Bind and listen (unless the server does already) and serve; return the bound address and port.

        Raises:
            OSError: the address cannot be bound.
            ServerError: started or stopped before.
        """
        with self._lock:
            if self._listener is not None or self._closure is not None:
                raise ServerError(f"{self!r} was started or stopped before: make a new server object to serve again")
            sock = self._listen()
            self._listener = DrainableListener(sock, self._accept)
            self._install(self._listener)
            self._thread.start()
            return bound_address(sock)

    def close_listener(self, deadline: Deadline) -> ListenerClosure:
        """Stop accepting; what is in the backlog is served. See :meth:`DrainableServer.close_listener`."""
        with self._lock:
            listener = self._listener
            if listener is None:
                self._close_transport()
                self._closure = ListenerClosure("never started")
                return self._closure
        closure = listener.stop(deadline)
        # The serve loop no longer touches it: accept() takes what is handed over.
        with self._lock:
            self._close_transport()
        return closure

    def drain(self, deadline: Deadline) -> bool:
        """Let calls finish, close idle connections. See :meth:`DrainableServer.drain`."""
        return self._connections.drain(deadline)

    def cut_off(self) -> tuple[InFlightRequest, ...]:
        """Shut what is left and end the threads. See :meth:`DrainableServer.cut_off`."""
        self.close_listener(Deadline.after(0.0))
        cut = self._connections.cut_off()
        join_threads(self._threads)
        return cut

    def _serve(self) -> None:
        try:
            self._run_server()
        except ListenerStoppedError:
            pass
        except Exception:
            logger.exception("%r: serve() failed; nothing is accepted any more", self)

    def _threads(self) -> list[threading.Thread]:
        threads = {*self._connections.threads(), *self._own_threads(), self._thread}
        return [thread for thread in threads if thread.is_alive()]
