"""The least ACL policy of each command, on a real Consul that denies by default.

With exactly the documented policy the command works. With any rule of it missing, or reading where it should write, the
command is refused: status 7, at once, one line, and nothing has changed.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from registry_drain.cli.command.exit_status import ExitStatus
from registry_drain.cli.main import main
from registry_drain.errors import PermissionRefusedError
from registry_drain.registries.base import RemovalOutcome
from tests.registries.consul_tools import Liar, Lie, Members, entry_of, put_ghost, put_service, soon
from tests.support.consul_process import ConsulAgent, ConsulCluster
from tests.support.processes import eventually

PAGE = Path(__file__).parents[2] / "docs" / "consul.md"
NODES = 'node_prefix "" { policy = "read" }'


@dataclass(frozen=True)
class Command:
    """One command, and what it needs.

    Attributes:
        words: NAME stands for the service's name.
        rules: its policy, as documented for a service ``calculator``; NODE stands for the node's name.
        plant: makes the instance ``x`` that it works on.
    """

    words: Sequence[str]
    rules: Sequence[str]
    plant: Callable[[ConsulAgent, str], None]


def node_of(service: str) -> str:
    """Return the name of a node without an agent for a test."""
    return f"ghost-{service[-8:]}"


def on_the_agent(agent: ConsulAgent, service: str) -> None:
    """Our agent owns it; nothing listens at its address."""
    put_service(agent, service, f"{service}-x", Address="127.0.0.1", Port=1)


def drained(agent: ConsulAgent, service: str) -> None:
    """Our agent owns it, and it is in maintenance mode."""
    on_the_agent(agent, service)
    agent.put(f"/v1/agent/service/maintenance/{service}-x?enable=true")


def in_the_catalog(agent: ConsulAgent, service: str) -> None:
    """It is a ghost, and no agent knows it."""
    put_ghost(agent, service, f"{service}-x", node_of(service))


def with_a_check_of_its_node(agent: ConsulAgent, service: str) -> None:
    """It is a ghost, and a check that is named for it belongs to the whole node."""
    in_the_catalog(agent, service)
    check = {"CheckID": f"{service}-x", "Name": "n", "Status": "passing"}
    agent.put("/v1/catalog/register", {"Node": node_of(service), "Address": "192.0.2.9", "Check": check})


def with_a_sidecar(agent: ConsulAgent, service: str) -> None:
    """It is a ghost with a sidecar proxy."""
    in_the_catalog(agent, service)
    proxy = {"DestinationServiceName": service, "DestinationServiceID": f"{service}-x"}
    what = {"ID": f"{service}-p", "Service": f"{service}-sidecar-proxy", "Port": 81, "Kind": "connect-proxy"}
    body = {"Node": node_of(service), "Address": "192.0.2.9", "Service": {**what, "Proxy": proxy}}
    agent.put("/v1/catalog/register", body)


WRITE = 'service "calculator" { policy = "write" }'
READ = 'service "calculator" { policy = "read" }'
DEREGISTER = ("deregister", "URL", "--service", "NAME", "--id", "NAME-x", "--force")
COMMANDS = {
    "list-one": Command(("list", "URL", "--service", "NAME"), (READ, NODES), on_the_agent),
    "list-all": Command(("list", "URL"), ('service_prefix "" { policy = "read" }', NODES), on_the_agent),
    "deregister-agent": Command(DEREGISTER, (WRITE, NODES), on_the_agent),
    "deregister-catalog": Command(DEREGISTER, (WRITE, NODES), in_the_catalog),
    "deregister-node-check": Command(DEREGISTER, (WRITE, 'node "NODE" { policy = "write" }'), with_a_check_of_its_node),
    "deregister-sidecar": Command(
        DEREGISTER, ('service_prefix "calculator" { policy = "write" }', NODES), with_a_sidecar
    ),
    "drain": Command(("drain", "URL", "--service", "NAME", "--id", "NAME-x", "--force"), (WRITE, NODES), on_the_agent),
    "undrain": Command(("undrain", "URL", "--service", "NAME", "--id", "NAME-x"), (WRITE, NODES), drained),
    "sweep": Command(
        ("sweep", "URL", "--service", "NAME", "--unreachable", "--tries", "1", "--loopback", "--yes", "--force"),
        (WRITE, NODES),
        on_the_agent,
    ),
    "sweep-all": Command(
        ("sweep", "URL", "--unreachable", "--tries", "1", "--loopback", "--yes", "--force"),
        ('service_prefix "" { policy = "write" }', NODES),
        on_the_agent,
    ),
}


def weaker(rules: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Give every policy with one rule less, or with one that reads where it should write."""
    for place, rule in enumerate(rules):
        without = (*rules[:place], *rules[place + 1 :])
        yield without
        if "write" in rule:
            yield (*without, rule.replace("write", "read"))


VARIANTS = [(name, None) for name in COMMANDS] + [
    (name, number) for name, each in COMMANDS.items() for number, _ in enumerate(weaker(each.rules))
]


@pytest.fixture(scope="module")
def acl_agent(consul_agent: ConsulAgent, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsulAgent]:
    """Give one agent with ACLs to the whole file; ``consul_agent`` decides what happens where there is no Consul."""
    del consul_agent
    with ConsulAgent(tmp_path_factory.mktemp("acl"), acl=True) as agent:
        yield agent


def policy(rules: Sequence[str], service: str) -> str:
    """Return the documented rules for the names of this test; with none, one that is of no use."""
    text = "\n".join(rules) or 'key "unrelated" { policy = "read" }'
    return text.replace("calculator", service).replace("NODE", node_of(service))


def state(agent: ConsulAgent, service: str) -> object:
    """Return all that a command could have changed."""
    node = agent.get(f"/v1/health/node/{node_of(service)}?consistent")
    sidecars = agent.instances(f"{service}-sidecar-proxy")
    return json.dumps([agent.instances(service), sidecars, node], sort_keys=True)


@pytest.mark.parametrize(("name", "number"), VARIANTS)
def test_the_least_policy(
    acl_agent: ConsulAgent,
    unique: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    number: int | None,
) -> None:
    """Status 0 with the documented policy, 7 with any weaker one."""
    command = COMMANDS[name]
    rules = command.rules if number is None else list(weaker(command.rules))[number]
    command.plant(acl_agent, unique)
    before = state(acl_agent, unique)
    file = tmp_path / "token"
    file.write_text(acl_agent.create_token(policy(rules, unique)))
    url = f"{acl_agent.url}?token_file={file}"
    began_at = time.monotonic()
    status = main([word.replace("URL", url).replace("NAME", unique) for word in (*command.words, "--timeout", "60")])
    took = time.monotonic() - began_at
    said = capsys.readouterr()
    if number is None:
        assert status == ExitStatus.DONE, said
        if name.startswith(("deregister", "sweep")):
            assert not acl_agent.instances(unique)
            assert not acl_agent.instances(f"{unique}-sidecar-proxy")
            assert not acl_agent.get(f"/v1/health/node/{node_of(unique)}?consistent")
    else:
        assert status == ExitStatus.REFUSED, (rules, said)
        assert took < 30, "it waited for what no waiting helps"
        assert re.search("Permission denied|needs (node|service):|the token (may not|needs)", said.err), said.err
        assert state(acl_agent, unique) == before
        if 'node "NODE" { policy = "read" }' in rules:
            assert f"the token needs service:write on {unique} and node:write on {node_of(unique)}" in said.err
    assert file.read_text() not in said.out + said.err
    acl_agent.request("PUT", f"/v1/agent/service/deregister/{unique}-x")
    acl_agent.put("/v1/catalog/deregister", {"Node": node_of(unique)})


@pytest.mark.parametrize("rule", sorted({rule for command in COMMANDS.values() for rule in command.rules}))
def test_each_rule_is_documented(rule: str) -> None:
    """The page names the very rules that are tried here."""
    assert rule.replace("NODE", "host-1") in PAGE.read_text(encoding="utf-8")


def test_another_agent_needs_agent_read(
    consul_agent: ConsulAgent, tmp_path_factory: pytest.TempPathFactory, unique: str
) -> None:
    """An id of several nodes, through the agent that was named: it must say its node, which takes agent:read."""
    del consul_agent
    with ConsulCluster(tmp_path_factory.mktemp("acl-cluster"), agents=1, acl=True) as cluster:
        (owner,) = cluster.agents
        for agent in (owner, cluster.server):
            put_service(agent, unique, "twin")
        rules = [WRITE, NODES, 'agent_prefix "" { policy = "read" }']
        url = f"{cluster.server.url}?agent={owner.http_address}"
        with Members() as members:
            weak = members.registry(url, cluster.server.create_token(policy(rules[:2], unique)))
            (entry,) = [each for each in weak.entries(unique, soon()) if each.node == owner.node_name]
            with pytest.raises(PermissionRefusedError, match="agent_prefix"):
                weak.remove(entry, soon())
            assert "twin" in owner.get("/v1/agent/services")
            token = cluster.server.create_token(policy(rules, unique))
            eventually(
                lambda: owner.request("GET", "/v1/agent/self", token=token).status == 200, because="it knows the token"
            )
            strong = members.registry(url, token)
            removal = strong.remove(entry, soon())
            assert removal.outcome is RemovalOutcome.CONFIRMED, removal
        assert "twin" not in owner.get("/v1/agent/services")
        assert "twin" in cluster.server.get("/v1/agent/services")


def test_sight_that_is_lost_on_the_way(acl_agent: ConsulAgent, unique: str) -> None:
    """The policy loses node:read between the removal and the proof: the empty list is not taken for one."""
    put_service(acl_agent, unique, f"{unique}-x")
    put_service(acl_agent, unique, f"{unique}-y")
    token = acl_agent.create_token(policy((WRITE, NODES), unique))
    blind = acl_agent.create_token(policy((WRITE,), unique))
    itself, weaker_one = (acl_agent.request("GET", "/v1/acl/token/self", token=each).json() for each in (token, blind))

    def loses_sight(method: str, path: str) -> Lie | None:
        if method == "PUT" and path.endswith(f"/deregister/{unique}-x"):
            accessor = itself["AccessorID"]
            acl_agent.put(f"/v1/acl/token/{accessor}", {**itself, "Policies": weaker_one["Policies"]})
            look = f"/v1/health/service/{unique}?consistent"
            eventually(lambda: acl_agent.request("GET", look, token=token).json() == [], because="it is blind now")
        return None

    with Liar(acl_agent, loses_sight) as front, Members() as members:
        registry = members.registry(f"consul://{front.address}", token)
        (entry,) = [each for each in registry.entries(unique, soon()) if each.id.endswith("-x")]
        removal = registry.remove(entry, soon())
    assert removal.outcome is RemovalOutcome.UNVERIFIABLE, removal
    assert "node_prefix" in removal.detail
    assert removal.confirmed_at is None
    acl_agent.put(f"/v1/agent/service/deregister/{unique}-y")


def test_a_token_that_is_revoked_before_anything_is_sent(acl_agent: ConsulAgent, unique: str) -> None:
    """It is refused, and entry_of of another token still finds the instance."""
    put_service(acl_agent, unique, f"{unique}-x")
    token = acl_agent.create_token(policy((WRITE, NODES), unique))
    with Members() as members:
        registry = members.registry(acl_agent.url, token)
        entry = entry_of(registry, unique)
        acl_agent.revoke_token(token)
        for act in (registry.remove, registry.drain, registry.undrain):
            with pytest.raises(PermissionRefusedError, match="ACL not found"):
                act(entry, soon())
    assert acl_agent.instances(unique, passing=True)
    acl_agent.put(f"/v1/agent/service/deregister/{unique}-x")
