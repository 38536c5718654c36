"""``deregister`` and ``list`` against a real ZooKeeper: every status that one can show."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pytest
from kazoo.exceptions import NodeExistsError
from kazoo.security import make_acl, make_digest_acl

from tests.cli.conftest import RegisterAt
from tests.cli.running import Run
from tests.conftest import NewZooKeeper
from tests.support.zookeeper_process import ZooKeeperServer

pytestmark = pytest.mark.zookeeper


RECOGNISED = json.dumps(
    {
        "name": "calculator",
        "id": "ghost",
        "address": "10.0.0.7",
        "port": 9091,
        "sslPort": None,
        "payload": None,
        "registrationTimeUTC": 1_700_000_000_000,
        "serviceType": "STATIC",
        "uriSpec": None,
    }
).encode()
"""All that Curator writes, so that ``layout=auto`` knows it."""


@pytest.fixture
def other(zookeeper_server: ZooKeeperServer) -> Iterator[Any]:
    """Give a client of somebody else's."""
    with zookeeper_server.client() as client:
        yield client


def _plant(
    client: Any, base: str, instance_id: str, *, port: int = 9090, ephemeral: bool = False, **options: Any
) -> str:
    """Write an instance in Curator's form, as a Java service would; return its path."""
    path = f"/{base}/calculator/{instance_id}"
    data = {"name": "calculator", "id": instance_id, "address": "10.0.0.7", "port": port, "payload": None}
    client.ensure_path(f"/{base}/calculator")
    client.create(path, json.dumps(data).encode(), ephemeral=ephemeral, **options)
    return path


def test_0_a_persistent_ghost_is_removed(
    deregister: Run, zookeeper_server: ZooKeeperServer, other: Any, unique: str
) -> None:
    """A node that no session will ever take away goes, its neighbour stays."""
    ghost, neighbour = _plant(other, unique, "ghost"), _plant(other, unique, "neighbour", port=9091)
    url = f"{zookeeper_server.url}/{unique}"
    ran = deregister(url, "--service", "calculator", "--address", "10.0.0.7:9090", "--watch-back", "0.5")
    assert (ran.status, ran.err) == (0, "")
    assert "did not come back" in ran.out
    assert not other.exists(ghost)
    assert other.exists(neighbour)


@pytest.mark.parametrize("layout", ["auto", "curator"])
def test_7_what_may_not_be_read_is_not_said_to_be_absent(
    deregister: Run, registry_drain: Run, zookeeper_server: ZooKeeperServer, other: Any, unique: str, layout: str
) -> None:
    """A node that another identity keeps to itself: it may be the one, or one of those, that are meant."""
    mine = make_digest_acl("somebody", "else", all=True)
    hidden = _plant(other, unique, "hidden", acl=[mine])
    ghost = _plant(other, unique, "ghost", port=9091)
    other.set(ghost, RECOGNISED)
    url = f"{zookeeper_server.url}/{unique}?layout={layout}"
    ran = deregister(url, "--address", "10.0.0.7:9090")
    assert ran.status == 7
    assert "1 entry may not be read" in ran.err
    assert hidden in ran.err
    assert "--id" in ran.err
    listed = registry_drain("list", url, "--address", "10.0.0.7:9090")
    assert (listed.status, listed.out.count("\n")) == (7, 1)
    assert hidden in listed.err
    assert registry_drain("list", url).status == 0, "without a selection it is in the list, with its problem"
    assert deregister(url, "--id", "unheard-of").status == 4, "its name tells that it is not that one"
    swept = registry_drain("sweep", url, "--dead-agents")
    assert swept.status == 7
    assert swept.err.count(hidden) == 1
    ran = deregister(url, "--address", "10.0.0.7:9091", "--force")
    assert ran.status == 7, "what was found is gone, and there may be more"
    assert "proven to be gone" in ran.err
    assert ran.err.count(hidden) == 1
    assert not other.exists(ghost)
    ran = deregister(url, "--id", "hidden", "--force")
    assert (ran.status, ran.err) == (0, ""), "deleting takes the folder's permission, not the node's"


@pytest.mark.parametrize("layout", ["auto", "curator"])
def test_7_nor_is_what_stands_in_a_folder_that_may_not_be_looked_into(
    deregister: Run, registry_drain: Run, zookeeper_server: ZooKeeperServer, other: Any, unique: str, layout: str
) -> None:
    """Even one that is named, since any id may stand in there; the others are found as ever."""
    ghost = _plant(other, unique, "ghost")
    other.set(ghost, RECOGNISED)
    other.create(f"/{unique}/secret", b"")
    other.create(f"/{unique}/secret/one", b"{}")
    other.set_acls(f"/{unique}/secret", [make_digest_acl("somebody", "else", all=True)])
    url = f"{zookeeper_server.url}/{unique}?layout={layout}"
    assert "may not look into it" in registry_drain("list", url).out
    ran = deregister(url, "--id", "unheard-of")
    assert ran.status == 7
    assert f"/{unique}/secret" in ran.err
    assert deregister(url, "--service", "calculator", "--id", "unheard-of").status == 4
    ran = deregister(url, "--service", "secret", "--id", "one")
    assert ran.status == 7
    assert "NoAuth" in ran.err, "a listing that shows nothing at all proves nothing"
    assert deregister(url, "--id", "ghost", "--force").status == 0
    assert not other.exists(ghost)


def test_a_dry_run_removes_nothing(deregister: Run, zookeeper_server: ZooKeeperServer, other: Any, unique: str) -> None:
    """It tells where the node is and that it is persistent."""
    path = _plant(other, unique, "ghost")
    ran = deregister(f"{zookeeper_server.url}/{unique}", "--service", "calculator", "--id", path, "--dry-run")
    assert ran.status == 0
    assert path in ran.out
    assert "persistent" in ran.out
    assert other.exists(path)


def test_0_what_cannot_be_read_is_removed_by_id(
    deregister: Run, registry_drain: Run, zookeeper_server: ZooKeeperServer, other: Any, unique: str
) -> None:
    """Bytes that are no JSON are listed with their problem, and go like the rest."""
    other.ensure_path(f"/{unique}/calculator")
    other.create(f"/{unique}/calculator/junk", b"\xff\x00not JSON")
    url = f"{zookeeper_server.url}/{unique}"
    [entry] = registry_drain("list", url, "--json").document["instances"]
    assert entry["problem"]
    assert deregister(url, "--service", "calculator", "--id", "junk").status == 0
    assert not other.exists(f"/{unique}/calculator/junk")


def test_2_several_have_the_address(
    deregister: Run, zookeeper_server: ZooKeeperServer, other: Any, unique: str
) -> None:
    """Paths are named, nothing is removed."""
    paths = [_plant(other, unique, "one"), _plant(other, unique, "two")]
    ran = deregister(f"{zookeeper_server.url}/{unique}", "--service", "calculator", "--address", "10.0.0.7:9090")
    assert ran.status == 2
    assert all(path in ran.complaint for path in paths)
    assert all(other.exists(path) for path in paths)


@pytest.mark.parametrize("service", ["../zookeeper", "a/b", "."])
def test_2_a_service_that_is_a_path(
    deregister: Run, zookeeper_server: ZooKeeperServer, unique: str, service: str
) -> None:
    """A name that would lead out of the base path is refused."""
    ran = deregister(f"{zookeeper_server.url}/{unique}", "--service", service, "--id", "i")
    assert ran.status == 2
    assert "nothing was removed" in ran.complaint or service in ran.complaint


def test_3_a_frozen_server(deregister: Run, new_zookeeper: NewZooKeeper, unique: str) -> None:
    """Accepts and is silent: the time is up, nothing was removed."""
    server = new_zookeeper()
    server.freeze()
    ran = deregister(f"{server.url}/{unique}", "--service", "calculator", "--id", "i", "--timeout", "0.5")
    server.thaw()
    assert ran.status == 3
    assert "nothing was removed" in ran.complaint


def test_4_no_such_instance(deregister: Run, zookeeper_server: ZooKeeperServer, other: Any, unique: str) -> None:
    """No such service, and no such instance of a service that there is."""
    url = f"{zookeeper_server.url}/{unique}"
    assert deregister(url, "--service", "calculator", "--id", "ghost").status == 4
    _plant(other, unique, "ghost")
    ran = deregister(url, "--service", "calculator", "--id", "goost")
    assert ran.status == 4
    assert "ghost (10.0.0.7:9090)" in ran.complaint


def test_5_a_curator_brings_it_back(
    deregister: Run, zookeeper_server: ZooKeeperServer, other: Any, unique: str
) -> None:
    """An owner that re-creates its node as soon as its watch fires is named by its session."""
    path = _plant(other, unique, "one", ephemeral=True)
    data, _ = other.get(path)

    @other.DataWatch(path)  # type: ignore[untyped-decorator]  # kazoo has no annotations
    def put_back(_data: bytes | None, stat: Any) -> bool:
        if stat is None:
            with contextlib.suppress(NodeExistsError):
                other.create(path, data, ephemeral=True)
            return False
        return True

    ran = deregister(
        f"{zookeeper_server.url}/{unique}",
        *("--service", "calculator", "--id", "one", "--force", "--watch-back", "30", "--json"),
    )
    assert ran.status == 5
    returned = ran.document["watched_back"]["returned"]
    assert returned["owner"] == ran.document["instance"]["owner"]
    assert returned["version"] != ran.document["instance"]["version"]
    assert returned["owner"] in ran.complaint


def test_7_a_live_owner_is_left_alone(
    deregister: Run, registered: RegisterAt, zookeeper_server: ZooKeeperServer, other: Any, unique: str
) -> None:
    """Without --force nothing happens to a node whose session lives."""
    url = f"{zookeeper_server.url}/{unique}"
    registered(url, "calculator", instance_id="one")
    ran = deregister(url, "--service", "calculator", "--id", "one")
    assert ran.status == 7
    assert "--force" in ran.complaint
    assert other.exists(f"/{unique}/calculator/one")


def test_0_a_live_owner_is_removed_by_force(
    deregister: Run, zookeeper_server: ZooKeeperServer, other: Any, unique: str
) -> None:
    """With --force it goes, if its owner lets it."""
    path = _plant(other, unique, "one", ephemeral=True)
    url = f"{zookeeper_server.url}/{unique}"
    assert deregister(url, "--service", "calculator", "--id", "one", "--force").status == 0
    assert not other.exists(path)


def test_7_the_access_list_refuses(deregister: Run, zookeeper_server: ZooKeeperServer, other: Any, unique: str) -> None:
    """Deleting takes a right on the folder; without it the refusal is told as one."""
    path = _plant(other, unique, "ghost")
    folder = path.rpartition("/")[0]
    other.set_acls(folder, [make_acl("world", "anyone", read=True, create=True, admin=True)])
    ran = deregister(f"{zookeeper_server.url}/{unique}", "--service", "calculator", "--id", "ghost")
    assert ran.status == 7
    assert "nothing was removed" in ran.complaint or "not removed" in ran.complaint
    assert other.exists(path)


def test_list_shows_kind_owner_and_age(
    registry_drain: Run, zookeeper_server: ZooKeeperServer, other: Any, unique: str
) -> None:
    """Ephemeral or persistent, and whose."""
    _plant(other, unique, "ghost")
    _plant(other, unique, "live", port=9091, ephemeral=True)
    lines = registry_drain("list", f"{zookeeper_server.url}/{unique}").out.splitlines()[1:]
    rows = {fields[1]: fields for fields in (line.split("\t") for line in lines)}
    assert (rows["ghost"][6], rows["ghost"][3]) == ("persistent", "")
    assert (rows["live"][6], rows["live"][4]) == ("ephemeral", "yes")
    assert rows["live"][3]
    assert rows["live"][7].endswith("s")
