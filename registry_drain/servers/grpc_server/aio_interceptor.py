"""Counts the calls of a ``grpc.aio.server``, all four kinds, and answers its health checks.

Theory of operation: a call is one task, in which the interceptor and then the handler run. ``grpc.aio`` looks at the
*kind* of function that a handler is (coroutine, asynchronous generator, or neither, which then runs in a thread of the
migration pool), so what stands in for it has to be of the same kind.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from typing import Any

import grpc
import grpc.aio

from registry_drain.clock import SYSTEM_CLOCK, Clock
from registry_drain.servers.grpc_server.counting import STREAM_ENDED, TRAILER, Calls
from registry_drain.servers.grpc_server.health import HEALTH
from registry_drain.servers.grpc_server.interception import Handler, Interception, behavior_of, rebuilt


class AioDrainInterceptor(Interception, grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc is not annotated
    """Give it to ``grpc.aio.server(interceptors=[...])``, first in the list, and to the adapter. One per server.

    Args:
        health: the ``grpc_health.v1.health.aio.HealthServicer`` that was added to the server; None: the interceptor
            answers health checks.
        end_streams_after: as of :class:`~registry_drain.servers.grpc_server.DrainInterceptor`. A stream that is
            waiting gets a CancelledError where it waits; its client sees the same status as between two messages.
        clock: for the instants of requests.

    Raises:
        MissingExtraError: grpcio-health-checking is not installed.

    Attributes:
        tasks: those of calls, from when gRPC has taken them until the core has let go of them; not of health checks.
    """

    def __init__(
        self, *, health: Any = None, end_streams_after: float | None = None, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        super().__init__(health, end_streams_after, clock, is_async=True)
        self.tasks: set[asyncio.Task[Any]] = set()
        self._forget_task = self.tasks.discard

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Handler]], details: Any) -> Handler:
        """See :meth:`grpc.aio.ServerInterceptor.intercept_service`."""
        name: str = details.method
        stand_in = self._stand_in_for(await continuation(details), name)
        if stand_in is not None and not name.startswith(HEALTH):
            task = asyncio.current_task()
            assert task is not None  # noqa: S101 - a call is a task
            self.tasks.add(task)
            task.add_done_callback(self._forget_task)
        return stand_in

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
            call = calls.begin(name, context)
            try:
                ending = _Ending(calls)
                with ending:
                    async with aclosing(behavior(request, context)) as messages:
                        async for message in messages:
                            yield message
                            if calls.must_end():
                                ending.is_due = True
                                break
                await ending.say(context)
            finally:
                calls.end(call)

        return generate

    def _awaiting(self, behavior: Callable[..., Any], name: str, *, is_stream: bool) -> Callable[..., Any]:
        calls = self.calls

        async def await_answer(request: Any, context: Any) -> Any:
            call = calls.begin(name, context)
            try:
                return await behavior(request, context)
            finally:
                calls.end(call)

        async def await_stream(request: Any, context: Any) -> Any:
            call = calls.begin(name, context)
            try:
                ending = _Ending(calls)
                with ending:
                    return await behavior(request, context)
                await ending.say(context)
            finally:
                calls.end(call)

        return await_stream if is_stream else await_answer

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

    def _watching(self, handler: Handler) -> Handler:
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


class _Ending:
    """Lets a stream be ended by cancelling what it waits for, and tells that from any other cancellation."""

    def __init__(self, calls: Calls) -> None:
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
        self._endable.__enter__()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
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
