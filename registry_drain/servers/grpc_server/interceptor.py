"""Counts the calls of a ``grpc.server``, all four kinds, and answers its health checks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc

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


class DrainInterceptor(grpc.ServerInterceptor):  # type: ignore[misc]  # grpc is not annotated
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
        self.calls = Calls(clock, end_streams_after)
        self.health = new_servicer(is_async=False) if health is None else health
        self._own_health = handlers_of(self.health) if health is None else {}

    @property
    def in_flight(self) -> InFlight:
        """The server's requests, named by full method (``/package.Service/Method``)."""
        return self.calls.in_flight

    def intercept_service(self, continuation: Callable[[Any], Handler], details: Any) -> Handler:
        """See :meth:`grpc.ServerInterceptor.intercept_service`."""
        handler = continuation(details)
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
        calls = self.calls

        def answer(request: Any, context: Any) -> Any:
            with calls.counted(name, context):
                return behavior(request, context)

        def stream(request: Any, context: Any) -> Iterator[Any]:
            with calls.counted(name, context):
                if calls.end_streams_after is None:
                    yield from behavior(request, context)
                    return
                with calls.endable(context.cancel):
                    for message in behavior(request, context):
                        yield message
                        if calls.must_end():
                            context.set_trailing_metadata(TRAILER)
                            context.abort(grpc.StatusCode.UNAVAILABLE, STREAM_ENDED)

        counted: Any = stream if handler.response_streaming else answer
        return rebuilt(handler, _like(behavior, counted))

    def _watching(self, handler: Handler, _name: str) -> Handler:
        """Make ``Watch`` end when the drain begins; ``Check`` is left as it is."""
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
