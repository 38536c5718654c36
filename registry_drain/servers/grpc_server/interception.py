"""What the two interceptors have in common: whose handler is replaced by what.

Theory of operation: gRPC asks for the handler of each call. What stands in for a handler is made once, and kept: it is
for the handler that it was made for, so a server that answers with another one the next time gets another.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import grpc

from registry_drain.clock import Clock
from registry_drain.servers.grpc_server.counting import Calls
from registry_drain.servers.grpc_server.health import HEALTH, handlers_of, new_servicer
from registry_drain.servers.in_flight import InFlight

_KEPT = 10_000
"""Handlers whose stand-ins are kept; a server that invents a handler for each call must not fill the memory."""

Handler = Any
"""A ``grpc.RpcMethodHandler``, which carries no annotations."""


class Interception:
    """The half of an interceptor that does not depend on how handlers are run; the subclass says what stands in.

    Attributes:
        calls: the server's.
        health: the HealthServicer that answers its health checks.
    """

    def __init__(self, health: Any, end_streams_after: float | None, clock: Clock, *, is_async: bool) -> None:
        self.calls = Calls(clock, end_streams_after)
        self.health = new_servicer(is_async=is_async) if health is None else health
        self._own_health = handlers_of(self.health) if health is None else {}
        self._stand_ins: dict[str, tuple[Handler, Handler]] = {}

    @property
    def in_flight(self) -> InFlight:
        """The server's requests, named by full method (``/package.Service/Method``)."""
        return self.calls.in_flight

    def _counting(self, handler: Handler, name: str) -> Handler:
        """Return what counts the calls of a handler."""
        raise NotImplementedError

    def _watching(self, handler: Handler) -> Handler:
        """Return what makes a health check's ``Watch`` end when the drain begins; ``Check`` is left as it is."""
        raise NotImplementedError

    def _stand_in_for(self, handler: Handler, name: str) -> Handler:
        """Return what serves a call that gRPC has just taken; None if nothing does."""
        is_health_check = name.startswith(HEALTH)
        if is_health_check:
            handler = handler or self._own_health.get(name)
        if handler is None:
            return None
        if not is_health_check:
            self.calls.taken_at = time.monotonic()
        known = self._stand_ins.get(name)
        if known is not None and known[0] is handler:
            return known[1]
        if len(self._stand_ins) >= _KEPT:
            self._stand_ins.clear()
        made = self._watching(handler) if is_health_check else self._counting(handler, name)
        self._stand_ins[name] = (handler, made)
        return made


def rebuilt(handler: Handler, behavior: Callable[..., Any]) -> Handler:
    """Return a handler of the same kind and serializers around another behavior."""
    if handler.request_streaming:
        make = (
            grpc.stream_stream_rpc_method_handler
            if handler.response_streaming
            else grpc.stream_unary_rpc_method_handler
        )
    else:
        make = (
            grpc.unary_stream_rpc_method_handler if handler.response_streaming else grpc.unary_unary_rpc_method_handler
        )
    return make(
        behavior, request_deserializer=handler.request_deserializer, response_serializer=handler.response_serializer
    )


def behavior_of(handler: Handler) -> Callable[..., Any]:
    """Return the user's function."""
    kinds = (handler.unary_unary, handler.unary_stream, handler.stream_unary, handler.stream_stream)
    found: Callable[..., Any] = next(each for each in kinds if each is not None)
    return found
