"""Removing many: in bulk, beside one after the other, with the same guards and the same proof on both sides.

- ZooKeeper: 1,000 persistent instances, by :meth:`BulkRegistry.remove_many` and by :meth:`Registry.remove` for each.
  Goal: at least 15 times faster.
- Consul: 500 ghosts that a dead agent left in the catalog (a real one, which is killed). Goal: at least 10 times.

Each side removes its own half of what is listed, and both begin with what a listing showed; who goes first alternates.
What the bare client takes for 1,000 deletes, one after the other and without any proof, is shown as well.

    python -m benchmarks.bulk_removal [rounds]

Exits with 1 if a goal is missed. The fastest round of each side counts: a busy machine only ever adds to it.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from registry_drain.clock import Deadline
from registry_drain.registries.abilities import BulkRegistry, RemovalResult
from registry_drain.registries.base import Registry, RegistryEntry, Removal, RemovalOutcome
from registry_drain.registries.url import open_registry
from tests.support.consul_process import ConsulAgent, ConsulCluster
from tests.support.processes import eventually
from tests.support.zookeeper_process import ZooKeeperServer

NODES, GHOSTS = 1000, 500
GOAL_ZOOKEEPER, GOAL_CONSUL = 15.0, 10.0
ROUNDS = 1
"""One after the other takes minutes."""
PATIENCE = 300.0

Side = Callable[[Registry, Sequence[RegistryEntry]], None]


def main() -> int:
    """Run both, print times and ratios, return the exit status."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    with tempfile.TemporaryDirectory() as name:
        ratios = [zookeeper(Path(name) / "zookeeper", rounds), consul(Path(name) / "consul", rounds)]
    return int(ratios[0] < GOAL_ZOOKEEPER or ratios[1] < GOAL_CONSUL)


def zookeeper(directory: Path, rounds: int) -> float:
    """Return how many times faster the bulk is."""
    with ZooKeeperServer(directory) as server, server.client() as client:

        def plant(service: str) -> None:
            client.ensure_path(f"/services/{service}")
            pending = []
            for number in range(NODES):
                data = {"name": service, "id": str(number), "address": "127.0.0.1", "port": 1 + number}
                path = f"/services/{service}/{number}"
                pending.append(client.create_async(path, json.dumps(data).encode()))
            for answer in pending:
                answer.get(timeout=PATIENCE)

        bare = min(bare_deletes(client, plant, number) for number in range(rounds))
        print(f"ZooKeeper, {NODES} bare deletes one after the other: {bare:.3f} s")
        return race("ZooKeeper", f"{server.url}/services", plant, rounds, NODES)


def bare_deletes(client: Any, plant: Callable[[str], None], number: int) -> float:
    """Return the seconds that the client alone takes, without looking before or after."""
    plant(f"bare-{number}")
    paths = [f"/services/bare-{number}/{each}" for each in range(NODES)]
    began = time.perf_counter()
    for path in paths:
        client.delete(path)
    return time.perf_counter() - began


def consul(directory: Path, rounds: int) -> float:
    """Return how many times faster the bulk is."""
    sides = [f"{side}-{number}" for number in range(rounds) for side in ("bulk", "single")]
    with ConsulCluster(directory, agents=1) as cluster:
        server, [dying] = cluster.server, cluster.agents
        for service in sides:
            for number in range(GHOSTS):
                register(dying, service, number)
        for service in sides:
            eventually(lambda service=service: len(server.instances(service)) == GHOSTS, timeout=PATIENCE)  # type: ignore[misc]
        dying.kill()
        eventually(lambda: not server.instances(sides[0], passing=True), timeout=PATIENCE, because="the agent is dead")
        return race("Consul", server.url, lambda _service: None, rounds, GHOSTS)


def register(agent: ConsulAgent, service: str, number: int) -> None:
    """Register one instance, with a check that passes for as long as its agent lives."""
    check = {"TTL": "3600s", "Status": "passing"}
    body = {"Name": service, "ID": f"{service}-{number}", "Address": "127.0.0.1", "Port": 1 + number, "Check": check}
    agent.put("/v1/agent/service/register", body)


def race(name: str, url: str, plant: Callable[[str], None], rounds: int, count: int) -> float:
    """Let both remove as many; print and return how many times faster the bulk is."""
    registry = open_registry(url)
    times: dict[str, list[float]] = {"bulk": [], "single": []}
    sides: dict[str, Side] = {"bulk": in_bulk, "single": one_by_one}
    try:
        for number in range(rounds):
            for side in sorted(sides, reverse=bool(number % 2)):
                service = f"{side}-{number}"
                plant(service)
                entries = registry.entries(service, Deadline.after(PATIENCE))
                assert len(entries) == count
                began = time.perf_counter()
                sides[side](registry, entries)
                times[side].append(time.perf_counter() - began)
                assert not registry.entries(service, Deadline.after(PATIENCE))
    finally:
        registry.close()
    bulk, single = min(times["bulk"]), min(times["single"])
    print(
        f"{name}, {count} proven removals: one after the other {single:.3f} s, in bulk {bulk:.3f} s:"
        f" {single / bulk:.1f} times faster"
    )
    return single / bulk


def one_by_one(registry: Registry, entries: Sequence[RegistryEntry]) -> None:
    """Remove each by a call of its own."""
    for entry in entries:
        require_gone(entry, registry.remove(entry, Deadline.after(PATIENCE)))


def in_bulk(registry: Registry, entries: Sequence[RegistryEntry]) -> None:
    """Remove all by one call."""
    assert isinstance(registry, BulkRegistry), f"{registry} removes nothing in bulk"
    results: list[RegistryEntry] = []

    def on_result(entry: RegistryEntry, result: RemovalResult) -> None:
        require_gone(entry, result)
        results.append(entry)

    registry.remove_many(entries, Deadline.after(PATIENCE), on_result)
    assert len(results) == len(entries)


def require_gone(entry: RegistryEntry, result: RemovalResult) -> None:
    """Refuse to count what was not removed and proven."""
    assert isinstance(result, Removal), (entry, result)
    assert result.outcome is RemovalOutcome.CONFIRMED, result


if __name__ == "__main__":
    sys.exit(main())
