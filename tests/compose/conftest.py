"""One cluster for all tests, which leave it whole."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from benchmarks.cluster.compose import Cluster, DockerError, docker


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs an engine."""
    for item in items:
        if "tests/compose/" in item.nodeid:
            item.add_marker(pytest.mark.compose)


def _has_engine() -> bool:
    try:
        docker("info")
    except (DockerError, OSError):
        return False
    return True


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Both registries, both fleets, both load clients: up and ready."""
    if not _has_engine() and not os.environ.get("CI"):
        pytest.skip("no Docker engine answers: `make compose-test` gets one")
    with Cluster(["consul", "zookeeper"]) as cluster:
        yield cluster
