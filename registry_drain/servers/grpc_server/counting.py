"""What is common to counting calls of sync and aio servers: the tracker, names, and who must be told to end.

Theory of operation: the interceptor sees each call twice. First when gRPC has taken it from the C core and asks for its
handler: from then on it is safe from ``server.stop()``, which :attr:`Calls.taken_at` records. Then when the handler
runs, behind whatever waits for a thread of the pool: that is the request which is counted and named.

Health checks are neither taken nor counted. Their ``Watch`` never ends by itself, so it is ended when the drain begins.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import grpc

from registry_drain.clock import Clock
from registry_drain.servers.current_request import TrackedRequest, serving
from registry_drain.servers.in_flight import InFlight

HEALTH = "/grpc.health.v1.Health/"
"""What the names of health checks begin with."""

WAITING_STREAM_PATIENCE = 1.0
"""Seconds for streams to end between two messages, once they must; what has not is waiting, and is cancelled. A stream
that sends all the time may be held up for a while: by its client, which does not read, or by a machine that is busy.
"""

_CACHE_LIMIT = 10_000
"""Counting handlers that are kept; a server that invents a handler for each call must not fill the memory."""

Handler = Any
"""A ``grpc.RpcMethodHandler``, which carries no annotations."""


class Calls:
    """The calls of one server. Thread-safe.

    Attributes:
        in_flight: the tracker.
        taken_at: when gRPC last asked for a handler (:func:`time.monotonic`); 0.0 before the first call.
        end_streams_after: seconds after which a draining server ends streams of answers; None: it does not.
        stream_ends_at: when it does (:func:`time.monotonic`); None before the drain.
    """

    def __init__(self, clock: Clock, end_streams_after: float | None) -> None:
        """Count nothing yet."""
        self.in_flight = InFlight(clock=clock)
        self.taken_at = 0.0
        self.end_streams_after = end_streams_after
        self.stream_ends_at: float | None = None
        self._handlers: dict[str, tuple[Handler, Handler]] = {}
        self._open: set[int] = set()
        self._keys = itertools.count(1)
        self._enders: dict[int, Callable[[], object]] = {}
        self._watch_enders: dict[int, Callable[[], object]] = {}
        self._is_draining = False

    def wrapped(self, handler: Handler, name: str, wrap: Callable[[Handler, str], Handler]) -> Handler:
        """Return the counting handler that ``wrap`` makes, from the cache if it may."""
        known = self._handlers.get(name)
        if known is not None and known[0] is handler:
            return known[1]
        if len(self._handlers) >= _CACHE_LIMIT:
            self._handlers.clear()
        made = wrap(handler, name)
        self._handlers[name] = (handler, made)
        return made

    @property
    def is_all_sent(self) -> bool:
        """Whether the core has let go of every call that was counted: its status has been written, or it is lost."""
        return not self._open

    @contextmanager
    def counted(self, name: str, context: Any) -> Iterator[None]:
        """Count the block as a call, and know until when the core has it.

        Unlike :func:`~registry_drain.servers.current_request.served`, it may be left in another context than it was
        entered in: a generator that nobody finishes is closed by whoever drops it.
        """
        in_flight = self.in_flight
        key = in_flight.begin(name, peer_of(context))
        self._open.add(key)
        # An aio context has the one, the others have the other.
        add_callback = getattr(context, "add_callback", None)
        if add_callback is None:
            context.add_done_callback(lambda _context: self._open.discard(key))
        elif add_callback(lambda: self._open.discard(key)) is False:
            self._open.discard(key)
        token = serving.set(TrackedRequest(in_flight, key))
        try:
            yield
        finally:
            with suppress(ValueError):
                serving.reset(token)
            in_flight.end(key)

    @contextmanager
    def endable(self, end: Callable[[], object]) -> Iterator[None]:
        """Have the block ended by ``end()``, from any thread, if it goes on for too long while draining."""
        key = next(self._keys)
        self._enders[key] = end
        try:
            yield
        finally:
            self._enders.pop(key, None)

    def must_end(self) -> bool:
        """Whether a stream of answers should end between two messages."""
        return self.stream_ends_at is not None and time.monotonic() >= self.stream_ends_at

    def add_watch(self, end: Callable[[], object]) -> Callable[[], None]:
        """Have ``end()`` called when the drain begins, or now; return what takes it back."""
        key = next(self._keys)
        self._watch_enders[key] = end
        # Marked first, looked at then: a drain that begins meanwhile either finds the entry, or is seen here.
        if self._is_draining:
            self._watch_enders.pop(key, None)
            end()

        def take_back() -> None:
            self._watch_enders.pop(key, None)

        return take_back

    def end_watches(self) -> None:
        """End health watches, now and from now on."""
        self._is_draining = True
        _call_all(self._watch_enders)

    def plan_stream_ends(self) -> float | None:
        """Note that the drain begins; return in how many seconds :meth:`end_streams` is due, None for never."""
        if self.end_streams_after is not None and self.stream_ends_at is None:
            self.stream_ends_at = time.monotonic() + self.end_streams_after
        if self.stream_ends_at is None:
            return None
        return max(self.stream_ends_at + WAITING_STREAM_PATIENCE - time.monotonic(), 0.0)

    def end_streams(self) -> None:
        """Cancel the streams that have not ended between two messages, nor by themselves."""
        _call_all(self._enders)


STREAM_ENDED = "the server is draining: open the stream again, elsewhere"
"""Details of the status that ends a stream."""

TRAILER = (("registry-drain", "draining"),)
"""Trailing metadata of a stream that was ended, for clients that want to tell it from a failure."""


def peer_of(context: Any) -> str:
    """Return the client as ``host:port``. gRPC says ``ipv4:127.0.0.1:1234`` or ``ipv6:%5B::1%5D:1234``."""
    peer = str(context.peer())
    kind, _, address = peer.partition(":")
    return address.replace("%5B", "[").replace("%5D", "]") if kind in {"ipv4", "ipv6"} else peer


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


def _call_all(enders: dict[int, Callable[[], object]]) -> None:
    for key in list(enders):
        end = enders.pop(key, None)
        if end is not None:
            with suppress(Exception):  # a call that has ended meanwhile
                end()
