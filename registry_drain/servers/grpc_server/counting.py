"""The calls of one server: which are in flight, and who must be told to end. Common to sync and aio servers.

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
from threading import get_ident
from typing import Any

from registry_drain.clock import Clock
from registry_drain.servers.current_request import LiveRequest, serving
from registry_drain.servers.in_flight import InFlight

WAITING_STREAM_PATIENCE = 1.0
"""Seconds for streams to end between two messages, once they must; what has not is waiting, and is cancelled. A stream
that sends all the time may be held up for a while: by its client, which does not read, or by a machine that is busy.
"""

STREAM_ENDED = "the server is draining: open the stream again, elsewhere"
"""Details of the status that ends a stream."""

TRAILER = (("registry-drain", "draining"),)
"""Trailing metadata of a stream that was ended, for clients that want to tell it from a failure."""


class Call(LiveRequest):
    """A call whose handler runs."""

    def __init__(self, in_flight: InFlight, name: str, peer: str) -> None:
        """Describe it; ``peer`` is as gRPC says it. That is asked for at once: once a call is over it may not be."""
        self.tracker = in_flight
        self.thread_id = get_ident()
        self._name = name
        self._peer = peer

    @property
    def name(self) -> str:
        """The full method."""
        return self._name

    @property
    def peer(self) -> str:
        """The client as ``host:port``. gRPC says ``ipv4:127.0.0.1:1234`` or ``ipv6:%5B::1%5D:1234``."""
        kind, _, address = self._peer.partition(":")
        return address.replace("%5B", "[").replace("%5D", "]") if kind in {"ipv4", "ipv6"} else self._peer


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
        self._keys = itertools.count(1)
        self._enders: dict[int, Callable[[], object]] = {}
        self._watch_enders: dict[int, Callable[[], object]] = {}
        self._is_draining = False

    def begin(self, name: str, context: Any) -> Call:
        """Count a call from now on, and until :meth:`end`, which must follow whatever happens.

        What it sets in the context variable nobody takes back: gRPC runs each call in a context of its own. Where it
        does not, in the threads that a ``grpc.aio.server`` runs plain functions in, see :meth:`counted`.
        """
        call = Call(self.in_flight, name, context.peer())
        self.in_flight.begin_request(call)
        serving.set(call)
        return call

    def end(self, call: Call) -> None:
        """Count it no more."""
        self.in_flight.end(call)

    @contextmanager
    def counted(self, name: str, context: Any) -> Iterator[None]:
        """Count the block as a call, and leave the context variable as it was.

        A generator that nobody finishes is closed by whoever drops it, in another context: then there is nothing to
        take back.
        """
        before = serving.get()
        call = self.begin(name, context)
        try:
            yield
        finally:
            if serving.get() is call:
                serving.set(before)
            self.end(call)

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


def _call_all(enders: dict[int, Callable[[], object]]) -> None:
    for key in list(enders):
        end = enders.pop(key, None)
        if end is not None:
            with suppress(Exception):  # a call that has ended meanwhile
                end()
