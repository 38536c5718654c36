"""Whether a removed instance comes back."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest

from registry_drain.cli.deregister.watch_back import BackWatch
from registry_drain.errors import PermissionRefusedError, RegistryUnavailableError
from registry_drain.registries.base import RegistryEntry
from registry_drain.testing.clock import FakeClock
from registry_drain.testing.faults import REFUSED, UNAVAILABLE, Step
from registry_drain.testing.faulty_registry import FaultyRegistry

REMOVED = RegistryEntry("calculator", "one", "10.0.0.7", 9090, owner="host-a", locator="a/one")
OTHER = RegistryEntry("calculator", "other", "10.0.0.8", 9090, owner="host-b", locator="b/other")


class _Looked(FaultyRegistry):
    """A registry in which something happens between two looks."""

    def __init__(self, clock: FakeClock, *, appears: RegistryEntry | None = None, at_look: int = 3) -> None:
        super().__init__(clock)
        self.looks: list[float] = []
        self._appears, self._at_look = appears, at_look
        self.cluster.put(OTHER)

    def entries(self, service: str | None, deadline: object) -> list[RegistryEntry]:
        self.looks.append(self.clock.now())
        if self._appears is not None and len(self.looks) == self._at_look:
            self.cluster.put(self._appears)
        return list(super().entries(service, deadline))  # type: ignore[arg-type]


def _watch(
    registry: FaultyRegistry,
    seconds: float = 10.0,
    *,
    removed: Sequence[RegistryEntry] = (REMOVED,),
    listed: Sequence[RegistryEntry] = (OTHER,),
) -> BackWatch:
    watch = BackWatch(removed, listed)
    watch.run(registry, seconds=seconds, read_timeout=5.0, clock=registry.clock)
    return watch


def test_looks_until_the_very_end() -> None:
    """An instance that stays away is looked for again and again, the last time after the whole time asked for."""
    registry = _Looked(FakeClock())
    seen = _watch(registry)
    assert not seen.returned
    assert seen.looked_for >= 10.0
    assert registry.looks[-1] - registry.looks[0] >= 10.0
    assert len(registry.looks) > 30


def test_no_time_is_one_look() -> None:
    """Zero seconds look once, without waiting."""
    registry = _Looked(FakeClock())
    _watch(registry, seconds=0.0)
    assert len(registry.looks) == 1


@pytest.mark.parametrize(
    "back",
    [
        dataclasses.replace(REMOVED, owner="host-c"),
        dataclasses.replace(REMOVED, address="10.0.0.99"),
        dataclasses.replace(REMOVED, id="one-7f3a", locator="a/one-7f3a"),
    ],
    ids=["same", "same id elsewhere", "same address under a new id"],
)
def test_sees_it_in_every_guise(back: RegistryEntry) -> None:
    """Its id or its address is enough; what comes back is returned with its new owner."""
    seen = _watch(_Looked(FakeClock(), appears=back))
    entry = seen.returned[0].entry
    assert (entry.id, entry.owner) == (back.id, back.owner)
    assert seen.looked_for < 10.0


def test_what_was_there_beside_it_does_not_count() -> None:
    """A neighbour with the same address, listed before the removal, has not come back."""
    twin = dataclasses.replace(REMOVED, id="one-management", locator="a/one-management")
    registry = _Looked(FakeClock())
    registry.cluster.put(twin)
    seen = _watch(registry, 2.0, listed=[REMOVED, OTHER, twin])
    assert not seen.returned


def test_an_outage_in_between_is_survived() -> None:
    """Only whether the last look worked matters."""
    registry = _Looked(FakeClock())
    registry.faults.add(Step.READ, UNAVAILABLE, skip=2, times=5)
    assert _watch(registry).failure is None


def test_an_outage_at_the_end_is_told() -> None:
    """Nobody may take "not seen" for "not there"."""
    registry = _Looked(FakeClock())
    registry.faults.add(Step.READ, UNAVAILABLE, skip=2)
    assert isinstance(_watch(registry).failure, RegistryUnavailableError)


def test_lost_permission_ends_it_at_once() -> None:
    """Looking again cannot help."""
    registry = _Looked(FakeClock())
    registry.faults.add(Step.READ, REFUSED, skip=2)
    with pytest.raises(PermissionRefusedError):
        _watch(registry)


def test_of_several_each_is_looked_for() -> None:
    """The first return does not end it for the others, and each one is told apart."""
    clock = FakeClock()
    second = dataclasses.replace(REMOVED, id="two", port=9092, locator="a/two", service="other")
    third = dataclasses.replace(REMOVED, id="three", port=9093, locator="a/three")
    registry = _Looked(clock, appears=dataclasses.replace(second, owner="host-c"), at_look=4)
    seen = _watch(registry, removed=[REMOVED, second, third])
    assert {position: back.entry.id for position, back in seen.returned.items()} == {1: "two"}
    assert seen.looked_for >= 10.0


def test_all_back_ends_it() -> None:
    """There is nothing left to look for."""
    seen = _watch(_Looked(FakeClock(), appears=REMOVED))
    assert seen.looked_for < 10.0


def test_one_return_counts_once() -> None:
    """A neighbour that had the same address has not come back with it."""
    twin = dataclasses.replace(REMOVED, id="one-management", locator="a/one-management")
    seen = _watch(_Looked(FakeClock(), appears=twin), 2.0, removed=[REMOVED, twin])
    assert list(seen.returned) == [1]
