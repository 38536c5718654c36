"""Out of rotation and back, in each layout that has a state for it: nothing else changes, and nobody inherits it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from kazoo.security import make_acl

from registry_drain.errors import (
    InstanceNotFoundError,
    LiveOwnerError,
    PermissionRefusedError,
    RegistryDataError,
    RegistryUnavailableError,
)
from registry_drain.instance import ServiceInstance
from registry_drain.registries.abilities import LeftoverRegistry, RotationRegistry
from registry_drain.registries.base import RegistryEntry, RemovalOutcome
from registry_drain.registries.zookeeper import ZooKeeperRegistry
from registry_drain.registries.zookeeper.layouts import LAYOUTS, CuratorLayout
from registry_drain.registries.zookeeper.layouts.base import SwitchableLayout, Switched
from registry_drain.registries.zookeeper.layouts.dubbo_override import (
    override_name,
)
from registry_drain.registries.zookeeper.layouts.url_named import Provider
from registry_drain.registries.zookeeper.session import session_text
from tests.registries.planted_nodes import ALL_PLANTED, SPRING, SWITCHABLE, Planted
from tests.registries.zookeeper_bench import Stage, never, within
from tests.support.processes import eventually
from tests.support.tcp_proxy import TcpProxy
from tests.support.zookeeper_process import ZooKeeperServer

NewProxy = Callable[[str], TcpProxy]
STATELESS = sorted(
    name for name, layout in LAYOUTS.items() if not isinstance(layout, SwitchableLayout) and name != "dubbo"
)
MENU = "com.acme.Menu"
RULES = f"{MENU}/configurators"


# --- on a server ------------------------------------------------------------------------------------------------------


@pytest.fixture
def stage(zookeeper_server: ZooKeeperServer, unique: str) -> Iterator[Stage]:
    """Give a base path of the test's own on the shared server."""
    stage = Stage(zookeeper_server, f"/{unique}")
    yield stage
    stage.close()


def only(registry: ZooKeeperRegistry) -> RegistryEntry:
    """Return the only entry."""
    [entry] = registry.entries(None, within())
    return entry


@pytest.mark.parametrize("planted", SWITCHABLE, ids=lambda each: f"{each.layout}-{each.node[:24]}")
def test_out_of_rotation_and_back(stage: Stage, planted: Planted) -> None:
    """Listed as such, left out of watches, and put back; the same entry all the while."""
    registry = stage.registry(options=f"&layout={planted.layout}")
    assert isinstance(registry, RotationRegistry)
    with stage.eyes() as client:
        client.create(f"{stage.base}/svc/{planted.node}", planted.data, makepath=True, ephemeral=True)
        entry = only(registry)
        watch = registry.watch("svc", within())
        rotation = registry.drain(entry, within(), reason="a deploy")
        assert (rotation.is_out, rotation.subject, rotation.registry) == (True, str(entry), registry.url)
        assert only(registry).health == "maintenance"
        assert only(registry).version == entry.version
        eventually(lambda: not watch.instances, timeout=40)
        version = client.exists(entry.locator).version
        assert "already" in registry.drain(entry, within()).detail
        assert client.exists(entry.locator).version == version, "written though nothing had to change"
        assert not registry.undrain(entry, within()).is_out
        assert only(registry).health == ""
        eventually(lambda: len(watch.instances) == 1, timeout=40)


@pytest.mark.parametrize("name", [*STATELESS, "curator"])
def test_layouts_without_a_state_name_those_that_have_one(stage: Stage, name: str) -> None:
    """Nothing is written."""
    planted = next(each for each in ALL_PLANTED if each.layout == name and each not in SWITCHABLE)
    registry = stage.registry(options=f"&layout={name}")
    with stage.eyes() as client:
        path = f"{stage.base}/{LAYOUTS[name].folder('svc')}/{planted.node}"
        client.create(path, planted.data, makepath=True)
        reason = "Dubbo" if name == "curator" else "these layouts have one: curator, dubbo, rpcx, serverset"
        for turn in (registry.drain, registry.undrain):
            with pytest.raises(RegistryDataError, match=reason):
                turn(only(registry), within())
        assert client.exists(path).version == 0


def test_what_has_left_stays_away(stage: Stage) -> None:
    """Gone, or registered anew by a successor: said, and not a byte written."""
    registry = stage.registry()
    with stage.eyes() as client:
        client.create(stage.path, SPRING, makepath=True)
        entry = only(registry)
        client.delete(stage.path)
        for turn in (registry.drain, registry.undrain):
            with pytest.raises(InstanceNotFoundError):
                turn(entry, within())
        assert client.exists(stage.path) is None
        client.create(stage.path, SPRING)
        for turn in (registry.drain, registry.undrain):
            with pytest.raises(LiveOwnerError, match="anew"):
                turn(entry, within())
        assert client.get(stage.path)[0] == SPRING
        with pytest.raises(InstanceNotFoundError, match="was not listed by"):
            stage.registry(options="&layout=plain").drain(RegistryEntry("s", "i", locator="/elsewhere"), within())


def test_what_is_written_meanwhile_is_kept(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between our look and our write its owner changed its metadata: both changes are there."""
    registry = stage.registry()
    changed = SPRING.replace(b'"app-1"', b'"app-2"')
    whole = CuratorLayout.switched
    with stage.eyes() as client:
        client.create(stage.path, SPRING, makepath=True)

        def late(layout: CuratorLayout, node: str, data: bytes, *, is_out: bool) -> Switched:
            if client.exists(stage.path).version == 0:
                client.set(stage.path, changed)
            return whole(layout, node, data, is_out=is_out)

        monkeypatch.setattr(CuratorLayout, "switched", late)
        assert registry.drain(only(registry), within()).is_out
        assert client.get(stage.path)[0] == changed.replace(b'"UP"', b'"OUT_OF_SERVICE"')


def test_our_own_registration_leaves_the_switch_alone_and_renews_without_it(stage: Stage) -> None:
    """While its session lives it is out of rotation; after an expiry it is a fresh instance."""
    registration = stage.registered()
    registry = stage.registry()
    entry = only(registry)
    assert registry.drain(entry, within()).is_out
    never(lambda: only(registry).health != "maintenance", seconds=0.5, because="it was put back")
    assert registration.is_registered
    stage.expire(registration)
    fresh = eventually(lambda: [each for each in registry.entries(None, within()) if not each.health], timeout=40)
    assert fresh[0].version != entry.version
    with pytest.raises(LiveOwnerError):
        registry.undrain(entry, within())
    assert registration.on_shutdown(within()).outcome is RemovalOutcome.CONFIRMED


def test_writing_takes_the_permission(stage: Stage) -> None:
    """Refused, and said."""
    registry = stage.registry()
    with stage.eyes() as client:
        client.ensure_path(stage.path.rpartition("/")[0])
        client.create(stage.path, SPRING, acl=[make_acl("world", "anyone", read=True)])
        with pytest.raises(PermissionRefusedError):
            registry.drain(only(registry), within())
        assert client.get(stage.path)[0] == SPRING


def test_a_write_that_is_cut_off_is_not_made_up_for_later(stage: Stage, tcp_proxy: NewProxy) -> None:
    """A successor on the same path, with version 0 as well, is in rotation when the link is back."""
    proxy = tcp_proxy(stage.server.hosts)
    registry = stage.registry(hosts=proxy.address)
    with stage.eyes() as client:
        client.create(stage.path, SPRING, makepath=True)
        entry = only(registry)
        proxy.refuse()
        proxy.drop_connections()
        with pytest.raises(RegistryUnavailableError):
            registry.drain(entry, within(1.0))
        client.delete(stage.path)
        client.create(stage.path, SPRING)
        proxy.pass_through()
        eventually(lambda: registry.entries(None, within()))
        never(lambda: client.get(stage.path)[0] != SPRING, seconds=0.7, because="the late write hit a successor")


# --- Dubbo's rules ----------------------------------------------------------------------------------------------------


def provider_node(port: int) -> str:
    """Return the name of a provider's node."""
    instance = ServiceInstance(MENU, "10.0.0.7", port, metadata={"version": "1.0"})
    return f"{MENU}/providers/{LAYOUTS['dubbo'].node_name(instance)}"


def entry_at(registry: ZooKeeperRegistry, port: int) -> RegistryEntry:
    """Return the provider on ``port``."""
    [entry] = [each for each in registry.entries(MENU, within()) if each.port == port]
    return entry


@pytest.fixture
def dubbo(stage: Stage) -> ZooKeeperRegistry:
    """Give a registry of Dubbo's layout."""
    return stage.registry(options="&layout=dubbo")


def rules(client: Any, stage: Stage) -> list[str]:
    """Return the names of all rules."""
    return list(client.get_children(f"{stage.base}/{RULES}"))


def test_dubbo_is_disabled_by_a_rule_that_outlives_us(stage: Stage, dubbo: ZooKeeperRegistry) -> None:
    """Persistent, for this provider alone, with the reason; removed when it is put back."""
    with stage.eyes() as client:
        for port in (1, 2):
            client.create(f"{stage.base}/{provider_node(port)}", b"", makepath=True, ephemeral=True)
        rotation = dubbo.drain(entry_at(dubbo, 1), within(), reason="a deploy")
        assert rotation.is_out
        [name] = rules(client, stage)
        data, stat = client.get(f"{stage.base}/{RULES}/{name}")
        assert stat.ephemeralOwner == 0
        assert json.loads(data)["reason"] == "a deploy"
        assert [each.health for each in dubbo.entries(None, within())] == ["maintenance", ""]
        assert [each.health for each in stage.registry(options="&layout=auto").entries(None, within())] == [
            "maintenance",
            "",
        ]
        assert "already" in dubbo.drain(entry_at(dubbo, 1), within()).detail
        assert not dubbo.undrain(entry_at(dubbo, 1), within()).is_out
        assert rules(client, stage) == []
        assert "already" in dubbo.undrain(entry_at(dubbo, 1), within()).detail


@pytest.mark.parametrize("is_bulk", [False, True])
def test_a_removed_providers_successor_is_in_rotation(stage: Stage, dubbo: ZooKeeperRegistry, is_bulk: bool) -> None:
    """The rule goes with the provider for which it was written."""
    path = f"{stage.base}/{provider_node(1)}"
    with stage.eyes() as client:
        client.create(path, b"", makepath=True, ephemeral=True)
        dubbo.drain(entry_at(dubbo, 1), within())
        entry = entry_at(dubbo, 1)
        if is_bulk:
            results: list[object] = []
            dubbo.remove_many([entry], within(), lambda _, result: results.append(result), force=True)
            [removal] = results
        else:
            removal = dubbo.remove(entry, within(), force=True)
        assert getattr(removal, "outcome", removal) is RemovalOutcome.CONFIRMED
        assert rules(client, stage) == []
        client.create(path, b"", ephemeral=True)
        assert entry_at(dubbo, 1).health == ""


def test_a_rule_whose_provider_has_left_is_cleared_by_whatever_comes_next(
    stage: Stage, dubbo: ZooKeeperRegistry
) -> None:
    """Its provider died, a successor of another session has its address: the next turn in the interface ends it."""
    path = f"{stage.base}/{provider_node(1)}"
    with stage.eyes() as client:
        client.create(f"{stage.base}/{provider_node(2)}", b"", makepath=True, ephemeral=True)
        with stage.server.client() as first:
            first.create(path, b"", ephemeral=True)
            dubbo.drain(entry_at(dubbo, 1), within())
        client.create(path, b"", ephemeral=True)
        assert entry_at(dubbo, 1).health == "maintenance", "inherited so far, and shown"
        dubbo.drain(entry_at(dubbo, 2), within())
        assert entry_at(dubbo, 1).health == ""
        assert entry_at(dubbo, 2).health == "maintenance"
        assert len(rules(client, stage)) == 1


@pytest.mark.parametrize("data", [b"10.0.0.1", b'{"owner":"0x1","reason":""}'])
def test_rules_of_others_are_left_alone(stage: Stage, dubbo: ZooKeeperRegistry, data: bytes) -> None:
    """An admin console disabled everybody, or just this one: shown, named, and not deleted."""
    own_name = override_name(Provider("10.0.0.7", 1, MENU, "", "1.0"))
    foreign = "override%3A%2F%2F0.0.0.0%2Fcom.acme.Menu%3Fcategory%3Dconfigurators%26disabled%3Dtrue%26dynamic%3Dfalse"
    with stage.eyes() as client:
        client.create(f"{stage.base}/{provider_node(1)}", b"", makepath=True)
        for name in (foreign, own_name):
            client.create(f"{stage.base}/{RULES}/{name}", data, makepath=True)
        entry = entry_at(dubbo, 1)
        assert entry.health == "maintenance"
        assert "already" in dubbo.drain(entry, within()).detail
        rotation = dubbo.undrain(entry, within())
        assert rotation.is_out
        assert "not ours" in rotation.detail
        removal = dubbo.remove(entry, within())
        assert removal.outcome is RemovalOutcome.CONFIRMED
        assert "not ours still disables its address" in removal.detail
        assert sorted(rules(client, stage)) == sorted([foreign, own_name])


def test_a_rule_is_written_for_nobody_who_has_left(stage: Stage, dubbo: ZooKeeperRegistry) -> None:
    """Gone, or anew: no rule is left behind."""
    path = f"{stage.base}/{provider_node(1)}"
    with stage.eyes() as client:
        client.create(path, b"", makepath=True)
        entry = entry_at(dubbo, 1)
        client.delete(path)
        with pytest.raises(InstanceNotFoundError):
            dubbo.drain(entry, within())
        client.create(path, b"")
        with pytest.raises(LiveOwnerError):
            dubbo.drain(entry, within())
        assert client.exists(f"{stage.base}/{RULES}") is None


@pytest.mark.parametrize("is_killed", [False, True])
def test_a_providers_own_rule_goes_with_it(stage: Stage, dubbo: ZooKeeperRegistry, *, is_killed: bool) -> None:
    """A soft drain: listed, and disabled by a rule of its own session. However that ends, what comes next is not."""
    instance = ServiceInstance(MENU, "10.0.0.7", 1, metadata={"version": "1.0"})
    registration = stage.registered(dubbo, instance)
    registration.leave_rotation(within())
    registration.leave_rotation(within())  # twice is no error
    assert entry_at(dubbo, 1).health == "maintenance"
    with stage.eyes() as client:
        (rule,) = rules(client, stage)
        assert "dynamic%3Dtrue" in rule
        stat = client.exists(f"{stage.base}/{RULES}/{rule}")
        assert entry_at(dubbo, 1).owner == session_text(stat.ephemeralOwner)
        if is_killed:
            stage.expire(registration)
        else:
            assert registration.on_shutdown(within()).outcome is RemovalOutcome.CONFIRMED
            stage.registered(dubbo, instance)
        eventually(lambda: rules(client, stage) == [], because="the rule goes with its session")
        eventually(lambda: [each.health for each in dubbo.entries(MENU, within())] == [""], because="in rotation")


@pytest.mark.parametrize("layout", ["dubbo", "auto"])
def test_rules_that_outlive_their_provider_are_found_and_cleared(stage: Stage, layout: str) -> None:
    """Whoever drained it is not needed for that. Those of others, and of the living, are neither shown nor touched."""
    registry = stage.registry(options=f"&layout={layout}")
    assert isinstance(registry, LeftoverRegistry)
    assert registry.leftovers(None, within()) == []
    with stage.eyes() as client:
        for port in (1, 2):
            client.create(f"{stage.base}/{provider_node(port)}", b"", ephemeral=port == 2, makepath=True)
            registry.drain(entry_at(registry, port), within(), reason="a deploy")
        client.create(f"{stage.base}/{RULES}/override%3A%2F%2F10.0.0.9%3A1%2F{MENU}%3Fdisabled%3Dtrue", b"")
        assert registry.leftovers(None, within()) == []
        client.delete(f"{stage.base}/{provider_node(1)}")
        assert registry.leftovers("com.acme.Other", within()) == []
        (left,) = registry.leftovers(MENU, within())
        assert [left] == registry.leftovers(None, within())
        assert "10.0.0.7:1" in left.subject
        assert left.locator.startswith(f"{stage.base}/{RULES}/override")
        # Somebody who has come meanwhile is left alone with a rule of his own.
        client.set(left.locator, b"somebody else's now")
        assert registry.clear(left, within()) is False
        assert len(rules(client, stage)) == 3
        client.delete(left.locator)
        assert registry.clear(left, within()) is True, "gone is gone"
        assert len(rules(client, stage)) == 2


def test_a_leftover_rule_is_deleted(stage: Stage, dubbo: ZooKeeperRegistry) -> None:
    """And the next provider at the address is in rotation."""
    with stage.eyes() as client:
        client.create(f"{stage.base}/{provider_node(1)}", b"", makepath=True)
        dubbo.drain(entry_at(dubbo, 1), within())
        client.delete(f"{stage.base}/{provider_node(1)}")
        client.create(f"{stage.base}/{provider_node(1)}", b"", ephemeral=True)
        assert entry_at(dubbo, 1).health == "maintenance", "the successor inherits it until somebody looks"
        (left,) = dubbo.leftovers(None, within())
        assert dubbo.clear(left, within()) is True
        assert rules(client, stage) == []
        assert entry_at(dubbo, 1).health == ""
