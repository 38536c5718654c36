"""The contract suite notices broken promises: a registry that breaks one fails the test of that promise."""

from __future__ import annotations

import threading
import unittest
from collections.abc import Callable

import pytest

from registry_drain.clock import Deadline
from registry_drain.instance import ServiceInstance
from registry_drain.registries.base import RegistryEntry, Removal, WatchCallback
from registry_drain.testing.clock import FakeClock
from registry_drain.testing.faults import HANG_FOREVER, LIE, UNAVAILABLE, Fault, Step
from registry_drain.testing.faulty_registration import FaultyRegistration
from registry_drain.testing.faulty_registry import FaultyRegistry
from registry_drain.testing.memory_cluster import MemoryCluster, MemoryWatch
from registry_drain.testing.registry_contract import RegistryContract


class Unfenced(FaultyRegistration):
    """Registers again after the fence."""

    def _refuse_if_fenced(self) -> None:
        """Refuse nothing."""


class Careless(FaultyRegistration):
    """Removes whatever has its id, a successor too."""

    def on_shutdown(self, deadline: Deadline) -> Removal:
        """Remove by id."""
        with self._registry.cluster.changed:
            self._registry.cluster.records.pop((self.instance.service, self.instance.id), None)
        return super().on_shutdown(deadline)


class Undead(FaultyRegistration):
    """Has a heartbeat thread that the fence does not join."""

    def register(self, deadline: Deadline) -> None:
        """Start the thread."""
        super().register(deadline)
        self.stop = threading.Event()
        threading.Thread(target=self.stop.wait, name="registry-drain-heartbeat", daemon=True).start()

    def on_shutdown(self, deadline: Deadline) -> Removal:
        """End it only now."""
        self.stop.set()
        return super().on_shutdown(deadline)


class Blind(FaultyRegistry):
    """Removes entries without comparing them with what was shown."""

    @staticmethod
    def _check_removable(shown: RegistryEntry, listed: RegistryEntry | None, *, force: bool) -> None:
        """Check nothing."""


class Forgetful(FaultyRegistry):
    """Does not close its watches."""

    def watch(self, service: str, deadline: Deadline, on_change: WatchCallback | None = None) -> MemoryWatch:
        """Forget the watch."""
        watch = super().watch(service, deadline, on_change)
        self._watches.clear()
        return watch


class Broken(RegistryContract):
    """The contract on a registry that breaks promises; not collected by itself."""

    # A thread may be seconds late to start. Nothing waits for as long where the promise is broken at once.
    timeout = 10.0
    settle = 10.0
    prompt = 5.0
    look_again = 10.0
    races = 3

    def __init__(
        self,
        kind: type[FaultyRegistry] = FaultyRegistry,
        membership: type[FaultyRegistration] = FaultyRegistration,
        fault: tuple[Step, Fault] | None = None,
    ) -> None:
        """Take what is broken."""
        self.clock = FakeClock()
        self.cluster, self.kind, self.membership, self.fault = MemoryCluster(), kind, membership, fault

    def new_registry(self) -> FaultyRegistry:
        """Return one that is broken."""
        registry = self.kind(self.clock, cluster=self.cluster)
        registry.registration = lambda instance: self.membership(registry, instance)  # type: ignore[method-assign]
        if self.fault is not None:
            registry.faults.add(*self.fault)
        return registry


class Hanging(Broken):
    """Its calls never end, so that all of these limits are waited for."""

    timeout = 0.5
    prompt = 1.0


@pytest.mark.parametrize(
    ("broken", "test", "promise"),
    [
        (lambda: Broken(fault=(Step.DELETE, LIE)), "test_own_instance_is_removed_and_proven", "CONFIRMED"),
        (lambda: Broken(fault=(Step.WRITE, LIE)), "test_register_lists_the_instance", "listed exactly once"),
        (
            lambda: Hanging(fault=(Step.FENCE, HANG_FOREVER)),
            "test_a_past_deadline_ends_every_call_promptly",
            "never hang",
        ),
        (
            lambda: Broken(fault=(Step.FENCE, UNAVAILABLE)),
            "test_a_past_deadline_ends_every_call_promptly",
            "never raises",
        ),
        (lambda: Broken(membership=Unfenced), "test_register_after_fence_is_refused", "never resurrect"),
        (lambda: Broken(membership=Undead), "test_fence_joins_what_renews", "never resurrect"),
        (lambda: Broken(membership=Careless), "test_a_successor_survives", "never remove a successor"),
        (lambda: Broken(kind=Blind), "test_a_live_owner_is_left_alone", "live owner"),
        (lambda: Broken(kind=Blind), "test_an_entry_that_changed_is_left_alone", "registered anew"),
        (lambda: Broken(kind=Forgetful), "test_registry_close_closes_watches", "closes its watches"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_broken_promise_is_named(broken: Callable[[], Broken], test: str, promise: str) -> None:
    """The promise's own test fails, in words that name it."""
    with pytest.raises(AssertionError, match=promise):
        getattr(broken(), test)()


def test_dead_owners_are_skipped_without_a_hook() -> None:
    """Without start_doomed_owner the promise is skipped, and says so."""
    with pytest.raises(unittest.SkipTest, match="not tested"):
        Broken().test_a_killed_owner_disappears()


def test_the_suite_passes_on_a_sound_registry() -> None:
    """What is called broken here passes when nothing is: the failures above are the faults' doing."""
    instance = ServiceInstance("calculator", "192.0.2.7", 9090)
    sound = Broken()
    assert sound.new_registry().registration(instance).instance == instance
    sound.test_a_successor_survives()
    sound.test_a_past_deadline_ends_every_call_promptly()
