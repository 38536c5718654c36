"""Rolling restarts under load: with a drained stop not one request fails, with a naive one some do."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.integration.fleet import FAST, ServiceProcess, ended
from tests.support.calculator_load import Load
from tests.support.processes import eventually, free_port

pytestmark = pytest.mark.slow

INSTANCES = 3
RESTARTS = 3
CLIENTS = 6
BUDGET = {**FAST, "floor": 1.2, "ceiling": 3.0}
"""The clients' process may be busy, too, when the list changes."""


def registry_url(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the URL of a real registry of that kind."""
    if kind == "local":
        return f"local://{tmp_path}/registry"
    server = request.getfixturevalue("consul_agent" if kind == "consul" else "zookeeper_server")
    return f"{server.url}/{tmp_path.name}" if kind == "zookeeper" else str(server.url)


REGISTRIES = [
    "local",
    pytest.param("consul", marks=pytest.mark.consul),
    pytest.param("zookeeper", marks=pytest.mark.zookeeper),
]


def restart_all(
    url: str, service: str, tmp_path: Path, load: Load, *, restarts: int, number: int
) -> list[dict[str, object]]:
    """Restart each of the fleet's instances in turn, on its own port, and return the reports of the stopped ones."""
    reports: list[dict[str, object]] = []
    ports = [free_port() for _ in range(INSTANCES)]

    def start(port: int, generation: int) -> ServiceProcess:
        return ServiceProcess(url, service, tmp_path / f"{port}-{generation}", port=port, budget=BUDGET)

    fleet = [start(port, 0) for port in ports]
    try:
        for instance in fleet:
            instance.wait_listed()
        with load:
            eventually(lambda: load.calls > 20 * CLIENTS, because="the load runs")
            for generation in range(1, restarts + 1):
                for index, port in enumerate(ports):
                    fleet[index].process.signal(number)
                    fleet[index].process.wait(timeout=60)
                    if number == signal.SIGTERM:
                        reports.append(fleet[index].report())
                    fleet[index] = start(port, generation)
                    fleet[index].wait_listed()
    finally:
        with ended(*fleet):
            pass
    return reports


@pytest.mark.parametrize("kind", REGISTRIES)
def test_a_drained_rolling_restart_loses_no_request(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, unique: str
) -> None:
    """Three instances, six clients that follow the watch, nine restarts: every request is answered."""
    url = registry_url(kind, request, tmp_path)
    load = Load(url, unique, clients=CLIENTS)
    reports = restart_all(url, unique, tmp_path, load, restarts=RESTARTS, number=signal.SIGTERM)
    assert load.failures == []
    assert load.calls > 1000
    assert [report["exit_code"] for report in reports] == [0] * INSTANCES * RESTARTS, reports


@pytest.mark.parametrize("kind", REGISTRIES)
def test_a_naive_rolling_restart_loses_requests(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, unique: str
) -> None:
    """The same load, and processes that simply end: the test above could have failed."""
    url = registry_url(kind, request, tmp_path)
    load = Load(url, unique, clients=CLIENTS)
    restart_all(url, unique, tmp_path, load, restarts=1, number=signal.SIGKILL)
    assert load.failures
