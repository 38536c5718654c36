"""An operator's removal, as a service sees it: said once, respected, undone by rejoin(); readiness stays."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest

from registry_drain import AsyncService, StopBudget
from registry_drain.clock import SYSTEM_CLOCK, Deadline
from registry_drain.errors import LiveOwnerError, PermissionRefusedError, RemovedByOperatorError
from registry_drain.instance import ServiceInstance
from registry_drain.persistent_registration import PersistentRegistration
from registry_drain.registries.base import RemovalOutcome
from registry_drain.servers.asyncio_streams import AsyncioServer
from registry_drain.service import Service
from registry_drain.shutdown.events import RemovedByOperator, log_event
from registry_drain.testing.faults import REFUSED, UNAVAILABLE, Step
from registry_drain.testing.faulty_registry import FaultyRegistry
from tests.shutdown.conftest import stage as stage  # noqa: PLC0414 - the fixture
from tests.shutdown.stage import Stage, Task
from tests.support.processes import eventually

NO_WAIT = StopBudget(floor=0, quiet_period=0)


@pytest.fixture
def serve(stage: Stage) -> Iterator[Callable[..., Service]]:
    """Give a way to run a service that is ready, and stopped in the end."""
    running: list[tuple[Service, Task[object]]] = []

    def start(*registries: FaultyRegistry) -> Service:
        service = Service(
            stage.server,
            registries,
            service="calculator",
            budget=NO_WAIT,
            sinks=[stage.events.append],
            clock=stage.clock,
            handle_signals=False,
        )
        running.append((service, stage.spawn(service.run)))
        eventually(lambda: service.is_ready, because="it is registered")
        return service

    yield start
    for service, task in running:
        stage.registry.faults.clear()
        service.stop("the test is over")
        task.result()


def remove(registry: FaultyRegistry) -> None:
    """Remove the only entry as an operator does."""
    (entry,) = registry.cluster.entries()
    operator = FaultyRegistry(registry.clock, cluster=registry.cluster)
    assert operator.remove(entry, Deadline.after(5, registry.clock), force=True).outcome is RemovalOutcome.CONFIRMED


def told(stage: Stage) -> list[RemovedByOperator]:
    """Return the events about removals."""
    return [event for event in stage.events if isinstance(event, RemovedByOperator)]


def test_a_removal_is_told_once_and_readiness_stays(stage: Stage, serve: Callable[..., Service]) -> None:
    """Whoever watches readiness must not restart what an operator took out: that would register it again."""
    service = serve(stage.registry)
    remove(stage.registry)
    assert service.is_ready
    assert service.is_ready
    (event,) = told(stage)
    assert event.registry == "faulty://"
    assert "removed by an operator" in event.how
    assert "until rejoin() or a restart" in str(event)
    assert not event.is_warning
    log_event(event)
    assert stage.registry.cluster.entries() == ()
    report = service.stop()
    (removal,) = report.removals
    assert report.is_clean, report
    assert "removed by an operator" in removal.detail


def test_rejoin_registers_where_it_was_removed(stage: Stage, serve: Callable[..., Service]) -> None:
    """And nowhere else; where nothing was removed it does nothing."""
    other = stage.another_registry()
    service = serve(stage.registry, other)
    assert service.rejoin() == ()
    remove(other)
    before = stage.registry.cluster.entries()
    assert service.rejoin() == ("faulty://",)
    assert len(other.cluster.entries()) == 1
    assert stage.registry.cluster.entries() == before
    assert service.rejoin() == ()


def test_rejoin_retries_what_a_retry_can_help(stage: Stage, serve: Callable[..., Service]) -> None:
    """A blip of the registry is waited out."""
    service = serve(stage.registry)
    remove(stage.registry)
    stage.registry.faults.add(Step.WRITE, UNAVAILABLE, times=2)
    assert service.rejoin() == ("faulty://",)


def test_rejoin_says_what_went_wrong_and_tries_the_others(stage: Stage, serve: Callable[..., Service]) -> None:
    """The first error is raised when all were tried; what failed stays removed, and can be told again."""
    other = stage.another_registry()
    service = serve(stage.registry, other)
    remove(stage.registry)
    remove(other)
    stage.registry.faults.add(Step.WRITE, REFUSED, times=1)
    with pytest.raises(PermissionRefusedError):
        service.rejoin()
    assert len(other.cluster.entries()) == 1
    assert stage.registry.cluster.entries() == ()
    assert service.rejoin() == ("faulty://",)
    assert len(stage.registry.cluster.entries()) == 1


def test_rejoin_after_the_stop_has_begun_is_refused(stage: Stage, serve: Callable[..., Service]) -> None:
    """A stop is for good."""
    service = serve(stage.registry)
    remove(stage.registry)
    assert service.is_ready
    service.stop()
    with pytest.raises(LiveOwnerError):
        service.rejoin()
    assert stage.registry.cluster.entries() == ()


def test_one_that_was_removed_while_it_registered_is_not_tried_again(stage: Stage) -> None:
    """A service that goes on trying until it is registered does not fight an operator."""
    tries: list[str] = []
    registration = stage.registry.registration(ServiceInstance("calculator", "192.0.2.7", 9090, id="one"))

    def register(_deadline: Deadline) -> None:
        tries.append("register")
        raise RemovedByOperatorError("somebody was faster")

    registration.register = register  # type: ignore[assignment, method-assign]
    persistent = PersistentRegistration(registration, "faulty://", stage.clock)
    persistent.start()
    stage.clock.wait(persistent._has_ended, 60)
    assert tries == ["register"]
    persistent.fence(Deadline.after(5, stage.clock))


def test_an_asyncio_service_rejoins_without_blocking_its_loop() -> None:
    """The same, awaited."""

    async def nothing(_reader: object, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async def play() -> None:
        registry = FaultyRegistry(SYSTEM_CLOCK)
        server = AsyncioServer(nothing, "127.0.0.1", 0)
        service = AsyncService(server, registry, service="echo", budget=NO_WAIT, handle_signals=False)
        task = asyncio.get_running_loop().create_task(service.run())
        await service.wait_until_started()
        await asyncio.to_thread(eventually, lambda: service.is_ready)
        remove(registry)
        assert await service.rejoin() == ("faulty://",)
        assert len(registry.cluster.entries()) == 1
        await service.stop_async()
        assert (await task).is_clean

    asyncio.run(play())
