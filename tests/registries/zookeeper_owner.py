"""A process that registers one instance and keeps it until it is killed: ``URL INSTANCE_AS_JSON``."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

from registry_drain.clock import Deadline
from registry_drain.instance import ServiceInstance
from registry_drain.registries.url import open_registry
from tests.support.processes import ManagedProcess


def start_owner(url: str, instance: ServiceInstance, directory: Path) -> ManagedProcess:
    """Return a process that has registered ``instance`` and keeps it."""
    fields = {
        "service": instance.service,
        "address": instance.address,
        "port": instance.port,
        "id": instance.id,
        "metadata": dict(instance.metadata),
        "tags": list(instance.tags),
    }
    log = directory / f"owner-{instance.service}.log"
    process = ManagedProcess.python("-m", "tests.registries.zookeeper_owner", url, json.dumps(fields), log=log)
    process.wait_output("registered")
    return process


def main() -> None:
    """Register, say so, and wait for the end."""
    url, fields = sys.argv[1:]
    registration = open_registry(url).registration(ServiceInstance(**json.loads(fields)))
    registration.register(Deadline.after(30.0))
    sys.stdout.write("registered\n")
    threading.Event().wait()


if __name__ == "__main__":
    main()
