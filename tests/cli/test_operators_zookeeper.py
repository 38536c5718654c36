"""What operators ask of a real ZooKeeper: a process' nodes wherever they are, several at once, and who is back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cli.running import Run
from tests.support.zookeeper_process import ZooKeeperServer

pytestmark = pytest.mark.zookeeper


@pytest.fixture
def other(zookeeper_server: ZooKeeperServer) -> Iterator[Any]:
    """Give a plain client, whose session stands for another process."""
    with zookeeper_server.client() as client:
        yield client


def _plant(client: Any, base: str, service: str, instance_id: str, *, port: int, ephemeral: bool = False) -> str:
    """Write an instance in Curator's form, as a Java service would; return its path."""
    path = f"/{base}/{service}/{instance_id}"
    data = {"name": service, "id": instance_id, "address": "10.0.0.7", "port": port, "payload": None}
    client.ensure_path(f"/{base}/{service}")
    client.create(path, json.dumps(data).encode(), ephemeral=ephemeral)
    return path


def test_a_process_is_found_wherever_it_is(
    deregister: Run, registry_drain: Run, zookeeper_server: ZooKeeperServer, other: Any, unique: str
) -> None:
    """Its address is enough: all of its nodes in the tree are shown and, with --yes, removed; no other one is."""
    url = f"{zookeeper_server.url}/{unique}"
    paths = [_plant(other, unique, service, "a", port=9090) for service in ("adder", "calculator", "printer")]
    stays = _plant(other, unique, "adder", "b", port=9091)
    words = (url, "--address", "10.0.0.7:9090")
    assert [each["locator"] for each in registry_drain("list", *words, "--json").document["instances"]] == paths
    ran = deregister(*words)
    assert ran.status == 2
    assert all(path in ran.out for path in paths)
    assert all(other.exists(path) for path in paths)
    ran = deregister(*words, "--yes", "--max", "3", "--watch-back", "0.5")
    assert (ran.status, ran.err) == (0, "")
    assert "removed 3 of 3" in ran.out
    assert not any(other.exists(path) for path in paths)
    assert other.exists(stays)


def test_by_a_further_endpoint(deregister: Run, zookeeper_server: ZooKeeperServer, other: Any, unique: str) -> None:
    """A member of a ServerSet is found by the port of its admin interface, too."""
    path = f"/{unique}/calculator/member_0000000001"
    member = {
        "serviceEndpoint": {"host": "10.0.0.7", "port": 9090},
        "additionalEndpoints": {"admin": {"host": "10.0.0.7", "port": 9990}},
        "status": "ALIVE",
    }
    other.create(path, json.dumps(member).encode(), makepath=True)
    url = f"{zookeeper_server.url}/{unique}?layout=serverset"
    assert deregister(url, "--address", "10.0.0.7:9991").status == 4
    assert deregister(url, "--address", "10.0.0.7:9990").status == 0
    assert not other.exists(path)


def test_a_whole_service_but_what_lives(
    deregister: Run, zookeeper_server: ZooKeeperServer, other: Any, unique: str
) -> None:
    """Ghosts go, a live session's node is refused and named, and --force takes that one, too."""
    ghosts = [_plant(other, unique, "calculator", f"ghost-{number}", port=9000 + number) for number in range(20)]
    alive = _plant(other, unique, "calculator", "alive", port=9090, ephemeral=True)
    words = (f"{zookeeper_server.url}/{unique}", "--service", "calculator", "--all", "--yes")
    ran = deregister(*words, "--json")
    assert ran.status == 7
    assert "removed 20 of 21" in ran.complaint
    assert "--force" in ran.complaint
    assert {result["instance"]["id"] for result in ran.document["results"] if result["status"] == 7} == {"alive"}
    assert other.exists(alive)
    assert not any(other.exists(path) for path in ghosts)
    assert deregister(*words, "--force").status == 0
    assert not other.exists(alive)


def test_the_same_process_is_known_by_its_session(
    deregister: Run, zookeeper_server: ZooKeeperServer, other: Any, unique: str
) -> None:
    """Two of a process' nodes are removed, one comes back: which, by whom, and that it is the process of before."""
    paths = [
        _plant(other, unique, "calculator", name, port=port, ephemeral=True) for name, port in (("a", 1), ("b", 2))
    ]
    data, _ = other.get(paths[1])

    @other.DataWatch(paths[1])  # type: ignore[untyped-decorator]  # kazoo has no annotations
    def put_back(_data: bytes | None, stat: Any) -> bool:
        if stat is None:
            other.create(paths[1], data, ephemeral=True)
        return stat is not None

    words = ("--all", "--service", "calculator", "--yes", "--force", "--watch-back", "6", "--json")
    ran = deregister(f"{zookeeper_server.url}/{unique}", *words)
    assert ran.status == 5
    first, second = ran.document["results"]
    assert (first["outcome"], second["outcome"]) == ("done", "came_back")
    who = second["watched_back"]["brought_back_by"]
    assert who["is_same_owner"] is True
    assert "the same process" in who["who"]
    assert who["advice"] in ran.complaint


def test_out_of_rotation_and_back(
    registry_drain: Run, zookeeper_server: ZooKeeperServer, other: Any, unique: str
) -> None:
    """By the layout's own switch; what another process wrote beside it stays as it is."""
    path = f"/{unique}/calculator/member_0000000001"
    member = {"serviceEndpoint": {"host": "10.0.0.7", "port": 9090}, "status": "ALIVE", "shard": 3}
    other.create(path, json.dumps(member).encode(), makepath=True, ephemeral=True)
    words = (f"{zookeeper_server.url}/{unique}?layout=serverset", "--address", "10.0.0.7:9090", "--json")
    assert registry_drain("drain", *words).status == 7  # the only healthy one
    ran = registry_drain("drain", *words, "--force")
    assert (ran.status, ran.err) == (0, "")
    assert ran.document["results"][0]["rotation"]["is_out"] is True
    assert json.loads(other.get(path)[0]) == {**member, "status": "DEAD"}
    assert registry_drain("undrain", *words).status == 0
    assert json.loads(other.get(path)[0]) == member


def test_a_layout_without_such_a_state_is_told(
    registry_drain: Run, zookeeper_server: ZooKeeperServer, other: Any, unique: str
) -> None:
    """Status 2, nothing changed, whatever else is there to do."""
    path = f"/{unique}/calculator/web_0000000001"
    data = json.dumps({"host": "10.0.0.7", "port": 9090, "name": "web"}).encode()
    other.create(path, data, makepath=True)
    url = f"{zookeeper_server.url}/{unique}?layout=nerve"
    ran = registry_drain("drain", url, "--address", "10.0.0.7:9090")
    assert ran.status == 2
    assert "nothing was changed" in ran.complaint
    assert "serverset" in ran.complaint  # what has one is named
    assert other.get(path)[0] == data
