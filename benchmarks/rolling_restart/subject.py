"""What the servers of the rolling restart share: their options, their work, and what a user would do without us."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass

from registry_drain import Deadline, Service, ServiceInstance, StopBudget, open_registry

WORK_S = 0.005
"""Seconds that a request takes: there is always one in flight."""

HOST = "127.0.0.1"

BUDGET = StopBudget(grace_period=15.0, floor=0.4, quiet_period=0.1, ceiling=1.0)
"""Of every drained stop. Clients notice a change of the registry within 0.1 s. Those that ignore it never go quiet,
so the propagation wait ends at its ceiling.
"""

_REGISTRY_TIMEOUT = 5.0


@dataclass(frozen=True)
class Options:
    """What a subject is told.

    Attributes:
        registry: the URL to register at.
        service: the cluster.
        port: to listen on, at :data:`HOST`.
        is_drained: whether it is to be stopped with registry_drain, or its own way.
    """

    registry: str
    service: str
    port: int
    is_drained: bool


def options(arguments: list[str] | None = None) -> Options:
    """Read the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--registry", required=True)
    parser.add_argument("--service", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--how", choices=["own", "drained"], required=True)
    given = parser.parse_args(arguments)
    return Options(given.registry, given.service, given.port, given.how == "drained")


def say_ready() -> None:
    """Tell the fleet that requests are served and the instance is registered."""
    sys.stdout.write("READY\n")
    sys.stdout.flush()


def say_ready_when_started(service: Service) -> None:
    """Say it from a thread, as soon as ``service`` runs and is registered; ``service.run()`` blocks the caller."""
    import threading
    import time

    def wait() -> None:
        service.started.wait()
        while not service.is_ready and not service.is_stopping:
            time.sleep(0.005)
        say_ready()

    threading.Thread(target=wait, name="say-ready", daemon=True).start()


def naive_registration(given: Options) -> Callable[[], None]:
    """Register without a stop routine, as most services do; return what deregisters.

    Call the result where the server's users would: in its own shutdown hook, or behind its serve().
    """
    registry = open_registry(given.registry)
    registration = registry.registration(ServiceInstance(given.service, HOST, given.port))
    registration.register(Deadline.after(_REGISTRY_TIMEOUT))

    def deregister() -> None:
        registration.on_shutdown(Deadline.after(_REGISTRY_TIMEOUT))
        registry.close()

    return deregister
