"""The adapter of a server that runs us: what the stop routine can do to it from inside the application.

Theory of operation: the requests are known by the middleware. Of uvicorn everything else is known, too
(:mod:`registry_drain.servers.uvicorn_server.running`). Of another server we see the listening socket, among the
descriptors of this process, and hold clients off; the rest is its own graceful stop, which ends with the lifespan
shutdown.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from registry_drain.clock import Deadline
from registry_drain.errors import ServerError
from registry_drain.phases import Phase
from registry_drain.servers.base import ListenerClosure
from registry_drain.servers.http.asgi import ASGIMiddleware
from registry_drain.servers.in_flight import InFlight, InFlightRequest
from registry_drain.servers.listener import ROUND_TRIP, hold_off, listening_sockets

if TYPE_CHECKING:
    from registry_drain.servers.uvicorn_server.running import RunningUvicorn

_LOOK_EVERY = 0.005
_LEAVE_LIMIT = 1.0
"""Seconds for the server to close its listener once it was told."""
_LINGER = 0.25
"""Seconds between a connection and its first request that a server not known from inside is made to wait."""
_CUT_OFF_LIMIT = 0.4
_OVERTIME_S = 0.05
_TIMEOUTS = (TimeoutError, asyncio.TimeoutError, concurrent.futures.TimeoutError)
"""One and the same from Python 3.11 on."""


class HostedServer:
    """A :class:`~registry_drain.servers.base.DrainableServer` that was started by somebody else.

    Args:
        middleware: around the application.
        port: what the server listens on.
        loop: the server's event loop.
        pass_on: lets the server stop by itself.
        running: uvicorn's stop, if it is one.
    """

    def __init__(
        self,
        middleware: ASGIMiddleware,
        port: int,
        loop: asyncio.AbstractEventLoop,
        pass_on: Callable[[], None],
        running: RunningUvicorn | None,
    ) -> None:
        self._middleware = middleware
        self._port = port
        self._loop = loop
        self._pass_on = pass_on
        self._running = running
        self._lock = threading.Lock()
        self._closure: ListenerClosure | None = None
        self.has_stopped = threading.Event()
        """Set by the lifespan shutdown."""
        self.is_drained = threading.Event()
        """Set when the server may go on with a stop of its own."""
        self.others_listen: Callable[[], bool] = lambda: False
        """Asked before this process stops accepting: whether other workers go on, from the same socket."""
        self.is_last: Callable[[], bool] = lambda: True
        """Asked when this process has stopped accepting: whether no other one accepts any more."""

    @property
    def in_flight(self) -> InFlight:
        """The application's requests."""
        return self._middleware.in_flight

    def start(self) -> tuple[str, int]:
        """Refuse: the server runs already."""
        raise ServerError("a server that runs the application cannot be started by it")

    def close_listener(self, deadline: Deadline) -> ListenerClosure:
        """Stop accepting; what is in the backlog is served."""
        with self._lock:
            if self._closure is None:
                self._closure = self._close_listener(deadline)
            return self._closure

    def _close_listener(self, deadline: Deadline) -> ListenerClosure:
        if self.has_stopped.is_set():
            return ListenerClosure("closed by the server itself")
        running = self._running
        if running is not None:
            limit = deadline.remaining() + _LEAVE_LIMIT
            if self.others_listen():
                return asyncio.run_coroutine_threadsafe(running.leave_listener(), self._loop).result(limit)
            closing = running.close_listener(deadline, is_last=self.is_last)
            return asyncio.run_coroutine_threadsafe(closing, self._loop).result(limit)
        return self._close_strange_listener(deadline)

    def _close_strange_listener(self, deadline: Deadline) -> ListenerClosure:
        listeners = listening_sockets(self._port)
        held = [hold_off(each) for each in listeners]
        is_clean = _until_empty(listeners, deadline)
        # Nobody new comes in, and whoever has just connected sends his request, which the server would not wait for.
        deadline.clock.sleep(min(_LINGER, deadline.remaining()))
        self._pass_on()
        ends_at = time.monotonic() + max(min(_LEAVE_LIMIT, deadline.remaining()), _OVERTIME_S)
        while time.monotonic() < ends_at and any(_is_held_by_others(each) for each in listeners):
            time.sleep(_LOOK_EVERY)
        for each in listeners:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        for hold in held:
            hold.close()
        return ListenerClosure(", ".join(dict.fromkeys(hold.method for hold in held)) or "close", is_clean=is_clean)

    def drain(self, deadline: Deadline) -> bool:
        """Let requests finish, and the server close its connections."""
        self.in_flight.stop_state.enter(Phase.DRAINING, deadline.at)
        self._pass_on()
        running = self._running
        if running is None:
            return self.has_stopped.is_set() or deadline.wait(self.has_stopped)
        if self.has_stopped.is_set():
            return True
        draining = asyncio.run_coroutine_threadsafe(running.drain(deadline), self._loop)
        with contextlib.suppress(*_TIMEOUTS):
            return draining.result(deadline.remaining() + _OVERTIME_S)
        draining.cancel()
        return False

    def cut_off(self) -> tuple[InFlightRequest, ...]:
        """Cancel what is left. The connections of a server other than uvicorn end with the process."""
        cut = self.in_flight.snapshot()
        self._pass_on()
        try:
            if cut or self._running is not None:
                work = self._running.cut_off() if self._running is not None else self._middleware.cut_off()
                with contextlib.suppress(*_TIMEOUTS, RuntimeError):
                    cut = asyncio.run_coroutine_threadsafe(work, self._loop).result(_CUT_OFF_LIMIT)
        finally:
            self.is_drained.set()
        return cut

    def __repr__(self) -> str:
        """Show the port and the count."""
        return f"<HostedServer port={self._port} in_flight={self.in_flight.count}>"


def _until_empty(listeners: list[socket.socket], deadline: Deadline) -> bool:
    """Wait until the server has accepted what the kernel has; it goes on doing so by itself."""
    poller = select.poll()
    for each in listeners:
        poller.register(each, select.POLLIN)
    began_at = time.monotonic()
    while (elapsed := time.monotonic() - began_at) < ROUND_TRIP or poller.poll(0):
        if deadline.is_past and elapsed >= _OVERTIME_S:
            return False
        time.sleep(_LOOK_EVERY)
    return True


def _is_held_by_others(sock: socket.socket) -> bool:
    """Whether a descriptor of this process but ``sock`` is the same socket."""
    name = f"socket:[{os.fstat(sock.fileno()).st_ino}]"
    holders = 0
    for each in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            holders += str(each.readlink()) == name
    return holders > 1
