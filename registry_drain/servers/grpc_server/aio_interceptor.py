"""Counts the calls of a ``grpc.aio.server``, all four kinds, and answers its health checks.

Theory of operation: a call is one task, in which the interceptor and then the handler run. ``grpc.aio`` looks at the
*kind* of function that a handler is (coroutine, asynchronous generator, or neither, which then runs in a thread of the
migration pool), so what stands in for it has to be of the same kind.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import Any

import grpc
import grpc.aio

from registry_drain.clock import SYSTEM_CLOCK, Clock
from registry_drain.servers.grpc_server.counting import (
    HEALTH,
    STREAM_ENDED,
    TRAILER,
    Calls,
    Handler,
    behavior_of,
    rebuilt,
)
from registry_drain.servers.grpc_server.health import handlers_of, new_servicer
from registry_drain.servers.in_flight import InFlight


class AioDrainInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc is not annotated
    """Give it to ``grpc.aio.server(interceptors=[...])``, first in the list, and to the adapter. One per server.

    Args:
        health: the ``grpc_health.v1.health.aio.HealthServicer`` that was added to the server; None: the interceptor
            answers health checks.
        end_streams_after: as of :class:`~registry_drain.servers.grpc_server.DrainInterceptor`. A stream that is
            waiting gets a CancelledError where it waits; its client sees the same status as between two messages.
        clock: for the instants of requests.

    Raises:
        MissingExtraError: grpcio-health-checking is not installed.
    """

    def __init__(
        self, *, health: Any = None, end_streams_after: float | None = None, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self.calls = Calls(clock, end_streams_after)
        self.health = new_servicer(is_async=True) if health is None else health
        self.tasks: set[asyncio.Task[Any]] = set()
        self._own_health = handlers_of(self.health) if health is None else {}

    @property
    def in_flight(self) -> InFlight:
        """The server's requests, named by full method (``/package.Service/Method``)."""
        return self.calls.in_flight

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Handler]], details: Any) -> Handler:
        """See :meth:`grpc.aio.ServerInterceptor.intercept_service`."""
        handler = await continuation(details)
        name: str = details.method
        if name.startswith(HEALTH):
            handler = handler or self._own_health.get(name)
            return handler and self.calls.wrapped(handler, name, self._watching)
        if handler is None:
            return None
        self.calls.taken_at = time.monotonic()
        return self.calls.wrapped(handler, name, self._counting)

    def _counting(self, handler: Handler, name: str) -> Handler:
        behavior = behavior_of(handler)
        if inspect.isasyncgenfunction(behavior):
            return rebuilt(handler, self._generating(behavior, name))
        if inspect.iscoroutinefunction(behavior):
            return rebuilt(handler, self._awaiting(behavior, name, is_stream=handler.response_streaming))
        return rebuilt(handler, self._in_thread(behavior, name, is_stream=handler.response_streaming))

    def _generating(self, behavior: Callable[..., Any], name: str) -> Callable[..., Any]:
        calls = self.calls

        async def generate(request: Any, context: Any) -> AsyncIterator[Any]:
            with self._counted(name, context):
                ending = _Ending(calls, is_stream=True)
                with ending:
                    async with aclosing(behavior(request, context)) as messages:
                        async for message in messages:
                            yield message
                            if calls.must_end():
                                ending.is_due = True
                                break
                await ending.say(context)

        return generate

    def _awaiting(self, behavior: Callable[..., Any], name: str, *, is_stream: bool) -> Callable[..., Any]:
        if not is_stream or self.calls.end_streams_after is None:

            async def await_answer(request: Any, context: Any) -> Any:
                with self._counted(name, context):
                    return await behavior(request, context)

            return await_answer

        async def answer(request: Any, context: Any) -> Any:
            with self._counted(name, context):
                ending = _Ending(self.calls, is_stream=is_stream)
                answered = None
                with ending:
                    answered = await behavior(request, context)
                await ending.say(context)
                return answered

        return answer

    def _in_thread(self, behavior: Callable[..., Any], name: str, *, is_stream: bool) -> Callable[..., Any]:
        calls = self.calls

        def answer(request: Any, context: Any) -> Any:
            with calls.counted(name, context):
                return behavior(request, context)

        def stream(request: Any, context: Any) -> Iterator[Any]:
            with calls.counted(name, context):
                for message in behavior(request, context):
                    yield message
                    if calls.must_end():
                        context.set_trailing_metadata(TRAILER)
                        context.abort(grpc.StatusCode.UNAVAILABLE, STREAM_ENDED)

        return stream if is_stream else answer

    def _watching(self, handler: Handler, _name: str) -> Handler:
        """Make ``Watch`` end when the drain begins; ``Check`` is left as it is."""
        behavior = behavior_of(handler)
        if not handler.response_streaming or not inspect.iscoroutinefunction(behavior):
            return handler

        async def watch(request: Any, context: Any) -> None:
            loop = asyncio.get_running_loop()
            watching = asyncio.ensure_future(behavior(request, context))
            # The status of this moment is sent first: that of a server which says no more is NOT_SERVING.
            take_back = self.calls.add_watch(lambda: loop.call_soon_threadsafe(_end_watch, watching))
            try:
                await asyncio.wait([watching])
            finally:
                take_back()
                watching.cancel()
            if not watching.cancelled():
                await watching

        return rebuilt(handler, watch)

    @contextmanager
    def _counted(self, name: str, context: Any) -> Iterator[None]:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - handlers run in tasks
        self.tasks.add(task)
        try:
            with self.calls.counted(name, context):
                yield
        finally:
            self.tasks.discard(task)


class _Ending:
    """Lets a stream be ended by cancelling what it waits for, and tells that from any other cancellation."""

    def __init__(self, calls: Calls, *, is_stream: bool) -> None:
        self._is_stream = is_stream and calls.end_streams_after is not None
        self._endable = calls.endable(self._end)
        self._task = asyncio.current_task()
        self._loop = asyncio.get_running_loop()
        self.is_due = False

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        if self._task is not None and not self._task.done():
            self.is_due = True
            self._task.cancel()

    def __enter__(self) -> None:
        if self._is_stream:
            self._endable.__enter__()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if self._is_stream:
            self._endable.__exit__(None, None, None)
        return kind is not None and issubclass(kind, asyncio.CancelledError) and self.is_due

    async def say(self, context: Any) -> None:
        """End the call with the status that means it, if the stream was ended."""
        if self.is_due:
            context.set_trailing_metadata(TRAILER)
            await context.abort(grpc.StatusCode.UNAVAILABLE, STREAM_ENDED)


def _end_watch(watching: asyncio.Future[Any]) -> None:
    # Two turns later: it may be about to write the status that made it end.
    loop = watching.get_loop()
    loop.call_later(_LAST_STATUS_S, watching.cancel)


_LAST_STATUS_S = 0.050
"""Seconds for the last status to be written."""
