"""Data centre, namespace and partition: sent with every request, and never mixed up."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from registry_drain.errors import RegistryError
from registry_drain.registries.base import RemovalOutcome
from tests.registries.consul_tools import Liar, Lie, Members, entry_of, instance, put_service, soon
from tests.support.consul_process import ConsulAgent
from tests.support.processes import eventually, free_port

SCOPE = {"dc": "dc7", "ns": "team a&b", "partition": "p1"}
QUERY = "dc=dc7&ns=team%20a%26b&partition=p1"


class Enterprise:
    """What a Consul Enterprise would answer about one ghost, until it is removed or in maintenance mode."""

    def __init__(self) -> None:
        self.is_listed = True
        self.is_out = False

    def __call__(self, method: str, path: str) -> Lie:
        """Answer; with what nobody would ask for, 500."""
        what = urlsplit(path).path.removeprefix("/v1/")
        if method == "PUT" and what == "txn":
            self.is_listed = False
            return 200, b'{"Results": [], "Errors": null}'
        if method == "PUT" and what.startswith("agent/service/maintenance/"):
            self.is_out = "enable=true" in path
            return 200, b""
        maintenance = {"CheckID": "_service_maintenance:x", "ServiceID": "x", "Status": "critical"}
        service = {"ID": "x", "Service": "web", "Address": "192.0.2.1", "Port": 80, "CreateIndex": 5, "ModifyIndex": 5}
        entry = {
            "Node": {"Node": "here", "Address": "192.0.2.1"},
            "Service": service,
            "Checks": [maintenance] if self.is_out else [],
        }
        answers: dict[str, object] = {
            "health/service/consul": [],
            "health/service/web": [entry] if self.is_listed else [],
            "health/connect/web": [],
            "health/service/web-management": [],
            "catalog/services": {"consul": [], **({"web": []} if self.is_listed else {})},
            "agent/health/service/name/web": [],
            "agent/self": {"Config": {"NodeName": "here", "Datacenter": "dc7"}},
            "agent/service/x": service,
        }
        return (200, json.dumps(answers[what]).encode()) if what in answers else (404, b"")


def test_every_request_carries_them() -> None:
    """Listing, removing through the catalog, draining through the agent, registering, watching: without exception."""
    with Liar(None, Enterprise()) as front, Members() as members:
        registry = members.registry(f"consul://{front.address}?{QUERY}")
        watch = registry.watch("web", soon())
        (entry,) = registry.entries(None, soon())
        assert registry.drain(entry, soon()).is_out
        assert not registry.undrain(entry, soon()).is_out
        assert registry.companions([entry], soon()) == [()]
        watch.close()
        with pytest.raises(RegistryError):
            members.new(registry.url, instance("web")).register(soon(4))
        asked = {urlsplit(path).path for _, path, _ in front.requests}
        for part in ("/v1/agent/service/register", "/v1/agent/service/maintenance/x", "/v1/catalog/services"):
            assert part in asked
        for _, path, _ in front.requests:
            given = {name: values for name, values in parse_qs(urlsplit(path).query).items() if name in SCOPE}
            assert given == {name: [value] for name, value in SCOPE.items()}, path


def test_a_removal_carries_them() -> None:
    """The transaction, too: it would otherwise remove the namesake of another namespace."""
    cluster = Enterprise()
    with Liar(None, lambda method, path: (404, b"") if "agent/service/" in path else cluster(method, path)) as front:
        with Members() as members:
            registry = members.registry(f"consul://{front.address}?{QUERY}")
            removal = registry.remove(entry_of(registry, "web"), soon())
        assert removal.outcome is RemovalOutcome.CONFIRMED, removal
        (txn,) = [path for method, path, _ in front.requests if method == "PUT"]
        assert parse_qs(urlsplit(txn).query) == {name: [value] for name, value in SCOPE.items()}


def test_a_namespace_is_refused_by_consul_without_enterprise(consul_agent: ConsulAgent, unique: str) -> None:
    """In one line, at once; never taken for an empty list."""
    with Members() as members, pytest.raises(RegistryError, match="Enterprise feature") as refused:
        members.registry(f"{consul_agent.url}?ns=team").entries(unique, soon())
    assert not refused.value.retryable


@pytest.fixture(scope="module")
def two_centres(
    consul_agent: ConsulAgent, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[ConsulAgent, ConsulAgent]]:
    """Give a server of dc1 and one of dc2, which know each other and whose nodes have the same name."""
    del consul_agent
    directory: Path = tmp_path_factory.mktemp("centres")
    first, second = ConsulAgent(directory / "dc1"), ConsulAgent(directory / "dc2")
    second.node_name = first.node_name
    gossip = [free_port(), free_port()]
    for agent, dc, port in ((first, "dc1", gossip[0]), (second, "dc2", gossip[1])):
        ports = agent._configuration()["ports"]
        assert isinstance(ports, dict)
        others = [f"127.0.0.1:{each}" for each in gossip if each != port]
        agent._settings = {"datacenter": dc, "ports": {**ports, "serf_wan": port}, "retry_join_wan": others}
        agent._settings["retry_interval_wan"] = "1s"
    with first, second:
        eventually(
            lambda: all(
                agent.request("GET", f"/v1/catalog/nodes?dc={dc}").status == 200
                for agent, dc in ((first, "dc2"), (second, "dc1"))
            ),
            timeout=60,
            because="the data centres know each other",
        )
        yield first, second


def test_the_other_centres_entry_is_removed_and_ours_is_not(
    two_centres: tuple[ConsulAgent, ConsulAgent], unique: str
) -> None:
    """Same node name, same id, same content: through the catalog of dc2, or its agent if that is named."""
    first, second = two_centres
    for agent in two_centres:
        put_service(agent, unique, "twin")
    with Members() as members:
        registry = members.registry(f"{first.url}?dc=dc2")
        removal = registry.remove(entry_of(registry, unique), soon())
        assert removal.outcome is RemovalOutcome.CONFIRMED, removal
        # It was gone for a consistent read; its agent may have put it back by now.
        assert "could not be asked and lives" in removal.detail
        assert set(first.instances(unique)) == {"twin"}
        put_service(second, unique, "twin", Tags=["again"])
        named = members.registry(f"{first.url}?dc=dc2&agent={second.http_address}")
        removal = named.remove(entry_of(named, unique), soon())
        assert removal.outcome is RemovalOutcome.CONFIRMED, removal
        assert "asked the agent that owns it" in removal.detail
        assert "twin" not in second.get("/v1/agent/services")
        assert "twin" in first.get("/v1/agent/services")
    first.put("/v1/agent/service/deregister/twin")
