"""Counts the calls of a ``grpc.server``, all four kinds, and answers its health checks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import grpc

from registry_drain.clock import SYSTEM_CLOCK, Clock
from registry_drain.servers.grpc_server.counting import STREAM_ENDED, TRAILER
from registry_drain.servers.grpc_server.interception import Handler, Interception, behavior_of, rebuilt


class DrainInterceptor(Interception, grpc.ServerInterceptor):  # type: ignore[misc]  # grpc is not annotated
    """Give it to ``grpc.server(..., interceptors=[...])``, first in the list, and to the adapter. One per server.

    Args:
        health: the ``HealthServicer`` that was added to the server; None: the interceptor answers health checks.
        end_streams_after: seconds after which a draining server ends streams of answers: between two messages, with
            UNAVAILABLE and trailing metadata ``registry-drain: draining``; None: they end by themselves, or are cut
            off. One that is still waiting for its next message a second later is cancelled.
        clock: for the instants of requests.

    Raises:
        MissingExtraError: grpcio-health-checking is not installed.
    """

    def __init__(
        self, *, health: Any = None, end_streams_after: float | None = None, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        super().__init__(health, end_streams_after, clock, is_async=False)

    def intercept_service(self, continuation: Callable[[Any], Handler], details: Any) -> Handler:
        """See :meth:`grpc.ServerInterceptor.intercept_service`."""
        return self._stand_in_for(continuation(details), details.method)

    def _counting(self, handler: Handler, name: str) -> Handler:
        behavior = behavior_of(handler)
        calls = self.calls

        def answer(request: Any, context: Any) -> Any:
            call = calls.begin(name, context)
            try:
                return behavior(request, context)
            finally:
                calls.end(call)

        def stream(request: Any, context: Any) -> Iterator[Any]:
            call = calls.begin(name, context)
            try:
                if calls.end_streams_after is None:
                    yield from behavior(request, context)
                    return
                with calls.endable(context.cancel):
                    for message in behavior(request, context):
                        yield message
                        if calls.must_end():
                            context.set_trailing_metadata(TRAILER)
                            context.abort(grpc.StatusCode.UNAVAILABLE, STREAM_ENDED)
            finally:
                calls.end(call)

        def push(request: Any, context: Any, send: Callable[[Any], None]) -> None:
            # It returns at once, and answers later from any thread.
            over = ExitStack()
            over.callback(calls.end, calls.begin(name, context))
            if calls.end_streams_after is not None:
                over.enter_context(calls.endable(context.cancel))
            if not context.add_callback(over.close):
                over.close()
            behavior(request, context, send)

        counted: Any = stream if handler.response_streaming else answer
        if handler.response_streaming and getattr(behavior, "experimental_non_blocking", False):
            counted = push
        return rebuilt(handler, _like(behavior, counted))

    def _watching(self, handler: Handler) -> Handler:
        if not handler.response_streaming:
            return handler
        behavior = behavior_of(handler)
        calls = self.calls

        def watch(request: Any, context: Any, *send: Callable[[Any], None]) -> Any:
            # With a third argument answers are sent by calling it, None being the end; else by the iterator returned.
            answers = behavior(request, context, *send)
            take_back = calls.add_watch(lambda: send[0](None) if send else context.cancel())
            if not context.add_callback(take_back):
                take_back()
            return answers

        return rebuilt(handler, _like(behavior, watch))


def _like(behavior: Callable[..., Any], ours: Callable[..., Any]) -> Callable[..., Any]:
    """Copy what ``grpc/_server.py`` asks a behavior for."""
    for attribute in ("experimental_thread_pool", "experimental_non_blocking"):
        value = getattr(behavior, attribute, None)
        if value is not None:
            setattr(ours, attribute, value)
    return ours
