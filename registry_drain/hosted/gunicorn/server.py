"""The adapter: gunicorn's workers, seen from the master and stopped through gunicorn's own stop.

Theory of operation: the stop runs in threads of the master, beside the arbiter's loop, which goes on replacing and
reaping workers while the instance leaves its registries and callers catch up. Then new connections are held off the
listeners, the workers accept what is left in the backlog, and only when that is empty the arbiter is told to stop, as
if its SIGTERM had come now. The workers finish what they have; the arbiter reaps them.

Rules:

1. The workers are told by the arbiter, never by us, until what is left is cut off.
2. A listener that somebody else listens on, too (a master of a binary upgrade, systemd), is not touched: what is queued
   there is served by the other one.
3. The listener is shut only when every worker has stopped accepting; see
   :mod:`registry_drain.hosted.gunicorn.gate`.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from registry_drain.clock import Deadline
from registry_drain.errors import ServerError
from registry_drain.hosted.gunicorn.board import Board, WorkerSlot
from registry_drain.phases import Phase
from registry_drain.servers.base import ListenerClosure
from registry_drain.servers.in_flight import InFlight, InFlightRequest
from registry_drain.servers.listener import ROUND_TRIP, HeldOff, bound_address, has_backlog, hold_off

_LOOK_EVERY = 0.010
_LEAVE_LIMIT = 1.5
"""Seconds that the workers get to stop accepting, before the listener is left to end with the last of them. gunicorn's
ASGI worker looks once a second whether it is to go."""
_QUIT_LIMIT = 0.1
"""Seconds between SIGQUIT and SIGKILL for workers that are cut off; the stop grants little time for that."""


class GunicornServer:
    """gunicorn's workers as a :class:`DrainableServer`. In the master; every method but ``start`` from any thread.

    Made by :func:`registry_drain.hosted.gunicorn.drain`.

    Args:
        arbiter: gunicorn's own, with its listeners.
        board: what the workers say.
        pass_on: makes the arbiter stop, as a SIGTERM would; called once.
    """

    def __init__(self, arbiter: Any, board: Board, pass_on: Callable[[], None]) -> None:
        self._arbiter = arbiter
        self._board = board
        self._pass_on = pass_on
        self._in_flight = InFlight()
        self._in_flight.include(board)
        self._in_flight.stop_state.watch(self._publish)
        # Held while the listener is being closed: it guards nothing that a request, the arbiter or cut_off() needs,
        # only that two stops do not interleave. Every wait under it ends by its deadline.
        self._lock = threading.Lock()
        self._has_passed_on = False
        self._is_stopping = threading.Event()
        self._never = threading.Event()
        self._listeners: list[socket.socket] = []
        self._held: list[HeldOff] = []
        self._closure: ListenerClosure | None = None

    @property
    def in_flight(self) -> InFlight:
        """The requests of all workers."""
        return self._in_flight

    @property
    def is_shared(self) -> bool:
        """Whether another process, not a worker of ours, listens on the same sockets."""
        arbiter = self._arbiter
        return bool(arbiter.reexec_pid or arbiter.master_pid or arbiter.systemd)

    def start(self) -> tuple[str, int]:
        """Wait until a worker serves; return the bound address and port. gunicorn itself starts what there is to start.

        Raises:
            ServerError: stopped before that.
        """
        while not any(slot.is_ready for slot in self._board.slots):
            if self._is_stopping.wait(_LOOK_EVERY):
                raise ServerError("gunicorn was stopped before a worker was ready")
        return self.bound()

    def bound(self) -> tuple[str, int]:
        """Return where the first listener listens; for a Unix socket its path, and 0.

        Raises:
            ServerError: there is none.
        """
        for listener in self._arbiter.LISTENERS:
            return bound_address(listener.sock)
        raise ServerError("gunicorn listens nowhere")

    def close_listener(self, deadline: Deadline) -> ListenerClosure:
        """Hold new connections off, let the workers empty the backlog, tell them to go; see :class:`DrainableServer`.

        If the workers are too busy to empty it in time they go on serving, and :meth:`drain` goes on with this.
        """
        with self._lock:
            self._is_stopping.set()
            if self._closure is None:
                self._seal()
                self._go(deadline)
                methods = ", ".join(dict.fromkeys(held.method for held in self._held))
                otherwise = "left to who else listens" if self.is_shared else "closed by gunicorn"
                self._closure = ListenerClosure(methods or otherwise)
            return self._closure

    def drain(self, deadline: Deadline) -> bool:
        """Wait until every worker has gone; see :class:`DrainableServer`."""
        self._in_flight.stop_state.enter(Phase.DRAINING, deadline.at)
        self.close_listener(deadline)
        with self._lock:
            is_empty = self._go(deadline)
        while self._arbiter.WORKERS:
            if deadline.is_past:
                return False
            deadline.clock.wait(self._never, min(_LOOK_EVERY, deadline.remaining()))
        self._shut()
        return is_empty

    def cut_off(self) -> tuple[InFlightRequest, ...]:
        """Kill the workers that are left, and say what they served; see :class:`DrainableServer`."""
        left = self._in_flight.snapshot() if self._arbiter.WORKERS else ()
        self._pass_on_once()
        self._signal_workers(signal.SIGQUIT)
        until = time.monotonic() + _QUIT_LIMIT
        while self._arbiter.WORKERS and time.monotonic() < until:
            time.sleep(_LOOK_EVERY)
        self._signal_workers(signal.SIGKILL)
        self._shut()
        return left

    def _publish(self, _phase: Phase) -> None:
        stop_state = self._in_flight.stop_state
        self._board.publish(stop_state.phase, stop_state.cut_off_at)
        self._is_stopping.set()

    def _seal(self) -> None:
        if self.is_shared:
            return
        for listener in list(self._arbiter.LISTENERS):
            # A duplicate: the arbiter closes its own as soon as it is told to stop.
            with suppress(OSError):
                self._listeners.append(listener.sock.dup())
        self._held = [hold_off(listener) for listener in self._listeners]

    def _go(self, deadline: Deadline) -> bool:
        """Tell the arbiter once the backlog is empty, or anyway if the drain has to; return whether it was empty."""
        is_empty = self._has_passed_on or self._await_empty(deadline)
        if is_empty or self._in_flight.stop_state.is_draining:
            self._pass_on_once()
            self._await_left(deadline)
        return is_empty

    def _await_empty(self, deadline: Deadline) -> bool:
        # Real time besides the deadline's: this waits for packets on a wire. The workers accept, we only look.
        until = time.monotonic() + (ROUND_TRIP if self._listeners else 0.0)
        while True:
            is_empty = not has_backlog(*self._listeners)
            if is_empty and time.monotonic() >= until:
                return True
            if deadline.is_past and time.monotonic() >= until:
                return is_empty
            time.sleep(0.001)

    def _await_left(self, deadline: Deadline) -> None:
        # Half of the time: gunicorn's ASGI worker often needs longer than the phase has, and one that ends at its limit
        # is out of time, though nothing is lost. The drain goes on with this.
        until = time.monotonic() + min(_LEAVE_LIMIT, deadline.remaining() / 2)
        while self._listeners and time.monotonic() < until:
            if all(slot.has_left for slot in self._serving()):
                self._shut()
                return
            time.sleep(_LOOK_EVERY)

    def _shut(self) -> None:
        """Refuse connections from now on: no worker is left that accepts."""
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        for held in self._held:
            held.close()

    def _serving(self) -> list[WorkerSlot]:
        slots = [getattr(worker, "registry_drain_slot", None) for worker in list(self._arbiter.WORKERS.values())]
        return [slot for slot in slots if slot is not None and slot.is_ready]

    def _pass_on_once(self) -> None:
        if not self._has_passed_on:
            self._has_passed_on = True
            self._pass_on()

    def _signal_workers(self, number: int) -> None:
        for pid, worker in list(self._arbiter.WORKERS.items()):
            slot = getattr(worker, "registry_drain_slot", None)
            if slot is not None:
                slot.tell()
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def __repr__(self) -> str:
        """Show the workers and the requests."""
        return f"<GunicornServer workers={len(self._arbiter.WORKERS)} in_flight={self._in_flight.count}>"
