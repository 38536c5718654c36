"""Apache Curator's service discovery reads what we write, sees what we remove, and is read and removed by us."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from registry_drain.cli.main import main
from registry_drain.clock import Deadline
from registry_drain.errors import LiveOwnerError
from registry_drain.instance import ServiceInstance
from registry_drain.registries.base import Registry, RemovalOutcome
from registry_drain.registries.url import open_registry
from tests.interop.neighbours import CuratorNeighbour
from tests.registries.zookeeper_bench import Background
from tests.support.processes import eventually
from tests.support.tcp_proxy import TcpProxy
from tests.support.zookeeper_process import ZooKeeperServer

THEIRS = ("theirs", "192.0.2.1", 80)


def _within() -> Deadline:
    return Deadline.after(30.0)


@pytest.fixture
def registry(zookeeper_server: ZooKeeperServer, unique: str) -> Iterator[Registry]:
    """Give our side of a base path of the test's own."""
    registry = open_registry(f"{zookeeper_server.url}/{unique}?session_timeout_s=4")
    yield registry
    registry.close()


def test_curator_sees_ours_come_and_go(
    registry: Registry, zookeeper_server: ZooKeeperServer, unique: str, tmp_path: Path
) -> None:
    """Registered, with and without metadata; left by our stop, and removed by an operator: the cache follows each."""
    plain = ServiceInstance("calculator", "192.0.2.7", 9090, id="plain")
    rich = ServiceInstance("calculator", "192.0.2.8", 9091, id="rich", metadata={"zone": "a"}, tags=("blue",))
    in_words = "plain@192.0.2.7:9090=null", "rich@192.0.2.8:9091={metadata={zone=a}, tags=[blue]}"
    with CuratorNeighbour(tmp_path, zookeeper_server.hosts, f"/{unique}", "calculator") as curator:
        curator.sees()
        ours = [registry.registration(each) for each in (plain, rich)]
        for each in ours:
            each.register(_within())
        curator.sees(*in_words)
        assert ours[0].on_shutdown(_within()).outcome is RemovalOutcome.CONFIRMED
        curator.sees(in_words[1])
        assert ours[1].on_shutdown(_within()).outcome is RemovalOutcome.CONFIRMED
        curator.sees()


def test_curator_reads_what_its_own_builder_takes(
    registry: Registry, zookeeper_server: ZooKeeperServer, unique: str, tmp_path: Path
) -> None:
    """A TLS port, and an instance that begins out of rotation and is put into it."""
    asked = {"curator-enabled": "false", "curator-ssl-port": "9443", "curator-service-type": "DYNAMIC"}
    instance = ServiceInstance("calculator", "192.0.2.7", 9090, id="asked", metadata=asked)
    with CuratorNeighbour(tmp_path, zookeeper_server.hosts, f"/{unique}", "calculator") as curator:
        registration = registry.registration(instance)
        registration.register(_within())
        curator.sees("asked@192.0.2.7:9090=null/ssl:9443/disabled")
        assert main(["undrain", registry.url, "--id", "asked"]) == 0
        curator.sees("asked@192.0.2.7:9090=null/ssl:9443")
        assert registration.on_shutdown(_within()).outcome is RemovalOutcome.CONFIRMED
        curator.sees()


def test_we_see_and_remove_curators_and_it_comes_back(
    registry: Registry,
    zookeeper_server: ZooKeeperServer,
    unique: str,
    tmp_path: Path,
    tcp_proxy: Callable[[str], TcpProxy],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A live owner takes force; it puts its node back at its next reconnect, and --watch-back tells."""
    link = tcp_proxy(zookeeper_server.hosts)
    with CuratorNeighbour(tmp_path, link.address, f"/{unique}", "calculator", THEIRS) as curator:
        curator.sees("theirs@192.0.2.1:80=null")
        watch = registry.watch("calculator", _within())
        assert [(each.id, each.address, each.port) for each in watch.instances] == [THEIRS]
        [entry] = registry.entries("calculator", _within())
        assert (entry.id, entry.address, entry.port, entry.is_live, entry.problem) == (*THEIRS, True, "")
        with pytest.raises(LiveOwnerError):
            registry.remove(entry, _within())
        assert registry.remove(entry, _within(), force=True).outcome is RemovalOutcome.CONFIRMED
        curator.sees()
        eventually(lambda: not watch.instances)

        link.drop_connections()
        curator.sees("theirs@192.0.2.1:80=null")
        eventually(lambda: [each.id for each in watch.instances] == ["theirs"])
        watch.close()

        arguments = ["deregister", registry.url, "--service", "calculator", "--address", "192.0.2.1:80", "--force"]
        command = Background(lambda: main([*arguments, "--json", "--watch-back", "30"]))
        eventually(lambda: not registry.entries("calculator", _within()), because="the command has removed it")
        link.drop_connections()
        assert command.result(60.0) == 5
        document = json.loads(capsys.readouterr().out)
        returned = document["watched_back"]["returned"]
        assert (returned["id"], returned["owner"]) == ("theirs", entry.owner), "the same session wrote it again"
