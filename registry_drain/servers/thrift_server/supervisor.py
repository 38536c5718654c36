"""The process between the service and the processes that serve: forks them, ends them, and ends with the service.

Theory of operation: the service's process has threads (heartbeats, the stop), and forking it while they hold locks is
how children come to hang. So it forks once, when the server starts and nothing is registered yet; this process, which
has one thread only, runs the user's own serve loop and forks all the others. None of them has ever had a
connection to a registry, or a thread that could renew or remove a registration. Signals that mean a stop do nothing
here: whoever gets them (a whole group often does) leaves it to the service's process to say what happens.

How clients are accepted depends on the server: :mod:`~registry_drain.servers.thrift_server.forking` and
:mod:`~registry_drain.servers.thrift_server.pool`. What every child does besides serving says
:mod:`~registry_drain.servers.thrift_server.child`.

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
import time
from collections.abc import Callable, Collection
from typing import Any

from registry_drain.servers.connections import Connections
from registry_drain.servers.thrift_server.child import Child, exit_now
from registry_drain.servers.thrift_server.controls import LOOK_EVERY, Controls
from registry_drain.servers.thrift_server.shared_table import SharedStopState, SharedTable
from registry_drain.servers.thrift_server.shared_tracking import SharedTracking
from registry_drain.servers.thrift_server.transport import do_nothing

logger = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
"""What the service's process alone acts upon."""

_LAST_WORDS_S = 0.2
"""Seconds for children to say what they cut off, before they are killed."""

_LOOK_EVERY_S = 0.005
"""Between two looks whether children that were told to end have gone."""


class _EndNowError(BaseException):
    """The parent says so, or has gone. Not an Exception: the serve loops log those, and go on."""


class Supervisor:
    """What runs in the forked process; a subclass for each kind of server. Make it there.

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
        self._tracking = SharedTracking(self._connections, health_check_methods)
        self._free = list(range(1, len(table.slots)))  # sorted, hence a heap
        self._children: dict[int, int] = {}  # slots by pid
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
            self._serve()
            while self._children:
                self._wait()
        except _EndNowError:
            self._end_children()

    def _serve(self) -> None:
        """Run the user's serve loop, or what stands in for it, until nobody is accepted any more."""
        raise NotImplementedError

    def _get_ready(self, client: Any) -> None:
        """Prepare for a client that is about to be served; called where the serve loop asks for its transport."""

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
            time.sleep(_LOOK_EVERY_S)

    def _reserve(self) -> int:
        while not self._free:
            self._wait()  # for a child to exit
        index = heapq.heappop(self._free)
        self._head.slots_used = max(self._head.slots_used, index + 1)
        return index

    def _become_child(self, index: int) -> None:
        """Note, in a process that was just forked, that this is one that serves."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, self._users_child_handler)
        self._wake.close()
        self._wake_end.close()
        self._children.clear()
        self._tracking.slot = self._table.slots[index]
        Child(self._connections, self._tracking.slot, self._controls, self._pid).start()


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
        exit_now(status)


def _exited_children() -> list[int]:
    pids = []
    with contextlib.suppress(ChildProcessError):
        while pid := os.waitpid(-1, os.WNOHANG)[0]:
            pids.append(pid)
    return pids


def _ignore(_number: int, _frame: object) -> None:
    """Handle a signal by doing nothing."""
