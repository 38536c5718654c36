"""Which agent owns an entry: found, named by the operator, or dead; and never a wrong one believed."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from registry_drain.clock import SYSTEM_CLOCK
from registry_drain.errors import ConfigurationError, LiveOwnerError, RegistryDataError, RegistryUnavailableError
from registry_drain.registries.abilities import RemovalResult
from registry_drain.registries.base import RegistryEntry, Removal, RemovalOutcome
from registry_drain.registries.consul import ConsulRegistry
from registry_drain.registries.url import parse_registry_url
from tests.registries.consul_tools import Liar, Lie, Members, entry_of, put_ghost, put_service, soon
from tests.support.consul_process import ConsulAgent, ConsulCluster


@pytest.fixture(scope="module")
def cluster(consul_agent: ConsulAgent, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsulCluster]:
    """Give a server and two agents to the whole file; ``consul_agent`` fails or skips it where there is no Consul."""
    del consul_agent
    with ConsulCluster(tmp_path_factory.mktemp("agents"), agents=2) as cluster:
        yield cluster


def test_the_agent_that_was_named_is_asked(cluster: ConsulCluster, unique: str) -> None:
    """``agent=`` in the URL, or the argument: it deregisters the entry for good, and nothing warns of a return."""
    owner, ours = cluster.agents
    with Members() as members:
        for given in ("option", "argument"):
            put_service(owner, unique, "x")
            if given == "option":
                registry = members.registry(f"{ours.url}?agent={owner.http_address}")
            else:
                url = parse_registry_url(f"{ours.url}?agent=127.0.0.1:1")
                registry = ConsulRegistry(url, agent=owner.http_address)
            removal = registry.remove(entry_of(registry, unique), soon())
            registry.close()
            assert removal.outcome is RemovalOutcome.CONFIRMED, removal
            assert removal.detail == (
                "asked the agent that owns it (127.0.0.1) to deregister it; not listed by a consistent read"
            )
            assert "x" not in owner.get("/v1/agent/services")


def test_an_agent_of_another_node_does_nothing(cluster: ConsulCluster, unique: str) -> None:
    """The wrong agent was named: one clear line, no fall-back, nothing sent to anybody."""
    owner, ours = cluster.agents
    put_service(owner, unique, "x")
    put_service(ours, f"{unique}-other", "x")
    with Liar(cluster.server) as front, Liar(ours) as wrong, Members() as members:
        registry = members.registry(f"consul://{front.address}?agent={wrong.address}")
        entry = entry_of(registry, unique)
        for act in (registry.remove, registry.drain, registry.undrain):
            if act == registry.undrain:
                owner.put("/v1/agent/service/maintenance/x?enable=true")
            with pytest.raises(ConfigurationError) as refused:
                act(entry, soon())
            assert str(refused.value).endswith(
                f"this is the agent of {ours.node_name}, and x is registered with that of {owner.node_name}: "
                "name that one"
            )
        assert not [each for each in front.requests + wrong.requests if each[0] == "PUT"]
    assert "x" in ours.get("/v1/agent/services")
    for agent in (owner, ours):
        agent.put("/v1/agent/service/deregister/x")


def test_an_agent_that_does_not_answer_is_not_replaced(cluster: ConsulCluster, unique: str) -> None:
    """What was named explicitly is not quietly replaced by the catalog."""
    owner, ours = cluster.agents
    put_service(owner, unique, "x")
    with Members() as members:
        registry = members.registry(f"{ours.url}?agent=127.0.0.1:1")
        with pytest.raises(RegistryUnavailableError, match=r"agent at 127.0.0.1:1.*Connection refused"):
            registry.remove(entry_of(registry, unique), soon(4))
    assert set(cluster.server.instances(unique)) == {"x"}
    owner.put("/v1/agent/service/deregister/x")


@pytest.mark.parametrize("text", ["", "host", "host:0", "http://host:8500", "host:85000"])
def test_an_agent_that_cannot_be_one(text: str) -> None:
    """It is HOST:PORT, and that is said before anything is sent."""
    with pytest.raises(ConfigurationError):
        ConsulRegistry(parse_registry_url(f"consul://127.0.0.1:1?agent={text}"), SYSTEM_CLOCK)


def test_an_entry_that_its_agent_has_dropped(cluster: ConsulCluster, unique: str) -> None:
    """Only the catalog still lists it: nobody puts it back, and nobody is told that somebody would."""
    owner, ours = cluster.agents
    with Members() as members:
        for url in (owner.url, f"{ours.url}?agent={owner.http_address}"):
            put_ghost(ours, unique, "x", owner.node_name, address="127.0.0.1")
            registry = members.registry(url)
            removal = registry.remove(entry_of(registry, unique), soon())
            assert removal.outcome is RemovalOutcome.CONFIRMED, removal
            assert removal.detail == "removed it from the catalog; not listed by a consistent read"


def test_an_agent_that_has_another_under_the_id(cluster: ConsulCluster, unique: str) -> None:
    """The catalog is behind: the agent's own, new entry is left alone, and said to be on its way."""
    owner, _ = cluster.agents
    put_service(owner, unique, "x", Meta={"build": "2"})
    put_ghost(owner, unique, "x", owner.node_name, address="127.0.0.1", Meta={"build": "1"})
    with Members() as members:
        registry = members.registry(owner.url)
        entry = entry_of(registry, unique)
        assert entry.metadata == {"build": "1"}
        with pytest.raises(LiveOwnerError, match="registered it anew"):
            registry.drain(entry, soon())
        removal = registry.remove(entry, soon())
        assert removal.outcome in {RemovalOutcome.CONFIRMED, RemovalOutcome.SUCCESSOR}, removal
        assert removal.detail.startswith("removed it from the catalog")
        if removal.outcome is RemovalOutcome.CONFIRMED:
            assert "the same id with other content meanwhile" in removal.detail
        assert owner.get("/v1/agent/service/x")["Meta"] == {"build": "2"}
    owner.put("/v1/agent/service/deregister/x")


def test_a_living_agent_out_of_reach(cluster: ConsulCluster, unique: str) -> None:
    """Removed from the catalog only: that it comes back, and the command that ends it, are said."""
    owner, ours = cluster.agents
    put_service(owner, unique, "it's x")
    with Members() as members:
        registry = members.registry(ours.url)
        entry = entry_of(registry, unique)
        with pytest.raises(RegistryDataError, match="could not be asked: name its HTTP address"):
            registry.drain(entry, soon())
        removal = registry.remove(entry, soon())
        assert removal.outcome is RemovalOutcome.CONFIRMED, removal
        assert removal.detail.endswith(
            "it puts it back within about 2 minutes: on that host, run: consul services deregister -id='it'\"'\"'s x'"
        )
    owner.put("/v1/agent/service/deregister/it's%20x")


def test_out_of_rotation_through_the_agent_that_was_named(cluster: ConsulCluster, unique: str) -> None:
    """Another host's instance is drained and undrained from here."""
    owner, ours = cluster.agents
    put_service(owner, unique, "x")
    with Members() as members:
        registry = members.registry(f"{ours.url}?agent={owner.http_address}")
        assert registry.drain(entry_of(registry, unique), soon(), reason="why").is_out
        assert not cluster.server.instances(unique, passing=True)
        assert not registry.undrain(entry_of(registry, unique), soon()).is_out
        assert cluster.server.instances(unique, passing=True)
    owner.put("/v1/agent/service/deregister/x")


def test_an_agent_that_lies_about_its_node_is_not_believed(cluster: ConsulCluster, unique: str) -> None:
    """The gossip's address answers as another node, or says nothing sensible: it is not asked to deregister."""
    owner, ours = cluster.agents
    put_service(owner, unique, "x")
    itself: object = {}

    def gossip(_: str, path: str) -> Lie | None:
        if "/v1/agent/members" not in path:
            return None
        return 200, json.dumps([{"Name": owner.node_name, "Status": 1, "Addr": "127.0.0.2"}]).encode()

    def impostor(_: str, path: str) -> Lie | None:
        return (200, json.dumps(itself).encode()) if "/v1/agent/self" in path else None

    with (
        Members() as members,
        Liar(ours, gossip) as front,
        Liar(owner, impostor, at=("127.0.0.2", front.port)) as other,
    ):
        registry = members.registry(f"consul://{front.address}")
        for itself in ({}, [], None, {"Config": {"NodeName": "somebody-else", "Datacenter": "dc1"}}):  # noqa: B007
            with pytest.raises(RegistryDataError):
                registry.drain(entry_of(registry, unique), soon())
        assert other.requests
        assert not [each for each in other.requests if each[0] == "PUT"]
    owner.put("/v1/agent/service/deregister/x")


def test_agents_that_do_not_listen_are_not_all_tried(cluster: ConsulCluster, unique: str) -> None:
    """Ten living nodes, whose agents refuse connections: three are tried, and the entries still go."""
    ours = cluster.agents[1]
    nodes = [f"deaf-{unique[-8:]}-{number}" for number in range(10)]
    for node in nodes:
        put_ghost(ours, unique, "x", node)
        check = {"CheckID": "serfHealth", "Name": "Serf Health Status", "Status": "passing"}
        ours.put("/v1/catalog/register", {"Node": node, "Address": "192.0.2.9", "Check": check})
    tried: list[str] = []

    def gossip(_: str, path: str) -> Lie | None:
        if "/v1/agent/members" not in path:
            return None
        return 200, json.dumps([{"Name": node, "Status": 1, "Addr": "127.0.0.2"} for node in nodes]).encode()

    def deaf(_: str, path: str) -> Lie:
        tried.append(path)
        return 500, b"not to you"

    with Liar(ours, gossip) as front, Liar(None, deaf, at=("127.0.0.2", front.port)), Members() as members:
        registry = members.registry(f"consul://{front.address}")
        results: list[RemovalResult] = []
        registry.remove_many(registry.entries(unique, soon()), soon(30), lambda _, result: results.append(result))
    assert len(tried) == 3
    assert [isinstance(each, Removal) and each.outcome for each in results] == [RemovalOutcome.CONFIRMED] * 10
    assert all("could not be asked and lives" in str(each) for each in results)
    for node in nodes:
        ours.put("/v1/catalog/deregister", {"Node": node})


def test_the_same_id_on_two_nodes(cluster: ConsulCluster, unique: str) -> None:
    """Both agents have an equal entry: each is removed from its own, whichever agent is asked first."""
    owner, ours = cluster.agents
    for agent in (owner, ours):
        put_service(agent, unique, "twin", Address="192.0.2.1")
    with Members() as members:
        registry = members.registry(f"{ours.url}?agent={owner.http_address}")

        def of(agent: ConsulAgent) -> RegistryEntry:
            return next(each for each in registry.entries(unique, soon()) if each.node == agent.node_name)

        removal = registry.remove(of(owner), soon())
        assert removal.outcome is RemovalOutcome.CONFIRMED, removal
        assert "twin" not in owner.get("/v1/agent/services")
        assert "twin" in ours.get("/v1/agent/services")
        with pytest.raises(ConfigurationError):
            registry.remove(of(ours), soon())
        assert members.registry(ours.url).remove(of(ours), soon()).outcome is RemovalOutcome.CONFIRMED
        assert "twin" not in ours.get("/v1/agent/services")
