"""Who the server is that runs this process, and how it is told to stop when it is time.

Theory of operation: servers install their signal handlers before the application's lifespan startup. There they are
found, and ours are put in front: a signal begins our stop, and the server gets it when we say.

===================================  ===================================  =============================================
the server's handler stands          as                                   so
===================================  ===================================  =============================================
in :mod:`signal`, a method of        uvicorn                              its ``shutdown`` waits for us; its handler is
``uvicorn.Server``                                                        called at once, and only sets a flag
in the event loop                    granian, hypercorn without workers   ours replaces it there, and calls it later
nowhere                              a hypercorn worker                   it cannot be drained from here
===================================  ===================================  =============================================

A handler only puts the number into a queue; a thread of ours takes it out (see :mod:`registry_drain.shutdown.signals`).
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

from registry_drain.errors import ConfigurationError
from registry_drain.shutdown.signals import COALESCE, SignalTarget

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
"""What the servers handle."""

_CANNOT = (
    "the server that runs this application shows no handler of stop signals in this process, so it cannot be drained"
    " from here: start hypercorn with --workers 0, granian with --loop asyncio, or run the server by its adapter"
    " (registry_drain.servers)"
)


class Host:
    """The server around us. To be made in the lifespan startup, in the event loop of the main thread.

    Attributes:
        uvicorn_server: the ``uvicorn.Server``, if it is one.
        has_supervisor: whether a parent process of the server's runs this one as a worker.

    Raises:
        ConfigurationError: a server that cannot be drained from here.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise ConfigurationError("the server runs in a thread, where there are no signals: use its adapter instead")
        self._loop = loop
        self.has_supervisor = multiprocessing.parent_process() is not None
        handler: Any = signal.getsignal(signal.SIGTERM)
        owner = getattr(handler, "__self__", None)
        is_uvicorn = type(owner).__module__.partition(".")[0] == "uvicorn" or any(
            base.__module__.partition(".")[0] == "uvicorn" for base in type(owner).__mro__
        )
        self.uvicorn_server: Any = owner if is_uvicorn and hasattr(owner, "server_state") else None
        self._in_loop: dict[int, Any] = {}
        self._in_signal: dict[int, Callable[[int, FrameType | None], object]] = {}
        self._queue: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._received: list[tuple[int, float]] = []
        self._is_passing = False
        if self.uvicorn_server is None and not _loop_handler(loop, signal.SIGTERM):
            raise ConfigurationError(_CANNOT)

    def put_in_front(self, target: SignalTarget) -> None:
        """Let ``target`` be told of stop signals from now on, before the server."""
        threading.Thread(target=self._relay, args=(target,), name="registry-drain-signals", daemon=True).start()
        for number in STOP_SIGNALS:
            handle = _loop_handler(self._loop, number)
            if handle is not None:
                self._in_loop[number] = handle
                self._loop.add_signal_handler(number, self._take, int(number))
                continue
            handler = signal.getsignal(number)
            if callable(handler):
                self._in_signal[number] = handler
                signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._take(number)
        self._in_signal[number](number, frame)

    def _take(self, number: int) -> None:
        now = time.monotonic()
        if self._received and self._received[-1][0] == number and now - self._received[-1][1] < COALESCE:
            return
        self._received.append((number, now))
        if len(self._received) >= (4 if self.has_supervisor else 3):
            os._exit(128 + number)
        self._queue.put(number)

    @property
    def stop_signal(self) -> str:
        """The name of the first stop signal that has come; empty if none has."""
        return signal.Signals(self._received[0][0]).name if self._received else ""

    def _relay(self, target: SignalTarget) -> None:
        count = 0
        while (number := self._queue.get()) is not None:
            count += 1
            name = signal.Signals(number).name
            if count == 1:
                target.request_stop(name)
            # A supervisor signals its workers, which a signal to the whole process group has reached already: up to
            # half a second lies in between. So the second one says nothing new to a worker.
            elif count > (2 if self.has_supervisor else 1):
                target.hurry(name)

    def pass_on(self) -> None:
        """Let the server stop now. Idempotent; from any thread. uvicorn is waiting for us, and needs no signal."""
        if self._is_passing or not self._in_loop:
            return
        self._is_passing = True
        number = self._received[0][0] if self._received else int(signal.SIGTERM)
        handle = self._in_loop.get(number) or next(iter(self._in_loop.values()))
        with suppress(RuntimeError):  # the loop is closed: the server has stopped
            self._loop.call_soon_threadsafe(handle._callback, *handle._args)  # noqa: SLF001 - no public way

    def end(self) -> None:
        """End the thread."""
        self._queue.put(None)


def _loop_handler(loop: asyncio.AbstractEventLoop, number: int) -> Any:
    """Return the handle of a handler that was installed by ``loop.add_signal_handler``; asyncio keeps no other way."""
    handlers: dict[int, Any] = getattr(loop, "_signal_handlers", None) or {}
    return handlers.get(number)
