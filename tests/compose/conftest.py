"""A cluster for each registry, which all of its tests share and leave whole.

The clusters know nothing of each other, so that two of pytest's workers may have one each: most of the time one waits.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

from benchmarks.cluster.compose import Cluster, DockerError, docker

REGISTRIES = ["consul", "zookeeper"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs an engine."""
    for item in items:
        if "tests/compose/" in item.nodeid:
            item.add_marker(pytest.mark.compose)


class _ByRegistry(LoadScopeScheduling):  # type: ignore[misc]
    """All tests of one cluster in one worker. (xdist's own groups are lost on pytest 9.2.)"""

    def _split_scope(self, nodeid: str) -> str:
        return next((which for which in REGISTRIES if f"[{which}" in nodeid), nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> LoadScopeScheduling:
    """Schedule so."""
    return _ByRegistry(config, log)


def _has_engine() -> bool:
    try:
        docker("info")
    except (DockerError, OSError):
        return False
    return True


@pytest.fixture(scope="session", params=REGISTRIES)
def which(request: pytest.FixtureRequest) -> str:
    """The registry."""
    return str(request.param)


@pytest.fixture(scope="session")
def cluster(which: str) -> Iterator[Cluster]:
    """The registry, its fleet, its load client, and with Consul the HTTP fleet and the proxy: up and ready."""
    if not _has_engine() and not os.environ.get("CI"):
        pytest.skip("no Docker engine answers: `make compose-test` gets one")
    with Cluster([which]) as cluster:
        yield cluster
