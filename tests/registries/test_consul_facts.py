"""Facts about Consul that no other test here shows together with the design that looks right: see docs/facts.md.

Each test first shows the fact on the real server, so that nobody has to believe it.
"""

from __future__ import annotations

from collections.abc import Iterator

import consul
import pytest

from registry_drain.errors import InstanceNotFoundError, LiveOwnerError
from registry_drain.registries.base import RemovalOutcome
from tests.registries.consul_tools import Members, entry_of, instance, put_ghost, put_service, soon
from tests.support.consul_process import ConsulAgent
from tests.support.processes import eventually


@pytest.fixture(scope="module")
def acl_agent(consul_agent: ConsulAgent, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsulAgent]:
    """Give one agent with ACLs to the whole file; ``consul_agent`` decides what happens where there is no Consul."""
    del consul_agent
    with ConsulAgent(tmp_path_factory.mktemp("acl"), acl=True) as agent:
        yield agent


def test_1_an_agent_says_yes_to_an_id_that_it_does_not_know(consul_agent: ConsulAgent, unique: str) -> None:
    """A ghost of another node: our agent's deregistration of its id changes nothing, whatever it answers."""
    node = f"ghost-{unique[-8:]}"
    put_ghost(consul_agent, unique, f"{unique}-x", node)
    said = consul_agent.request("PUT", f"/v1/agent/service/deregister/{unique}-x").status
    assert said in {200, 404}, "200 up to Consul 1.8, and in some versions 404"
    assert set(consul_agent.instances(unique)) == {f"{unique}-x"}
    with Members() as members:
        registry = members.registry(consul_agent.url)
        entry = entry_of(registry, unique)
        assert registry.remove(entry, soon()).outcome is RemovalOutcome.CONFIRMED
        assert not consul_agent.instances(unique)
        with pytest.raises(InstanceNotFoundError):
            registry.remove(entry, soon())
    consul_agent.put("/v1/catalog/deregister", {"Node": node})


def test_1_the_agents_token_was_revoked(acl_agent: ConsulAgent, unique: str) -> None:
    """The agent holds the token of whoever registered; with that revoked it says yes, and cannot tell the servers."""
    old = acl_agent.create_token(f'service "{unique}" {{ policy = "write" }} node_prefix "" {{ policy = "read" }}')
    body = {"ID": f"{unique}-x", "Name": unique, "Port": 80}
    assert acl_agent.request("PUT", "/v1/agent/service/register", body, token=old).status == 200
    eventually(lambda: acl_agent.instances(unique), because="the servers list it")
    with Members() as members:
        registry = members.registry(acl_agent.url, acl_agent.token)
        entry = entry_of(registry, unique)
        acl_agent.revoke_token(old)
        removal = registry.remove(entry, soon())
        assert removal.outcome is RemovalOutcome.CONFIRMED, removal
        assert not acl_agent.instances(unique)


def test_3_the_catalog_with_a_token(acl_agent: ConsulAgent, unique: str) -> None:
    """The library's own call is refused by Consul because of the token that it puts into the body; ours works."""
    node = f"ghost-{unique[-8:]}"
    put_ghost(acl_agent, unique, f"{unique}-x", node)
    library = consul.Consul("127.0.0.1", acl_agent.http_port, token=acl_agent.token)
    try:
        with pytest.raises(Exception, match=r"(?i)unknown field|WriteRequest|400"):
            library.catalog.deregister(node, service_id=f"{unique}-x")
        assert acl_agent.instances(unique)
    finally:
        library.http.session.close()
    with Members() as members:
        registry = members.registry(acl_agent.url, acl_agent.token)
        assert registry.remove(entry_of(registry, unique), soon()).outcome is RemovalOutcome.CONFIRMED
    acl_agent.put("/v1/catalog/deregister", {"Node": node})


def test_5_identical_registrations_of_ours_are_told_apart(consul_agent: ConsulAgent, unique: str) -> None:
    """Consul's index stays when the same thing is registered again, so that it alone guards nothing; ours differ."""
    put_service(consul_agent, f"{unique}-other", "x")
    before = consul_agent.instances(f"{unique}-other")["x"]["Service"]["ModifyIndex"]
    put_service(consul_agent, f"{unique}-other", "x")
    assert consul_agent.instances(f"{unique}-other")["x"]["Service"]["ModifyIndex"] == before, "this is the fact"
    consul_agent.put("/v1/agent/service/deregister/x")
    with Members() as members:
        registry = members.registry(consul_agent.url)
        members.registered(consul_agent.url, instance(unique))
        shown = entry_of(registry, unique)
        members.registered(consul_agent.url, instance(unique))
        with pytest.raises(LiveOwnerError, match="registered anew"):
            registry.remove(shown, soon(), force=True)
        assert len(consul_agent.instances(unique)) == 1


def test_10_a_living_agent_puts_back_what_only_the_catalog_lost(consul_agent: ConsulAgent, unique: str) -> None:
    """A deregistration from the catalog alone is undone by the agent; ours goes to the agent."""
    put_service(consul_agent, unique, f"{unique}-x")
    body = {"Node": consul_agent.node_name, "ServiceID": f"{unique}-x"}
    consul_agent.put("/v1/catalog/deregister", body)
    assert not consul_agent.instances(unique)
    # Any change of its own makes the agent synchronise at once, instead of within two minutes.
    put_service(consul_agent, f"{unique}-other", f"{unique}-y")
    consul_agent.put(f"/v1/agent/service/maintenance/{unique}-x?enable=true")
    eventually(lambda: consul_agent.instances(unique), timeout=150, because="this is the fact")
    with Members() as members:
        registry = members.registry(consul_agent.url)
        assert registry.remove(entry_of(registry, unique), soon(), force=True).outcome is RemovalOutcome.CONFIRMED
    assert f"{unique}-x" not in consul_agent.get("/v1/agent/services")
    consul_agent.put(f"/v1/agent/service/deregister/{unique}-y")
