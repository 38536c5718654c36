"""The fake registry keeps every promise, and breaks each one on request."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from registry_drain.clock import Clock
from registry_drain.instance import ServiceInstance
from registry_drain.testing.clock import FakeClock
from registry_drain.testing.faulty_registry import FaultyRegistry
from registry_drain.testing.memory_cluster import MemoryCluster
from registry_drain.testing.registry_contract import RegistryContract


class TestFaultyRegistry(RegistryContract):
    """Without faults it passes the contract, on the real clock."""

    @pytest.fixture(autouse=True)
    def _one_cluster_per_test(self) -> None:
        self.cluster = MemoryCluster()

    def new_registry(self) -> FaultyRegistry:
        """Return one more object on this test's cluster."""
        return FaultyRegistry(self.clock, cluster=self.cluster)

    def start_doomed_owner(self, instance: ServiceInstance) -> Callable[[], None]:
        """Register, and let the cluster forget the owner on demand."""
        self.new_registry().registration(instance).register(self.bench().deadline())
        return lambda: self.cluster.kill_owner(instance.service, instance.id)


class TestFaultyRegistryOnAFakeClock(TestFaultyRegistry):
    """Without faults it passes the contract, on the fake clock."""

    clock: Clock = FakeClock()
