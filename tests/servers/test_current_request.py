"""What a handler may ask about the request that it serves, in threads and in tasks."""

from __future__ import annotations

import asyncio
import threading

from registry_drain.phases import Phase
from registry_drain.servers.current_request import is_draining, mark_request, name_request, served, time_left
from registry_drain.servers.in_flight import InFlight
from registry_drain.testing.clock import FakeClock


def names(in_flight: InFlight) -> list[str]:
    """Return what is in flight."""
    return [request.name for request in in_flight.snapshot()]


def test_outside_a_request_nothing_happens() -> None:
    """Handlers can be tested without a server."""
    name_request("nothing")
    with mark_request("nothing"):
        assert not is_draining()
        assert time_left() is None


def test_a_request_is_counted_named_and_told() -> None:
    """For as long as its block lasts."""
    clock = FakeClock()
    in_flight = InFlight(clock=clock)
    with served(in_flight, "GET /", peer="10.0.0.9:1"):
        assert (names(in_flight), in_flight.snapshot()[0].peer) == (["GET /"], "10.0.0.9:1")
        name_request("export")
        assert names(in_flight) == ["export"]
        with mark_request("export part 2"):
            assert names(in_flight) == ["export part 2"]
        assert (is_draining(), time_left()) == (False, None)
        in_flight.stop_state.enter(Phase.DEREGISTERING, clock.now() + 5)
        assert (is_draining(), time_left()) == (False, 5)
        in_flight.stop_state.enter(Phase.DRAINING)
        assert is_draining()
    assert (names(in_flight), in_flight.total) == ([], 1)
    assert not is_draining()


def test_a_health_check_is_no_arrival() -> None:
    """Whether that is known at once or later."""
    in_flight = InFlight()
    with served(in_flight, "GET /health", is_health_check=True):
        assert (in_flight.count, in_flight.total) == (1, 0)
    with served(in_flight):
        name_request("ping", is_health_check=True)
    assert in_flight.total == 0


def test_nested_servers_answer_for_their_own() -> None:
    """A request served inside another one, of another server: each block knows its own, and the outer one's returns."""
    outer, inner = InFlight(), InFlight()
    inner.stop_state.enter(Phase.DRAINING)
    with served(outer):
        with served(inner):
            assert is_draining()
            name_request("inner")
        assert not is_draining()
        name_request("outer")
        assert names(outer) == ["outer"]


def test_tasks_do_not_mix() -> None:
    """Each task has its own request, and so has what it starts."""
    in_flight = InFlight()
    begun = asyncio.Semaphore(0)
    all_begun = asyncio.Event()

    async def helper(number: int) -> None:
        await asyncio.sleep(0)
        name_request(f"request {number}, helped")

    async def serve(number: int) -> None:
        with served(in_flight, f"request {number}"):
            await asyncio.sleep(0)
            await asyncio.create_task(helper(number))
            begun.release()
            await all_begun.wait()

    async def main() -> None:
        tasks = [asyncio.create_task(serve(number)) for number in range(3)]
        for _ in tasks:
            await begun.acquire()
        assert sorted(names(in_flight)) == [f"request {number}, helped" for number in range(3)]
        all_begun.set()
        await asyncio.gather(*tasks)

    asyncio.run(main())
    assert in_flight.count == 0


def test_threads_do_not_mix() -> None:
    """A thread that a handler starts is nobody's request."""
    in_flight = InFlight()
    in_flight.stop_state.enter(Phase.DRAINING)
    seen: list[bool] = []
    with served(in_flight):
        thread = threading.Thread(target=lambda: seen.append(is_draining()))
        thread.start()
        thread.join()
    assert seen == [False]
