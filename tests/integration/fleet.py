"""Service programs as a fleet: started, found by their registry, signalled, and their reports read."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from registry_drain import Deadline, open_registry
from tests.support.processes import ManagedProcess, eventually

BRIEF = {"grace_period": 15.0, "floor": 0.4, "quiet_period": 0.1, "ceiling": 2.0, "deregister": 2.0}
"""A budget for tests in which something lasts until its limit. The callers here follow watches, which wake within tens
of milliseconds.
"""
FAST = {**BRIEF, "grace_period": 40.0, "deregister": 8.0, "closing": 5.0, "notify": 5.0}
"""And for all others: what ends by itself takes no longer for it, and a busy machine may stand still for a while."""


class ServiceProcess:
    """One running service program."""

    def __init__(
        self,
        registry_url: str,
        service: str,
        log: Path,
        *options: str,
        port: int = 0,
        budget: Mapping[str, float] = FAST,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.registry_url = registry_url
        self.service = service
        self.process = ManagedProcess.python(
            "-m",
            "tests.integration.service_program",
            f"--registry={registry_url}",
            f"--service={service}",
            f"--port={port}",
            f"--budget={json.dumps(dict(budget))}",
            *options,
            log=log,
            env=env,
        )

    @property
    def port(self) -> int:
        """Where it listens; waits until it does."""
        output = self.process.wait_output("LISTENING ")
        return int(output.split("LISTENING ", 1)[1].split()[0])

    @property
    def endpoint(self) -> str:
        """``127.0.0.1:port``."""
        return f"127.0.0.1:{self.port}"

    def wait_listed(self, registry_url: str = "") -> None:
        """Wait until the registry lists it."""
        endpoint = self.endpoint
        url = registry_url or self.registry_url
        eventually(lambda: endpoint in listed(url, self.service), because=f"{endpoint} is listed")

    def stop(self) -> dict[str, Any]:
        """SIGTERM; wait for the exit and return the report."""
        self.process.signal(signal.SIGTERM)
        self.process.wait(timeout=60)
        return self.report()

    def report(self) -> dict[str, Any]:
        """Return the report of a process that has ended."""
        for line in self.process.output().splitlines():
            if line.startswith("REPORT "):
                report: dict[str, Any] = json.loads(line.removeprefix("REPORT "))
                return report
        raise AssertionError(f"no report:\n{self.process.output_tail()}")

    def phase(self, name: str) -> dict[str, Any]:
        """Return one phase of the report."""
        phases: list[dict[str, Any]] = self.report()["phases"]
        return next(phase for phase in phases if phase["phase"] == name)


def listed(registry_url: str, service: str) -> dict[str, Any]:
    """Return what a consistent read of the registry lists, by endpoint."""
    registry = open_registry(registry_url)
    try:
        return {entry.endpoint: entry for entry in registry.entries(service, Deadline.after(10))}
    finally:
        registry.close()


@contextlib.contextmanager
def ended(*services: ServiceProcess) -> Iterator[None]:
    """Kill what is still running of ``services`` in the end."""
    try:
        yield
    finally:
        for service in services:
            service.process.kill()
