"""Our own instance leaves the rotation on real servers: listed, not called, and its successor inherits nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from registry_drain.clock import Deadline
from registry_drain.errors import LiveOwnerError, RegistryDataError
from registry_drain.instance import ServiceInstance
from registry_drain.registries.abilities import RotationRegistration
from registry_drain.registries.base import RegistryEntry, RemovalOutcome
from registry_drain.registries.url import open_registry
from registry_drain.testing.bench import RegistryBench
from tests.support.consul_process import ConsulAgent
from tests.support.zookeeper_process import ZooKeeperServer

WITH_A_STATE = ("curator", "serverset")


@pytest.fixture(
    params=[
        pytest.param("consul", marks=pytest.mark.consul),
        *(pytest.param(layout, marks=pytest.mark.zookeeper) for layout in WITH_A_STATE),
    ]
)
def url(request: pytest.FixtureRequest, unique: str) -> str:
    """Give the URL of a registry that has a state for instances out of rotation."""
    if request.param == "consul":
        agent: ConsulAgent = request.getfixturevalue("consul_agent")
        return agent.url
    server: ZooKeeperServer = request.getfixturevalue("zookeeper_server")
    return f"{server.url}/{unique}?layout={request.param}"


@pytest.fixture
def bench(url: str) -> Iterator[RegistryBench]:
    """Give registries of that URL."""
    from registry_drain.clock import SYSTEM_CLOCK

    with RegistryBench(lambda: open_registry(url), SYSTEM_CLOCK, 20.0) as bench:
        yield bench


def soon() -> Deadline:
    """Return a deadline that nothing here reaches."""
    return Deadline.after(20)


def registered(bench: RegistryBench, service: str) -> RotationRegistration:
    """Return a registration."""
    instance = ServiceInstance(service, "192.0.2.7", 9090, id="one")
    registration = bench.registered(bench.registry(), instance)
    assert isinstance(registration, RotationRegistration)
    return registration


def entry_of(bench: RegistryBench, service: str) -> RegistryEntry:
    """Return the only entry."""
    (entry,) = bench.registry().entries(service, soon())
    return entry


def test_it_stays_listed_and_is_not_called(bench: RegistryBench, unique: str) -> None:
    """In maintenance, in no watch; removed by its stop, and its successor is in rotation."""
    registration = registered(bench, unique)
    registration.leave_rotation(soon())
    assert entry_of(bench, unique).health == "maintenance"
    assert bench.registry().watch(unique, soon()).instances == ()
    assert registration.is_registered
    assert registration.on_shutdown(soon()).outcome is RemovalOutcome.CONFIRMED
    registered(bench, unique)
    assert entry_of(bench, unique).health in {"", "passing"}


def test_a_successor_does_not_inherit_it(bench: RegistryBench, unique: str) -> None:
    """Not even one that takes over before the removal."""
    old = registered(bench, unique)
    old.leave_rotation(soon())
    registered(bench, unique)
    healths = [entry.health for entry in bench.registry().entries(unique, soon())]
    assert set(healths) - {"maintenance"}, healths
    old.on_shutdown(soon())
    assert entry_of(bench, unique).health in {"", "passing"}


def test_after_the_fence_nothing_is_written(bench: RegistryBench, unique: str) -> None:
    """A late soft drain could hit anything."""
    registration = registered(bench, unique)
    registration.fence(soon())
    with pytest.raises(LiveOwnerError):
        registration.leave_rotation(soon())
    assert entry_of(bench, unique).health in {"", "passing"}


@pytest.mark.zookeeper
def test_a_node_that_was_taken_over_is_left_alone(zookeeper_server: ZooKeeperServer, unique: str) -> None:
    """The path is our successor's by now."""
    registry = open_registry(f"{zookeeper_server.url}/{unique}")
    instance = ServiceInstance("calculator", "192.0.2.7", 9090, id="one")
    old, new = registry.registration(instance), registry.registration(instance)
    try:
        old.register(soon())
        holder = old._worker.holder  # type: ignore[attr-defined]
        new.register(soon())
        with pytest.raises(LiveOwnerError):
            old._node.leave_rotation(holder, soon())  # type: ignore[attr-defined]
        assert [entry.health for entry in registry.entries("calculator", soon())] == [""]
    finally:
        for each in (old, new):
            each.on_shutdown(soon())
        registry.close()


@pytest.mark.zookeeper
def test_a_layout_without_such_a_state_says_so(zookeeper_server: ZooKeeperServer, unique: str) -> None:
    """The stop reports it, and goes on."""
    registry = open_registry(f"{zookeeper_server.url}/{unique}?layout=plain")
    registration = registry.registration(ServiceInstance("calculator", "192.0.2.7", 9090, id="one"))
    assert isinstance(registration, RotationRegistration)
    try:
        registration.register(soon())
        with pytest.raises(RegistryDataError, match="plain"):
            registration.leave_rotation(soon())
    finally:
        registration.on_shutdown(soon())
        registry.close()
