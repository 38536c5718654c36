"""Which requests are in flight, and when the last one arrived.

Theory of operation: requests become known in two ways. An adapter may tell of each: ``begin`` and ``end`` keep them in
a dict. Or, where every microsecond counts, it has a :class:`RequestSource` that can be *asked*: its serving threads
only note what they do in attributes of their own connection, and whoever wants to know adds that up.

``begin``, ``identify`` and ``end`` take no lock either: each step that two threads could contend for is one atomic
operation of the interpreter on a dict or on an iterator. A record is a plain tuple while it lives, for making a
dataclass costs three times as much; it becomes an :class:`InFlightRequest` when somebody looks. An adapter that has an
object for each request anyway gives that (``begin_request``): its name and peer are then made only for who asks.

Rules:

1. Arrivals are counted by drawing from a range iterator, whose remaining length can be read. A counter attribute that
   is stored after drawing would go backwards when two threads are interrupted between the two.
2. ``end`` removes the entry and *then* looks for waiters; a waiter makes itself known and *then* looks at the entries.
   Whichever comes first, nobody waits for a request that has ended. A source wakes nobody: with one, waiters look.
"""

from __future__ import annotations

import itertools
import operator
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from sys import maxsize
from typing import Protocol

from registry_drain.clock import SYSTEM_CLOCK, Clock, Deadline, SystemClock
from registry_drain.servers.stop_state import StopState

_Record = tuple[str, str, float, int, float | None]
"""name, peer, started_at, thread_id, and the last arrival before this one."""


@dataclass(frozen=True, slots=True)
class InFlightRequest:
    """One request that is being served.

    Attributes:
        name: the method or path, for the report; empty until it is known.
        peer: the caller, as ``host:port``; empty if unknown.
        started_at: instant of the tracker's clock.
        thread_id: the serving thread (:func:`threading.get_ident`).
    """

    name: str
    peer: str
    started_at: float
    thread_id: int

    def __str__(self) -> str:
        """Say what is served for whom, as the report's list of what was cut off does."""
        return f"{self.name or '(unnamed)'} from {self.peer or '(unknown)'}"


class DescribedRequest(Protocol):
    """A request in flight that says what it is when it is asked; hashed by identity. See :meth:`begin_request`.

    Attributes:
        started_at: set by the tracker.
        arrived_before: the last arrival before this one; set by the tracker.
    """

    started_at: float
    arrived_before: float | None

    def describe(self) -> InFlightRequest:
        """Return what it is. From any thread, at any time."""
        ...


class RequestSource(Protocol):
    """Knows requests that nobody calls ``begin`` for. Asked from any thread, and answers without blocking."""

    @property
    def total(self) -> int:
        """How many requests have arrived, health checks not counted."""
        ...

    @property
    def last_arrival_at(self) -> float | None:
        """When the last of them arrived, on the tracker's clock."""
        ...

    def requests(self) -> list[InFlightRequest]:
        """Return those in flight now."""
        ...


_LOOK_EVERY = 0.005
"""Seconds between two looks at a source while waiting."""


class InFlight:
    """Counts and names the requests of one server. Thread-safe; one per server.

    Attributes:
        now: the clock's :meth:`~registry_drain.clock.Clock.now`, which the instants here are read from.
        active: what is in flight, by key; written here and by :mod:`registry_drain.servers.loop_requests`.
        stop_state: what the stop routine says of the server's stop.
    """

    def __init__(self, *, clock: Clock = SYSTEM_CLOCK) -> None:
        """Start empty."""
        # SystemClock.now is this function, one call deeper.
        self.now: Callable[[], float] = time.monotonic if isinstance(clock, SystemClock) else clock.now
        self.stop_state = StopState(self.now)
        self.active: dict[int | DescribedRequest, _Record | DescribedRequest] = {}
        self._keys = itertools.count(1)
        self._arrivals = iter(range(maxsize))
        self._taken_back = iter(range(maxsize))
        self._last_arrival_at: float | None = None
        self._waiters: list[threading.Event] = []
        self._sources: tuple[RequestSource, ...] = ()
        self._loop_threads: frozenset[int] = frozenset()

    def include(self, source: RequestSource) -> None:
        """Count what ``source`` knows, too. Before the first request."""
        self._sources += (source,)

    @property
    def count(self) -> int:
        """How many requests are in flight now."""
        return len(self.active) + sum(len(source.requests()) for source in self._sources)

    @property
    def total(self) -> int:
        """How many requests have arrived so far, health checks not counted."""
        # Both run down from the same length: what was drawn from the one, less what was drawn from the other.
        told = operator.length_hint(self._taken_back) - operator.length_hint(self._arrivals)
        return told + sum(source.total for source in self._sources)

    @property
    def last_arrival_at(self) -> float | None:
        """When the last request arrived, health checks not counted; None before the first.

        Two arrivals at the same moment may be stored in either order, so this may be some milliseconds early.
        """
        candidates = (self._last_arrival_at, *(source.last_arrival_at for source in self._sources))
        return max((instant for instant in candidates if instant is not None), default=None)

    def begin(self, name: str = "", peer: str = "", *, is_health_check: bool = False) -> int:
        """Note a request's arrival in the thread that serves it; return the key (never 0) for :meth:`end`.

        A health check is in flight like any other, but is no sign that callers still know us: it is left out of
        ``total`` and ``last_arrival_at``.
        """
        key = next(self._keys)
        now = self.now()
        self.active[key] = (name, peer, now, threading.get_ident(), self._last_arrival_at)
        if not is_health_check:
            next(self._arrivals)
            self._last_arrival_at = now
        return key

    def identify(self, key: int, name: str, *, is_health_check: bool = False) -> None:
        """Give a request the name that was not known when it began. Does nothing once it has ended.

        If it turns out to be a health check its arrival is taken back. When another request has arrived since,
        ``last_arrival_at`` is that one's and stays: doubt lengthens the propagation wait, it never shortens it.
        """
        record = self.active.get(key)
        if not isinstance(record, tuple):
            return
        self.active[key] = (name, *record[1:])
        if is_health_check:
            self._take_back(record[2], record[4])

    def begin_request(self, request: DescribedRequest, *, is_health_check: bool = False) -> None:
        """Note the arrival of a request that describes itself; it is the key for :meth:`end`. See :meth:`begin`."""
        request.arrived_before = self._last_arrival_at
        request.started_at = now = self.now()
        self.active[request] = request
        if not is_health_check:
            next(self._arrivals)
            self._last_arrival_at = now

    def is_in_flight(self, key: int | DescribedRequest) -> bool:
        """Whether a request has begun and not ended."""
        return key in self.active

    def take_back(self, request: DescribedRequest) -> None:
        """Note that a request which describes itself has turned out to be a health check; see :meth:`identify`."""
        self._take_back(request.started_at, request.arrived_before)

    def _take_back(self, arrived_at: float, before: float | None) -> None:
        next(self._taken_back)
        if self._last_arrival_at == arrived_at:
            self._last_arrival_at = before

    def end(self, key: int | DescribedRequest) -> None:
        """Note that the request's answer has been handed to the kernel, or given up. Idempotent."""
        self.active.pop(key, None)
        if self._waiters and not self.active:
            for event in tuple(self._waiters):
                event.set()

    @contextmanager
    def track(self, name: str = "", *, peer: str = "", is_health_check: bool = False) -> Iterator[None]:
        """Count the block's duration as one request."""
        key = self.begin(name, peer, is_health_check=is_health_check)
        try:
            yield
        finally:
            self.end(key)

    def keys(self) -> list[int | DescribedRequest]:
        """Return what stands for the requests in flight that somebody has told of."""
        return list(self.active.copy())

    def request(self, key: int | DescribedRequest) -> InFlightRequest | None:
        """Return the request in flight that ``key`` stands for; None once it has ended."""
        record = self.active.get(key)
        return None if record is None else _described(record)

    def requests(self) -> list[InFlightRequest]:
        """Return the requests in flight, which makes a tracker a source for another one: for several servers' sum."""
        requests = [_described(record) for record in self.active.copy().values()]
        for source in self._sources:
            requests += source.requests()
        return requests

    def snapshot(self) -> tuple[InFlightRequest, ...]:
        """Return the requests in flight, oldest first."""
        return tuple(sorted(self.requests(), key=lambda request: request.started_at))

    def add_loop_thread(self, thread_id: int) -> None:
        """Note that an event loop in this thread serves requests, so that nothing may block there."""
        self._loop_threads |= {thread_id}

    def holds_current_thread(self) -> bool:
        """Whether requests cannot end while the calling thread waits: such a caller must not wait for the drain.

        It is serving one of them, or its event loop serves them.
        """
        me = threading.get_ident()
        if me in self._loop_threads:
            return True
        return any(request.thread_id == me for request in self.requests())

    def wait_until_idle(self, deadline: Deadline) -> bool:
        """Wait until nothing is in flight; return False at the deadline. Any number of threads may wait.

        Requests that arrive meanwhile are waited for as well; it does not wait for connections or their last bytes.
        """
        idle = threading.Event()
        self._waiters.append(idle)
        try:
            while self.count:
                idle.clear()
                # A request that ended between the test above and the clear would be missed: look again before waiting.
                if not self.count:
                    break
                if deadline.is_past:
                    return False
                remaining = deadline.remaining()
                deadline.clock.wait(idle, min(_LOOK_EVERY, remaining) if self._sources else remaining)
            return True
        finally:
            # Events compare by identity, so this is our own entry.
            self._waiters.remove(idle)

    def __repr__(self) -> str:
        """Show the counts."""
        return f"<InFlight count={self.count} total={self.total}>"


def _described(record: _Record | DescribedRequest) -> InFlightRequest:
    return InFlightRequest(*record[:4]) if isinstance(record, tuple) else record.describe()
