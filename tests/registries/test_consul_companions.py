"""What belongs to an instance goes with it: sidecars, management twins, checks named for it; and nothing else does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from registry_drain.errors import LiveOwnerError
from registry_drain.registries.base import RegistryEntry, RemovalOutcome
from registry_drain.registries.consul import ConsulRegistry
from tests.registries.consul_tools import Liar, Lie, Members, entry_of, put_ghost, put_service, soon
from tests.support.consul_process import ConsulAgent


def proxy_of(service: str, consul_id: str) -> dict[str, Any]:
    """Return what makes a service the sidecar proxy of another one."""
    return {
        "Kind": "connect-proxy",
        "Proxy": {"DestinationServiceName": service, "DestinationServiceID": consul_id},
    }


@pytest.fixture
def node(consul_agent: ConsulAgent, unique: str) -> Iterator[str]:
    """Give the name of a node without an agent, and remove what is left of it."""
    name = f"ghost-{unique[-8:]}"
    yield name
    consul_agent.put("/v1/catalog/deregister", {"Node": name})


def services_of(agent: ConsulAgent, node: str) -> set[str]:
    """Return the Consul ids that the catalog lists on a node."""
    listed = agent.get(f"/v1/catalog/node/{node}?consistent")
    return set(listed["Services"]) if listed else set()


def checks_of(agent: ConsulAgent, node: str) -> set[str]:
    """Return the ids of the checks that the catalog lists on a node."""
    return {each["CheckID"] for each in agent.get(f"/v1/health/node/{node}?consistent")}


def plant(agent: ConsulAgent, service: str, node: str) -> None:
    """Put an instance with everything that belongs to it on ``node``, beside what does not."""
    put_ghost(agent, service, "app-1", node, Address="192.0.2.7")
    put_ghost(agent, f"{service}-sidecar-proxy", "app-1-sidecar-proxy", node, **proxy_of(service, "app-1"))
    put_ghost(agent, f"{service}-management", "app-1-management", node, Address="192.0.2.7")
    # Others': of another instance, at another address, of no proxy's kind.
    put_ghost(agent, service, "app-10", node)
    put_ghost(agent, f"{service}-sidecar-proxy", "app-10-sidecar-proxy", node, **proxy_of(service, "app-10"))
    put_ghost(agent, f"{service}-management", "app-10-management", node, Address="192.0.2.8")
    for check_id in ("app-1", "service:app-1:2", "app-1-disk", "serfish"):
        body = {"Node": node, "Address": "192.0.2.9", "Check": {"CheckID": check_id, "Name": "n", "Status": "passing"}}
        agent.put("/v1/catalog/register", body)


GOES = (
    "check app-1",
    "check service:app-1:2",
    "sidecar proxy app-1-sidecar-proxy",
    "management endpoint app-1-management",
)


def the(registry: ConsulRegistry, service: str, consul_id: str, node: str) -> RegistryEntry:
    """Return the one entry."""
    (entry,) = [each for each in registry.entries(service, soon()) if (each.id, each.node) == (consul_id, node)]
    return entry


def test_what_goes_along_is_known_before_and_goes(consul_agent: ConsulAgent, unique: str, node: str) -> None:
    """Sidecar, management twin and node-level checks are told before, and go in the same transaction; others stay."""
    plant(consul_agent, unique, node)
    elsewhere = f"{node}-b"
    put_ghost(consul_agent, f"{unique}-sidecar-proxy", "app-1-sidecar-proxy", elsewhere, **proxy_of(unique, "app-1"))
    with Liar(consul_agent) as front, Members() as members:
        registry = members.registry(f"consul://{front.address}")
        main, other = the(registry, unique, "app-1", node), the(registry, unique, "app-10", node)
        told = registry.companions([other, main], soon())
        assert set(told[0]) == {"sidecar proxy app-10-sidecar-proxy"}
        assert set(told[1]) == set(GOES)
        removal = registry.remove(main, soon())
        assert removal.outcome is RemovalOutcome.CONFIRMED, removal
        for each in GOES:
            assert each in removal.detail
        assert [path for method, path, _ in front.requests if method == "PUT"] == ["/v1/txn"]
    assert services_of(consul_agent, node) == {"app-10", "app-10-sidecar-proxy", "app-10-management"}
    assert checks_of(consul_agent, node) == {"app-1-disk", "serfish"}
    assert services_of(consul_agent, elsewhere) == {"app-1-sidecar-proxy"}
    consul_agent.put("/v1/catalog/deregister", {"Node": elsewhere})


def test_a_twin_alone_takes_nothing_with_it(consul_agent: ConsulAgent, unique: str, node: str) -> None:
    """Removing a sidecar leaves the instance and the rest."""
    plant(consul_agent, unique, node)
    with Members() as members:
        registry = members.registry(consul_agent.url)
        twin = the(registry, f"{unique}-sidecar-proxy", "app-1-sidecar-proxy", node)
        assert registry.companions([twin], soon()) == [()]
        removal = registry.remove(twin, soon())
        assert removal.outcome is RemovalOutcome.CONFIRMED, removal
    assert {"app-1", "app-1-management"} <= services_of(consul_agent, node)
    assert {"app-1", "service:app-1:2"} <= checks_of(consul_agent, node)


def test_a_main_that_is_refused_keeps_its_twins(consul_agent: ConsulAgent, unique: str) -> None:
    """While the instance is alive nothing of it goes, and with force all of it does, through the agent for good."""
    put_service(consul_agent, unique, f"{unique}-1", Check={"TTL": "60s", "Status": "passing"})
    put_service(consul_agent, f"{unique}-sidecar-proxy", f"{unique}-1-side", **proxy_of(unique, f"{unique}-1"))
    consul_agent.put("/v1/agent/check/register", {"ID": f"{unique}-1", "Name": "n", "TTL": "60s", "Status": "passing"})
    mine = {f"{unique}-1", f"{unique}-1-side"}
    with Members() as members:
        registry = members.registry(consul_agent.url)
        with pytest.raises(LiveOwnerError, match="alive"):
            registry.remove(entry_of(registry, unique), soon())
        assert mine <= set(consul_agent.get("/v1/agent/services"))
        removal = registry.remove(entry_of(registry, unique), soon(), force=True)
        assert removal.outcome is RemovalOutcome.CONFIRMED, removal
        assert f"with it went check {unique}-1, sidecar proxy {unique}-1-side" in removal.detail
        assert "still listed" not in removal.detail
    assert not mine & set(consul_agent.get("/v1/agent/services"))
    assert f"{unique}-1" not in consul_agent.get("/v1/agent/checks")


def test_checks_that_were_registered_apart_go_with_their_service(
    consul_agent: ConsulAgent, unique: str, node: str
) -> None:
    """As go-zero registers them, by the id of the service: through an agent and in the catalog, none is orphaned."""
    check = {"ID": f"{unique}-1", "Name": "n", "ServiceID": f"{unique}-1", "TTL": "60s", "Status": "critical"}
    put_service(consul_agent, unique, f"{unique}-1")
    consul_agent.put("/v1/agent/check/register", check)
    put_ghost(consul_agent, unique, f"{unique}-1", node)
    listed = {"CheckID": f"{unique}-1", "Name": "n", "ServiceID": f"{unique}-1", "Status": "critical"}
    consul_agent.put("/v1/catalog/register", {"Node": node, "Address": "192.0.2.9", "Check": listed})
    with Members() as members:
        registry = members.registry(consul_agent.url)
        entries = registry.entries(unique, soon())
        assert [[(each.id, each.is_own) for each in entry.checks if each.is_own] for entry in entries] == [
            [(f"{unique}-1", True)]
        ] * 2
        for entry in entries:
            removal = registry.remove(entry, soon())
            assert removal.outcome is RemovalOutcome.CONFIRMED, removal
    assert f"{unique}-1" not in consul_agent.get("/v1/agent/checks")
    left = {each["CheckID"] for each in consul_agent.get("/v1/health/state/any?consistent")}
    assert f"{unique}-1" not in left


def test_a_sidecar_that_the_agent_removes_by_itself(consul_agent: ConsulAgent, unique: str) -> None:
    """A proxy that came with its service (``connect.sidecar_service``) is named, and gone."""
    put_service(consul_agent, unique, f"{unique}-1", Connect={"SidecarService": {}})
    with Members() as members:
        registry = members.registry(consul_agent.url)
        removal = registry.remove(entry_of(registry, unique), soon())
        assert removal.outcome is RemovalOutcome.CONFIRMED, removal
        assert f"sidecar proxy {unique}-1-sidecar-proxy" in removal.detail
    assert f"{unique}-1-sidecar-proxy" not in consul_agent.get("/v1/agent/services")


def test_interrupted_between_the_twins_and_the_instance(consul_agent: ConsulAgent, unique: str) -> None:
    """Through an agent the instance goes last: when the link dies before, a second run finds it and finishes."""
    put_service(consul_agent, unique, f"{unique}-1")
    put_service(consul_agent, f"{unique}-sidecar-proxy", f"{unique}-1-side", **proxy_of(unique, f"{unique}-1"))
    gone = False

    def dies(method: str, path: str) -> Lie | None:
        nonlocal gone
        gone = gone or (method == "PUT" and path.endswith(f"/deregister/{unique}-1"))
        return (500, b"dead") if gone else None

    with Liar(consul_agent, dies) as front, Members() as members:
        registry = members.registry(f"consul://{front.address}")
        entry = entry_of(registry, unique)
        assert registry.remove(entry, soon(4)).outcome is RemovalOutcome.UNCONFIRMED
        assert f"{unique}-1" in consul_agent.get("/v1/agent/services"), "half removed, and not to be found again"
        removal = members.registry(consul_agent.url).remove(entry, soon())
        assert removal.outcome is RemovalOutcome.CONFIRMED, removal
    assert not {f"{unique}-1", f"{unique}-1-side"} & set(consul_agent.get("/v1/agent/services"))
