"""For request handlers: name the request being served, mark where it begins and ends, see the stop coming.

Every function may be called from anywhere: outside a request that an adapter or a middleware counts they do nothing,
or answer as if no stop were ever coming, so that handlers stay testable without a server.

Theory of operation: what is being served stands in a context variable (:mod:`contextvars`), which every thread has its
own of, and every asyncio task too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

from registry_drain.servers.in_flight import DescribedRequest, InFlight, InFlightRequest
from registry_drain.servers.stop_state import StopState


class CurrentRequest(Protocol):
    """What an adapter puts into :data:`serving`."""

    @property
    def stop_state(self) -> StopState:
        """The server's."""
        ...

    def identify(self, name: str, *, is_health_check: bool = False) -> None:
        """Name the request in flight; does nothing between two requests."""
        ...

    def begin_mark(self) -> None:
        """Note that the handler says that a request begins. Nothing to do where the protocol delimits requests."""
        ...

    def end_mark(self) -> None:
        """Note that the handler says that it ends."""
        ...


serving: ContextVar[CurrentRequest | None] = ContextVar("registry_drain.serving", default=None)
"""What the calling thread or task serves; set by adapters and middleware."""


class TrackedRequest:
    """A request that an adapter told its tracker of; a :class:`CurrentRequest`."""

    __slots__ = ("_in_flight", "_key", "stop_state")

    def __init__(self, in_flight: InFlight, key: int) -> None:
        """Stand for what ``in_flight`` knows under ``key``."""
        self._in_flight = in_flight
        self._key = key
        self.stop_state = in_flight.stop_state

    def identify(self, name: str, *, is_health_check: bool = False) -> None:
        """See :meth:`InFlight.identify`."""
        self._in_flight.identify(self._key, name, is_health_check=is_health_check)

    def begin_mark(self) -> None:
        """The protocol delimits requests."""

    def end_mark(self) -> None:
        """The protocol delimits requests."""


class RequestTracker(Protocol):
    """Counts a :class:`LiveRequest`."""

    @property
    def stop_state(self) -> StopState:
        """The server's."""
        ...

    def is_in_flight(self, request: DescribedRequest, /) -> bool:
        """Whether a request has begun and not ended."""
        ...

    def take_back(self, request: DescribedRequest, /) -> None:
        """Note that a request has turned out to be a health check."""
        ...


class LiveRequest:
    """A request that describes itself to its tracker; a :class:`CurrentRequest`. Adapters fill in who asks for what.

    Made for each request: a subclass sets as little as it can, and leaves to the class what is set later, and hardly
    ever: CPython stores and loads ten times as fast what the class has no default for. No slots: CPython 3.13 makes an
    object without them in two thirds of the time. (``Python/specialize.c``: neither case has a fast instruction.)

    Attributes:
        tracker: counts it.
        started_at: on the tracker's clock.
        arrived_before: when the last request before this one had arrived.
        thread_id: the serving thread (:func:`threading.get_ident`).
        given_name: what somebody has said that it is called.
    """

    started_at: float
    arrived_before: float | None
    thread_id: int
    given_name: str | None = None

    def __init__(self, tracker: RequestTracker) -> None:
        """Belong to ``tracker``, which is to be told that the request begins."""
        self.tracker = tracker

    @property
    def stop_state(self) -> StopState:
        """The server's."""
        return self.tracker.stop_state

    @property
    def name(self) -> str:
        """The method and the path, if nobody has said anything better."""
        raise NotImplementedError

    @property
    def peer(self) -> str:
        """The caller, as ``host:port``; empty if unknown."""
        raise NotImplementedError

    def describe(self) -> InFlightRequest:
        """Return what it is. From any thread."""
        name = self.name if self.given_name is None else self.given_name
        return InFlightRequest(name, self.peer, self.started_at, self.serving_thread())

    def serving_thread(self) -> int:
        """Return the thread that serves it."""
        return self.thread_id

    def identify(self, name: str, *, is_health_check: bool = False) -> None:
        """Name the request; does nothing once it has ended."""
        if self.tracker.is_in_flight(self):
            self.given_name = name
            if is_health_check:
                self.tracker.take_back(self)

    def begin_mark(self) -> None:
        """The protocol delimits requests."""

    def end_mark(self) -> None:
        """The protocol delimits requests."""


@contextmanager
def served(in_flight: InFlight, name: str = "", *, peer: str = "", is_health_check: bool = False) -> Iterator[None]:
    """Count the block as one request, and let what it calls know. For adapters and middleware, sync and async."""
    key = in_flight.begin(name, peer, is_health_check=is_health_check)
    token = serving.set(TrackedRequest(in_flight, key))
    try:
        yield
    finally:
        serving.reset(token)
        in_flight.end(key)


def is_draining() -> bool:
    """Whether the connection closes behind the answer: a handler that streams should come to an end."""
    request = serving.get()
    return request is not None and request.stop_state.is_draining


def time_left() -> float | None:
    """Return the seconds until this request would be cut off; None while no stop has begun.

    Take the smaller one of this and the request's own deadline for what is called next.
    """
    request = serving.get()
    return None if request is None else request.stop_state.time_left()


def name_request(name: str, *, is_health_check: bool = False) -> None:
    """Name the request in flight, for reports: a method or a path, nothing secret.

    A health check's arrival does not count as a sign that callers still know this instance.
    """
    request = serving.get()
    if request is not None:
        request.identify(name, is_health_check=is_health_check)


@contextmanager
def mark_request(name: str, *, is_health_check: bool = False) -> Iterator[None]:
    """The block is one request: its first bytes have been read before, and at its end the answer, if any, is written.

    For protocols in which the adapter cannot see the end of a request, because it has no answer. From the first mark
    on, only marks end requests on this connection. Where the protocol itself delimits requests (Thrift, HTTP), this
    only names.
    """
    request = serving.get()
    if request is None:
        yield
        return
    request.begin_mark()
    request.identify(name, is_health_check=is_health_check)
    try:
        yield
    finally:
        request.end_mark()
