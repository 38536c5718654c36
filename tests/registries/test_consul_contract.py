"""Consul keeps every promise of a registry, on a real agent."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from registry_drain.instance import ServiceInstance
from registry_drain.registries.base import Registry
from registry_drain.registries.url import open_registry
from registry_drain.testing.registry_contract import RegistryContract
from tests.registries.consul_tools import BEATS, FAST
from tests.support.consul_process import ConsulAgent
from tests.support.processes import ManagedProcess

OWNER = """
import sys, threading
from registry_drain.clock import Deadline
from registry_drain.instance import ServiceInstance
from registry_drain.registries.url import open_registry

url, service, address, port, instance_id = sys.argv[1:6]
tags = tuple(sys.argv[6].split()) if sys.argv[6] else ()
metadata = dict(pair.split("=", 1) for pair in sys.argv[7:])
instance = ServiceInstance(service, address, int(port), id=instance_id, metadata=metadata, tags=tags)
open_registry(url).registration(instance).register(Deadline.after(30))
print("registered", flush=True)
threading.Event().wait()
"""


def assert_killed(process: ManagedProcess) -> None:
    """Kill it, without a goodbye."""
    assert process.kill() == -signal.SIGKILL


class TestConsulContract(RegistryContract):
    """The contract suite on the shared development agent."""

    look_again = BEATS
    expiry_seconds = 40.0
    agent: ConsulAgent
    directory: Path

    @pytest.fixture(autouse=True)
    def _agent(self, consul_agent: ConsulAgent, tmp_path: Path) -> None:
        self.agent, self.directory = consul_agent, tmp_path

    def new_registry(self) -> Registry:
        """Return a registry of the shared agent, with heartbeats that a test can outwait."""
        return open_registry(self.agent.url + FAST)

    def start_doomed_owner(self, instance: ServiceInstance) -> Callable[[], None]:
        """Register from a process of its own, with a TTL that a test can outwait; return its SIGKILL."""
        script = self.directory / "owner.py"
        script.write_text(OWNER)
        pairs = [f"{key}={value}" for key, value in instance.metadata.items()]
        where = [instance.service, instance.address, str(instance.port), instance.id, " ".join(instance.tags)]
        process = ManagedProcess.python(
            script, f"{self.agent.url}?ttl_s=3", *where, *pairs, log=self.directory / "owner.log"
        )
        process.wait_output("registered")
        return lambda: assert_killed(process)
