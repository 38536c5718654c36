"""Removing somebody else's instance: through its agent, through the catalog, and never another one."""

from __future__ import annotations

import json
from urllib.parse import quote

import pytest

from registry_drain.errors import InstanceNotFoundError, LiveOwnerError, RegistryDataError
from registry_drain.registries.base import RemovalOutcome
from tests.conftest import NewConsulCluster
from tests.registries.consul_tools import Liar, Lie, Members, entry_of, instance, put_ghost, put_service, soon
from tests.support.consul_process import ConsulAgent
from tests.support.processes import eventually
from tests.support.tcp_proxy import TcpProxy


@pytest.mark.parametrize(
    "consul_id",
    [
        "plain",
        "a/b",
        "a b",
        "host:container:80",
        "50%",
        "a%2Fb",
        "a?b#c&d",
        "gr\u00fc\u00dfe",
        "\U0001f680",
        'q"uote\\',
    ],
)
def test_odd_ids_of_others(consul_agent: ConsulAgent, unique: str, consul_id: str) -> None:
    """Ids that need quoting are listed as they are and removed through their agent, which does not put them back."""
    put_service(consul_agent, unique, consul_id)
    put_service(consul_agent, unique, "bystander")
    with Members() as members:
        registry = members.registry(consul_agent.url)
        (entry,) = [each for each in registry.entries(unique, soon()) if each.id == consul_id]
        assert entry.is_live is None
        assert entry.locator == f"{consul_agent.node_name}/{consul_id}"
        removal = registry.remove(entry, soon())
        assert removal.outcome is RemovalOutcome.CONFIRMED, removal
        assert "puts" not in removal.detail
        assert set(consul_agent.get("/v1/agent/services")) & {consul_id, "bystander"} == {"bystander"}
        consul_agent.put("/v1/agent/service/deregister/bystander")
        with pytest.raises(InstanceNotFoundError):
            registry.remove(entry, soon())


@pytest.mark.parametrize("consul_id", ["../x", "/x", "a//b", ".", "a/../b"])
def test_ids_that_consul_would_redirect(consul_agent: ConsulAgent, unique: str, consul_id: str) -> None:
    """They are removed through the catalog, where ids stand in bodies; what they would resolve to is left alone."""
    node = f"ghost-{unique[-8:]}"
    for bystander in ("x", "b"):
        put_service(consul_agent, unique, bystander)
    put_ghost(consul_agent, unique, consul_id, node)
    with Members() as members:
        registry = members.registry(consul_agent.url)
        (entry,) = [each for each in registry.entries(unique, soon()) if each.id == consul_id]
        assert registry.remove(entry, soon()).outcome is RemovalOutcome.CONFIRMED
        assert {each.id for each in registry.entries(unique, soon())} == {"x", "b"}
    for bystander in ("x", "b"):
        consul_agent.put(f"/v1/agent/service/deregister/{bystander}")
    consul_agent.put("/v1/catalog/deregister", {"Node": node})


def test_the_same_id_on_another_node_is_left_alone(consul_agent: ConsulAgent, unique: str) -> None:
    """Our agent owns an identical entry: removing the other node's goes through the catalog and hits only that."""
    node = f"ghost-{unique[-8:]}"
    put_service(consul_agent, unique, "twin")
    put_ghost(consul_agent, unique, "twin", node)
    with Members() as members:
        registry = members.registry(consul_agent.url)
        (ghost,) = [each for each in registry.entries(unique, soon()) if each.owner == node]
        assert registry.remove(ghost, soon()).outcome is RemovalOutcome.CONFIRMED
        assert entry_of(registry, unique).owner == consul_agent.node_name
        assert registry.remove(entry_of(registry, unique), soon()).outcome is RemovalOutcome.CONFIRMED
    consul_agent.put("/v1/catalog/deregister", {"Node": node})


def test_what_lives_is_told_from_what_does_not(consul_agent: ConsulAgent, unique: str) -> None:
    """Passing checks mean a live owner, critical ones a dead one, none at all nobody knows; maintenance is its own."""
    checks = {"passing": "passing", "warning": "warning", "critical": "critical"}
    for name, status in checks.items():
        put_service(consul_agent, unique, name, Check={"TTL": "60s", "Status": status})
    put_service(consul_agent, unique, "none")
    put_service(consul_agent, unique, "resting", Check={"TTL": "60s", "Status": "passing"})
    consul_agent.put("/v1/agent/service/maintenance/resting?enable=true")
    with Members() as members:
        registry = members.registry(consul_agent.url)
        seen = {each.id: (each.is_live, each.health) for each in registry.entries(unique, soon())}
        assert seen == {
            "passing": (True, "passing"),
            "warning": (True, "warning"),
            "critical": (False, "critical"),
            "none": (None, "passing"),
            "resting": (True, "maintenance"),
        }
        for entry in registry.entries(unique, soon()):
            if entry.is_live:
                with pytest.raises(LiveOwnerError, match="alive"):
                    registry.remove(entry, soon())
            assert registry.remove(entry, soon(), force=True).outcome is RemovalOutcome.CONFIRMED


def test_versions_change_with_registrations_and_not_with_checks(consul_agent: ConsulAgent, unique: str) -> None:
    """A check that changes leaves the version alone; a registration of the same id with other content does not."""
    put_service(consul_agent, unique, "x", Check={"CheckID": f"c-{unique}", "TTL": "60s", "Status": "passing"})
    with Members() as members:
        registry = members.registry(consul_agent.url)
        shown = entry_of(registry, unique)
        consul_agent.put(f"/v1/agent/check/fail/c-{unique}")
        eventually(lambda: entry_of(registry, unique).health == "critical", because="the check has changed")
        assert entry_of(registry, unique).version == shown.version
        put_service(consul_agent, unique, "x", Tags=["new"])
        with pytest.raises(LiveOwnerError, match="registered anew"):
            registry.remove(shown, soon(), force=True)
        assert registry.remove(entry_of(registry, unique), soon(), force=True).outcome is RemovalOutcome.CONFIRMED


def test_a_ghost_of_a_dead_agent(new_consul_cluster: NewConsulCluster, unique: str) -> None:
    """The owner's agent is gone for good: any other agent removes it, and warns of the agent's return."""
    cluster = new_consul_cluster(agents=2)
    owner, ours = cluster.agents
    put_service(owner, unique, "ghost")
    put_service(ours, unique, "bystander")
    owner.kill()
    with Members() as members:
        registry = members.registry(ours.url)

        def ghost_is_dead() -> bool:
            return {each.id: each.is_live for each in registry.entries(unique, soon())}.get("ghost") is False

        eventually(ghost_is_dead, timeout=60, because="the gossip has noticed")
        (entry,) = [each for each in registry.entries(unique, soon()) if each.id == "ghost"]
        with pytest.raises(RegistryDataError, match="which keeps it, is down, so that callers leave it out already"):
            registry.drain(entry, soon())
        removal = registry.remove(entry, soon())
        assert removal.outcome is RemovalOutcome.CONFIRMED, removal
        assert "if it starts again with its data, it puts the entry back" in removal.detail
        assert "on that host, run: consul services deregister -id=ghost; if the host is gone" in removal.detail
        assert removal.detail.endswith(f"consul force-leave {owner.node_name}")
        assert set(cluster.server.instances(unique)) == {"bystander"}
        owner.start()
        eventually(lambda: "ghost" in cluster.server.instances(unique), timeout=60, because="the warning was right")


def test_an_entry_of_another_living_agent(new_consul_cluster: NewConsulCluster, unique: str) -> None:
    """Its agent lives and cannot be asked from here: removed from the catalog, and said to come back."""
    cluster = new_consul_cluster(agents=2)
    owner, ours = cluster.agents
    put_service(owner, unique, "x")
    with Members() as members:
        registry = members.registry(ours.url)
        removal = registry.remove(entry_of(registry, unique), soon())
        assert removal.outcome is RemovalOutcome.CONFIRMED, removal
        assert f"the agent of {owner.node_name} could not be asked and lives" in removal.detail
        # Any change makes the agent sync at once instead of within two minutes.
        put_service(owner, f"other-{unique}", "y")
        eventually(lambda: cluster.server.instances(unique), timeout=150, because="the warning was right")


def test_another_agent_is_asked_at_its_gossip_address(new_consul_cluster: NewConsulCluster, unique: str) -> None:
    """The agent that owns the entry answers at the address that the gossip knows: it removes it for good."""
    cluster = new_consul_cluster(agents=1)
    (owner,) = cluster.agents
    put_service(owner, unique, "x")

    def members_at_two_addresses(_: str, path: str) -> Lie | None:
        if "/v1/agent/members" not in path:
            return None
        return 200, json.dumps([{"Name": owner.node_name, "Status": 1, "Addr": "127.0.0.2"}]).encode()

    with (
        Liar(cluster.server, members_at_two_addresses) as front,
        Liar(owner, at=("127.0.0.2", front.port)) as other,
        Members() as members,
    ):
        registry = members.registry(f"consul://{front.address}")
        removal = registry.remove(entry_of(registry, unique), soon())
        assert removal.outcome is RemovalOutcome.CONFIRMED, removal
        assert "127.0.0.2" in removal.detail
        assert ("PUT", "/v1/agent/service/deregister/x", "") in other.requests
        assert "x" not in owner.get("/v1/agent/services")


def test_the_catalogs_addresses_are_not_contacted(consul_agent: ConsulAgent, unique: str) -> None:
    """Whoever writes a node into the catalog cannot have our token sent to its address."""
    node = f"trap-{unique[-8:]}"
    # The trap listens on the agent's port, at an address of its own.
    with Liar(None, lambda *_: (200, b"{}"), at=("127.0.0.3", consul_agent.http_port)) as trap, Members() as members:
        put_ghost(consul_agent, unique, "x", node, address="127.0.0.3")
        registry = members.registry(consul_agent.url, token="a-token-that-must-stay-here")
        removal = registry.remove(entry_of(registry, unique), soon())
        assert removal.outcome is RemovalOutcome.CONFIRMED, removal
        assert trap.requests == []
    consul_agent.put("/v1/catalog/deregister", {"Node": node})


def test_out_of_time_before_anything_was_sent(consul_agent: ConsulAgent, unique: str) -> None:
    """A link that dies before the first request is an error, one that dies after it an unconfirmed outcome."""
    from registry_drain.errors import RegistryUnavailableError

    put_service(consul_agent, unique, "x")
    path = f"/v1/agent/service/deregister/{quote('x')}"
    with TcpProxy(consul_agent.http_address) as link, Members() as members:
        registry = members.registry(f"consul://{link.address}")
        entry = entry_of(registry, unique)
        link.black_hole()
        with pytest.raises(RegistryUnavailableError):
            registry.remove(entry, soon(0.5))
        link.pass_through()
        assert consul_agent.instances(unique)

    def fail_after(method: str, _: str) -> Lie | None:
        sent = any(each[1] == path for each in front.requests)
        return (500, b"No cluster leader") if sent and method == "GET" else None

    with Liar(consul_agent, fail_after) as front, Members() as members:
        registry = members.registry(f"consul://{front.address}")
        removal = registry.remove(entry, soon(4))
        assert removal.outcome is RemovalOutcome.UNCONFIRMED, removal
        assert "No cluster leader" in removal.detail


def test_an_entry_of_ours_is_shown_as_it_was_registered(consul_agent: ConsulAgent, unique: str) -> None:
    """The bookkeeping in Meta is not shown; the time of registration and the agent's node are."""
    with Members() as members:
        registration = members.registered(consul_agent.url, instance(unique))
        entry = entry_of(members.registry(consul_agent.url), unique)
        assert entry.metadata == {}
        assert entry.owner == consul_agent.node_name
        assert entry.locator == f"{consul_agent.node_name}/{registration.consul_id}"
        assert entry.is_ephemeral is True
        assert entry.registered_at is not None
        assert entry.registered_at > 1_700_000_000
