"""An operator's removal, told from a loss on real Consul agents: the one stays out, the other is restored."""

from __future__ import annotations

import dataclasses
import logging
import shutil
import subprocess

import pytest

from registry_drain.errors import LiveOwnerError, RemovedByOperatorError
from registry_drain.registries.base import RemovalOutcome
from registry_drain.registries.consul.registration import ConsulRegistration
from registry_drain.registries.consul.registration.agent_identity import AgentIdentity, read_identity
from registry_drain.registries.consul.registration.disappearance import Disappearance
from tests.conftest import NewConsulAgent
from tests.registries.consul_tools import FAST, Liar, Lie, Members, instance, never, proxied, soon
from tests.support.consul_process import ConsulAgent, find_consul
from tests.support.processes import eventually
from tests.support.tcp_proxy import TcpProxy

LOOK = 0.8
"""Seconds; FAST has two heartbeats in it."""
WITHOUT_AGENT_READ = 'service_prefix "" { policy = "write" } node_prefix "" { policy = "read" }'
KEEPER = AgentIdentity("node-1", keeps_data=True, clocks=(1, 5, 1))


def deregister(agent: ConsulAgent, registration: ConsulRegistration) -> None:
    """Deregister by the agent's API, as Consul's own command does."""
    agent.put(f"/v1/agent/service/deregister/{registration.consul_id}")


def is_out(agent: ConsulAgent, service: str, registration: ConsulRegistration) -> None:
    """Fail unless the removal is found out, and nothing comes back."""
    eventually(lambda: registration.removed_by_operator, timeout=40, because="the removal is found out")
    assert not registration.is_registered
    never(lambda: agent.instances(service), LOOK)


def is_back(agent: ConsulAgent, service: str, registration: ConsulRegistration) -> None:
    """Fail unless it is listed, and heartbeats go on."""
    eventually(
        lambda: agent.instances(service, passing=True) and registration.is_registered, timeout=40, because="restored"
    )
    assert registration.removed_by_operator == ""


def identified(registration: ConsulRegistration) -> None:
    """Wait until the first heartbeat has asked the agent who it is."""
    eventually(lambda: registration._taken._is_agent_asked, timeout=40, because="a heartbeat was taken")


# --- on purpose -------------------------------------------------------------------------------------------------------


def test_consuls_own_command_takes_it_out_for_good(
    consul_agent: ConsulAgent, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Said once, told once; register() refuses, and the stop confirms and says who it was."""
    caplog.set_level(logging.INFO, "registry_drain")
    told: list[str] = []
    with Members() as members:
        registration = members.registered(consul_agent.url + FAST, instance(unique))
        registration.on_removed(told.append)
        consul = find_consul()
        assert consul
        command = [str(consul), "services", "deregister", f"-http-addr={consul_agent.http_address}"]
        subprocess.run([*command, f"-id={registration.consul_id}"], check=True, capture_output=True, timeout=60)
        is_out(consul_agent, unique, registration)
        eventually(lambda: told, because="it is told, a moment later")
        assert told == [registration.removed_by_operator]
        assert "has not restarted" in told[0]
        assert caplog.text.count("stays out of") == 1
        with pytest.raises(RemovedByOperatorError):
            registration.register(soon())
        removal = registration.on_shutdown(soon())
    assert removal.outcome is RemovalOutcome.CONFIRMED, removal
    assert "removed by an operator" in removal.detail


def test_it_rejoins_when_told_to(consul_agent: ConsulAgent, unique: str) -> None:
    """rejoin() lists it, heartbeats go on, and a second removal is respected like the first."""
    told: list[str] = []
    with Members() as members:
        registration = members.registered(consul_agent.url + FAST, instance(unique))
        registration.on_removed(told.append)
        for count in (1, 2):
            deregister(consul_agent, registration)
            is_out(consul_agent, unique, registration)
            eventually(lambda count=count: len(told) >= count, because="it is told, a moment later")  # type: ignore[misc]
            registration.rejoin(soon())
            assert registration.removed_by_operator == ""
            assert registration.is_registered
            identified(registration)
            assert consul_agent.instances(unique, passing=True)
    assert len(told) == 2


def test_rejoin_leaves_a_successor_alone(consul_agent: ConsulAgent, unique: str) -> None:
    """Removed, and started anew on the same agent: the old process may not take the id back."""
    with Members() as members:
        old = members.registered(consul_agent.url + FAST, instance(unique))
        deregister(consul_agent, old)
        is_out(consul_agent, unique, old)
        new = members.registered(consul_agent.url + FAST, instance(unique, 9091))
        with pytest.raises(LiveOwnerError, match="successor"):
            old.rejoin(soon())
        assert set(consul_agent.instances(unique)) == {new.consul_id}
        assert old.on_shutdown(soon()).outcome is RemovalOutcome.SUCCESSOR


def test_what_somebody_puts_back_is_kept_alive(consul_agent: ConsulAgent, unique: str) -> None:
    """The very entry is registered again from elsewhere: that is being told otherwise."""
    with Members() as members:
        registration = members.registered(consul_agent.url + FAST, instance(unique))
        deregister(consul_agent, registration)
        is_out(consul_agent, unique, registration)
        consul_agent.put("/v1/agent/service/register", registration._standing.own.payload())
        is_back(consul_agent, unique, registration)


def test_a_removed_one_is_not_handed_over(consul_agent: ConsulAgent, unique: str) -> None:
    """It has nothing to offer; taking back lists nothing."""
    with Members() as members:
        registration = members.registered(consul_agent.url + FAST, instance(unique))
        deregister(consul_agent, registration)
        is_out(consul_agent, unique, registration)
        assert registration.offer(soon()) == ""
        registration.take_back(soon())
        never(lambda: consul_agent.instances(unique), LOOK)


def test_after_the_fence_it_does_not_rejoin(consul_agent: ConsulAgent, unique: str) -> None:
    """A stop is for good."""
    with Members() as members:
        registration = members.registered(consul_agent.url + FAST, instance(unique))
        deregister(consul_agent, registration)
        is_out(consul_agent, unique, registration)
        registration.fence(soon())
        with pytest.raises(LiveOwnerError):
            registration.rejoin(soon())
        assert not consul_agent.instances(unique)


def test_removed_just_before_its_agent_restarts_with_its_data(new_consul_agent: NewConsulAgent, unique: str) -> None:
    """No heartbeat came between: an agent that has kept its data would have kept the instance."""
    agent = new_consul_agent(keeps_data=True)
    with TcpProxy(agent.http_address) as link, Members() as members:
        registration = members.registered(proxied(agent, link.address), instance(unique))
        identified(registration)
        link.refuse()
        link.drop_connections()
        deregister(agent, registration)
        agent.restart(kill=True)
        link.pass_through()
        is_out(agent, unique, registration)
        assert "kept its data" in registration.removed_by_operator


# --- lost -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("again", [False, True], ids=["once", "removed later"])
def test_an_agent_that_forgot_is_no_operator(new_consul_agent: NewConsulAgent, unique: str, again: bool) -> None:
    """A killed development agent has another NodeID: restored, and a removal afterwards is one."""
    agent = new_consul_agent()
    with Members() as members:
        registration = members.registered(agent.url + FAST, instance(unique))
        identified(registration)
        agent.restart(kill=True)
        is_back(agent, unique, registration)
        if again:
            identified(registration)
            deregister(agent, registration)
            is_out(agent, unique, registration)


@pytest.mark.parametrize("node_id", ["", "7f3c3b1e-2222-3333-4444-555555555555"], ids=["random id", "fixed id"])
def test_an_agent_whose_data_was_deleted_is_no_operator(
    new_consul_agent: NewConsulAgent, unique: str, node_id: str
) -> None:
    """Another NodeID; or the same one, by configuration, with serf's clocks set back."""
    agent = new_consul_agent(keeps_data=True, settings={"node_id": node_id} if node_id else None)
    agent.restart(kill=True)  # serf's clocks count the starts
    with Members() as members:
        registration = members.registered(agent.url + FAST, instance(unique))
        identified(registration)
        agent.kill()
        shutil.rmtree(agent.directory / "data")
        agent.start()
        is_back(agent, unique, registration)


def test_it_is_back_though_the_answer_to_that_was_lost(new_consul_agent: NewConsulAgent, unique: str) -> None:
    """A busy agent takes the registration and answers too late. A removal after that is known as one."""
    agent = new_consul_agent()
    lost: list[str] = []

    def lose_the_first(method: str, path: str) -> Lie | None:
        if lost != [""] or method != "PUT" or "/v1/agent/service/register" not in path:
            return None
        agent.put("/v1/agent/service/register", registration._standing.own.payload())
        lost.append(path)
        return 500, b"No cluster leader"

    with Liar(agent, lose_the_first) as link, Members() as members:
        registration = members.registered(proxied(agent, link.address), instance(unique))
        identified(registration)
        lost.append("")
        agent.restart(kill=True)
        eventually(lambda: len(lost) == 2, timeout=40, because="it is registered again")
        is_back(agent, unique, registration)
        identified(registration)
        deregister(agent, registration)
        is_out(agent, unique, registration)


def test_an_agent_that_kept_everything_is_just_told_again(new_consul_agent: NewConsulAgent, unique: str) -> None:
    """Killed and restarted with its data: never out, neither removed nor registered anew."""
    agent = new_consul_agent(keeps_data=True)
    with Members() as members:
        registration = members.registered(agent.url + FAST, instance(unique))
        (before,) = agent.instances(unique).values()
        agent.restart(kill=True)
        taken = registration._taken._sent_at
        eventually(lambda: registration._taken._sent_at > taken, timeout=40, because="a heartbeat is taken")
        is_back(agent, unique, registration)
        (after,) = agent.instances(unique).values()
        assert after["Service"]["CreateIndex"] == before["Service"]["CreateIndex"]


def test_without_agent_read_the_connection_tells(new_consul_agent: NewConsulAgent, unique: str) -> None:
    """The same connection is proof enough; without it there is none, and it is restored."""
    agent = new_consul_agent(acl=True)
    token = agent.create_token(WITHOUT_AGENT_READ)
    with TcpProxy(agent.http_address) as link, Members() as members:
        registration = members.registered(f"consul://{link.address}?ttl_s=2", instance(unique), token=token)
        identified(registration)
        assert registration._taken._agent is None
        link.refuse()
        link.drop_connections()
        deregister(agent, registration)
        link.pass_through()
        is_back(agent, unique, registration)
        identified(registration)
        deregister(agent, registration)
        is_out(agent, unique, registration)


def test_a_revoked_token_is_neither(new_consul_agent: NewConsulAgent, unique: str) -> None:
    """Heartbeats are refused: nobody removed it, and nothing is said of a removal."""
    agent = new_consul_agent(acl=True)
    token = agent.create_token(WITHOUT_AGENT_READ)
    with Members() as members:
        registration = members.registered(f"{agent.url}?ttl_s=1&timeout_s=10", instance(unique), token=token)
        identified(registration)
        agent.revoke_token(token)
        # Its check turns critical once no heartbeat is taken any more, as far as the agent may say so.
        check = registration._standing.own.check_id
        eventually(lambda: agent.get("/v1/agent/checks")[check]["Status"] == "critical", timeout=40)
        assert registration.removed_by_operator == ""
        deregister(agent, registration)


def test_a_successor_is_no_operator(consul_agent: ConsulAgent, unique: str) -> None:
    """A take-over removes the elder's entry; the elder gives way, and is back when its successor leaves."""
    with Members() as members:
        elder = members.registered(consul_agent.url + FAST, instance(unique))
        new = members.registered(consul_agent.url + FAST, instance(unique, 9091))
        eventually(lambda: elder._renewing._has_yielded, timeout=40)
        assert elder.removed_by_operator == ""
        new.on_shutdown(soon())
        is_back(consul_agent, unique, elder)


def test_an_agent_that_lost_both_gets_the_younger_one_back(new_consul_agent: NewConsulAgent, unique: str) -> None:
    """Whichever registers again first: the elder does not take the id from its successor."""
    agent = new_consul_agent()
    with TcpProxy(agent.http_address) as link, Members() as members:
        elder = members.registered(agent.url + FAST, instance(unique))
        new = members.registered(proxied(agent, link.address), instance(unique, 9091))
        eventually(lambda: elder._renewing._has_yielded, timeout=40)
        identified(new)
        # The elder is first however long the restart takes: nobody else reaches the agent.
        link.refuse()
        link.drop_connections()
        agent.restart(kill=True)
        eventually(lambda: elder.is_registered, timeout=40, because="the elder is first")
        link.pass_through()
        eventually(
            lambda: set(agent.instances(unique)) == {new.consul_id} and new.is_registered, timeout=40, because="younger"
        )
        eventually(lambda: not elder.is_registered, timeout=40)
        never(lambda: set(agent.instances(unique)) != {new.consul_id}, LOOK)


# --- the judgement ----------------------------------------------------------------------------------------------------


def gone(**changes: object) -> Disappearance:
    """Return a disappearance of which nothing is known but that a heartbeat was taken lately."""
    known = Disappearance(silence=1.0, reaped_after=75.0, is_same_connection=False, before=None, now=None)
    return dataclasses.replace(known, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("what", "is_removal", "why"),
    [
        (gone(), False, "in doubt"),
        (gone(is_same_connection=True), True, "not restarted"),
        (gone(is_same_connection=True, silence=75.0), False, "no heartbeat"),
        (gone(before=KEEPER, now=KEEPER), True, "kept its data"),
        (gone(before=KEEPER, now=KEEPER, silence=80.0), False, "no heartbeat"),
        (gone(before=KEEPER), False, "in doubt"),
        (gone(now=KEEPER), False, "in doubt"),
        (gone(before=KEEPER, now=dataclasses.replace(KEEPER, node_id="2")), False, "another one"),
        (gone(before=KEEPER, now=dataclasses.replace(KEEPER, clocks=(1, 6, 1))), True, "kept its data"),
        (gone(before=KEEPER, now=dataclasses.replace(KEEPER, clocks=(1, 4, 1))), False, "without its data"),
        (gone(before=KEEPER, now=dataclasses.replace(KEEPER, keeps_data=False)), False, "in doubt"),
        # A proxy may keep a connection of ours while the agent behind it is replaced.
        (
            gone(is_same_connection=True, before=KEEPER, now=dataclasses.replace(KEEPER, node_id="2")),
            False,
            "another one",
        ),
    ],
)
def test_what_is_concluded(what: Disappearance, is_removal: bool, why: str) -> None:
    """On purpose is what cannot have come by itself; in doubt it was lost."""
    assert what.is_removal is is_removal
    assert why in str(what)


@pytest.mark.parametrize(
    ("settings", "keeps_data"), [({}, True), ({"disable_host_node_id": False}, False)], ids=["default", "host's id"]
)
def test_what_an_agent_says_of_itself(
    new_consul_agent: NewConsulAgent, settings: dict[str, object], keeps_data: bool
) -> None:
    """An id that is the host's would be the same without the data."""
    agent = new_consul_agent(keeps_data=True, settings=settings)
    with Members() as members:
        client = members.new(agent.url, instance("calculator"))._standing.reader
        before = read_identity(client, soon())
        agent.restart(kill=True)
        after = read_identity(client, soon())
    assert before
    assert after
    assert after.keeps_data is before.keeps_data is keeps_data
    assert not after.has_lost_since(before)
    assert max(after.clocks) > max(before.clocks)
