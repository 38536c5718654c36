"""The master's signals: the first one begins our stop, not gunicorn's; the second hurries it; the third ends at once.

Theory of operation: gunicorn's handlers put the signal into the arbiter's queue. Ours stand before them, and gunicorn's
is called when it is time. As in :mod:`registry_drain.shutdown.signals` a handler only puts the number into a queue; a
thread of ours takes it out.

That thread also sees the main thread end by itself (gunicorn exits on a configuration that it cannot reload), and then
stops what nobody has stopped. So it is the one that is no daemon.
"""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)

COALESCE = 0.1
"""Seconds in which a repetition of the same signal counts as the same one, as everywhere in this package."""
_LOOK_EVERY = 0.25


class MasterSignals:
    """Our handlers in the master. :meth:`install` in its main thread, the rest in any.

    Args:
        on_signal: called in a thread of ours with the signal's name, and whether it is the first.
        on_orphaned: called there when the main thread has ended.
        kill_workers: called in the handler of the third signal; must not block.
    """

    def __init__(
        self,
        on_signal: Callable[[str, bool], None],
        on_orphaned: Callable[[], None],
        kill_workers: Callable[[], None],
    ) -> None:
        """Prepare; nothing in the process changes yet."""
        self._on_signal = on_signal
        self._on_orphaned = on_orphaned
        self._kill_workers = kill_workers
        self._pid = os.getpid()
        self._previous: dict[int, Any] = {}
        self._received: list[tuple[int, float]] = []
        self._queue: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._is_done = threading.Event()
        self._thread = threading.Thread(target=self._relay, name="registry-drain-gunicorn-signals", daemon=False)

    def install(self) -> None:
        """Put our handlers before gunicorn's, which must stand."""
        self._thread.start()
        for number in STOP_SIGNALS:
            self._previous[number] = signal.signal(number, self._handle)

    def pass_on(self) -> None:
        """Let gunicorn have its SIGTERM. Its handler only puts it into a queue."""
        handler = self._previous.get(signal.SIGTERM)
        if callable(handler):
            handler(signal.SIGTERM, None)

    def end(self) -> None:
        """End the thread; later signals are ignored but for the third."""
        self._is_done.set()

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            return  # a worker that is still starting: what it is told stands on the board
        now = time.monotonic()
        if self._received:
            last, at = self._received[-1]
            if last == number and now - at < COALESCE:
                return
        self._received.append((number, now))
        if len(self._received) >= 3:
            try:
                self._kill_workers()
            finally:
                os._exit(128 + number)
        self._queue.put(number)

    def _relay(self) -> None:
        is_first = True
        while not self._is_done.is_set():
            try:
                number = self._queue.get(timeout=_LOOK_EVERY)
            except queue.Empty:
                if not threading.main_thread().is_alive():
                    self._on_orphaned()
                    return
                continue
            self._on_signal(signal.Signals(number).name, is_first)
            is_first = False
