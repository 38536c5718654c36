"""Observers that are coroutines: run in the application's loop, cancelled and awaited at their time limit.

Theory of operation: the stop tells each observer in a thread. For a coroutine, that thread starts a task in the loop
and waits for it. Shortly before the limit the task is cancelled, which asyncio can do and threads cannot, so that it
can clean up; only one that swallows its cancellation is left behind.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any, Protocol

from registry_drain.clock import Deadline
from registry_drain.errors import ConfigurationError
from registry_drain.shutdown.observers import ShutdownObserver, TimeLimitError

_CLEAN_UP_LIMIT_S = 1.0
"""Seconds for one that was cancelled, and a fifth of its time if that is less."""
_REST_LIMIT_S = 0.250

waited_for_by: ContextVar[frozenset[object]] = ContextVar("registry_drain.waited_for_by", default=frozenset())
"""The stops that wait for the running task: it must not wait for them."""


class AsyncShutdownObserver(Protocol):
    """A :class:`~registry_drain.shutdown.observers.ShutdownObserver` of an asyncio application."""

    async def on_shutdown(self, deadline: Deadline) -> object:
        """Do what must be done, by ``deadline``; then it is cancelled. Called once, in the application's loop.

        It may raise: the report says so. It may await ``stop_async()``: that returns at once.
        """
        ...


AsyncObserver = ShutdownObserver | AsyncShutdownObserver | Callable[[], object]
"""What an asyncio application may want to be told; the function may be a coroutine function."""


class CoroutineRunner:
    """Runs coroutines in the application's loop for threads of the stop.

    Args:
        stop: what waits for these coroutines.
    """

    def __init__(self, stop: object) -> None:
        """Take coroutines; :meth:`use_loop` must follow before the first one runs."""
        self._stop = stop
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    def use_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Run them in ``loop``."""
        self._loop = loop

    def run(self, begin: Callable[[Deadline], Awaitable[object]], deadline: Deadline) -> object:
        """Await ``begin(deadline)`` in the loop, from another thread, and return its result.

        Raises:
            ConfigurationError: there is no loop.
            TimeLimitError: it took longer than until ``deadline``, and was cancelled.
            Exception: whatever it raised.
        """
        if self._loop is None:
            raise ConfigurationError("there is no event loop to run it in: use serve_async()")
        return _Run(self._loop, self._observe, begin).result(deadline)

    async def _observe(self, observed: Awaitable[object]) -> object:
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        waited_for_by.set(waited_for_by.get() | {self._stop})
        return await observed

    async def cancel_rest(self) -> None:
        """Cancel what a hurried stop has not waited for, and await it for a moment. In the loop."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_REST_LIMIT_S)


class _Run:
    """One coroutine in the loop, and the thread that waits for it."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        observe: Callable[[Awaitable[object]], Any],
        begin: Callable[[Deadline], Awaitable[object]],
    ) -> None:
        self._loop = loop
        self._observe = observe
        self._begin = begin
        self._task: asyncio.Task[object] | None = None
        self._error: BaseException | None = None
        self._is_given_up = False
        self._where = ""
        self._done = threading.Event()

    def result(self, deadline: Deadline) -> object:
        remaining = deadline.remaining()
        given = deadline.capped(remaining - min(_CLEAN_UP_LIMIT_S, remaining / 5))
        self._loop.call_soon_threadsafe(self._start, given)
        if not given.wait(self._done):
            self._loop.call_soon_threadsafe(self._cancel)
            deadline.with_headroom().wait(self._done)
        if self._error is not None:
            raise self._error
        task = self._task
        if task is None:
            raise TimeLimitError("not begun: the event loop was blocked")
        if not task.done():
            raise TimeLimitError(f"cancelled, and still {self._where or _where(task)}")
        if task.cancelled():
            raise TimeLimitError(f"cancelled {self._where}" if self._where else "cancelled by somebody else")
        return task.result()

    # In the loop.

    def _start(self, given: Deadline) -> None:
        if self._is_given_up:
            return
        try:
            self._task = self._loop.create_task(self._observe(self._begin(given)))
        except BaseException as error:  # noqa: BLE001 - raised in the thread that waits
            self._error = error
            self._done.set()
            return
        self._task.add_done_callback(lambda _task: self._done.set())

    def _cancel(self) -> None:
        self._is_given_up = True
        if self._task is not None and not self._task.done():
            self._where = _where(self._task)
            self._task.cancel()


def _where(task: asyncio.Task[object]) -> str:
    """Say in which function and line ``task`` waits: in somebody's code, not in the library's that it called."""
    found = "starting"
    waiting: Any = task.get_coro()
    while waiting is not None:
        frame = getattr(waiting, "cr_frame", None)
        if frame is not None:
            module = str(frame.f_globals.get("__name__", "")).partition(".")[0]
            if module not in sys.stdlib_module_names and frame.f_globals.get("__name__") != __name__:
                found = f"in {frame.f_code.co_name}() at {frame.f_code.co_filename}:{frame.f_lineno}"
        waiting = getattr(waiting, "cr_await", None)
    return found
