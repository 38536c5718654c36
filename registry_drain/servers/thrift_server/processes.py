"""Drains Apache Thrift's ``TForkingServer`` and ``TProcessPoolServer``, which serve in child processes.

Theory of operation: this is the side of the service's own process. :meth:`ThriftProcessServer.start` forks one
process, :mod:`~registry_drain.servers.thrift_server.supervisor`, which forks all the others; they write what they serve
into a shared table, and get their commands through pipes. The listening socket stays open here as well: the stop seals
it here, takes what is in the backlog, and hands it to the children; then shutting it wakes everybody who accepts.

The registration, its heartbeats and the handling of signals are here alone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Collection
from typing import Any

from thrift.server.TProcessPoolServer import TProcessPoolServer
from thrift.server.TServer import TForkingServer, TServer

from registry_drain.clock import SYSTEM_CLOCK, Clock, Deadline
from registry_drain.errors import ConfigurationError, ServerError
from registry_drain.phases import Phase
from registry_drain.servers.base import ListenerClosure
from registry_drain.servers.connections import IDLE_QUIET, peer_name, pending_bytes
from registry_drain.servers.in_flight import InFlight, InFlightRequest
from registry_drain.servers.listener import DrainableListener, ListenerStoppedError, bound_address
from registry_drain.servers.thrift_server.controls import Controls
from registry_drain.servers.thrift_server.forking import ForkingSupervisor
from registry_drain.servers.thrift_server.pool import PoolSupervisor
from registry_drain.servers.thrift_server.shared_table import SharedTable
from registry_drain.servers.thrift_server.supervisor import STOP_SIGNALS, run_and_exit
from registry_drain.servers.thrift_server.tls import has_own_accept
from registry_drain.servers.thrift_server.transport import listening_socket, listening_transport

logger = logging.getLogger(__name__)

MAX_CHILDREN = 4096
"""How many connections a TForkingServer serves at a time; more wait in the backlog. Far more than a machine can."""

_STEP = 0.005
_OVERTIME_S = 0.050
"""What closing the listener may take without any time left: what was accepted must become known."""
_END_LIMIT_S = 2.0
"""Seconds for the processes to end; they are told, and killed by the one above them after a tenth of it."""
_GIVE_TIMEOUT = 0.050


class ThriftProcessServer:
    """Makes a Thrift server that serves in child processes drainable.

    Give it the server object before anybody calls its ``serve()``. Start it before the process has threads and
    connections of its own: all children descend from a copy of the process that is made then. Thread-safe; in a child
    only :attr:`in_flight` may be used.

    Args:
        server: the user's own TForkingServer or TProcessPoolServer, on a ``TServerSocket``.
        health_check_methods: names of methods whose calls are no sign that callers still know this instance.
        clock: for deadlines; instants of requests are the system's.
        idle_quiet: seconds without a byte before an idle connection is closed by the drain.
        max_children: how many connections a TForkingServer serves at a time.

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
        max_children: int = MAX_CHILDREN,
    ) -> None:
        kind = type(server).__name__
        if not isinstance(server, (TForkingServer, TProcessPoolServer)):
            raise ConfigurationError(f"{kind} does not serve in child processes: use ThriftServer({kind}(...))")
        self._server: Any = server
        self._is_pool = isinstance(server, TProcessPoolServer)
        self._transport: Any = listening_transport(server.serverTransport)
        if has_own_accept(self._transport):
            raise ConfigurationError(
                f"{type(self._transport).__name__} has an accept() of its own, which no other process can do: "
                "use TServerSocket or TSSLServerSocket"
            )
        if max_children < 1:
            raise ConfigurationError(f"max_children={max_children}: at least one child has to serve")
        self._max_children = max_children
        self._options = frozenset(health_check_methods), idle_quiet
        self._in_flight = InFlight(clock=clock)
        self._lock = threading.Lock()
        self._owner_pid = os.getpid()
        self._table = SharedTable(1)
        self._controls: Controls | None = None
        self._listener: DrainableListener[socket.socket] | None = None
        self._closure: ListenerClosure | None = None
        self._giver: threading.Thread | None = None
        self._ungiven: list[InFlightRequest] = []
        self._pid = 0
        self._watcher = threading.Thread(target=self._watch, name="registry-drain-thrift-processes", daemon=True)
        self._has_ended = threading.Event()
        self._is_cut = False

    @property
    def in_flight(self) -> InFlight:
        """The requests of all processes, named by method."""
        return self._in_flight

    @property
    def connection_count(self) -> int:
        """How many connections are being served."""
        return self._table.open_count

    def start(self) -> tuple[str, int]:
        """Bind and listen (unless the server does already), fork, and serve; return the bound address and port.

        Raises:
            OSError: the address cannot be bound, or no process can be had.
            ServerError: started or stopped before.
        """
        with self._lock:
            if self._listener is not None or self._closure is not None:
                raise ServerError(f"{self!r} was started or stopped before: make a new server object to serve again")
            sock = listening_socket(self._transport)
            self._table = SharedTable(1 + (self._server.numWorkers if self._is_pool else self._max_children))
            self._in_flight.include(self._table)
            self._in_flight.stop_state.watch(self._tell)
            self._fork()
            self._listener = DrainableListener(sock, lambda: sock.accept()[0])
            return bound_address(sock)

    def close_listener(self, deadline: Deadline) -> ListenerClosure:
        """Stop accepting; what is in the backlog is served. See :meth:`DrainableServer.close_listener`."""
        self._refuse_in_children()
        with self._lock:
            listener = self._listener
            if listener is None:
                self._transport.close()
                self._closure = ListenerClosure("never started")
                return self._closure
            if self._closure is not None:
                return self._closure
            # From here on the children take what we hand over.
            self._table.head.is_closing = 1
            closure = listener.stop(deadline)
            self._transport.close()
            overtime_ends_at = time.monotonic() + _OVERTIME_S
            while is_late := self._table.is_anybody_accepting and not self._has_ended.is_set():
                if deadline.is_past and time.monotonic() >= overtime_ends_at:
                    break
                time.sleep(0.001)  # A child is between two statements: real time.
            is_clean = closure.is_clean and not is_late
            self._closure = ListenerClosure(closure.method, closure.accepted, is_clean)
            self._giver = threading.Thread(target=self._give, name="registry-drain-thrift-giver", daemon=True)
            self._giver.start()
            return self._closure

    def drain(self, deadline: Deadline) -> bool:
        """Let all processes finish their calls and close idle connections. See :meth:`DrainableServer.drain`."""
        self._refuse_in_children()
        controls = self._controls
        if controls is None or self._closure is None or self._is_cut:
            return True
        self._in_flight.stop_state.enter(Phase.DRAINING, deadline.at)
        controls.say_drain()
        while not self._is_empty():
            if deadline.is_past:
                return False
            deadline.clock.sleep(min(_STEP, deadline.remaining()))
        return True

    def cut_off(self) -> tuple[InFlightRequest, ...]:
        """End all processes, and return what they were serving. See :meth:`DrainableServer.cut_off`."""
        self.close_listener(Deadline.after(0.0))
        with self._lock:
            controls, giver = self._controls, self._giver
            if controls is None or giver is None or self._is_cut:
                return ()
            self._is_cut = True
            controls.say_cut()
            if not self._has_ended.wait(_END_LIMIT_S):
                # Its children look for it, and end when it has gone.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._pid, signal.SIGKILL)
                self._has_ended.wait(_END_LIMIT_S)
            self._watcher.join(_END_LIMIT_S)
            giver.join(_END_LIMIT_S)
            cut = [*self._left_in_slots(), *self._ungiven, *self._left_with(controls)]
            controls.close()
            return tuple(sorted(cut, key=lambda request: request.started_at))

    def _fork(self) -> None:
        controls = Controls()
        supervisor = PoolSupervisor if self._is_pool else ForkingSupervisor
        # A signal that means a stop must not run the service's handlers in the copy.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            self._pid = os.fork()
            if self._pid == 0:
                self._controls = controls
                run_and_exit(lambda: supervisor(self._server, self._table, controls, *self._options).run())
        except OSError:
            controls.close()
            self._transport.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        self._controls = controls
        self._watcher.start()

    def _refuse_in_children(self) -> None:
        if os.getpid() != self._owner_pid:
            raise ServerError(f"{self!r} can only be stopped in process {self._owner_pid}, which started it")

    def _tell(self, _phase: Phase) -> None:
        self._table.tell(self._in_flight.stop_state)

    def _is_empty(self) -> bool:
        outstanding = (self._closure.accepted if self._closure else 0) - self._table.taken
        # In this order: what is taken is open by then.
        return self._has_ended.is_set() or (outstanding <= 0 and not self._table.open_count)

    def _give(self) -> None:
        """Hand over what was taken from the backlog."""
        listener, controls = self._listener, self._controls
        if listener is None or controls is None:
            return
        with contextlib.suppress(ListenerStoppedError):
            while True:
                sock = listener.accept()
                try:
                    while not self._is_cut and not controls.give(sock, _GIVE_TIMEOUT):
                        pass
                    if self._is_cut:
                        self._ungiven += _unread(sock, self._in_flight.now())
                except OSError as error:
                    logger.warning("%r: a connection could not be handed over: %s", self, error)
                finally:
                    sock.close()
        controls.give_no_more()

    def _watch(self) -> None:
        """Wait for the end of the process that we forked."""
        status = 0
        with contextlib.suppress(ChildProcessError):  # Somebody else has waited for it.
            _, status = os.waitpid(self._pid, 0)
        self._has_ended.set()
        if not self._table.head.is_closing:
            with contextlib.suppress(OSError, AttributeError):
                self._transport.handle.shutdown(socket.SHUT_RDWR)  # Better refused than not answered.
            logger.error("%r: its processes have ended (%s); nothing is served any more", self, _meaning(status))

    def _left_in_slots(self) -> list[InFlightRequest]:
        left = []
        for index, slot in enumerate(self._table.used()):
            if slot.is_cut or slot.is_busy:
                left.append(self._table.describe(index))
            slot.is_cut = 0
            slot.close()
        return left

    def _left_with(self, controls: Controls) -> list[InFlightRequest]:
        """Close what no child has taken."""
        left = []
        with contextlib.suppress(OSError):
            while sock := controls.take(is_blocking=False):
                left += _unread(sock, self._in_flight.now())
                sock.close()
        return left

    def __repr__(self) -> str:
        """Show the wrapped server's kind and the counts."""
        return (
            f"<ThriftProcessServer {type(self._server).__name__} connections={self.connection_count} "
            f"in_flight={self._in_flight.count}>"
        )


def _unread(sock: socket.socket, now: float) -> list[InFlightRequest]:
    return [InFlightRequest("(not yet read)", peer_name(sock), now, 0)] if pending_bytes(sock) else []


def _meaning(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
