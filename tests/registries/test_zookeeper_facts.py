"""Facts 7 to 10 of docs/facts.md, on ZooKeeper: what the obvious design does with kazoo, and what ours does."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from kazoo.client import KazooClient
from kazoo.exceptions import KazooException
from kazoo.handlers.threading import KazooTimeoutError
from kazoo.protocol.states import KazooState

from registry_drain.errors import LiveOwnerError, RegistryUnavailableError
from registry_drain.registries.base import RemovalOutcome
from tests.registries.zookeeper_bench import SERVICE, Background, Stage, never, within
from tests.support.processes import eventually
from tests.support.tcp_proxy import TcpProxy
from tests.support.zookeeper_process import ZooKeeperServer

NewProxy = Callable[[str], TcpProxy]
DATA = b'{"address":"192.0.2.9","port":80}'


@pytest.fixture
def stage(zookeeper_server: ZooKeeperServer, unique: str) -> Iterator[Stage]:
    """Give a base path of the test's own on the shared server."""
    stage = Stage(zookeeper_server, f"/{unique}")
    yield stage
    stage.close()


@pytest.fixture
def through_proxy(stage: Stage, tcp_proxy: NewProxy) -> Iterator[tuple[KazooClient, TcpProxy]]:
    """Give a plain client whose link can be cut."""
    proxy = tcp_proxy(stage.server.hosts)
    client = KazooClient(hosts=proxy.address, timeout=10.0)
    client.start(timeout=30)
    yield client, proxy
    proxy.pass_through()
    client.stop()
    client.close()


def test_7_a_version_is_no_guard_against_a_successor(stage: Stage) -> None:
    """A node that is created anew has version 0 again: a delete with the version shown removes it, ours does not."""
    registry = stage.registry()
    with stage.eyes() as client:
        client.create(stage.path, DATA, makepath=True)
        shown = client.exists(stage.path).version
        client.delete(stage.path)
        client.create(stage.path, DATA, ephemeral=True)
        client.delete(stage.path, version=shown)
        assert client.exists(stage.path) is None, "the fact: the successor is gone"

        client.create(stage.path, DATA)
        [entry] = registry.entries(SERVICE, within())
        client.delete(stage.path)
        client.create(stage.path, DATA, ephemeral=True)
        with pytest.raises(LiveOwnerError, match="anew"):
            registry.remove(entry, within(), force=True)
        results: list[object] = []
        registry.remove_many([entry] * 3, within(), lambda _, result: results.append(result), force=True)
        assert [type(result) for result in results] == [LiveOwnerError] * 3
        assert client.exists(stage.path) is not None


def test_8_a_delete_that_timed_out_runs_later(stage: Stage, through_proxy: tuple[KazooClient, TcpProxy]) -> None:
    """Kazoo queues it while the link is down and sends it afterwards, to whoever stands there; ours is never sent."""
    client, proxy = through_proxy
    registry = stage.registry(hosts=proxy.address, session_timeout=10.0)
    with stage.eyes() as eyes:
        eyes.create(stage.path, DATA, makepath=True)
        [entry] = registry.entries(SERVICE, within())
        proxy.refuse()
        proxy.drop_connections()
        eventually(lambda: client.state == KazooState.SUSPENDED, timeout=15)
        with pytest.raises(KazooTimeoutError):
            client.delete_async(stage.path, version=0).get(timeout=0.2)
        for remove in (registry.remove, lambda *given: registry.remove_many([given[0]], given[1], lambda *_: None)):
            with pytest.raises(RegistryUnavailableError):
                remove(entry, within(0.5))
        eyes.delete(stage.path)
        eyes.create(stage.path, DATA)
        proxy.pass_through()
        eventually(lambda: eyes.exists(stage.path) is None, timeout=20, because="the fact: it runs after the reconnect")
        eyes.create(stage.path, DATA)
        eventually(lambda: registry.entries(SERVICE, within()), timeout=20)
        never(lambda: eyes.exists(stage.path) is None, seconds=0.7, because="a late delete of ours removed a successor")


def test_9_kazoos_own_calls_wait_without_limit(stage: Stage, through_proxy: tuple[KazooClient, TcpProxy]) -> None:
    """While the link is down they block, whatever a retry's deadline; ours end by theirs, each in time."""
    client, proxy = through_proxy
    registry = stage.registry(hosts=proxy.address, session_timeout=10.0)
    with stage.eyes() as eyes:
        eyes.create(stage.path, DATA, makepath=True)
        [entry] = registry.entries(SERVICE, within())
    proxy.refuse()
    proxy.drop_connections()
    eventually(lambda: client.state == KazooState.SUSPENDED, timeout=15)
    plain = Background(lambda: client.exists(stage.path))
    calls: list[Callable[[], object]] = [
        lambda: registry.entries(SERVICE, within(0.3)),
        lambda: registry.remove(entry, within(0.3)),
        lambda: registry.remove_many([entry], within(0.3), lambda *_: None),
        lambda: registry.drain(entry, within(0.3)),
        lambda: registry.watch(SERVICE, within(0.3)),
    ]
    for call in calls:
        with pytest.raises(RegistryUnavailableError):
            call()
    assert plain.is_running, "the fact: kazoo's call still waits"
    proxy.pass_through()
    assert plain.result() is not None


def test_10_a_live_owner_comes_back(stage: Stage, through_proxy: tuple[KazooClient, TcpProxy]) -> None:
    """As Curator does: it creates its node again after each reconnect. Until then the removal holds."""
    client, proxy = through_proxy

    def on_state(state: str) -> None:
        if state == KazooState.CONNECTED:
            client.handler.spawn(create)

    def create() -> None:
        try:
            client.create(stage.path, DATA, ephemeral=True, makepath=True)
        except KazooException:
            return  # it is there

    create()
    client.add_listener(on_state)
    registry = stage.registry()
    [entry] = registry.entries(SERVICE, within())
    with pytest.raises(LiveOwnerError) as caught:
        registry.remove(entry, within())
    assert caught.value.yields_to_force
    removal = registry.remove(entry, within(), force=True)
    assert removal.outcome is RemovalOutcome.CONFIRMED
    never(stage.stat, seconds=0.3, because="it came back without a reason")
    proxy.drop_connections()
    eventually(stage.stat, timeout=20, because="the fact: its owner puts it back")
    [again] = registry.entries(SERVICE, within())
    assert again.owner == entry.owner
    assert again.version != entry.version
    with pytest.raises(LiveOwnerError, match="anew"):
        registry.remove(entry, within(), force=True)
