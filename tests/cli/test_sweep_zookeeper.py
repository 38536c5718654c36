"""``registry-drain sweep`` against a real ZooKeeper: persistent nodes of the dead, and Ctrl-C in the middle of many."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from registry_drain.clock import Deadline
from tests.cli.conftest import RegisterAt
from tests.cli.running import Ran, Run, script
from tests.support.processes import eventually, free_port
from tests.support.tcp_proxy import TcpProxy
from tests.support.zookeeper_process import ZooKeeperServer

pytestmark = pytest.mark.zookeeper

QUICK = ("--unreachable", "--tries", "2", "--try-every", "0", "--loopback", "--connect-timeout", "5")
MANY = 300


@pytest.fixture(autouse=True)
def _state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def other(zookeeper_server: ZooKeeperServer) -> Iterator[Any]:
    """Give a client of somebody else's."""
    with zookeeper_server.client() as client:
        yield client


def plant(client: Any, base: str, ids: list[str], port: int, *, ephemeral: bool = False) -> None:
    """Write instances in Curator's form."""
    client.ensure_path(f"/{base}/calculator")
    pending = []
    for each in ids:
        data = {"name": "calculator", "id": each, "address": "127.0.0.1", "port": port, "payload": None}
        path = f"/{base}/calculator/{each}"
        pending.append(client.create_async(path, json.dumps(data).encode(), ephemeral=ephemeral))
    for answer in pending:
        answer.get(timeout=30)


def left(client: Any, base: str) -> set[str]:
    """Return what is listed."""
    return set(client.get_children(f"/{base}/calculator"))


def test_only_persistent_nodes_that_refuse_are_swept(
    registry_drain: Run, registered: RegisterAt, zookeeper_server: ZooKeeperServer, other: Any, unique: str
) -> None:
    """Not one that answers, not one whose session lives, not one that nobody can read."""
    refusing = free_port()
    with socket.create_server(("127.0.0.1", 0)) as server:
        plant(other, unique, ["ghost"], refusing)
        plant(other, unique, ["answers"], server.getsockname()[1])
        plant(other, unique, ["kept"], refusing, ephemeral=True)
        other.create(f"/{unique}/calculator/junk", b"\xff")
        url = f"{zookeeper_server.url}/{unique}"
        registered(url, "calculator", port=refusing, instance_id="ours")
        ran = registry_drain("sweep", url, *QUICK)
        assert "would be removed" in ran.out
        assert left(other, unique) == {"ghost", "answers", "kept", "junk", "ours"}
        ran = registry_drain("sweep", url, "--yes", "--watch-back", "0.3", "--json", *QUICK)
    assert ran.status == 0
    [ghost] = ran.document["ghosts"]
    assert (ghost["instance"]["id"], ghost["outcome"]) == ("ghost", "done")
    assert ghost["watched_back"]["seconds"] >= 0.3
    assert left(other, unique) == {"answers", "kept", "junk", "ours"}


def test_critical_for_has_no_meaning_here(
    registry_drain: Run, zookeeper_server: ZooKeeperServer, other: Any, unique: str
) -> None:
    """ZooKeeper checks nothing: said in one line, with what to do instead."""
    plant(other, unique, ["ghost"], free_port())
    ran = registry_drain("sweep", f"{zookeeper_server.url}/{unique}", "--critical-for", "10m", "--yes")
    assert ran.status == 2
    assert "checks no health" in ran.complaint
    assert "--unreachable" in ran.complaint
    assert left(other, unique) == {"ghost"}


def test_ctrl_c_in_the_middle_of_many(
    registry_drain: Run,
    zookeeper_server: ZooKeeperServer,
    other: Any,
    unique: str,
    tcp_proxy: Callable[[str], TcpProxy],
) -> None:
    """Each node is gone or is there, the report says which, and a second run finishes."""
    plant(other, unique, [f"ghost-{number}" for number in range(MANY)], free_port())
    # So slow that the removals take seconds: the interruption comes in between, however many go at a time.
    link = tcp_proxy(zookeeper_server.hosts)
    link.delay_answers(0.2)
    words = ("sweep", f"zookeeper://{link.address}/{unique}", "--timeout", "60", "--yes", "--json", *QUICK)
    with subprocess.Popen(
        [script("registry-drain"), *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            eventually(lambda: len(left(other, unique)) < MANY, timeout=60, interval=0.005, because="it has begun")
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    ran = Ran(process.returncode, out, err)
    assert ran.status == 130
    assert "Traceback" not in err
    remaining = left(other, unique)
    told = {ghost["instance"]["id"]: ghost["outcome"] for ghost in ran.document["ghosts"]}
    assert len(told) == MANY
    assert {each for each, outcome in told.items() if outcome == "done"} == set(told) - remaining
    assert {each for each, outcome in told.items() if outcome == "interrupted"} == remaining
    assert f"removed {MANY - len(remaining)} of {MANY} ghosts" in ran.complaint
    again = registry_drain("sweep", f"{zookeeper_server.url}/{unique}", "--yes", "--json", *QUICK)
    assert again.status == 0
    assert len(again.document["ghosts"]) == len(remaining)
    assert left(other, unique) == set()


def test_a_rule_that_outlived_its_provider_is_shown_and_then_deleted(
    registry_drain: Run, registered: RegisterAt, zookeeper_server: ZooKeeperServer, other: Any, unique: str
) -> None:
    """An operator drained it, and it died by itself; whatever comes next to its address would stay disabled."""
    url = f"{zookeeper_server.url}/{unique}?layout=dubbo"
    provider = registered(url, "com.acme.Menu", port=20880)
    assert registry_drain("drain", url, "--address", "127.0.0.1:20880", "--force").status == 0
    assert registry_drain("sweep", url, "--json").document["leftovers"] == [], "it lives"
    provider.on_shutdown(Deadline.after(30))
    (name,) = other.get_children(f"/{unique}/com.acme.Menu/configurators")
    path = f"/{unique}/com.acme.Menu/configurators/{name}"
    ran = registry_drain("sweep", url)
    assert ran.status == 0
    assert "keeps callers from 127.0.0.1:20880, whose provider is gone" in ran.out
    assert "--yes deletes it" in ran.out
    assert other.exists(path)
    document = registry_drain("sweep", url, "--yes", "--json").document
    assert [(each["locator"], each["status"], each["message"]) for each in document["leftovers"]] == [
        (path, 0, "deleted")
    ]
    assert not other.exists(path)
    assert registry_drain("sweep", url, "--yes", "--json").document["leftovers"] == []
