"""The local registry keeps every promise, between threads and between processes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from registry_drain.instance import ServiceInstance
from registry_drain.registries.base import Registry
from registry_drain.registries.url import open_registry
from registry_drain.testing.registry_contract import RegistryContract

OWNER = """
import json, sys
from registry_drain.clock import Deadline
from registry_drain.instance import ServiceInstance
from registry_drain.registries.url import open_registry
url, fields = sys.argv[1], json.loads(sys.argv[2])
registration = open_registry(url).registration(ServiceInstance(**fields))
registration.register(Deadline.after(10))
print("registered", flush=True)
sys.stdin.read()
print(registration.on_shutdown(Deadline.after(10)).outcome.name, flush=True)
"""


def start_owner(url: str, instance: ServiceInstance) -> subprocess.Popen[str]:
    """Return a process that has registered ``instance`` and deregisters it when its standard input ends."""
    fields = {
        "service": instance.service,
        "address": instance.address,
        "port": instance.port,
        "id": instance.id,
        "metadata": dict(instance.metadata),
        "tags": instance.tags,
    }
    command = [sys.executable, "-c", OWNER, url, json.dumps(fields)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "registered\n"
    return process


class TestLocalRegistry(RegistryContract):
    """The contract, on a directory that does not exist at first."""

    expiry_seconds = 10.0

    @pytest.fixture(autouse=True)
    def _directory(self, tmp_path: Path) -> Iterator[None]:
        self.url = f"local://{tmp_path}/not/yet?poll_s=0.01"
        self.owners: list[subprocess.Popen[str]] = []
        yield
        for owner in self.owners:
            owner.kill()
            owner.communicate()

    def new_registry(self) -> Registry:
        """Return one more object on this test's directory."""
        return open_registry(self.url)

    def start_doomed_owner(self, instance: ServiceInstance) -> Callable[[], None]:
        """Register from a process, to be killed with SIGKILL."""
        owner = start_owner(self.url, instance)
        self.owners.append(owner)
        return owner.kill
