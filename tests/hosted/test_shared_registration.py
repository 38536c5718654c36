"""One registration of several workers: who keeps it, who removes it, and that nobody else does.

The workers are objects in this process: what they hold (locks on files, memberships) does not know the difference.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from registry_drain import Deadline, ServiceInstance, open_registry
from registry_drain.clock import SYSTEM_CLOCK
from registry_drain.errors import ConfigurationError
from registry_drain.hosted.shared_registration import Departure, SharedMembership
from registry_drain.hosted.workers import Workers
from registry_drain.registries.base import Registry, Removal, RemovalOutcome
from registry_drain.testing.bench import Call
from tests.support.processes import eventually

PATIENCE = 20.0
SUPERVISOR = 4242
INSTANCE = ServiceInstance("shared", "127.0.0.1", 9000)


class Worker:
    """One worker's membership."""

    def __init__(self, directory: Path, pid: int, registry: Registry) -> None:
        """Join."""
        self.is_told = True
        self.registry = registry
        self.workers = Workers("shared", 9000, SUPERVISOR, base=directory)
        self.workers.pid = pid
        self.membership = SharedMembership(self.workers, [registry], SYSTEM_CLOCK, has_stop_signal=lambda: self.is_told)
        self.membership.start(INSTANCE)

    def crash(self) -> None:
        """Let go of the lock as the kernel does, and tidy up nothing."""
        assert self.workers._mine is not None
        os.close(self.workers._mine)
        self.workers._mine = None

    def leaving(self) -> Call[Removal]:
        """Begin to leave."""
        deadline = Deadline.after(PATIENCE)

        def leave() -> Removal:
            self.membership.begin_leaving(deadline)
            return self.membership.leave(self.registry.url, deadline)

        return Call(leave)

    def left(self) -> Removal:
        """Leave, and say how."""
        return self.leaving().result(PATIENCE, "leaving")


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """Give a registry."""
    return open_registry(f"local://{tmp_path}/registry")


@pytest.fixture
def new_worker(tmp_path: Path, registry: Registry) -> Iterator[Callable[[int], Worker]]:
    """Give a factory of workers, by pid."""
    made: list[Worker] = []

    def new(pid: int) -> Worker:
        made.append(Worker(tmp_path / "workers", pid, registry))
        return made[-1]

    yield new
    for each in made:
        each.membership.end()
    for each in made:
        each.membership.leave(registry.url, Deadline.after(0.1))
    registry.close()


def is_listed(registry: Registry) -> bool:
    """Return whether the instance is listed, and fail if it is twice."""
    entries = registry.entries("shared", Deadline.after(PATIENCE))
    assert len(entries) <= 1
    return bool(entries)


def keeping(worker: Worker) -> bool:
    """Return whether this worker's registration is the one that all agree on."""
    with worker.workers.agreement() as agreed:
        return agreed.keeper == worker.workers.pid and agreed.is_kept


def test_one_keeps_and_the_last_stop_removes(registry: Registry, new_worker: Callable[[int], Worker]) -> None:
    """All are told: the keeper removes the instance, the other one learns it from him."""
    first = new_worker(1)
    eventually(lambda: keeping(first), because="the first one keeps it")
    second = new_worker(2)
    following = second.leaving()
    following.join(0.1)
    assert is_listed(registry)
    removed = first.left()
    assert removed.outcome is RemovalOutcome.CONFIRMED
    assert following.result(PATIENCE, "following").outcome is RemovalOutcome.CONFIRMED
    assert (first.membership.departure, second.membership.departure) == (Departure.ALL_LEAVE, Departure.FOLLOWS)
    assert not is_listed(registry)


def test_a_keeper_that_leaves_alone_hands_over(registry: Registry, new_worker: Callable[[int], Worker]) -> None:
    """Another one has the registration before the first one lets go of it; the instance is listed all the time."""
    first = new_worker(1)
    eventually(lambda: keeping(first), because="the first one keeps it")
    second = new_worker(2)
    leaving = first.leaving()
    while leaving.is_alive():
        assert is_listed(registry)
    assert leaving.result(PATIENCE, "leaving").outcome is RemovalOutcome.SUCCESSOR
    assert keeping(second)
    assert is_listed(registry)
    first.membership.end()
    assert second.left().outcome is RemovalOutcome.CONFIRMED
    assert not is_listed(registry)


def test_another_worker_that_leaves_alone_changes_nothing(
    registry: Registry, new_worker: Callable[[int], Worker]
) -> None:
    """It is no keeper, and there are others."""
    first = new_worker(1)
    eventually(lambda: keeping(first), because="the first one keeps it")
    assert new_worker(2).left().outcome is RemovalOutcome.SUCCESSOR
    assert keeping(first)
    assert is_listed(registry)


def test_a_crashed_keeper_is_succeeded(registry: Registry, new_worker: Callable[[int], Worker]) -> None:
    """Its lock is free, whatever it wrote: another one registers the instance."""
    first = new_worker(1)
    eventually(lambda: keeping(first), because="the first one keeps it")
    second = new_worker(2)
    first.membership._leaving.set()
    first.membership._thread.join()
    first.crash()
    eventually(lambda: keeping(second), because="the second one keeps it")
    assert is_listed(registry)


def test_a_lone_worker_that_is_recycled_leaves_the_instance_listed(
    registry: Registry, new_worker: Callable[[int], Worker]
) -> None:
    """It ends without a signal, so its supervisor starts another one: which takes the registration over."""
    first = new_worker(1)
    eventually(lambda: keeping(first), because="the first one keeps it")
    first.is_told = False
    assert first.left().outcome is RemovalOutcome.SUCCESSOR
    assert first.membership.departure is Departure.SUCCEEDED
    assert is_listed(registry)
    first.membership.end()
    second = new_worker(2)
    eventually(lambda: keeping(second), because="the new one keeps it")


def test_a_worker_that_was_told_before_it_had_joined_registers_nothing(registry: Registry, tmp_path: Path) -> None:
    """A stop during the start: never registered, never joined."""
    workers = Workers("shared", 9000, SUPERVISOR, base=tmp_path / "workers")
    membership = SharedMembership(workers, [registry], SYSTEM_CLOCK)
    membership.begin_leaving(Deadline.after(PATIENCE))
    membership.start(INSTANCE)
    removal = membership.leave(registry.url, Deadline.after(PATIENCE))
    assert removal.outcome is RemovalOutcome.NOT_REGISTERED
    assert not is_listed(registry)
    registry.close()


def test_what_another_supervisor_with_the_pid_left_is_not_believed(
    registry: Registry, new_worker: Callable[[int], Worker], tmp_path: Path
) -> None:
    """Nobody of those is alive."""
    stale = Workers("shared", 9000, SUPERVISOR, base=tmp_path / "workers")
    stale.pid = 7
    stale.join()
    with stale.agreement() as agreed:
        agreed.keeper, agreed.is_kept, agreed.removals = 7, True, {registry.url: ("confirmed", "", None)}
    stale.leave()
    first = new_worker(1)
    eventually(lambda: keeping(first), because="the first one keeps it")
    assert is_listed(registry)


def test_a_directory_of_somebody_else_is_refused(tmp_path: Path) -> None:
    """Where anybody can write, what is agreed is not to be believed."""
    (tmp_path / "workers").symlink_to("/")
    with pytest.raises(ConfigurationError, match="belongs to somebody else"):
        Workers("shared", 9000, os.getpid(), base=tmp_path / "workers")
