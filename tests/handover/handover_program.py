"""A calculator with an admin port that can be handed over, and told to fail as a new process: ``python -m`` this.

The file ``--orders`` is read when a process starts: what it says is how that process behaves (see :func:`main`). Each
process writes to the same log: ``SERVING pid``, the stop's and the hand-over's events, ``REPORT pid {json}``.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from examples.handover.server import new_admin_server
from examples.thrift_calculator.server import Calculator, new_threaded_server
from registry_drain import Deadline, Handover, Service, StopBudget, listening_socket, open_registry
from registry_drain.errors import PermissionRefusedError, RegistryUnavailableError
from registry_drain.instance import ServiceInstance
from registry_drain.registries.base import (
    Registration,
    Registry,
    RegistryEntry,
    Removal,
    RemovalOutcome,
    Watch,
    WatchCallback,
)
from registry_drain.servers.group import ServerGroup
from registry_drain.servers.socket_server import SocketServer
from registry_drain.servers.thrift_server import ThriftServer
from registry_drain.shutdown.events import Event

BABBLE = {"garble": b"nonsense\n", "babble": b'{"listening": true}\n{"ready": 7}\n'}


class FlakyRegistry:
    """A second registry, whose registrations cannot be handed over; what registering does, ``order`` says."""

    url = "flaky://"

    def __init__(self, order: str, first_registry: str) -> None:
        self.order = order
        self.first_registry = first_registry

    def registration(self, instance: ServiceInstance) -> Registration:
        """Return a membership of it."""
        return FlakyRegistration(self, instance)

    def wait_for_first(self, instance: ServiceInstance) -> None:
        """Wait until the first registry lists this very process."""
        registry = open_registry(self.first_registry)
        try:
            while not any(
                entry.metadata.get("pid") == str(os.getpid())
                for entry in registry.entries(instance.service, Deadline.after(10))
            ):
                time.sleep(0.01)
        finally:
            registry.close()

    def entries(self, service: str | None, deadline: Deadline) -> Sequence[RegistryEntry]:  # noqa: ARG002
        """List nothing."""
        return []

    def remove(self, entry: RegistryEntry, deadline: Deadline, *, force: bool = False) -> Removal:
        """Not used."""
        raise NotImplementedError

    def watch(self, service: str, deadline: Deadline, on_change: WatchCallback | None = None) -> Watch:
        """Not used."""
        raise NotImplementedError

    def close(self) -> None:
        """Nothing is open."""


class FlakyRegistration:
    """Registered; or never; or it ends the process."""

    def __init__(self, registry: FlakyRegistry, instance: ServiceInstance) -> None:
        self.instance = instance
        self.is_registered = False
        self._registry = registry

    def register(self, deadline: Deadline) -> None:  # noqa: ARG002
        """Register, or do as ordered."""
        order = self._registry.order
        if order in {"crash", "refuse"}:
            self._registry.wait_for_first(self.instance)
        if order == "crash":
            os._exit(4)
        if order == "refuse":
            raise PermissionRefusedError("flaky:// refuses, as ordered")
        if order == "flaky":
            raise RegistryUnavailableError("flaky:// is down, as ordered")
        self.is_registered = True

    def fence(self, deadline: Deadline) -> None:
        """Nothing renews."""

    def on_shutdown(self, deadline: Deadline) -> Removal:  # noqa: ARG002
        """Forget it."""
        return Removal(str(self.instance), "flaky://", RemovalOutcome.NOT_REGISTERED)


def say(line: str) -> None:
    """Write one line at once; several processes write to one log."""
    os.write(1, f"{line}\n".encode())


def say_event(event: Event) -> None:
    """Write one event, with the process' id."""
    say(f"EVENT {os.getpid()} {event}")


def main() -> int:
    """Serve until stopped or handed over.

    Orders: ``exit`` ends at once with status 3; ``hang`` never listens; ``deaf`` never listens, nor hears SIGTERM;
    ``garble`` and ``babble`` say what no version of ours says;
    the others are about a second registry, after the first one has listed the process: ``flaky`` never gets registered,
    ``crash`` ends with status 4, ``refuse`` gives up and stops gracefully.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--registry", action="append", default=[])
    parser.add_argument("--service", default="calculator")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--admin-port", type=int, default=0)
    parser.add_argument("--budget", type=json.loads, default={})
    parser.add_argument("--handover", type=json.loads, default={})
    parser.add_argument("--orders", type=Path, required=True)
    parser.add_argument("--flaky", action="store_true")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="LOG %(process)d %(message)s", stream=sys.stdout)
    order = options.orders.read_text() if options.orders.exists() else ""
    if order == "exit":
        return 3
    if order == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if order in BABBLE:
        os.write(int(os.environ["REGISTRY_DRAIN_PREDECESSOR"].split(":")[1]), BABBLE[order])
    if order in {"hang", "deaf", *BABBLE}:
        say(f"HANGING {os.getpid()}")
        time.sleep(600)

    rpc = new_threaded_server(Calculator(), "127.0.0.1", options.port)
    rpc.serverTransport.handle = listening_socket("127.0.0.1", options.port, name="rpc")
    admin = SocketServer(new_admin_server("127.0.0.1", options.admin_port))
    registries: list[str | Registry] = list(options.registry)
    if options.flaky:
        registries.append(FlakyRegistry(order, options.registry[0]))
    service = Service(
        ServerGroup({"rpc": ThriftServer(rpc), "admin": admin}),
        registries,
        service=options.service,
        metadata={"pid": str(os.getpid())},
        budget=StopBudget(**options.budget),
        sinks=[say_event],
        on_registration_failure="fail" if order == "refuse" else "retry",
        handover=Handover(**options.handover),
    )

    def say_when_ready() -> None:
        service.started.wait()
        while not service.is_ready and not service.is_stopping:
            time.sleep(0.01)
        say(f"SERVING {os.getpid()} {service.bound[1] if service.bound else 0}")

    threading.Thread(target=say_when_ready, daemon=True).start()
    report = service.run()
    say(f"REPORT {os.getpid()} {json.dumps(report.as_dict())}")
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
