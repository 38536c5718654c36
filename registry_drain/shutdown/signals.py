"""Signals: the first stops, the second hurries, the third exits; SIGHUP restarts, where that is asked for.

Theory of operation: a Python signal handler runs in the main thread between two bytecodes, whatever lock that thread
holds, so ours takes no lock and starts no thread. It counts, and puts the number into a :class:`queue.SimpleQueue`,
whose ``put`` is made for that; a thread of ours takes it out and talks to the stop routine. The third signal needs
nobody's help: ``os._exit``.

A handler that stood there before is called once the stop has ended, in the main thread, so that it cannot end the
process under the drain. Handlers that others install later displace ours; that is looked for once a second and said.
"""

from __future__ import annotations

import os
import queue
import select
import signal
import threading
import time
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Protocol

from registry_drain.errors import ConfigurationError
from registry_drain.shutdown.events import logger

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
"""What orchestrators, terminals and operators send."""
_KEYBOARD = {signal.SIGINT, signal.SIGQUIT}
COALESCE = 0.1
"""Seconds in which a repetition of the same signal counts as the same one: a supervisor that forwards a signal which
its whole process group has got already does not mean to hurry us. No person presses Ctrl-C twice that fast."""
_LOOK_EVERY = 1.0
"""Seconds between two looks at whether our handlers still stand."""
_JOIN_LIMIT = 1.0
"""Seconds; our thread may be inside an event sink that blocks, and must not keep the main thread."""

Handler = Callable[[int, FrameType | None], object] | int | None


class SignalTarget(Protocol):
    """What signals are for: a stop routine."""

    def request_stop(self, reason: str) -> None:
        """Begin the stop; returns at once."""
        ...

    def hurry(self, reason: str) -> None:
        """Skip every wait of the stop; returns at once."""
        ...

    def report_displaced(self, signal_name: str, handler: str) -> None:
        """Take note that somebody displaced our handler."""
        ...


class StopSignals:
    """Our signal handlers, from :meth:`install` to :meth:`uninstall`; both in the main thread.

    Args:
        target: told of the first and the second signal, in a thread of ours.
        signals: which ones.
    """

    def __init__(self, target: SignalTarget, signals: Iterable[signal.Signals] = STOP_SIGNALS) -> None:
        """Prepare; nothing in the process changes yet."""
        self._target = target
        self._signals = tuple(signals)
        self._previous: dict[int, Handler] = {}
        self._queue: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._received: list[tuple[int, float]] = []
        self._displaced: set[int] = set()
        self.on_hangup: Callable[[str], object] | None = None
        """What SIGHUP is for, called in our thread, which it must not keep; None (default): SIGHUP is left alone.
        To be set before :meth:`install`."""
        self._thread = threading.Thread(target=self._relay, name="registry-drain-signals", daemon=True)

    @property
    def received(self) -> tuple[signal.Signals, ...]:
        """The signals that counted so far, in order."""
        return tuple(signal.Signals(number) for number, _ in self._received)

    def install(self) -> None:
        """Put our handlers in place of what stands there, and start watching over them.

        Raises:
            ConfigurationError: outside the main thread, where Python installs no handlers.
        """
        if threading.current_thread() is not threading.main_thread():
            raise ConfigurationError(
                "signal handlers can only be installed in the main thread: call serve() there, or pass"
                " handle_signals=False and call stop() yourself"
            )
        self._thread.start()
        for number in (*self._signals, *([signal.SIGHUP] if self.on_hangup else [])):
            # A shell starts background jobs with the keyboard's signals ignored: Ctrl-C is meant for somebody else.
            if number in _KEYBOARD and signal.getsignal(number) is signal.SIG_IGN:
                continue
            if number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                logger.warning("SIGHUP is ignored (nohup), and stays so: call hand_over() to restart")
                continue
            self._previous[number] = signal.signal(number, self._handle)

    def uninstall(self, *, chain: bool = True) -> None:
        """Put back what stood there before, and call it for each signal that we got, if it is somebody's function.

        What it raises comes out of here. Does nothing if not installed.
        """
        if not self._previous:
            return
        previous, self._previous = self._previous, {}
        for number, handler in previous.items():
            if signal.getsignal(number) == self._handle:
                # None stands for a handler that C code installed: Python cannot put it back.
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._queue.put(None)
        self._thread.join(_JOIN_LIMIT)
        for number in dict.fromkeys(self.received):
            handler = previous.get(number)
            if chain and callable(handler) and self._is_chained(handler):
                handler(number, None)

    def _is_chained(self, handler: Handler) -> bool:
        """Whether a handler that stood there before is called; Python's own would only raise KeyboardInterrupt."""
        return handler is not signal.default_int_handler

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGHUP and self.on_hangup is not None:
            self._queue.put(number)
            return
        now = time.monotonic()
        if self._received:
            last, at = self._received[-1]
            if last == number and now - at < COALESCE:
                return
        self._received.append((number, now))
        if len(self._received) >= 3:
            _exit_at_once(number)
        self._queue.put(number)

    def _relay(self) -> None:
        count = 0
        while True:
            try:
                number = self._queue.get(timeout=_LOOK_EVERY)
            except queue.Empty:
                self._look_for_displaced()
                continue
            if number is None:
                return
            name = signal.Signals(number).name
            if number == signal.SIGHUP and self.on_hangup is not None:
                self.on_hangup(name)
                continue
            count += 1
            if count == 1:
                self._target.request_stop(name)
            else:
                self._target.hurry(name)

    def _look_for_displaced(self) -> None:
        for number in tuple(self._previous):
            handler = signal.getsignal(number)
            if handler != self._handle and number not in self._displaced:
                self._displaced.add(number)
                self._target.report_displaced(signal.Signals(number).name, _name_of(handler))


def _exit_at_once(number: int) -> None:
    try:
        # stderr may be closed, or a full pipe that nobody reads: "at once" must not wait for it.
        if select.select([], [2], [], 0)[1]:
            os.write(2, b"registry_drain: third signal, exiting at once\n")
    finally:
        os._exit(128 + number)


def _name_of(handler: object) -> str:
    if isinstance(handler, signal.Handlers):
        return handler.name
    module, name = getattr(handler, "__module__", None), getattr(handler, "__qualname__", None)
    return f"{module}.{name}" if module and name else repr(handler)
