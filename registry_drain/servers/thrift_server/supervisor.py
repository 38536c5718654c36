"""The process between the service and the processes that serve: forks them, ends them, and ends with the service.

Theory of operation: the service's process has threads (heartbeats, the stop), and forking it while they hold locks is
how children come to hang. So it forks once, when the server starts and nothing is registered yet; this process, which
has one thread only, runs the user's own serve loop and forks all the others. None of them has ever had a
connection to a registry, or a thread that could renew or remove a registration. Signals that mean a stop do nothing
here: whoever gets them (a whole group often does) leaves it to the service's process to say what happens.

``TForkingServer`` accepts here, and forks a child for each connection. ``TProcessPoolServer`` forks its workers, who
accept. While the listener is being closed both take the connections that the parent hands over instead.

Each child has a thread that waits for commands (:mod:`~registry_drain.servers.thrift_server.controls`), and drains its
own connections by the means of the threaded servers.

Rules:

1. Nothing here returns to the code that forked: the callers end by ``os._exit``. Exit handlers are the service's.
2. Only this process kills its children, before it has waited for them: their numbers cannot be anybody else's yet.
3. When the service's process dies, all end at once: nobody could stop them any more.

Sources: ``thrift/server/TServer.py``, ``TProcessPoolServer.py`` of Apache Thrift 0.25; ``fork(2)``, ``signal(7)``.
"""

from __future__ import annotations

import contextlib
import heapq
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection
from typing import Any

from thrift.server.TServer import TForkingServer

from registry_drain.clock import Deadline
from registry_drain.servers.connections import Connection, Connections
from registry_drain.servers.listener import ListenerStoppedError
from registry_drain.servers.listener.listening_socket import ListeningSocket
from registry_drain.servers.thrift_server.controls import LOOK_EVERY, Controls, is_set
from registry_drain.servers.thrift_server.messages import Header, ReadHeader, end_if_closed
from registry_drain.servers.thrift_server.shared_table import SharedStopState, SharedTable, Slot
from registry_drain.servers.thrift_server.tls import client_of
from registry_drain.servers.thrift_server.tracking import Tracking
from registry_drain.servers.thrift_server.transport import do_nothing

logger = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
"""What the service's process alone acts upon."""

_LAST_WORDS_S = 0.2
"""Seconds for children to say what they cut off, before they are killed."""

_DRAIN_STEP = 0.005

_LOOK_WHETHER_CLOSING_EVERY = 0.200
"""Seconds between two looks of a pool's worker that waits for connections on a socket which may be handed over."""


class _EndNowError(BaseException):
    """The parent says so, or has gone. Not an Exception: the serve loops log those, and go on."""


class _SharedTracking(Tracking):
    """Tracking that keeps the child's slot up to date."""

    slot: Slot

    def adopt(self, client: Any) -> Connection:
        connection = super().adopt(client)
        slot = self.slot
        slot.open(connection.peer)
        close: Callable[[], None] = client.close

        def close_and_tell() -> None:
            close()
            slot.close()

        client.close = close_and_tell
        return connection

    def read_header_of(self, protocol: Any, connection: Connection) -> ReadHeader:
        read_header = super().read_header_of(protocol, connection)
        slot = self.slot
        now = time.monotonic

        def read_and_tell() -> Header:
            slot.is_busy = 0
            header = read_header()
            slot.rename(header[0])
            if self.is_health_check(header[0]):
                slot.started_at = now()
            else:
                slot.arrived_at = now()
                slot.served += 1
            slot.is_busy = 1
            return header

        return read_and_tell

    def watch_serving(self, protocol: Any, connection: Connection, read_header: ReadHeader) -> ReadHeader:
        if connection.is_timed:
            return super().watch_serving(protocol, connection, read_header)
        slot = self.slot
        read_plainly: ReadHeader = protocol.readMessageBegin
        served, last_name = slot.served, None
        now = time.monotonic

        # watch_only and read_and_tell in one, as it is on the path of every request. Nobody looks at the connection's
        # own name and count before the drain; each line that says slot writes to shared memory.
        def read_message_begin() -> Header:
            nonlocal served, last_name
            connection.boundary = connection.received
            slot.is_busy = 0
            header = read_plainly()
            if connection.is_half_closed:
                end_if_closed(connection)
            name = header[0]
            if name != last_name:
                last_name = name
                slot.rename(name)
            connection.name = name
            slot.arrived_at = now()
            connection.served = served = served + 1
            slot.served = served
            slot.is_busy = 1
            return header

        return read_message_begin


class Supervisor:
    """What runs in the forked process. Make it there.

    Args:
        server: the user's TForkingServer or TProcessPoolServer; it listens.
        table: where children write what they do.
        controls: the parent's commands.
        health_check_methods: see :class:`Tracking`.
        idle_quiet: see :class:`Connections`.
    """

    def __init__(
        self,
        server: Any,
        table: SharedTable,
        controls: Controls,
        health_check_methods: Collection[str],
        idle_quiet: float,
    ) -> None:
        self._server = server
        self._transport = server.serverTransport
        self._table = table
        self._head = table.head
        self._controls = controls
        self._pid = os.getpid()
        self._connections = Connections(
            idle_quiet=idle_quiet, corks_answers=True, stop_state=SharedStopState(table.head, time.monotonic)
        )
        self._tracking = _SharedTracking(self._connections, health_check_methods)
        self._free = list(range(1, len(table.slots)))  # sorted, hence a heap
        self._children: dict[int, int] = {}  # slots by pid
        self._forking: tuple[Any, int] | None = None  # the client and slot of a fork that has not succeeded yet
        self._my_slot = table.slots[0]
        self._my_slot.pid = self._pid
        self._head.slots_used = 1

    def run(self) -> None:
        """Serve until told to end, and until all children have gone."""
        self._controls.keep_childs_ends()
        self._prepare_signals()
        self._transport.listen = do_nothing
        self._tracking.install(self._server, get_ready=self._get_ready)
        try:
            if isinstance(self._server, TForkingServer):
                self._run_forking()
            else:
                self._run_pool()
            while self._children:
                self._wait()
        except _EndNowError:
            self._end_children()

    def _prepare_signals(self) -> None:
        # A child that has exited interrupts whatever we wait for, through a descriptor that we poll.
        self._wake, self._wake_end = socket.socketpair()
        for end in (self._wake, self._wake_end):
            end.settimeout(0.0)
        self._users_child_handler = signal.signal(signal.SIGCHLD, _ignore)
        signal.set_wakeup_fd(self._wake_end.fileno(), warn_on_full_buffer=False)

    def _wait(self, descriptor: int | None = None) -> bool:
        """Wait for a descriptor, a child's exit or a command; return whether it was the descriptor."""
        poller = select.poll()
        for each in (self._controls.cut, self._wake.fileno(), descriptor):
            if each is not None:
                poller.register(each, select.POLLIN)
        ready = {each for each, _ in poller.poll(LOOK_EVERY * 1000)}
        if self._controls.cut in ready or os.getppid() != self._controls.parent_pid:
            raise _EndNowError
        if self._wake.fileno() in ready:
            with contextlib.suppress(BlockingIOError):
                self._wake.recv(4096)
        self._reap()
        return descriptor in ready

    def _reap(self) -> None:
        for pid in _exited_children():
            slot = self._children.pop(pid, None)
            if slot is not None:
                self._table.slots[slot].free()
                heapq.heappush(self._free, slot)
            with contextlib.suppress(AttributeError, ValueError):  # TForkingServer's own list
                self._server.children.remove(pid)

    def _end_children(self) -> None:
        """Let them say what they cut off, then kill them. They see the command themselves."""
        kill_at = time.monotonic() + _LAST_WORDS_S
        is_killed = False
        while self._children:
            for pid in _exited_children():
                self._children.pop(pid, None)  # Its slot stays as it is: the parent reads it.
            if not is_killed and time.monotonic() >= kill_at:
                is_killed = True
                for pid in self._children:
                    os.kill(pid, signal.SIGKILL)
            time.sleep(_DRAIN_STEP)

    def _reserve(self) -> int:
        while not self._free:
            self._wait()  # for a child to exit
        index = heapq.heappop(self._free)
        self._head.slots_used = max(self._head.slots_used, index + 1)
        return index

    # --- TForkingServer: accepts here, a child for each connection ----------------------------------------------------

    def _run_forking(self) -> None:
        self._transport.handle.settimeout(0.0)  # We poll, with other things.
        self._transport.accept = self._accept_to_fork
        self._server.collect_children = self._note_fork
        with contextlib.suppress(ListenerStoppedError):
            self._server.serve()

    def _accept_to_fork(self) -> Any:
        self._give_up_failed_fork()
        while True:
            index = self._reserve()
            client = self._next_client(index)
            if client is not None:
                self._forking = client, index
                _flush()  # or the child writes what is in our buffers once more
                return client
            heapq.heappush(self._free, index)

    def _next_client(self, index: int) -> Any:
        """Return the next client, its slot open; None if there is none after all."""
        listener, slot = self._transport.handle, self._table.slots[index]
        if self._head.is_closing:
            if not self._wait(self._controls.takers.fileno()):
                return None
            plain = self._controls.take(is_blocking=False)
            if plain is None:
                raise ListenerStoppedError
            client = self._open(plain, slot)
            self._my_slot.taken += 1
            return client
        if not self._wait(listener.fileno()):
            return None
        # The parent sets is_closing and then waits until nobody is accepting: either we see it, or it waits for us.
        self._my_slot.is_accepting = 1
        try:
            return None if self._head.is_closing else self._open(listener.accept()[0], slot)
        except BlockingIOError:
            return None  # The client is gone, or the parent was faster.
        except OSError as error:
            if not self._head.is_closing:
                logger.warning("cannot accept: %s", error)  # out of descriptors, until a child exits
                time.sleep(_DRAIN_STEP)
            return None
        finally:
            self._my_slot.is_accepting = 0

    def _open(self, plain: socket.socket, slot: Slot) -> Any:
        client = client_of(self._transport, plain)
        if client is not None:
            slot.open("")
        return client

    def _note_fork(self) -> None:
        """Stand in for ``collect_children``, which the serve loop calls behind each fork."""
        if self._forking is not None:
            pid, (_, index) = self._server.children[-1], self._forking
            self._children[pid] = index
            self._table.slots[index].pid = pid
            self._forking = None
        self._reap()

    def _give_up_failed_fork(self) -> None:
        if self._forking is not None:
            client, index = self._forking
            client.close()
            self._table.slots[index].free()
            heapq.heappush(self._free, index)
            self._forking = None

    def _get_ready(self, client: Any) -> None:
        """Become a child, if that is where the serve loop asks for the transport."""
        if os.getpid() != self._pid and self._forking is not None:
            (_, index), self._forking = self._forking, None
            self._transport.handle.close()  # Who serves one connection must not keep the port.
            self._controls.takers.close()
            self._become_child(index)
            self._tracking.adopt(client)

    # --- TProcessPoolServer: the workers accept -----------------------------------------------------------------------

    def _run_pool(self) -> None:
        self._server.isRunning.value = True
        for _ in range(self._server.numWorkers):
            index = self._reserve()
            _flush()
            pid = os.fork()
            if pid == 0:
                self._work(index)
            self._children[pid] = index
            self._table.slots[index].pid = pid
        self._transport.handle.close()  # The workers have theirs.

    def _work(self, index: int) -> None:
        try:
            self._become_child(index)
            self._transport.accept = self._accept_in_worker
            if isinstance(self._transport.handle, ListeningSocket):
                # It may be another process', and is not shut then, which would wake us: see is_closing by ourselves.
                self._transport.handle.settimeout(_LOOK_WHETHER_CLOSING_EVERY)
            self._server.workerProcess()
        except BaseException:
            logger.exception("a worker has failed")
        finally:
            _exit()

    def _accept_in_worker(self) -> Any:
        slot = self._tracking.slot
        while True:
            slot.is_accepting = 1
            try:
                if not self._head.is_closing:
                    client = client_of(self._transport, self._transport.handle.accept()[0])
                    if client is not None:
                        self._tracking.adopt(client)
                    return client
            except TimeoutError:
                continue
            except OSError:
                if not self._head.is_closing:
                    raise
            finally:
                slot.is_accepting = 0
            plain = self._controls.take(is_blocking=True)
            if plain is None:
                raise SystemExit  # workerProcess returns
            client = client_of(self._transport, plain)
            if client is not None:
                self._tracking.adopt(client)
            slot.taken += 1
            return client

    # --- every child --------------------------------------------------------------------------------------------------

    def _become_child(self, index: int) -> None:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, self._users_child_handler)
        self._wake.close()
        self._wake_end.close()
        self._children.clear()
        self._tracking.slot = self._table.slots[index]
        self._tracking.slot.pid = os.getpid()
        threading.Thread(target=self._obey, name="registry-drain-thrift-control", daemon=True).start()

    def _obey(self) -> None:
        poller = select.poll()
        poller.register(self._controls.cut, select.POLLIN)
        poller.register(self._controls.drain, select.POLLIN)
        is_draining = False
        while True:
            poller.poll(LOOK_EVERY * 1000)
            if is_set(self._controls.cut) or os.getppid() != self._pid:
                self._cut_off()
            if not is_draining and is_set(self._controls.drain):
                is_draining = True
                poller.unregister(self._controls.drain)  # It stays readable.
                threading.Thread(target=self._drain, name="registry-drain-thrift-drain", daemon=True).start()

    def _drain(self) -> None:
        # Until the process ends: a pool's worker may be given further connections.
        while True:
            self._connections.drain(Deadline.after(LOOK_EVERY))
            time.sleep(_DRAIN_STEP)

    def _cut_off(self) -> None:
        slot = self._tracking.slot
        for request in self._connections.cut_off():
            slot.rename(request.name)
            slot.is_cut = 1
        _exit()


def run_and_exit(run: Callable[[], None]) -> None:
    """Run the supervisor in the process that was just forked, and end the process. Signals are blocked till then."""
    status = 1
    try:
        for number in STOP_SIGNALS:
            # Not SIG_IGN, which programs that a handler starts would inherit.
            signal.signal(number, _ignore)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        run()
        status = 0
    except BaseException:
        logger.exception("the process that serves has failed")
    finally:
        _exit(status)


def _exited_children() -> list[int]:
    pids = []
    with contextlib.suppress(ChildProcessError):
        while pid := os.waitpid(-1, os.WNOHANG)[0]:
            pids.append(pid)
    return pids


def _ignore(_number: int, _frame: object) -> None:
    """Handle a signal by doing nothing."""


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # closed, or somebody's own
            stream.flush()


def _exit(status: int = 0) -> None:
    _flush()
    os._exit(status)
