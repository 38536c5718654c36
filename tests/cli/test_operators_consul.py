"""What operators ask of a real Consul: by tag, node or health, several at once, and out of rotation and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.cli.running import Run
from tests.support.consul_process import ConsulAgent

pytestmark = pytest.mark.consul


def _id(service: str, name: str) -> str:
    """Return an id that no other test has: an agent knows each id once, whatever its service."""
    return f"{name}-{service}"


def _plant(agent: ConsulAgent, service: str, name: str, *, status: str = "critical", **more: Any) -> None:
    """Register as somebody else would: a TTL check, which nobody renews once it is critical."""
    check = {"TTL": "600s", "Status": status}
    body = {"Name": service, "ID": _id(service, name), "Address": "10.0.0.7", "Port": 9090, "Check": check, **more}
    agent.put("/v1/agent/service/register", body)


def _names(entries: list[dict[str, Any]]) -> list[str]:
    return [entry["id"].removesuffix(f"-{entry['service']}") for entry in entries]


def _planted(agent: ConsulAgent, service: str, *, passing: bool = False) -> set[str]:
    return {each.removesuffix(f"-{service}") for each in agent.instances(service, passing=passing)}


def test_by_tag_metadata_node_and_health(
    deregister: Run, registry_drain: Run, consul_agent: ConsulAgent, unique: str
) -> None:
    """Each selector finds what has it, all of them together what has all; and `list` finds the same."""
    _plant(consul_agent, unique, "old", Tags=["v1"], Meta={"zone": "a"})
    _plant(consul_agent, unique, "new", Tags=["v2"], Meta={"zone": "a"}, status="passing")
    words = (consul_agent.url, "--service", unique)
    expected = {
        ("--tag", "v1"): ["old"],
        ("--meta", "zone=a"): ["new", "old"],
        ("--meta", "zone=a", "--tag", "v2"): ["new"],
        ("--node", consul_agent.node_name): ["new", "old"],
        ("--node", "elsewhere"): [],
        ("--all-unhealthy",): ["old"],
        ("--all",): ["new", "old"],
    }
    for selector, ids in expected.items():
        assert _names(deregister(*words, *selector, "--dry-run", "--json").document["candidates"]) == ids, selector
        if selector != ("--all",):
            assert _names(registry_drain("list", *words, *selector, "--json").document["instances"]) == ids, selector
    [entry] = registry_drain("list", *words, "--tag", "v1", "--json").document["instances"]
    assert entry["node"] == consul_agent.node_name
    assert {check["status"] for check in entry["checks"] if check["is_own"]} == {"critical"}


def test_several_at_once(deregister: Run, consul_agent: ConsulAgent, unique: str) -> None:
    """Ghosts go with --yes, what is alive stays; a second run has nothing left to do."""
    for number in range(5):
        _plant(consul_agent, unique, f"ghost-{number}")
    _plant(consul_agent, unique, "alive", status="passing")
    words = (consul_agent.url, "--service", unique, "--all-unhealthy")
    ran = deregister(*words)
    assert ran.status == 2
    assert "ghost-4" in ran.out
    assert len(consul_agent.instances(unique)) == 6
    ran = deregister(*words, "--yes", "--max", "5", "--json", "--watch-back", "0.5")
    assert ran.status == 0
    assert {result["removal"]["outcome"] for result in ran.document["results"]} == {"confirmed"}
    assert _planted(consul_agent, unique) == {"alive"}
    assert deregister(*words, "--yes").status == 4


def test_the_last_healthy_one_takes_force(deregister: Run, consul_agent: ConsulAgent, unique: str) -> None:
    """Without a check of its own nobody knows whether it lives: what is known is that callers are sent there."""
    body = {"Name": unique, "ID": _id(unique, "unchecked"), "Address": "10.0.0.7", "Port": 9090}
    consul_agent.put("/v1/agent/service/register", body)
    words = (consul_agent.url, "--service", unique, "--id", _id(unique, "unchecked"))
    ran = deregister(*words)
    assert ran.status == 7
    assert f"'{unique}' would be left without a healthy instance" in ran.complaint
    assert _planted(consul_agent, unique) == {"unchecked"}
    assert deregister(*words, "--force").status == 0
    assert not consul_agent.instances(unique)


def test_out_of_rotation_and_back(registry_drain: Run, consul_agent: ConsulAgent, unique: str) -> None:
    """By maintenance mode, with the reason in it; callers that ask for what passes do without it."""
    for name in ("one", "two"):
        _plant(consul_agent, unique, name, status="passing")
    words = (consul_agent.url, "--service", unique, "--id")
    one, two = _id(unique, "one"), _id(unique, "two")
    ran = registry_drain("drain", *words, one, "--reason", "new disk")
    assert (ran.status, ran.err) == (0, "")
    assert _planted(consul_agent, unique, passing=True) == {"two"}
    assert _planted(consul_agent, unique) == {"one", "two"}
    [entry] = registry_drain("list", *words, one, "--json").document["instances"]
    assert entry["health"] == "maintenance"
    assert "new disk" in str(consul_agent.get(f"/v1/health/checks/{unique}"))
    assert registry_drain("drain", *words, two).status == 7
    assert registry_drain("undrain", *words, one).status == 0
    assert _planted(consul_agent, unique, passing=True) == {"one", "two"}


def test_critical_for(
    deregister: Run, consul_agent: ConsulAgent, unique: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A single look proves no time: it is not found, with what to do; looking for that long finds it."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    _plant(consul_agent, unique, "ghost")
    words = (consul_agent.url, "--service", unique, "--critical-for")
    ran = deregister(*words, "10m")
    assert ran.status == 4
    assert "--observe" in ran.complaint
    ran = deregister(*words, "1s", "--observe")
    assert ran.status == 0
    assert not consul_agent.instances(unique)


def test_through_the_agent_that_is_named(deregister: Run, consul_agent: ConsulAgent, unique: str) -> None:
    """--agent is asked to remove it; one that is not there, or is no address, is told."""
    _plant(consul_agent, unique, "ghost")
    words = (consul_agent.url, "--service", unique, "--id", _id(unique, "ghost"), "--agent")
    assert deregister(*words, "nonsense").status == 2
    assert _planted(consul_agent, unique) == {"ghost"}
    assert deregister(*words, consul_agent.http_address).status == 0
    assert not consul_agent.instances(unique)


def test_consuls_own_servers_are_not_meant(deregister: Run, consul_agent: ConsulAgent) -> None:
    """Whoever removes everything on a node does not mean the server that lists it."""
    words = (consul_agent.url, "--service", "consul", "--node", consul_agent.node_name)
    ran = deregister(*words)
    assert ran.status == 7
    assert "belongs to Consul, which puts it back" in ran.complaint
    assert set(consul_agent.instances("consul")) == {"consul"}
