"""Maintenance mode on a real Consul: out of rotation and back, proven, and never inherited by a successor."""

from __future__ import annotations

import pytest

from registry_drain.errors import InstanceNotFoundError, LiveOwnerError, RegistryDataError, RegistryTimeoutError
from registry_drain.registries.abilities import RotationRegistry
from registry_drain.registries.base import RemovalOutcome
from tests.registries.consul_tools import FAST, Liar, Lie, Members, entry_of, instance, put_ghost, put_service, soon
from tests.support.consul_process import ConsulAgent
from tests.support.processes import eventually


def writes(front: Liar) -> list[str]:
    """Return the paths of all PUTs."""
    return [path for method, path, _ in front.requests if method == "PUT"]


def test_out_and_back(consul_agent: ConsulAgent, unique: str) -> None:
    """Callers stop seeing it, it stays listed, the reason is shown; and back. Doing either twice changes nothing."""
    put_service(consul_agent, unique, "x", Check={"TTL": "60s", "Status": "passing"})
    put_service(consul_agent, unique, "y", Check={"TTL": "60s", "Status": "passing"})
    with Liar(consul_agent) as front, Members() as members:
        registry = members.registry(f"consul://{front.address}")
        assert isinstance(registry, RotationRegistry)
        watch = registry.watch(unique, soon())
        (entry,) = [each for each in registry.entries(unique, soon()) if each.id == "x"]
        out = registry.drain(entry, soon(), reason="disk & co")
        assert (out.is_out, out.how, out.subject) == (True, "maintenance mode", str(entry))
        assert "a consistent read shows it; reason: disk & co" in out.detail
        assert set(consul_agent.instances(unique)) == {"x", "y"}
        assert set(consul_agent.instances(unique, passing=True)) == {"y"}
        eventually(lambda: [each.id for each in watch.instances] == ["y"], because="callers are told")
        again = registry.drain(entry, soon(), reason="another one")
        assert again.is_out
        assert "it was on already; reason: disk & co" in again.detail
        back = registry.undrain(entry, soon())
        assert (back.is_out, back.subject) == (False, str(entry))
        assert set(consul_agent.instances(unique, passing=True)) == {"x", "y"}
        assert "it was off already" in registry.undrain(entry, soon()).detail
        assert len(writes(front)) == 2
    for each in ("x", "y"):
        consul_agent.put(f"/v1/agent/service/deregister/{each}")


def test_only_what_was_shown_is_switched(consul_agent: ConsulAgent, unique: str) -> None:
    """A successor of the same id is left alone, and what is gone is said to be."""
    put_service(consul_agent, unique, "x")
    with Liar(consul_agent) as front, Members() as members:
        registry = members.registry(f"consul://{front.address}")
        entry = entry_of(registry, unique)
        put_service(consul_agent, unique, "x", Tags=["successor"])
        for switch in (registry.drain, registry.undrain):
            with pytest.raises(LiveOwnerError, match="registered anew"):
                switch(entry, soon())
        consul_agent.put("/v1/agent/service/deregister/x")
        with pytest.raises(InstanceNotFoundError):
            registry.drain(entry, soon())
        assert writes(front) == []


def test_a_successor_of_ours_is_left_alone(consul_agent: ConsulAgent, unique: str) -> None:
    """Ours have a Consul id per registration: the shown one is gone, and its successor is not taken for it."""
    with Members() as members:
        registry = members.registry(consul_agent.url)
        members.registered(consul_agent.url, instance(unique))
        entry = entry_of(registry, unique)
        members.registered(consul_agent.url, instance(unique))
        with pytest.raises(LiveOwnerError, match="registered anew"):
            registry.drain(entry, soon())
        assert consul_agent.instances(unique, passing=True)


def test_without_an_agent_there_is_no_such_state(consul_agent: ConsulAgent, unique: str) -> None:
    """An external node has nobody to keep it, and an agent that dropped the entry cannot: both say what to do."""
    node = f"ghost-{unique[-8:]}"
    put_ghost(consul_agent, unique, "x", node)
    with Liar(consul_agent) as front, Members() as members:
        registry = members.registry(f"consul://{front.address}")
        with pytest.raises(RegistryDataError, match="external node, without an agent"):
            registry.drain(entry_of(registry, unique), soon())
        consul_agent.put("/v1/catalog/deregister", {"Node": node})
        put_ghost(consul_agent, unique, "x", consul_agent.node_name, address="127.0.0.1")
        with pytest.raises(RegistryDataError, match="does not know it"):
            registry.drain(entry_of(registry, unique), soon())
        assert writes(front) == []
        assert registry.remove(entry_of(registry, unique), soon()).outcome is RemovalOutcome.CONFIRMED


def test_what_else_keeps_callers_away_is_said(consul_agent: ConsulAgent, unique: str) -> None:
    """Back in rotation, and a check of its own is critical: callers leave it out all the same."""
    put_service(consul_agent, unique, "x", Check={"CheckID": f"c-{unique}", "TTL": "60s", "Status": "critical"})
    with Members() as members:
        registry = members.registry(consul_agent.url)
        registry.drain(entry_of(registry, unique), soon())
        back = registry.undrain(entry_of(registry, unique), soon())
        assert back.is_out
        assert f"because of c-{unique}" in back.detail
    consul_agent.put("/v1/agent/service/deregister/x")


def test_an_acknowledgement_is_no_proof(consul_agent: ConsulAgent, unique: str) -> None:
    """The agent says 200 and the servers never show it: that is an error, not a success."""
    put_service(consul_agent, unique, "x")

    def lies(_: str, path: str) -> Lie | None:
        return (200, b"") if "/maintenance/" in path else None

    with Liar(consul_agent, lies) as front, Members() as members:
        registry = members.registry(f"consul://{front.address}")
        with pytest.raises(Exception, match="the servers do not show it yet") as caught:
            registry.drain(entry_of(registry, unique), soon(4))
        assert not isinstance(caught.value, RegistryTimeoutError)
    consul_agent.put("/v1/agent/service/deregister/x")


def test_a_plain_registration_inherits_it_and_one_after_a_removal_does_not(
    consul_agent: ConsulAgent, unique: str
) -> None:
    """Maintenance mode outlives the process that was put into it; what this package removes leaves none of it."""
    put_service(consul_agent, unique, "x")
    with Members() as members:
        registry = members.registry(consul_agent.url)
        registry.drain(entry_of(registry, unique), soon())
        put_service(consul_agent, unique, "x", Tags=["successor"])
        assert entry_of(registry, unique).health == "maintenance", "this is why it has to be cleaned up"
        removal = registry.remove(entry_of(registry, unique), soon(), force=True)
        assert removal.outcome is RemovalOutcome.CONFIRMED, removal
        put_service(consul_agent, unique, "x")
        assert entry_of(registry, unique).health == "passing"
        registry.remove(entry_of(registry, unique), soon(), force=True)


def test_our_registration_inherits_none(consul_agent: ConsulAgent, unique: str) -> None:
    """Even where its very Consul id is in maintenance mode, an instance of ours comes up in rotation."""
    with Members() as members:
        registration = members.new(consul_agent.url + FAST, instance(unique))
        put_service(consul_agent, unique, registration.consul_id)
        registry = members.registry(consul_agent.url)
        assert registry.drain(entry_of(registry, unique), soon()).is_out
        registration.register(soon())
        assert set(consul_agent.instances(unique, passing=True)) == {registration.consul_id}
