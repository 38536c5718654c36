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

from registry_drain.servers.current_request import LiveRequest
from registry_drain.servers.in_flight import DescribedRequest, InFlight, InFlightRequest


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

    def is_in_flight(self, request: DescribedRequest) -> bool:
        """Whether a request has not ended."""
        return request in self.active

    def take_back(self, request: DescribedRequest) -> None:
        """Note that a request has turned out to be a health check; see :meth:`InFlight.identify`."""
        self.total -= 1
        if self.last_arrival_at == request.started_at:
            self.last_arrival_at = request.arrived_before

    def __repr__(self) -> str:
        """Show the count of arrivals."""
        return f"<LoopRequests total={self.total}>"


class LoopRequest(LiveRequest):
    """One of them, in flight from its making on, until it is deleted from the tracker's ``active``.

    A subclass writes this constructor's lines out in its own: calling it costs as much as all of them.
    """

    tracker: LoopRequests

    def __init__(self, tracker: LoopRequests) -> None:
        """Be in flight."""
        super().__init__(tracker)
        self.arrived_before = tracker.last_arrival_at
        self.started_at = tracker.last_arrival_at = tracker.now()
        tracker.total += 1
        tracker.active[self] = self

    def serving_thread(self) -> int:
        """Return the loop's thread."""
        return self.tracker.thread_id
