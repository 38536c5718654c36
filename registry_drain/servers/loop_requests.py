"""The requests that one event loop serves, counted for a few stores each.

Theory of operation: :meth:`InFlight.begin_request` and :meth:`InFlight.end` are made for threads that contend. In a
loop nobody does, and where a request takes some 40 µs in all each call of ours shows. So the requests of a loop are
noted by themselves: a :class:`LoopRequest` enters the tracker's table when it is made, and whoever serves it deletes it
from there. The arrivals are counted here, and the tracker asks for them as it asks every source.

Rules:

1. Everything but the attributes, which any thread may read, belongs to the loop's thread.
2. Nobody who waits for the tracker to be idle is woken by the end of such a request; with a source, waiters look.
"""

from __future__ import annotations

from registry_drain.servers.in_flight import InFlight, InFlightRequest


class LoopRequests:
    """The requests of one event loop; a :class:`~registry_drain.servers.in_flight.RequestSource` of its tracker.

    Args:
        in_flight: the tracker. Before its first request.

    Attributes:
        in_flight: the tracker.
        stop_state: the server's.
        active: the tracker's table; see :attr:`InFlight.active`.
        now: the tracker's.
        total: how many requests have arrived, health checks not counted.
        last_arrival_at: when the last of them arrived, on the tracker's clock.
        thread_id: the loop's thread; 0 until it is known.
    """

    __slots__ = ("active", "in_flight", "last_arrival_at", "now", "stop_state", "thread_id", "total")

    def __init__(self, in_flight: InFlight) -> None:
        self.in_flight = in_flight
        self.stop_state = in_flight.stop_state
        self.active = in_flight.active
        self.now = in_flight.now
        self.total = 0
        self.last_arrival_at: float | None = None
        self.thread_id = 0
        in_flight.include(self)

    def requests(self) -> list[InFlightRequest]:
        """Return none: they stand in the tracker's own table."""
        return []

    def take_back(self, request: LoopRequest) -> None:
        """Note that a request has turned out to be a health check; see :meth:`InFlight.identify`."""
        self.total -= 1
        if self.last_arrival_at == request.started_at:
            self.last_arrival_at = request.arrived_before

    def __repr__(self) -> str:
        """Show the count of arrivals."""
        return f"<LoopRequests total={self.total}>"


class LoopRequest:
    """One of them, in flight from its making on, until it is deleted from ``loop_requests.active``.

    A subclass writes this constructor's lines out in its own: calling it costs as much as all of them. Everything is a
    slot, and is set: CPython stores and loads those at a tenth of the price of an attribute whose default is the
    class's.

    Attributes:
        loop_requests: those of its loop.
        started_at: on the tracker's clock.
        arrived_before: when the last request before this one had arrived.
        stop_state: the server's.
        given_name: what somebody has said that it is called.
    """

    __slots__ = ("arrived_before", "given_name", "loop_requests", "started_at", "stop_state")

    def __init__(self, loop_requests: LoopRequests) -> None:
        self.loop_requests = loop_requests
        self.stop_state = loop_requests.stop_state
        self.given_name: str | None = None
        self.arrived_before = loop_requests.last_arrival_at
        self.started_at = loop_requests.last_arrival_at = loop_requests.now()
        loop_requests.total += 1
        loop_requests.active[self] = self

    @property
    def thread_id(self) -> int:
        """The loop's thread."""
        return self.loop_requests.thread_id

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
        return InFlightRequest(name, self.peer, self.started_at, self.thread_id)

    def identify(self, name: str, *, is_health_check: bool = False) -> None:
        """Name the request; does nothing once it has ended."""
        if self in self.loop_requests.active:
            self.given_name = name
            if is_health_check:
                self.loop_requests.take_back(self)

    def begin_mark(self) -> None:
        """The protocol delimits requests."""

    def end_mark(self) -> None:
        """The protocol delimits requests."""
