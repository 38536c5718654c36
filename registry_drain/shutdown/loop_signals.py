"""Signals in an asyncio application: ours stand whatever its loop or its libraries install, before and after.

Theory of operation: asyncio has signal handlers of its own (``loop.add_signal_handler``), which it calls from the loop,
and which replace those of :func:`signal.signal` and are replaced by them. So three things can go wrong, and are looked
after here:

- The loop's handler was there *before* ours. Both would run, and the application's (usually "set the event that ends
  ``main``") would pull the rug from under the drain. It is taken out of the loop, and put back and called when the stop
  has ended, like any handler that stood there before.
- A handler is installed *after* ours, by the loop or by a library. It is found within :data:`LOOK_EVERY`, replaced by
  ours, and called when the stop has ended. If it then calls ours, as the one that it found, or puts ours back and
  raises the signal once more (uvicorn), the one from before is called: ours is no longer in between.
- ``asyncio.run`` installs a handler of SIGINT that cancels the main task (3.11 and later). It stands there before ours
  and is put back, but not called, as Python's own SIGINT handler is not: the stop has been done.

A loop of another make (uvloop) keeps its handlers to itself: there, both run.
"""

from __future__ import annotations

import asyncio
import functools
import signal
from types import FrameType

from registry_drain.shutdown.signals import Handler, SignalTarget, StopSignals

LOOK_EVERY = 0.1
"""Seconds between two looks, which are also chances for handlers to run: Linux may give a signal to a thread that is
not the main one, and then nothing wakes a loop that sleeps."""


class LoopSignals(StopSignals):
    """Our signal handlers in an application's loop. Every method is for the loop's thread, which is the main thread."""

    def __init__(self, target: SignalTarget, loop: asyncio.AbstractEventLoop) -> None:
        """Prepare; nothing in the process changes yet."""
        super().__init__(target)
        self._loop = loop
        self._taken: dict[int, asyncio.Handle] = {}
        self._below: dict[int, list[Handler]] = {}
        """What later handlers have displaced together with ours, the oldest first."""
        self._chaining: dict[int, Handler] = {}
        """Later handlers that have called ours before we found them: they stand where they are."""
        self._is_installed = False

    def install(self) -> None:
        """Put our handlers in place; see :meth:`StopSignals.install`."""
        super().install()
        self._is_installed = True
        self._take_from_loop()

    def reinstall(self) -> None:
        """Put our handlers back where others have displaced them. To be called every :data:`LOOK_EVERY`."""
        for number in tuple(self._previous):
            handler = signal.getsignal(number)
            calls_ours = number in self._chaining and handler == self._chaining[number]
            if handler != self._handle and not calls_ours:
                self._below.setdefault(number, []).append(self._previous[number])
                self._previous[number] = handler
                signal.signal(number, self._handle)
        self._take_from_loop()

    def uninstall(self, *, chain: bool = True) -> None:
        """Put back what stood there before, the loop's handlers too, and call it; see :meth:`StopSignals.uninstall`."""
        self._is_installed = False
        taken, self._taken = self._taken, {}
        super().uninstall(chain=chain)
        for number, handle in taken.items():
            run = handle._run  # noqa: SLF001 - what the loop itself calls; there is nothing public
            self._loop.add_signal_handler(number, run)
            if chain and number in self.received:
                self._loop.call_soon(run)

    def _take_from_loop(self) -> None:
        # A dict of asyncio's own loops. Its remove_signal_handler would tell nobody what it removed, and would put the
        # default in place for a moment, in which a signal ends the process.
        handlers: dict[int, asyncio.Handle] | None = getattr(self._loop, "_signal_handlers", None)
        if isinstance(handlers, dict):
            for number in self._previous:
                if number in handlers:
                    self._taken[number] = handlers.pop(number)

    def _is_chained(self, handler: Handler) -> bool:
        return super()._is_chained(handler) and not _is_of_asyncio_run(handler)

    def _look_for_displaced(self) -> None:
        """Nothing to say: :meth:`reinstall` finds them, and sets it right."""

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._is_installed:
            self._pass_on(number, frame)
            return
        standing = signal.getsignal(number)
        if standing != self._handle:
            self._chaining[number] = standing
        super()._handle(number, frame)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        """Call what stood there before ours: whoever displaced us calls us, and the stop is over."""
        below = self._below.get(number)
        if not below:
            return
        handler = below.pop()  # so that it finds the next one, if it calls us as well
        try:
            if callable(handler) and self._is_chained(handler):
                handler(number, frame)
        finally:
            below.append(handler)


def _is_of_asyncio_run(handler: Handler) -> bool:
    """Whether it is what ``asyncio.Runner`` (3.11 and later) installs: a partial of one of its methods."""
    runner = getattr(asyncio, "Runner", None)
    if runner is None or not isinstance(handler, functools.partial):
        return False
    return isinstance(getattr(handler.func, "__self__", None), runner)
