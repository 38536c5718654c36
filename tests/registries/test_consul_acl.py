"""Tokens on a real Consul that denies by default: never shown, rotated, revoked, too weak."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry_drain.errors import PermissionRefusedError
from registry_drain.registries.base import RemovalOutcome
from registry_drain.registries.consul import watch as consul_watch
from registry_drain.registries.consul.registration import removing
from tests.conftest import NewConsulAgent
from tests.registries.consul_tools import FAST, Members, instance, never, soon
from tests.support.consul_process import ConsulAgent
from tests.support.processes import eventually
from tests.support.tcp_proxy import TcpProxy

DOCUMENTED = 'service "{name}" {{ policy = "write" }} node_prefix "" {{ policy = "read" }}'
"""The policy that docs/consul.md names for a service that registers itself."""
BLIND = 'service "{name}" {{ policy = "write" }}'
READER = 'service_prefix "" { policy = "read" } node_prefix "" { policy = "read" }'


@pytest.fixture(scope="module")
def acl_agent(consul_agent: ConsulAgent, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsulAgent]:
    """Give one agent with ACLs to the whole file; ``consul_agent`` decides what happens where there is no Consul."""
    del consul_agent
    with ConsulAgent(tmp_path_factory.mktemp("acl"), acl=True) as agent:
        yield agent


def test_the_documented_policy_is_enough(acl_agent: ConsulAgent, unique: str) -> None:
    """Register, renew, list, watch and a proven removal need exactly the policy that the documentation names."""
    token = acl_agent.create_token(DOCUMENTED.format(name=unique))
    with Members() as members:
        registration = members.registered(acl_agent.url + FAST, instance(unique), token)
        registry = members.registry(acl_agent.url, token)
        assert [entry.id for entry in registry.entries(unique, soon())] == ["one"]
        watch = registry.watch(unique, soon())
        assert len(watch.instances) == 1
        never(lambda: not acl_agent.instances(unique, passing=True), 1.2)
        removal = registration.on_shutdown(soon())
        assert removal.outcome is RemovalOutcome.CONFIRMED, removal
        eventually(lambda: not watch.instances, because="the watch shows it")
        assert registry.entries(unique, soon()) == []


def test_the_token_is_in_a_header_and_nowhere_else(
    acl_agent: ConsulAgent, unique: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Every request carries the token as a header; no URL, log line, exception, repr, report or output shows it."""
    token = acl_agent.create_token(DOCUMENTED.format(name=unique))
    shown: list[object] = []
    caplog.set_level(logging.DEBUG)
    with TcpProxy(acl_agent.http_address) as link, Members() as members:
        url = f"consul://{link.address}{FAST}"
        registry = members.registry(url, token)
        registration = members.registered(url, instance(unique), token)
        watch = registry.watch(unique, soon())
        (entry,) = registry.entries(unique, soon())
        with pytest.raises(PermissionRefusedError) as refused:
            members.new(url, instance(f"not-{unique}"), token).register(soon())
        link.black_hole()
        with pytest.raises(Exception, match="no answer") as timed_out:
            registry.entries(unique, soon(4))
        shown.append(registration.on_shutdown(soon(0.3)))
        link.pass_through()
        shown += [registration.on_shutdown(soon()), registry, registration, watch, entry, registry.url]
        for caught in (refused, timed_out):
            shown += [caught.value, *traceback.format_exception(caught.value)]
        recorded = link.recorded
    for thing in [*shown, caplog.text, *capfd.readouterr()]:
        assert token not in f"{thing} {thing!r}"
    heads = [line for line in recorded.split(b"\r\n") if b"HTTP/1.1" in line or b"Token" in line]
    asked = [line for line in heads if line.endswith(b"HTTP/1.1")]
    sent = [line for line in heads if b"Token" in line]
    assert len(asked) > 5
    assert not any(token.encode() in line for line in asked)
    assert len(sent) == len(asked), "a request without a token"
    assert set(sent) == {b"X-Consul-Token: " + token.encode()}
    assert recorded.count(token.encode()) == len(sent)


@pytest.mark.parametrize("source", ["option", "CONSUL_HTTP_TOKEN_FILE", "CONSUL_HTTP_TOKEN"])
def test_where_the_token_comes_from(
    acl_agent: ConsulAgent, unique: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    """A token of a file or of the environment is used; without one the agent refuses."""
    for name in ("CONSUL_HTTP_TOKEN_FILE", "CONSUL_HTTP_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / "token"
    file.write_text(acl_agent.create_token(DOCUMENTED.format(name=unique)) + "\n")
    url = acl_agent.url + FAST
    with Members() as members:
        with pytest.raises(PermissionRefusedError):
            members.new(url, instance(unique)).register(soon())
        if source == "option":
            url += f"&token_file={file}"
        else:
            monkeypatch.setenv(source, str(file) if source.endswith("FILE") else file.read_text().strip())
        assert members.registered(url, instance(unique)).on_shutdown(soon()).outcome is RemovalOutcome.CONFIRMED


def test_a_rotated_token_is_taken_up(
    acl_agent: ConsulAgent, unique: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file gets a new token and the old one is revoked: heartbeats go on, and the removal is proven."""
    monkeypatch.setattr(removing, "_FIRST_PATIENCE", 10.0)  # a slow agent is no second attempt
    rules = DOCUMENTED.format(name=unique)
    old, new = acl_agent.create_token(rules), acl_agent.create_token(rules)
    file = tmp_path / "token"
    file.write_text(old)
    with Members() as members:
        registration = members.registered(f"{acl_agent.url}{FAST}&token_file={file}", instance(unique))
        replacement = tmp_path / "new"
        replacement.write_text(new)
        replacement.replace(file)
        eventually(lambda: registration._taken._token == new, because="a heartbeat tells the agent the new token")
        acl_agent.revoke_token(old)
        never(lambda: not acl_agent.instances(unique, passing=True), 1.5)
        removal = registration.on_shutdown(soon())
        assert removal.outcome is RemovalOutcome.CONFIRMED, removal
        assert removal.attempts == 1


def test_a_rotated_token_leaves_it_out_of_rotation(acl_agent: ConsulAgent, unique: str, tmp_path: Path) -> None:
    """An operator has put a live instance into maintenance mode: telling the agent a new token does not end that."""
    rules = DOCUMENTED.format(name=unique)
    old, new = acl_agent.create_token(rules), acl_agent.create_token(rules)
    file = tmp_path / "token"
    file.write_text(old)
    with Members() as members:
        registration = members.registered(f"{acl_agent.url}{FAST}&token_file={file}", instance(unique))
        operator = members.registry(acl_agent.url, acl_agent.token)
        (entry,) = operator.entries(unique, soon())
        assert operator.drain(entry, soon(), reason="new disk").is_out
        file.write_text(new)
        eventually(lambda: registration._taken._token == new, because="a heartbeat tells the agent the new token")
        acl_agent.revoke_token(old)
        never(lambda: acl_agent.instances(unique, passing=True), 1.0)
        removal = registration.on_shutdown(soon())
        assert removal.outcome is RemovalOutcome.CONFIRMED, removal


def test_a_rotated_token_resurrects_nobody(acl_agent: ConsulAgent, unique: str, tmp_path: Path) -> None:
    """An instance that gave way to its successor does not register again because its token changed."""
    rules = DOCUMENTED.format(name=unique)
    file = tmp_path / "token"
    file.write_text(acl_agent.create_token(rules))
    with Members() as members:
        old = members.registered(f"{acl_agent.url}{FAST}&token_file={file}", instance(unique))
        new = members.registered(acl_agent.url + FAST, instance(unique), acl_agent.token)
        eventually(lambda: not old.is_registered, because="the predecessor gives way")
        file.write_text(acl_agent.create_token(rules))
        never(lambda: set(acl_agent.instances(unique)) != {new.consul_id}, 1.5)


def test_a_token_revoked_before_its_successor_was_used(acl_agent: ConsulAgent, unique: str, tmp_path: Path) -> None:
    """The agent holds a revoked token, cannot sync, and says 200: the catalog is told with the new one instead."""
    rules = DOCUMENTED.format(name=unique)
    old, new = acl_agent.create_token(rules), acl_agent.create_token(rules)
    file = tmp_path / "token"
    file.write_text(old)
    with Members() as members:
        registration = members.registered(f"{acl_agent.url}?ttl_s=60&token_file={file}", instance(unique))
        acl_agent.revoke_token(old)
        file.write_text(new)
        removal = registration.on_shutdown(soon())
        assert removal.outcome is RemovalOutcome.CONFIRMED, removal
        assert not acl_agent.instances(unique)


def test_a_revoked_token_is_refused(acl_agent: ConsulAgent, unique: str) -> None:
    """With nothing but a revoked token the outcome is REFUSED, at once; an operator with a token then removes it.

    The check goes critical, but the agent has no valid token to tell the servers so: nothing expires.
    """
    token = acl_agent.create_token(DOCUMENTED.format(name=unique))
    with Members() as members:
        registration = members.registered(f"{acl_agent.url}?ttl_s=2", instance(unique), token)
        acl_agent.revoke_token(token)
        began = time.monotonic()
        removal = registration.on_shutdown(soon(20))
        assert removal.outcome is RemovalOutcome.REFUSED, removal
        assert time.monotonic() - began < 15, "retried what no retry can help"
        assert "ACL not found" in removal.detail
        assert "may stay in the callers' lists" in removal.detail
        assert acl_agent.instances(unique)
        operator = members.registry(acl_agent.url, acl_agent.token)
        (entry,) = operator.entries(unique, soon())
        removal = operator.remove(entry, soon(), force=True)
        assert removal.outcome is RemovalOutcome.CONFIRMED, removal
        assert not acl_agent.instances(unique)


def test_heartbeats_survive_a_policy_that_was_taken_away(
    acl_agent: ConsulAgent, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A token that is refused for a while is logged once, and renewing goes on when it works again."""
    caplog.set_level(logging.INFO, "registry_drain")
    token = acl_agent.create_token(DOCUMENTED.format(name=unique))
    itself = acl_agent.request("GET", "/v1/acl/token/self", token=token).json()
    with Members() as members:
        members.registered(acl_agent.url + FAST, instance(unique), token)
        acl_agent.put(f"/v1/acl/token/{itself['AccessorID']}", {**itself, "Policies": []})
        eventually(lambda: "heartbeat failed" in caplog.text, because="it is logged")
        acl_agent.put(f"/v1/acl/token/{itself['AccessorID']}", itself)
        eventually(lambda: "heartbeat works again" in caplog.text, timeout=40, because="it is renewed again")
        assert acl_agent.instances(unique, passing=True)


def test_a_blind_token_cannot_prove_the_removal(
    acl_agent: ConsulAgent, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    """With service:write and no node:read every list is empty: the removal works, and is called unverifiable."""
    token = acl_agent.create_token(BLIND.format(name=unique))
    acl_agent.put("/v1/agent/service/register", {"ID": f"{unique}-other", "Name": unique, "Port": 1})
    with Members() as members:
        registration = members.registered(acl_agent.url + FAST, instance(unique), token)
        assert registration.is_registered
        assert "nothing can prove it" in caplog.text
        removal = registration.on_shutdown(soon())
        assert removal.outcome is RemovalOutcome.UNVERIFIABLE, removal
        assert not removal.is_gone
        assert removal.confirmed_at is None
        assert "node_prefix" in removal.detail
        assert set(acl_agent.instances(unique)) == {f"{unique}-other"}
    acl_agent.put(f"/v1/agent/service/deregister/{unique}-other")


def test_a_token_that_went_blind_cannot_prove_the_removal(acl_agent: ConsulAgent, unique: str) -> None:
    """The policy lost node:read after the registration: having seen it once is no proof any more."""
    token = acl_agent.create_token(DOCUMENTED.format(name=unique))
    blind = acl_agent.create_token(BLIND.format(name=unique))
    itself, weaker = (acl_agent.request("GET", "/v1/acl/token/self", token=each).json() for each in (token, blind))
    acl_agent.put("/v1/agent/service/register", {"ID": f"{unique}-other", "Name": unique, "Port": 1})
    with Members() as members:
        registration = members.registered(f"{acl_agent.url}?ttl_s=60", instance(unique), token)
        acl_agent.put(f"/v1/acl/token/{itself['AccessorID']}", {**itself, "Policies": weaker["Policies"]})
        registry = members.registry(acl_agent.url, token)

        def is_blind() -> bool:
            try:
                registry.entries(unique, soon())
            except PermissionRefusedError:
                return True
            return False

        eventually(is_blind, because="the agent knows the new policy")
        removal = registration.on_shutdown(soon())
        assert removal.outcome is RemovalOutcome.UNVERIFIABLE, removal
    acl_agent.put(f"/v1/agent/service/deregister/{unique}-other")


@pytest.mark.parametrize(
    "rules", [BLIND, 'node_prefix "" {{ policy = "read" }}', 'key "unrelated" {{ policy = "read" }}', ""]
)
def test_an_empty_list_of_a_weak_token_is_refused(acl_agent: ConsulAgent, unique: str, rules: str) -> None:
    """A token without service:read or node:read gets an error instead of Consul's empty list; so do watch and all."""
    token = acl_agent.create_token(rules.format(name=unique)) if rules else ""
    with Members() as members:
        members.registered(acl_agent.url, instance(unique), acl_agent.token)
        registry = members.registry(acl_agent.url, token)
        for service in (unique, None):
            with pytest.raises(PermissionRefusedError, match=r"service:read|node:read|Permission denied"):
                registry.entries(service, soon())
        with pytest.raises(PermissionRefusedError):
            registry.watch(unique, soon())
        with pytest.raises(PermissionRefusedError):
            registry.remove(members.registry(acl_agent.url, acl_agent.token).entries(unique, soon())[0], soon())


@pytest.mark.parametrize("left", [BLIND, 'key "unrelated" {{ policy = "read" }}'])
def test_a_watch_whose_token_went_blind_keeps_its_list(
    acl_agent: ConsulAgent, unique: str, left: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Consul says that the service has no instances any more; callers go on calling those that they know."""
    monkeypatch.setattr(consul_watch, "WAIT", 0.5)
    token, weaker = (acl_agent.create_token(rules.format(name=unique)) for rules in (DOCUMENTED, left))
    itself, other = (acl_agent.request("GET", "/v1/acl/token/self", token=each).json() for each in (token, weaker))
    with Members() as members:
        registration = members.registered(acl_agent.url, instance(unique), acl_agent.token)
        following = members.registry(acl_agent.url, token).watch(unique, soon())
        assert len(following.instances) == 1
        acl_agent.put(f"/v1/acl/token/{itself['AccessorID']}", {**itself, "Policies": other["Policies"]})
        eventually(lambda: "the list stays as it was" in caplog.text, timeout=40, because="it is logged")
        never(lambda: len(following.instances) != 1, 1.0)
        acl_agent.put(f"/v1/acl/token/{itself['AccessorID']}", itself)
        assert registration.on_shutdown(soon()).is_gone
        eventually(lambda: not following.instances, timeout=40, because="the right is back, and the list is the truth")


def test_a_reader_may_list_and_not_remove(acl_agent: ConsulAgent, unique: str) -> None:
    """A token that may read everything lists a service that is there and one that is not, and is refused a removal."""
    token = acl_agent.create_token(READER)
    with Members() as members:
        members.registered(acl_agent.url, instance(unique), acl_agent.token)
        registry = members.registry(acl_agent.url, token)
        (entry,) = registry.entries(unique, soon())
        assert registry.entries(f"no-{unique}", soon()) == []
        assert unique in {each.service for each in registry.entries(None, soon())}
        outcome: object
        try:
            outcome = registry.remove(entry, soon(), force=True).outcome
        except PermissionRefusedError:
            outcome = RemovalOutcome.REFUSED
        assert outcome is RemovalOutcome.REFUSED
        assert acl_agent.instances(unique)


def test_a_register_without_permission_leaves_nothing(acl_agent: ConsulAgent, unique: str) -> None:
    """Without service:write register raises, and on_shutdown has nothing to hide."""
    token = acl_agent.create_token(READER)
    with Members() as members:
        registration = members.new(acl_agent.url, instance(unique), token)
        with pytest.raises(PermissionRefusedError, match="service:write"):
            registration.register(soon())
        assert not registration.is_registered
        assert registration.on_shutdown(soon()).is_gone


def test_an_agent_of_its_own_with_acl(new_consul_agent: NewConsulAgent, unique: str) -> None:
    """After a restart that forgot tokens and services, heartbeats are refused and the stop still ends in time."""
    agent = new_consul_agent(acl=True)
    token = agent.create_token(DOCUMENTED.format(name=unique))
    with Members() as members:
        registration = members.registered(agent.url + FAST, instance(unique), token)
        agent.restart(kill=True)
        removal = registration.on_shutdown(soon(20))
        assert removal.outcome is RemovalOutcome.REFUSED, removal
