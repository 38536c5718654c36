"""One registration of several workers: who keeps it, who removes it, and that nobody else does.

The workers are objects in this process: what they hold (locks on files, memberships) does not know the difference.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest

from registry_drain import Deadline, ServiceInstance, open_registry
from registry_drain.clock import SYSTEM_CLOCK
from registry_drain.errors import ConfigurationError, LiveOwnerError, RegistryTimeoutError
from registry_drain.hosted import drained
from registry_drain.hosted.kept import KeptRegistrations
from registry_drain.hosted.shared_registration import (
    Departure,
    SharedMembership,
    SharedRegistration,
    _said_of_all,
)
from registry_drain.hosted.workers import Agreement, Workers
from registry_drain.registries.base import Registry, Removal, RemovalOutcome
from registry_drain.registries.local import LocalRegistration
from registry_drain.shutdown.events import RemovedByOperator
from registry_drain.testing.bench import Call
from tests.support.processes import eventually

PATIENCE = 20.0
INSTANCE = ServiceInstance("shared", "127.0.0.1", 9000)


class Worker:
    """One worker's membership."""

    def __init__(self, directory: Path, pid: int, registry: Registry) -> None:
        """Join."""
        self.is_told = True
        self.registry = registry
        self.heard: list[RemovedByOperator] = []
        self.workers = Workers("shared", 9000, os.getpid(), base=directory)
        self.workers.pid = pid
        self.membership = SharedMembership(
            self.workers,
            SYSTEM_CLOCK,
            has_stop_signal=lambda: self.is_told,
            on_removed=self.heard.append,
        )
        self.membership.start(INSTANCE, [registry])

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
    """Give a factory of workers, by pid; this process is their supervisor."""
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


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give whoever waits for the others all the time that a stalled main thread may need to let them leave."""
    monkeypatch.setattr("registry_drain.hosted.shared_registration.SETTLE", 15.0)


@pytest.mark.usefixtures("patient")
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


def test_who_follows_waits_for_what_the_keeper_tries_again(
    registry: Registry, new_worker: Callable[[int], Worker]
) -> None:
    """A removal in doubt is not the keeper's last word: its registry may elect a leader."""
    first = new_worker(1)
    eventually(lambda: keeping(first), because="the first one keeps it")
    second = new_worker(2)
    for each in (first, second):  # who serves would take a removal for the end of a generation
        each.membership.begin_leaving(Deadline.after(PATIENCE))
    doubt = Removal("shared", registry.url, RemovalOutcome.UNCONFIRMED, "no leader")
    first.membership._tell(registry.url, doubt)
    following = second.leaving()
    following.join(0.3)
    assert following.is_alive()
    assert first.left().outcome is RemovalOutcome.CONFIRMED
    assert following.result(PATIENCE, "following").outcome is RemovalOutcome.CONFIRMED


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
    workers = Workers("shared", 9000, os.getpid(), base=tmp_path / "workers")
    membership = SharedMembership(workers, SYSTEM_CLOCK)
    membership.begin_leaving(Deadline.after(PATIENCE))
    membership.start(INSTANCE, [registry])
    removal = membership.leave(registry.url, Deadline.after(PATIENCE))
    assert removal.outcome is RemovalOutcome.NOT_REGISTERED
    assert not is_listed(registry)
    registry.close()


def test_a_worker_that_is_about_to_register_when_it_is_told_registers_nothing(
    registry: Registry, new_worker: Callable[[int], Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long its thread stands still in between: nothing is registered after the stop."""
    monkeypatch.setattr("registry_drain.hosted.shared_registration._JOIN_LIMIT", 0.05)
    is_making, goes_on = threading.Event(), threading.Event()

    def make_late(*arguments: Any) -> KeptRegistrations:
        is_making.set()
        assert goes_on.wait(PATIENCE)
        return KeptRegistrations(*arguments)

    monkeypatch.setattr("registry_drain.hosted.shared_registration.KeptRegistrations", make_late)
    first = new_worker(1)
    assert is_making.wait(PATIENCE)
    assert first.left().outcome is RemovalOutcome.NOT_REGISTERED
    goes_on.set()
    first.membership._thread.join(PATIENCE)
    assert not first.membership._thread.is_alive()
    assert not first.membership.is_keeper
    assert not is_listed(registry)


def test_a_keeper_that_fails_at_first_tries_again(
    registry: Registry, new_worker: Callable[[int], Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody else would."""
    failures = iter([RegistryTimeoutError("not yet"), OSError("still not")])

    def make(*arguments: Any) -> KeptRegistrations:
        for failure in failures:
            raise failure
        return KeptRegistrations(*arguments)

    monkeypatch.setattr("registry_drain.hosted.shared_registration.KeptRegistrations", make)
    first = new_worker(1)
    eventually(lambda: keeping(first), timeout=PATIENCE, because="it keeps the registration in the end")
    assert is_listed(registry)


class Unregistered:
    """A worker that has joined, and does not know its registries yet."""

    def __init__(self, directory: Path, pid: int) -> None:
        """Join."""
        self.workers = Workers("shared", 9000, os.getpid(), base=directory / "workers")
        self.workers.pid = pid
        self.membership = SharedMembership(self.workers, SYSTEM_CLOCK)
        self.membership.join()

    def leaving(self) -> Call[Removal]:
        """Begin to leave."""
        deadline = Deadline.after(PATIENCE)

        def leave() -> Removal:
            self.membership.begin_leaving(deadline)
            return self.membership.leave_unregistered("shared", 1, deadline)

        return Call(leave)


@pytest.mark.usefixtures("patient")
def test_a_worker_without_registries_yet_leaves_with_all(
    registry: Registry, new_worker: Callable[[int], Worker], tmp_path: Path
) -> None:
    """It serves until the keeper has removed the instance, and is not the last."""
    first = new_worker(1)
    eventually(lambda: keeping(first), because="the first one keeps it")
    second = Unregistered(tmp_path, 2)
    following = second.leaving()
    following.join(0.1)
    assert is_listed(registry)
    assert first.left().outcome is RemovalOutcome.CONFIRMED
    assert following.result(PATIENCE, "following").outcome is RemovalOutcome.CONFIRMED
    assert not second.membership.others_listen()
    assert not second.membership.closed(), "the first one accepts"
    assert first.membership.closed()
    second.membership.end()


def test_a_worker_without_registries_waits_for_all_that_the_keeper_has() -> None:
    """One removal of two is not the end; and if one is in doubt, so is the whole."""
    agreed = Agreement(removals={"a": ("unconfirmed", "no answer", None)})
    assert _said_of_all(agreed, 2) is None
    agreed.removals["b"] = ("confirmed", "gone", 2.0)
    assert _said_of_all(agreed, 2) == ("unconfirmed", "no answer", None)
    agreed.removals["a"] = ("confirmed", "gone", 3.0)
    assert _said_of_all(agreed, 2) == ("confirmed", "gone", 3.0), "when callers were told last counts"


def test_a_worker_without_registries_yet_leaves_alone(
    registry: Registry, new_worker: Callable[[int], Worker], tmp_path: Path
) -> None:
    """The others go on listening, and it knows that, also before it has found out what its leaving means."""
    first = new_worker(1)
    eventually(lambda: keeping(first), because="the first one keeps it")
    second = Unregistered(tmp_path, 2)
    assert second.membership.others_listen()
    removal = second.leaving().result(PATIENCE, "leaving")
    assert removal.outcome is RemovalOutcome.SUCCESSOR
    assert second.membership.others_listen()
    second.membership.end()
    assert is_listed(registry)


def test_a_lone_worker_without_registries_yet_has_nothing_to_remove(tmp_path: Path) -> None:
    """Nobody has registered, and nobody listens any more."""
    lone = Unregistered(tmp_path, 1)
    assert lone.leaving().result(PATIENCE, "leaving").outcome is RemovalOutcome.NOT_REGISTERED
    assert not lone.membership.others_listen()
    assert lone.membership.closed()
    lone.membership.end()


def test_what_another_supervisor_with_the_pid_left_is_not_believed(
    registry: Registry, new_worker: Callable[[int], Worker], tmp_path: Path
) -> None:
    """Nobody of those is alive."""
    stale = Workers("shared", 9000, os.getpid(), base=tmp_path / "workers")
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


# --- removed by an operator -------------------------------------------------------------------------------------------


def take_out(registry: Registry, worker: Worker) -> None:
    """Remove the instance as an operator does, and wait until the workers have agreed on that."""
    (entry,) = registry.entries("shared", Deadline.after(PATIENCE))
    registry.remove(entry, Deadline.after(PATIENCE), force=True)
    eventually(lambda: is_out(worker), because="the workers agree that an operator removed it")


def is_out(worker: Worker) -> bool:
    """Return whether the workers have agreed that an operator removed the instance."""
    with worker.workers.agreement() as agreed:
        return worker.registry.url in agreed.removed


def stop_thread(worker: Worker) -> None:
    """Let a worker do nothing any more, without saying so."""
    worker.membership._leaving.set()
    worker.membership._thread.join()


def test_a_recycled_keeper_does_not_bring_back_what_an_operator_removed(
    registry: Registry, new_worker: Callable[[int], Worker]
) -> None:
    """Whoever takes the keeping over registers nothing, and the stop in the end is a clean one."""
    first = new_worker(1)
    eventually(lambda: keeping(first), because="the first one keeps it")
    second = new_worker(2)
    take_out(registry, first)
    assert [event.registry for event in first.heard] == [registry.url]
    assert first.left().is_gone
    first.membership.end()
    eventually(lambda: keeping(second), because="the second one keeps what there is to keep")
    assert not is_listed(registry)
    removal = second.left()
    assert removal.outcome is RemovalOutcome.NOT_REGISTERED
    assert "removed by an operator" in removal.detail
    assert second.heard == [], "it is said once"


def test_a_crashed_keeper_does_not_bring_it_back(registry: Registry, new_worker: Callable[[int], Worker]) -> None:
    """Nor does the second generation after it."""
    first = new_worker(1)
    eventually(lambda: keeping(first), because="the first one keeps it")
    crashed, successor = first, new_worker(2)
    take_out(registry, first)
    for pid in (3, 4):
        stop_thread(crashed)
        crashed.crash()
        eventually(partial(keeping, successor), because="the only other one keeps it")
        assert not is_listed(registry)
        crashed, successor = successor, new_worker(pid)


def test_it_stays_out_when_all_workers_are_replaced_by_one_supervisor(
    registry: Registry, new_worker: Callable[[int], Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lone worker that is recycled has nobody to tell but the next one; those of a new supervisor start anew."""
    first = new_worker(1)
    eventually(lambda: keeping(first), because="the first one keeps it")
    take_out(registry, first)
    first.is_told = False
    first.left()
    first.membership.end()
    second = new_worker(2)
    eventually(lambda: keeping(second), because="the new one keeps what there is to keep")
    assert not is_listed(registry)
    second.left()
    second.membership.end()
    monkeypatch.setattr("registry_drain.hosted.workers._incarnation", lambda pid: f"a later process with pid {pid}")
    restarted = new_worker(3)
    eventually(lambda: keeping(restarted), because="the service was started anew")
    assert is_listed(registry)


def test_a_removal_that_nobody_has_noticed_before_a_hand_over_is_noticed_then(
    registry: Registry, new_worker: Callable[[int], Worker]
) -> None:
    """Between two looks of the keeper."""
    first = new_worker(1)
    eventually(lambda: keeping(first), because="the first one keeps it")
    second = new_worker(2)
    stop_thread(first)
    (entry,) = registry.entries("shared", Deadline.after(PATIENCE))
    registry.remove(entry, Deadline.after(PATIENCE), force=True)
    first.left()
    eventually(lambda: keeping(second), because="the second one keeps it")
    assert not is_listed(registry)


@pytest.mark.parametrize("asked", [1, 2])
@pytest.mark.parametrize("is_keeper_new", [False, True])
def test_any_worker_may_be_told_to_rejoin(
    registry: Registry, new_worker: Callable[[int], Worker], asked: int, *, is_keeper_new: bool
) -> None:
    """The keeper does it, whether it has found the removal out or has taken it over; afterwards all is as ever."""
    first = new_worker(1)
    eventually(lambda: keeping(first), because="the first one keeps it")
    workers = {1: first, 2: new_worker(2)}
    take_out(registry, first)
    if is_keeper_new:
        first.left()
        first.membership.end()
        workers[1] = new_worker(3)
        eventually(lambda: keeping(workers[2]) or keeping(workers[1]), because="another one keeps it")
    deadline = Deadline.after(PATIENCE)
    assert workers[asked].membership.rejoin(deadline) == (registry.url,)
    assert is_listed(registry)
    assert workers[asked].membership.rejoin(deadline) == (), "there is nothing to rejoin any more"
    assert not is_out(workers[asked])
    take_out(registry, workers[2])


def test_what_was_only_lost_is_registered_again(registry: Registry, new_worker: Callable[[int], Worker]) -> None:
    """A keeper that dies takes its entry along; nobody meant that."""
    first = new_worker(1)
    eventually(lambda: keeping(first), because="the first one keeps it")
    second = new_worker(2)
    stop_thread(first)
    kept = first.membership._kept
    assert kept is not None
    kept.by_url[registry.url].on_shutdown(Deadline.after(PATIENCE))
    assert not is_listed(registry)
    first.crash()
    eventually(lambda: keeping(second), because="the second one keeps it")
    assert is_listed(registry)


def test_a_successor_that_has_the_id_is_not_displaced_by_rejoining(
    registry: Registry, new_worker: Callable[[int], Worker]
) -> None:
    """Whoever keeps it now; and it may be told again."""
    first = new_worker(1)
    eventually(lambda: keeping(first), because="the first one keeps it")
    second = new_worker(2)
    take_out(registry, first)
    first.left()
    first.membership.end()
    eventually(lambda: keeping(second), because="the second one keeps it")
    other = registry.registration(INSTANCE)
    other.register(Deadline.after(PATIENCE))
    with pytest.raises(LiveOwnerError, match="has the id now"):
        second.membership.rejoin(Deadline.after(PATIENCE))
    assert other.is_registered
    assert other.on_shutdown(Deadline.after(PATIENCE)).is_gone
    assert second.membership.rejoin(Deadline.after(PATIENCE)) == (registry.url,)


def test_nobody_rejoins_who_leaves_or_whom_nobody_answers(
    registry: Registry, new_worker: Callable[[int], Worker]
) -> None:
    """One line each, and the request is not left behind for a later keeper."""
    first = new_worker(1)
    eventually(lambda: keeping(first), because="the first one keeps it")
    second = new_worker(2)
    take_out(registry, first)
    stop_thread(first)
    with pytest.raises(RegistryTimeoutError, match="no worker has rejoined"):
        second.membership.rejoin(Deadline.after(0.3))
    with pytest.raises(LiveOwnerError, match="is being stopped"):
        first.membership.rejoin(Deadline.after(PATIENCE))
    with second.workers.agreement() as agreed:
        assert not agreed.removed[registry.url].is_rejoin_asked


def test_a_lone_process_rejoins_by_itself(registry: Registry) -> None:
    """Without a supervisor there is nobody to ask; the removal is told to its sinks all the same."""
    heard: list[RemovedByOperator] = []
    kept = KeptRegistrations([registry], INSTANCE, SYSTEM_CLOCK, heard.append)
    kept.start()
    eventually(lambda: kept.is_settled(()), because="it is registered")
    deadline = Deadline.after(PATIENCE)
    assert kept.rejoin_all(deadline) == (), "nobody removed it"
    (entry,) = registry.entries("shared", deadline)
    registry.remove(entry, deadline, force=True)
    eventually(lambda: kept.removed, because="found out")
    assert [event.registry for event in heard] == [registry.url]
    other = registry.registration(INSTANCE)
    other.register(deadline)
    with pytest.raises(LiveOwnerError):
        kept.rejoin_all(deadline)
    assert other.on_shutdown(deadline).is_gone
    assert kept.rejoin_all(deadline) == (registry.url,)
    assert kept.removed == {}
    assert is_listed(registry)
    for each in kept.by_url.values():
        each.fence(deadline)
        assert each.on_shutdown(deadline).outcome is RemovalOutcome.CONFIRMED


# --- the soft drain ---------------------------------------------------------------------------------------------------


class RotatingLocal(LocalRegistration):
    """A registration that can leave the rotation, and says that it has."""

    drained_at: ClassVar[list[str]] = []

    def leave_rotation(self, deadline: Deadline) -> None:
        """Note it."""
        assert not deadline.is_past
        self.drained_at.append(self.instance.id)


@pytest.fixture
def rotating(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let the registry's registrations have a state out of rotation; give the list of those that went there."""
    monkeypatch.setattr("registry_drain.registries.local.registry.LocalRegistration", RotatingLocal)
    monkeypatch.setattr(RotatingLocal, "drained_at", [])
    return RotatingLocal.drained_at


def shared(worker: Worker) -> SharedRegistration:
    """Return what the stop routine sees of a worker."""
    return SharedRegistration(worker.membership, worker.registry, lambda: str(INSTANCE))


@pytest.mark.usefixtures("patient")
def test_the_keeper_drains_softly_when_all_leave(
    registry: Registry, new_worker: Callable[[int], Worker], rotating: list[str]
) -> None:
    """Once, by the keeper; the other one waits for the removal, serving."""
    first = new_worker(1)
    eventually(lambda: keeping(first), because="the first one keeps it")
    second = new_worker(2)
    assert shared(first).can_leave_rotation
    assert not shared(second).can_leave_rotation
    following = second.leaving()
    assert shared(first).leave_rotation(Deadline.after(PATIENCE))
    assert rotating == [INSTANCE.id]
    assert is_listed(registry)
    assert following.is_alive()
    assert first.left().outcome is RemovalOutcome.CONFIRMED
    assert following.result(PATIENCE, "following").outcome is RemovalOutcome.CONFIRMED


def test_a_keeper_that_leaves_alone_drains_nothing(new_worker: Callable[[int], Worker], rotating: list[str]) -> None:
    """The instance goes on in rotation, served by the others."""
    first = new_worker(1)
    eventually(lambda: keeping(first), because="the first one keeps it")
    second = new_worker(2)
    assert shared(first).leave_rotation(Deadline.after(PATIENCE)) is False
    assert first.left().outcome is RemovalOutcome.SUCCESSOR
    assert keeping(second)
    assert rotating == []


def test_too_little_time_to_find_out_who_leaves_is_no_decision(
    new_worker: Callable[[int], Worker], rotating: list[str]
) -> None:
    """The removal finds it out then."""
    first = new_worker(1)
    eventually(lambda: keeping(first), because="the first one keeps it")
    assert shared(first).leave_rotation(Deadline.after(0.1)) is False
    assert first.membership.departure is None
    assert first.left().outcome is RemovalOutcome.CONFIRMED
    assert rotating == []


@pytest.mark.parametrize("seconds", [0.5, -1.0, 3.0])
def test_a_soft_drain_that_cannot_work_is_refused_at_once(seconds: float) -> None:
    """Too short for workers to agree, negative, or longer than half of the budget's part."""

    async def app(*_: object) -> None: ...

    with pytest.raises(ConfigurationError, match="soft_drain="):
        drained(app, port=8000, soft_drain=seconds)
    drained(app, port=8000, soft_drain=2.0)
