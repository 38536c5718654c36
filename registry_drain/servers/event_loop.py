"""The event loop that an asyncio server lives in: the application's own, or one in a thread of ours.

Theory of operation: the stop runs in threads, an asyncio server in its loop. An adapter does its work in coroutines,
and its members, which any thread may call, hand them to the loop and wait. :func:`registry_drain.serve_async` gives
the adapter the application's loop (:meth:`ServerLoop.use`); without it, ``start`` makes a loop of its own, so that the
same adapter works with :func:`registry_drain.serve`.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from registry_drain.clock import Deadline
from registry_drain.errors import ServerError

T = TypeVar("T")

_END_LIMIT_S = 1.0
"""Seconds for the tasks of a loop of ours to end once they were cancelled."""


class ServerLoop:
    """One server's event loop. Thread-safe; ``call`` must not be called in the loop's own thread, which it waits for.

    Args:
        name: of the thread, if one is made.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        # Its threads start when needed. Of our own, so that they can be ended without waiting for one that is stuck.
        self._executor = concurrent.futures.ThreadPoolExecutor(thread_name_prefix=f"{name}-executor")

    @property
    def is_open(self) -> bool:
        """Whether there is a loop that is not closed."""
        return self._loop is not None and not self._loop.is_closed()

    @property
    def is_own(self) -> bool:
        """Whether the loop is one of ours, in a thread of its own."""
        return self._thread is not None

    def use(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take the application's loop. Before :meth:`start`."""
        self._loop = loop

    def start(self) -> None:
        """Make a loop and its thread, unless the application gave us its own."""
        if self._loop is not None:
            return
        self._loop = asyncio.new_event_loop()
        self._loop.set_default_executor(self._executor)
        self._thread = threading.Thread(target=self._run, args=(self._loop,), name=self._name, daemon=True)
        self._thread.start()

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
        finally:
            try:
                left = asyncio.all_tasks(loop)
                for task in left:
                    task.cancel()
                if left:
                    loop.run_until_complete(asyncio.wait(left, timeout=_END_LIMIT_S))
                loop.run_until_complete(loop.shutdown_asyncgens())
            finally:
                asyncio.set_event_loop(None)
                self._executor.shutdown(wait=False)
                loop.close()

    def call(self, work: Callable[[], Coroutine[Any, Any, T]], deadline: Deadline | None = None) -> T:
        """Run ``work()`` in the loop and return its result, waiting until ``deadline`` (real time).

        Raises:
            TimeoutError: the deadline came first; the coroutine is cancelled.
            ServerError: there is no loop, or it ended meanwhile, or the caller is in it.
        """
        loop = self._loop
        if loop is None or loop.is_closed():
            raise ServerError("the server's event loop is not running")
        if _running_loop() is loop:
            raise ServerError("called in the event loop that it would wait for: use the async face, or a thread")
        future = asyncio.run_coroutine_threadsafe(work(), loop)
        try:
            return future.result(None if deadline is None else deadline.remaining())
        except concurrent.futures.TimeoutError:
            if not future.done():
                future.cancel()
                raise TimeoutError("the event loop did not answer in time") from None
            raise
        except concurrent.futures.CancelledError:
            raise ServerError("the server's event loop ended") from None

    def call_soon(self, callback: Callable[[], object]) -> None:
        """Let the loop call ``callback`` when it comes to it; nothing happens if it is closed."""
        if self._loop is not None:
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(callback)

    def stop(self) -> None:
        """End a loop of ours: its tasks are cancelled, its thread is joined. The application's is left alone."""
        thread, loop = self._thread, self._loop
        if thread is None or loop is None:
            return
        with suppress(RuntimeError):  # closed already
            loop.call_soon_threadsafe(loop.stop)
        if thread is not threading.current_thread():
            thread.join(2 * _END_LIMIT_S)

    def __repr__(self) -> str:
        """Show whose loop it is."""
        kind = "own" if self.is_own else "none" if self._loop is None else "the application's"
        return f"<ServerLoop {kind}>"


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
