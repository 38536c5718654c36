"""A Consul that is frozen, killed, cut off, slow, or lying: calls end by their deadlines, and nothing false is said."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from registry_drain.errors import (
    PermissionRefusedError,
    RegistryDataError,
    RegistryDrainError,
    RegistryError,
    RegistryTimeoutError,
    RegistryUnavailableError,
)
from registry_drain.registries.base import Removal, RemovalOutcome
from registry_drain.registries.consul.registration import removing
from tests.conftest import NewConsulAgent, NewConsulCluster
from tests.registries.consul_tools import Liar, Lie, Members, dripping, instance, never, soon
from tests.support.consul_process import ConsulAgent
from tests.support.processes import eventually
from tests.support.tcp_proxy import TcpProxy

# The machine may stall for seconds. What ignored its deadline would take the 60 s that a request may.
SLACK = 4.0


def timed_stop(stop: Callable[[], Removal], within: float) -> Removal:
    """Return what ``stop`` returns; fail if it takes longer than ``within`` seconds and the slack."""
    began = time.monotonic()
    removal = stop()
    took = time.monotonic() - began
    assert took < within + SLACK, f"took {took:.2f} s of {within} s: {removal}"
    return removal


@pytest.mark.parametrize("fault", ["freeze", "kill"])
def test_agent_out_of_order_during_the_stop(new_consul_agent: NewConsulAgent, unique: str, fault: str) -> None:
    """A frozen or killed agent: on_shutdown ends by its deadline, unconfirmed, and says what is left until when."""
    agent = new_consul_agent()
    with Members() as members:
        registration = members.registered(f"{agent.url}?ttl_s=1&timeout_s=60", instance(unique))
        getattr(agent, fault)()
        removal = timed_stop(lambda: registration.on_shutdown(soon(1.5)), 1.5)
        assert removal.outcome is RemovalOutcome.UNCONFIRMED, removal
        assert not removal.is_gone
        assert removal.confirmed_at is None
        assert "leaves the callers' lists within 1 s" in removal.detail
        assert "\n" not in removal.detail


def test_a_frozen_agent_that_thaws_after_the_stop(new_consul_agent: NewConsulAgent, unique: str) -> None:
    """What a frozen agent had been sent takes effect later: the instance goes, and never comes back."""
    agent = new_consul_agent()
    with Members() as members:
        registration = members.registered(f"{agent.url}?ttl_s=1", instance(unique))
        agent.freeze()
        assert registration.on_shutdown(soon(4)).outcome is RemovalOutcome.UNCONFIRMED
        agent.thaw()
        eventually(lambda: not agent.instances(unique, passing=True), timeout=40, because="it leaves the lists")
        never(lambda: agent.instances(unique, passing=True), 1.0)


def _refuse(link: TcpProxy) -> None:
    link.refuse()
    link.drop_connections()


LINK_FAULTS: dict[str, Callable[[TcpProxy], None]] = {
    "black hole": TcpProxy.black_hole,
    "stalled": TcpProxy.stall,
    "refusing": _refuse,
    "resetting": TcpProxy.reset,
    "late answers": lambda link: link.delay_answers(30),
}


@pytest.mark.parametrize("fault", LINK_FAULTS)
def test_link_out_of_order_during_the_stop(consul_agent: ConsulAgent, unique: str, fault: str) -> None:
    """Whatever the link does, on_shutdown ends by its deadline, unconfirmed; a request's own limit is longer."""
    with TcpProxy(consul_agent.http_address) as link, Members() as members:
        registration = members.registered(f"consul://{link.address}?ttl_s=5&timeout_s=60", instance(unique))
        LINK_FAULTS[fault](link)
        removal = timed_stop(lambda: registration.on_shutdown(soon(1.5)), 1.5)
        assert removal.outcome is RemovalOutcome.UNCONFIRMED, removal
        link.pass_through()
        assert registration.on_shutdown(soon()).is_gone


@pytest.mark.parametrize("fault", LINK_FAULTS)
def test_link_out_of_order_before_registering(consul_agent: ConsulAgent, unique: str, fault: str) -> None:
    """Registering, listing, watching over a broken link end by their deadlines with a retryable error."""
    with TcpProxy(consul_agent.http_address) as link, Members() as members:
        url = f"consul://{link.address}?timeout_s=60"
        LINK_FAULTS[fault](link)
        registry, registration = members.registry(url), members.new(url, instance(unique))
        calls: dict[str, Callable[[], object]] = {
            "register": lambda: registration.register(soon(0.7)),
            "entries": lambda: registry.entries(unique, soon(0.7)),
            "watch": lambda: registry.watch(unique, soon(0.7)),
        }
        for name, call in calls.items():
            began = time.monotonic()
            with pytest.raises(RegistryUnavailableError):
                call()
            assert time.monotonic() - began < 0.7 + SLACK, name
        link.pass_through()
        registration.on_shutdown(soon())


def test_a_blip_during_the_stop_is_survived(consul_agent: ConsulAgent, unique: str) -> None:
    """A connection that the other side closed since the last heartbeat costs an attempt, not the proof."""
    with TcpProxy(consul_agent.http_address) as link, Members() as members:
        registration = members.registered(f"consul://{link.address}?ttl_s=60", instance(unique))
        link.drop_connections()
        removal = registration.on_shutdown(soon())
        assert removal.outcome is RemovalOutcome.CONFIRMED, removal


@pytest.mark.parametrize("pause", [0.05, 1.0])
def test_an_answer_that_drips_ends_by_the_deadline(pause: float) -> None:
    """Bytes that arrive one at a time, quickly or slowly, do not stretch a call beyond its deadline."""
    with dripping(pause) as address, Members() as members:
        registry = members.registry(f"consul://{address}?timeout_s=60")
        began = time.monotonic()
        with pytest.raises(RegistryTimeoutError):
            registry.entries("any", soon(1.2))
        assert time.monotonic() - began < 1.2 + SLACK


def test_servers_out_of_reach(new_consul_cluster: NewConsulCluster, unique: str) -> None:
    """The agent lives and its servers are frozen: its acknowledgement (after seconds) is not taken for a proof."""
    cluster = new_consul_cluster()
    (agent,) = cluster.agents
    with Members() as members:
        registration = members.registered(f"{agent.url}?ttl_s=5&timeout_s=60", instance(unique))
        cluster.server.freeze()
        removal = timed_stop(lambda: registration.on_shutdown(soon(3)), 3)
        assert removal.outcome is RemovalOutcome.UNCONFIRMED, removal
        cluster.server.thaw()
        # The agent has dropped it, and tells the servers when it can.
        eventually(lambda: not cluster.server.instances(unique), timeout=60, because="the agent syncs the removal")


def test_servers_killed(new_consul_cluster: NewConsulCluster, unique: str) -> None:
    """The agent lives and its servers are dead: it answers 200 at once, and the outcome is unconfirmed all the same."""
    cluster = new_consul_cluster()
    (agent,) = cluster.agents
    with Members() as members:
        registration = members.registered(f"{agent.url}?ttl_s=5&timeout_s=60", instance(unique))
        cluster.server.kill()
        removal = timed_stop(lambda: registration.on_shutdown(soon(2)), 2)
        assert removal.outcome is RemovalOutcome.UNCONFIRMED, removal


def answering(status: int, body: bytes, *parts: str) -> Callable[[str, str], Lie | None]:
    """Return a lie: this answer to every ``METHOD path`` that holds one of ``parts``."""
    return lambda method, path: (status, body) if any(part in f"{method} {path}" for part in parts) else None


def test_an_acknowledgement_without_effect(consul_agent: ConsulAgent, unique: str) -> None:
    """Every removal is answered with 200 and not done: the consistent read tells, and the outcome is unconfirmed."""
    lie = answering(200, b"true", "PUT /v1/agent/service/deregister", "PUT /v1/catalog/deregister", "PUT /v1/txn")
    with Liar(consul_agent, lie) as liar, Members() as members:
        url = f"consul://{liar.address}?ttl_s=60&timeout_s=60"
        registration = members.registered(url, instance(unique))
        removal = timed_stop(lambda: registration.on_shutdown(soon(5)), 5)
        assert removal.outcome is RemovalOutcome.UNCONFIRMED, removal
        assert "still listed" in removal.detail
        assert removal.attempts > 1
        operator = members.registry(url)
        (entry,) = operator.entries(unique, soon())
        removal = timed_stop(lambda: operator.remove(entry, soon(4), force=True), 4)
        assert removal.outcome is RemovalOutcome.UNCONFIRMED, removal
        assert consul_agent.instances(unique)
        consul_agent.put(f"/v1/agent/service/deregister/{registration.consul_id}")


def test_an_agent_that_waits_for_a_server_that_hangs_is_passed_by(
    consul_agent: ConsulAgent, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frozen leader, and a new one: the agent answers no deregistration, and what the catalog lists is removed."""
    monkeypatch.setattr(removing, "_FIRST_PATIENCE", 4.0)  # one attempt, though the other answers may be slow
    thawed = threading.Event()

    def lie(method: str, path: str) -> Lie | None:
        if method == "PUT" and "/agent/service/deregister/" in path:
            thawed.wait(30)
        return None

    with Liar(consul_agent, lie) as liar, Members() as members:
        registration = members.registered(f"consul://{liar.address}?ttl_s=15", instance(unique))
        try:
            removal = registration.on_shutdown(soon(20))
            assert removal.outcome is RemovalOutcome.CONFIRMED, removal
            assert removal.attempts == 1
            assert "its agent was told" in removal.detail
            assert not consul_agent.instances(unique)
        finally:
            thawed.set()
        eventually(lambda: registration.consul_id not in consul_agent.get("/v1/agent/services"), because="it was told")


@pytest.mark.parametrize("token", [None, "9f2a7d3c-5c1e-4d1b-9f2a-0c0ffee00002"])
def test_without_a_leader_the_agent_is_told_all_the_same(
    consul_agent: ConsulAgent, unique: str, token: str | None
) -> None:
    """Nothing can be proven, and the agent, which carries on when we are gone, does not keep the instance."""
    has_leader = threading.Event()
    has_leader.set()

    def lie(method: str, path: str) -> Lie | None:
        is_read = method == "GET" and ("/health/service/" in path or "/catalog/" in path)
        return (500, b"No cluster leader") if is_read and not has_leader.is_set() else None

    with Liar(consul_agent, lie) as liar, Members() as members:
        registration = members.registered(f"consul://{liar.address}?ttl_s=15", instance(unique), token)
        has_leader.clear()
        removal = registration.on_shutdown(soon(4))
        assert removal.outcome is RemovalOutcome.UNCONFIRMED, removal
        assert "No cluster leader" in removal.detail
        assert registration.consul_id not in consul_agent.get("/v1/agent/services")
        has_leader.set()
        assert registration.on_shutdown(soon()).outcome is RemovalOutcome.CONFIRMED


def test_an_agent_that_cannot_remove_is_overruled(consul_agent: ConsulAgent, unique: str) -> None:
    """The agent acknowledges and does nothing, as with a revoked token: the catalog is told instead, and proves it."""
    with Liar(consul_agent, answering(200, b"", "PUT /v1/agent/service/deregister")) as liar, Members() as members:
        registration = members.registered(f"consul://{liar.address}?ttl_s=60", instance(unique))
        removal = registration.on_shutdown(soon())
        assert removal.outcome is RemovalOutcome.CONFIRMED, removal
        consul_agent.put(f"/v1/agent/service/deregister/{registration.consul_id}")


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (200, b"true", RegistryDataError),
        (200, b"{}", RegistryDataError),
        (200, b"", RegistryDataError),
        (200, b"<html>welcome</html>", RegistryDataError),
        (404, b"404 page not found", RegistryDataError),
        (301, b"", RegistryError),
        (400, b"no such parameter", RegistryError),
        (401, b"ACL support disabled", PermissionRefusedError),
        (403, b"Permission denied", PermissionRefusedError),
        (429, b"slow down", RegistryUnavailableError),
        (500, b"No cluster leader", RegistryUnavailableError),
        (500, b"rpc error: ACL not found", PermissionRefusedError),
        (503, b"", RegistryUnavailableError),
    ],
)
def test_answers_are_never_taken_for_an_empty_list(status: int, body: bytes, expected: type[RegistryError]) -> None:
    """Whatever is not a list is one error of our tree, in one line, and no list."""
    with Liar(None, lambda *_: (status, body)) as liar, Members() as members:
        registry = members.registry(f"consul://{liar.address}")
        with pytest.raises(expected) as caught:
            registry.entries("any", soon(4 if expected.retryable else 30))  # what is retryable is retried to the end
        assert type(caught.value) is expected
        assert "\n" not in str(caught.value)
        assert liar.address in str(caught.value)


def test_odd_entries_are_shown_with_their_problem() -> None:
    """Entries in a form that Consul does not promise are listed with a problem, and do not hide the others."""
    odd = b"""[ 17, {},
        {"Node": {"Node": "n"}, "Service": {"ID": "x", "Port": "80", "Tags": 3, "Meta": [], "Address": 7}},
        {"Node": {"Node": "n", "Address": "192.0.2.1"}, "Service": {"ID": "good", "Service": "s", "Port": 80},
         "Checks": null}]"""
    with Liar(None, answering(200, odd, "/v1/health/service/s")) as liar, Members() as members:
        entries = members.registry(f"consul://{liar.address}").entries("s", soon())
    assert len(entries) == 4
    by_id = {entry.id: entry for entry in entries}
    assert by_id["good"].problem == ""
    assert by_id["good"].endpoint == "192.0.2.1:80"
    assert by_id["good"].is_live is None
    assert "port '80'" in by_id["x"].problem
    assert "no Node" in by_id[""].problem


def test_a_token_that_is_echoed_is_not_shown() -> None:
    """Whoever answers with our token in an error does not get it into our error."""
    with Liar(None, lambda *_: (400, b"you sent secret-of-the-test, did you?")) as liar, Members() as members:
        registry = members.registry(f"consul://{liar.address}", token="secret-of-the-test")
        with pytest.raises(RegistryDrainError) as caught:
            registry.entries("any", soon())
        assert "secret-of-the-test" not in f"{caught.value!r} {caught.value}"
        assert "<token>" in str(caught.value)
