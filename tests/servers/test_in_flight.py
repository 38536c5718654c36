"""The tracker of requests: counting, naming, waiting."""

from __future__ import annotations

import threading
from functools import partial

import pytest

from registry_drain.clock import Deadline
from registry_drain.servers.in_flight import InFlight, InFlightRequest
from registry_drain.testing.bench import Call
from registry_drain.testing.clock import FakeClock
from tests.support.processes import eventually

TIMEOUT = 10.0


class Source:
    """Knows one request, until told otherwise."""

    def __init__(self) -> None:
        """Begin with one."""
        self.total = 1
        self.last_arrival_at: float | None = 5.0
        self.busy = [InFlightRequest("asked for", "10.0.0.1:1", 5.0, threading.get_ident())]

    def requests(self) -> list[InFlightRequest]:
        """Return it."""
        return self.busy


def test_a_request_is_in_flight_until_it_ends() -> None:
    """It is counted, named, dated and known by its thread."""
    clock = FakeClock(autojump=False)
    in_flight = InFlight(clock=clock)
    with in_flight.track("add", peer="10.0.0.1:5000"):
        (request,) = in_flight.snapshot()
        assert request == InFlightRequest("add", "10.0.0.1:5000", clock.now(), threading.get_ident())
        assert str(request) == "add from 10.0.0.1:5000"
        assert in_flight.holds_current_thread()
        assert not Call(in_flight.holds_current_thread).result(TIMEOUT, "another thread")
    assert in_flight.count == 0
    assert not in_flight.holds_current_thread()
    assert repr(in_flight) == "<InFlight count=0 total=1>"


def test_ending_twice_ends_once() -> None:
    """A late second end does not touch another request."""
    in_flight = InFlight()
    first, _second = in_flight.begin("first"), in_flight.begin("second")
    in_flight.end(first)
    in_flight.end(first)
    assert [request.name for request in in_flight.snapshot()] == ["second"]


def test_health_checks_are_no_arrivals() -> None:
    """Whether it is known at once, or when the name is."""
    clock = FakeClock(autojump=False)
    in_flight = InFlight(clock=clock)
    in_flight.end(in_flight.begin("work"))
    worked_at = clock.now()
    clock.advance(1.0)
    with in_flight.track("ping", is_health_check=True):
        assert in_flight.count == 1
    key = in_flight.begin()
    in_flight.identify(key, "ping", is_health_check=True)
    assert in_flight.snapshot()[0].name == "ping"
    assert in_flight.total == 1
    assert in_flight.last_arrival_at == worked_at


def test_a_health_check_does_not_hide_a_later_arrival() -> None:
    """Taking its arrival back leaves the request that came meanwhile."""
    clock = FakeClock(autojump=False)
    in_flight = InFlight(clock=clock)
    key = in_flight.begin()
    clock.advance(1.0)
    in_flight.begin("work")
    in_flight.identify(key, "ping", is_health_check=True)
    assert in_flight.total == 1
    assert in_flight.last_arrival_at == clock.now()


def test_naming_what_has_ended_does_nothing() -> None:
    """A name that comes too late brings nothing back."""
    in_flight = InFlight()
    key = in_flight.begin()
    in_flight.end(key)
    in_flight.identify(key, "late", is_health_check=True)
    assert in_flight.count == 0
    assert in_flight.total == 1


def test_no_arrival_is_miscounted_by_many_threads() -> None:
    """Interrupted at any point, the count is exact and never goes backwards."""
    in_flight = InFlight()

    def serve() -> None:
        last = 0
        for _ in range(2000):
            in_flight.end(in_flight.begin())
            total = in_flight.total
            assert total > last
            last = total

    for call in [Call(serve) for _ in range(8)]:
        call.result(TIMEOUT, "a thread")
    assert in_flight.total == 16000
    assert in_flight.count == 0


def test_waiting_ends_with_the_last_request() -> None:
    """For every waiter, and also for requests that came meanwhile."""
    in_flight = InFlight()
    first = in_flight.begin()
    waiting = [Call(lambda: in_flight.wait_until_idle(Deadline.after(TIMEOUT))) for _ in range(3)]
    eventually(lambda: len(in_flight._waiters) == 3)
    second = in_flight.begin()
    in_flight.end(first)
    assert all(call.is_alive() for call in waiting)
    in_flight.end(second)
    assert all(call.result(TIMEOUT, "a waiter") for call in waiting)
    assert not in_flight._waiters


def test_no_wake_up_is_lost() -> None:
    """However a request's end and the beginning of waiting interleave, the waiter returns."""
    in_flight = InFlight()
    for _ in range(500):
        key = in_flight.begin()
        ending = Call(partial(in_flight.end, key))
        assert in_flight.wait_until_idle(Deadline.after(TIMEOUT))
        ending.result(TIMEOUT, "the request")


def test_a_request_that_ends_before_the_wait_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one moment in which a wake-up could be lost: between seeing the request and clearing the event."""
    in_flight = InFlight()
    key = in_flight.begin()

    class SlyEvent(threading.Event):
        def clear(self) -> None:
            in_flight.end(key)
            super().clear()

    monkeypatch.setattr("registry_drain.servers.in_flight.threading.Event", SlyEvent)
    clock = FakeClock(autojump=False)  # whose time would have to pass for the deadline to save us
    deadline = Deadline.after(30.0, clock)
    monkeypatch.setattr(clock, "wait", lambda *_: pytest.fail("it waits for a request that has ended"))
    assert in_flight.wait_until_idle(deadline)


def test_waiting_ends_at_the_deadline() -> None:
    """In virtual time, with the request still there."""
    clock = FakeClock()
    in_flight = InFlight(clock=clock)
    in_flight.begin()
    began_at = clock.now()
    assert not in_flight.wait_until_idle(Deadline.after(30.0, clock))
    assert clock.now() - began_at >= 30.0
    assert in_flight.count == 1


def test_a_source_is_part_of_everything() -> None:
    """What is asked for and what is told of add up."""
    clock = FakeClock(start=3.0, autojump=False)
    in_flight, source = InFlight(clock=clock), Source()
    in_flight.include(source)
    key = in_flight.begin("told of")
    assert [request.name for request in in_flight.snapshot()] == ["told of", "asked for"]
    assert in_flight.count == in_flight.total == 2
    assert in_flight.last_arrival_at == 5.0
    in_flight.end(key)
    assert in_flight.holds_current_thread()
    waiting = Call(lambda: in_flight.wait_until_idle(Deadline.after(TIMEOUT)))
    waiting.join(0.05)
    assert waiting.is_alive()
    source.busy = []
    assert waiting.result(TIMEOUT, "the waiter")
