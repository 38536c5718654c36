"""One's own instance on a real Consul: kept listed through restarts, never listed again after the fence."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import threading
import time
from urllib.parse import quote

import pytest

from registry_drain.clock import SYSTEM_CLOCK, Deadline
from registry_drain.errors import LiveOwnerError, RegistryDrainError, RegistryUnavailableError
from registry_drain.registries.base import RemovalOutcome
from registry_drain.registries.consul.catalog import Listed
from registry_drain.registries.consul.registration import ConsulRegistration
from registry_drain.testing.bench import Call
from tests.conftest import NewConsulAgent
from tests.registries.consul_tools import BEATS, FAST, FAST_TTL, Members, instance, never, proxied, soon
from tests.support.consul_process import ConsulAgent
from tests.support.processes import eventually
from tests.support.tcp_proxy import TcpProxy


def test_what_is_registered(consul_agent: ConsulAgent, unique: str) -> None:
    """The service carries id, incarnation and a passing TTL check, which ends a dead instance by itself."""
    with Members() as members:
        registration = members.registered(
            f"{consul_agent.url}?ttl_s=7&deregister_critical_after_s=90", instance(unique)
        )
        (listed,) = consul_agent.instances(unique, passing=True).values()
        meta = listed["Service"]["Meta"]
        assert listed["Service"]["ID"] == registration.consul_id
        assert registration.consul_id.startswith("one~")
        assert meta["registry-drain-id"] == "one"
        assert len(meta["registry-drain-incarnation"]) == 32
        (check,) = [each for each in listed["Checks"] if each["ServiceID"]]
        assert check["Status"] == "passing"
        assert check["Type"] in {"ttl", ""}


def test_two_registrations_never_share_a_consul_id(consul_agent: ConsulAgent, unique: str) -> None:
    """Each registration of one instance id has an incarnation of its own: that is what makes late removals harmless."""
    with Members() as members:
        ids = {members.new(consul_agent.url, instance(unique)).consul_id for _ in range(50)}
    assert len(ids) == 50


def test_an_agent_that_forgot_is_told_again(new_consul_agent: NewConsulAgent, unique: str) -> None:
    """A development agent restarts while serving, forgets everything, and lists the instance again within seconds."""
    agent = new_consul_agent()
    with Members() as members:
        registration = members.registered(f"{agent.url}?ttl_s=6", instance(unique))
        agent.restart(kill=True)
        # A recovery pause of a second, and what a slow machine adds.
        eventually(
            lambda: agent.instances(unique, passing=True), timeout=15, because="the instance is registered again"
        )
        eventually(lambda: registration.is_registered, timeout=15, because="the registration knows it")


@pytest.mark.parametrize("keeps_data", [False, True], ids=["forgetful", "persistent"])
def test_an_agent_restarted_during_the_stop_resurrects_nothing(
    new_consul_agent: NewConsulAgent, unique: str, keeps_data: bool
) -> None:
    """The agent is down when the stop begins and comes back during it, with or without its memory: proven gone."""
    agent = new_consul_agent(keeps_data=keeps_data)
    with Members() as members:
        registration = members.registered(agent.url + FAST, instance(unique))
        agent.kill()
        stop = Call(lambda: registration.on_shutdown(soon(60)))
        agent.start()
        removal = stop.result(90, "on_shutdown()")
        assert removal.outcome is RemovalOutcome.CONFIRMED, removal
        assert removal.attempts > 1
        never(lambda: agent.instances(unique), BEATS)


def test_an_agent_that_returns_after_an_unconfirmed_stop_is_told_nothing(
    new_consul_agent: NewConsulAgent, unique: str
) -> None:
    """The agent was dead for the whole stop: the outcome is unconfirmed, and nobody registers when it returns."""
    agent = new_consul_agent()
    with Members() as members:
        registration = members.registered(agent.url + FAST, instance(unique))
        agent.kill()
        removal = registration.on_shutdown(soon(0.5))
        assert removal.outcome is RemovalOutcome.UNCONFIRMED, removal
        assert f"within {FAST_TTL:g} s" in removal.detail
        agent.start()
        never(lambda: agent.instances(unique), BEATS)


def test_a_removal_that_arrives_late_spares_the_successor(consul_agent: ConsulAgent, unique: str) -> None:
    """The old process' requests are stuck on the way, its successor registers, and then they arrive after all."""
    with TcpProxy(consul_agent.http_address) as link, Members() as members:
        old = members.registered(f"consul://{link.address}?ttl_s=60&timeout_s=1", instance(unique))
        link.stall()
        removal = old.on_shutdown(soon(5))
        assert removal.outcome is RemovalOutcome.UNCONFIRMED, removal
        # The same id, registered before the late removal, and by nobody who takes over: both are listed.
        new_id = "one~of-another-program"
        meta = {"registry-drain-id": "one", "registry-drain-incarnation": "another"}
        consul_agent.put("/v1/agent/service/register", {"ID": new_id, "Name": unique, "Port": 1, "Meta": meta})
        assert set(consul_agent.instances(unique)) == {old.consul_id, new_id}
        link.pass_through()
        eventually(lambda: set(consul_agent.instances(unique)) == {new_id}, because="the late removal has arrived")
        consul_agent.put(f"/v1/agent/service/deregister/{new_id}")


def test_a_removal_that_arrives_late_spares_a_successor_of_the_same_instance_id(
    consul_agent: ConsulAgent, unique: str
) -> None:
    """The restarted process has registered the same instance when its predecessor's removal arrives after all."""
    with TcpProxy(consul_agent.http_address) as link, Members() as members:
        old = members.registered(f"consul://{link.address}?ttl_s=60&timeout_s=1", instance(unique))
        link.stall()
        assert old.on_shutdown(soon(5)).outcome is RemovalOutcome.UNCONFIRMED
        new = members.registered(f"{consul_agent.url}?ttl_s=60", instance(unique))
        assert set(consul_agent.instances(unique)) == {new.consul_id}
        removal = f"/v1/agent/service/deregister/{quote(old.consul_id)}".encode()
        assert removal not in link.recorded
        answered = len(link.answered)
        link.pass_through()
        eventually(lambda: removal in link.recorded, because="the late removal has arrived")
        eventually(lambda: len(link.answered) > answered, because="it was answered")
        never(lambda: set(consul_agent.instances(unique)) != {new.consul_id}, 0.5)


def test_a_predecessor_that_lives_gives_way(consul_agent: ConsulAgent, unique: str) -> None:
    """Registering takes over from a living predecessor, which notices and does not fight for the id."""
    with Members() as members:
        old = members.registered(consul_agent.url + FAST, instance(unique))
        new = members.registered(consul_agent.url + FAST, instance(unique, 9091))
        eventually(lambda: not old.is_registered, timeout=40, because="the predecessor notices")
        never(lambda: set(consul_agent.instances(unique)) != {new.consul_id}, BEATS)
        assert old.on_shutdown(soon()).outcome is RemovalOutcome.SUCCESSOR
        assert set(consul_agent.instances(unique, passing=True)) == {new.consul_id}


@pytest.mark.parametrize("is_taken_over", [True, False])
def test_a_successor_that_came_before_the_first_look_is_left_alone(
    consul_agent: ConsulAgent, unique: str, monkeypatch: pytest.MonkeyPatch, is_taken_over: bool
) -> None:
    """The old process is slow to read that it is listed; whether the new one has removed it by then or not."""
    with Members() as members:
        old = members.new(consul_agent.url + FAST, instance(unique))
        read = old._registering._sight.read
        new: list[ConsulRegistration] = []

        def read_late(deadline: Deadline) -> list[Listed]:
            if not new:
                new.append(members.new(consul_agent.url + FAST, instance(unique, 9091)))
                if not is_taken_over:
                    monkeypatch.setattr(new[0]._registering, "take_over", lambda *_: None)
                new[0].register(deadline)
                assert len(consul_agent.instances(unique)) == (1 if is_taken_over else 2)
            return read(deadline)

        monkeypatch.setattr(old._registering._sight, "read", read_late)
        old.register(soon())
        assert set(consul_agent.instances(unique)) == {new[0].consul_id}
        eventually(lambda: not old.is_registered, timeout=40, because="its next heartbeat gives way")
        assert old.on_shutdown(soon()).outcome is RemovalOutcome.SUCCESSOR
        assert set(consul_agent.instances(unique, passing=True)) == {new[0].consul_id}


def test_an_entry_that_is_taken_back_is_waited_for(
    consul_agent: ConsulAgent, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The servers still list the process that it was offered to: nobody who takes over, for it is the same entry."""
    with Members() as members:
        old = members.registered(consul_agent.url, instance(unique))
        old.offer(soon())
        meta = {
            "registry-drain-id": "one",
            "registry-drain-incarnation": "another",
            "registry-drain-registered-at": f"{time.time():.3f}",
        }
        entry = {"ID": old.consul_id, "Name": unique, "Port": 1, "Meta": meta}
        consul_agent.put("/v1/agent/service/register", {**entry, "Check": {"TTL": "30s", "Status": "passing"}})
        read = old._registering._sight.read
        looks: list[list[Listed]] = []

        def read_late(deadline: Deadline) -> list[Listed]:
            looks.append(read(deadline))
            return looks[0] if len(looks) < 3 else looks[-1]

        monkeypatch.setattr(old._registering._sight, "read", read_late)
        old.take_back(soon())
        assert len(looks) == 3
        assert {each.incarnation for each in looks[-1]} == {old._standing.own.incarnation}


def test_a_predecessor_from_the_future_is_replaced(consul_agent: ConsulAgent, unique: str) -> None:
    """Its process was killed a moment ago, and the clock was set back since."""
    meta = {
        "registry-drain-id": "one",
        "registry-drain-incarnation": "another",
        "registry-drain-registered-at": f"{time.time() + 60:.3f}",
    }
    entry = {"ID": "one~another", "Name": unique, "Port": 1, "Meta": meta}
    consul_agent.put("/v1/agent/service/register", {**entry, "Check": {"TTL": "30s", "Status": "passing"}})
    with Members() as members:
        new = members.registered(consul_agent.url, instance(unique))
        assert set(consul_agent.instances(unique)) == {new.consul_id}


def test_a_predecessor_returns_when_its_successor_has_left(consul_agent: ConsulAgent, unique: str) -> None:
    """A living instance that gave way is listed again once nobody else holds its id."""
    with Members() as members:
        old = members.registered(consul_agent.url + FAST, instance(unique))
        new = members.registered(consul_agent.url + FAST, instance(unique, 9091))
        eventually(lambda: old._renewing._has_yielded, timeout=40, because="the predecessor notices")
        new.on_shutdown(soon())
        eventually(lambda: set(consul_agent.instances(unique)) == {old.consul_id}, timeout=40, because="it returns")


def test_another_programs_entry_of_the_same_id_is_taken_over(consul_agent: ConsulAgent, unique: str) -> None:
    """Who holds the bare instance id on our agent is a predecessor, and later a successor: replaced, and respected."""
    bare = {"ID": "one", "Name": unique, "Port": 1}
    consul_agent.put("/v1/agent/service/register", bare)
    with Members() as members:
        registration = members.registered(f"{consul_agent.url}?ttl_s=60", instance(unique))
        assert set(consul_agent.instances(unique)) == {registration.consul_id}
        consul_agent.put("/v1/agent/service/register", bare)
        removal = registration.on_shutdown(soon())
        assert removal.outcome is RemovalOutcome.SUCCESSOR, removal
        assert set(consul_agent.instances(unique)) == {"one"}
    consul_agent.put("/v1/agent/service/deregister/one")


def test_an_entry_that_lost_only_its_check_is_registered_again(consul_agent: ConsulAgent, unique: str) -> None:
    """Without its check nothing would end a dead instance: it comes back, and the entry is not taken for a rival."""
    with Members() as members:
        registration = members.registered(consul_agent.url + FAST, instance(unique))
        consul_agent.put(f"/v1/agent/check/deregister/{registration._standing.own.check_id}")
        eventually(
            lambda: registration._standing.own.check_id in consul_agent.get("/v1/agent/checks"),
            because="the check is back",
        )
        eventually(lambda: registration.is_registered, because="the registration knows it")


def test_a_dead_entry_elsewhere_is_no_successor(consul_agent: ConsulAgent, unique: str) -> None:
    """A critical entry of the same instance id on another node does not make the outcome SUCCESSOR."""
    node = f"node-{unique}"[:60]
    ghost = {
        "Node": node,
        "Address": "192.0.2.9",
        "Service": {"ID": "one~ghost", "Service": unique, "Port": 1, "Meta": {"registry-drain-id": "one"}},
        "Check": {"CheckID": "c", "Name": "c", "Status": "critical", "ServiceID": "one~ghost"},
    }
    consul_agent.put("/v1/catalog/register", ghost)
    with Members() as members:
        registration = members.registered(consul_agent.url + FAST, instance(unique))
        removal = registration.on_shutdown(soon())
    consul_agent.put("/v1/catalog/deregister", {"Node": node})
    assert removal.outcome is RemovalOutcome.CONFIRMED, removal


def test_registering_ends_maintenance_of_the_predecessor(consul_agent: ConsulAgent, unique: str) -> None:
    """A predecessor in maintenance mode does not keep its successor out of the callers' lists."""
    with Members() as members:
        old = members.registered(consul_agent.url, instance(unique))
        consul_agent.put(f"/v1/agent/service/maintenance/{old.consul_id}?enable=true")
        registry = members.registry(consul_agent.url)
        assert [each.health for each in registry.entries(unique, soon())] == ["maintenance"]
        new = members.registered(consul_agent.url, instance(unique))
        assert set(consul_agent.instances(unique, passing=True)) == {new.consul_id}


def test_fence_cuts_off_a_register_that_hangs(consul_agent: ConsulAgent, unique: str) -> None:
    """A register on a black-holed link is awaited for half the fence's time, then cut, and nothing is listed."""
    with TcpProxy(consul_agent.http_address) as link, Members() as members:
        registration = members.new(f"consul://{link.address}?timeout_s=30", instance(unique))
        link.black_hole()
        call = Call(lambda: registration.register(soon(30)))
        eventually(lambda: link.recorded, because="the request is on its way")
        began = soon(100)
        registration.fence(soon(1))
        assert 100 - began.remaining() < 5
        error = call.ended(5, "register()").error
        assert isinstance(error, LiveOwnerError), error
        link.pass_through()
        assert registration.on_shutdown(soon()).is_gone
        never(lambda: consul_agent.instances(unique), 0.5)


def test_no_new_write_begins_while_the_fence_awaits_one(consul_agent: ConsulAgent, unique: str) -> None:
    """The fence waits for a register that hangs; another one is refused at once instead of joining it."""
    with TcpProxy(consul_agent.http_address) as link, Members() as members:
        registration = members.new(f"consul://{link.address}?timeout_s=30", instance(unique))
        link.black_hole()
        hanging = Call(lambda: registration.register(soon(30)))
        eventually(lambda: link.recorded, because="the request is on its way")
        fence = Call(lambda: registration.fence(soon(60)))  # and waits for half of that
        eventually(registration._standing.fence.raised.is_set, because="the fence is up")
        with pytest.raises(LiveOwnerError):
            registration.register(soon(1))
        assert hanging.is_alive(), "refused while the first one still hangs"
        assert link.recorded.count(b"PUT /v1/agent/service/register") == 1
        link.reset()
        fence.ended(20, "fence()")
        hanging.ended(20, "register()")


def test_nothing_is_sent_behind_the_fence(consul_agent: ConsulAgent, unique: str) -> None:
    """After the fence not one byte leaves, though heartbeats were due many times."""
    with TcpProxy(consul_agent.http_address) as link, Members() as members:
        registration = members.registered(f"consul://{link.address}{FAST}", instance(unique))
        before = len(link.recorded)
        eventually(lambda: len(link.recorded) > before, because="heartbeats are sent")
        connections = link.open_connections
        registration.fence(soon())
        eventually(lambda: link.open_connections < connections, because="what had left before has come to its end")
        fenced = len(link.recorded)
        never(lambda: len(link.recorded) > fenced, BEATS)


def test_a_fence_out_of_time_is_up_all_the_same(new_consul_agent: NewConsulAgent, unique: str) -> None:
    """With a frozen agent and no time at all the fence is not joined, and a late heartbeat registers nothing."""
    agent = new_consul_agent()
    with TcpProxy(agent.http_address) as link, Members() as members:
        registration = members.registered(proxied(agent, link.address), instance(unique))
        check_id = registration._standing.own.check_id
        link.stall()
        eventually(lambda: not registration._standing.fence._quiet.is_set(), because="a heartbeat is on its way")
        # Only the check: it is no operator's removal, and a heartbeat that finds it missing registers again.
        agent.put(f"/v1/agent/check/deregister/{check_id}")
        agent.freeze()
        registration.fence(soon(0))
        agent.thaw()
        answered = len(link.answered)
        link.pass_through()
        eventually(lambda: len(link.answered) > answered, because="the late heartbeat is answered")
        never(lambda: check_id in agent.get("/v1/agent/checks"), BEATS)


def test_a_forked_child_has_no_right_to_the_instance(
    consul_agent: ConsulAgent, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy of the registration in another process neither registers nor removes."""
    with Members() as members:
        registration = members.registered(consul_agent.url, instance(unique))
        with monkeypatch.context() as child:
            child.setattr(os, "getpid", lambda: 1)
            removal = registration.on_shutdown(soon())
        assert removal.outcome is RemovalOutcome.NOT_REGISTERED, removal
        assert str(os.getpid()) in removal.detail
        assert consul_agent.instances(unique, passing=True)


def test_a_child_forked_while_a_lock_was_held_is_answered(
    consul_agent: ConsulAgent, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that held it does not exist in the child: nothing there may wait for it."""
    with Members() as members:
        registration = members.registered(consul_agent.url, instance(unique))
        standing = registration._standing
        with contextlib.ExitStack() as held, monkeypatch.context() as child:
            child.setattr(os, "getpid", lambda: 1)
            for lock in (registration._lock, standing._lock, standing.fence._lock):
                held.enter_context(lock)
            refused = Call(lambda: registration.register(soon())).ended(10, "register")
            Call(lambda: registration.fence(soon())).ended(10, "fence")
            removal = Call(lambda: registration.on_shutdown(soon())).result(10, "on_shutdown")
        assert isinstance(refused.error, LiveOwnerError)
        assert "forked" in str(refused.error)
        assert removal.outcome is RemovalOutcome.NOT_REGISTERED
        assert consul_agent.instances(unique, passing=True)


def test_a_process_without_threads_today_registers_later(
    consul_agent: ConsulAgent, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its heartbeat it is not registered, whatever Consul lists; the next call starts one."""
    with Members() as members:
        registration = members.new(consul_agent.url + FAST, instance(unique))
        start = threading.Thread.start

        def refuse(thread: threading.Thread) -> None:
            if thread.name.startswith("registry-drain-consul-heartbeat"):
                raise RuntimeError("can't start new thread")
            start(thread)

        with monkeypatch.context() as limit:
            limit.setattr(threading.Thread, "start", refuse)
            with pytest.raises(RegistryUnavailableError, match="limit of threads"):
                registration.register(soon())
            assert not registration.is_registered
        registration.register(soon())
        never(lambda: not consul_agent.instances(unique, passing=True), BEATS)


def test_heartbeats_survive_a_frozen_agent(new_consul_agent: NewConsulAgent, unique: str) -> None:
    """An agent that answers again after an outage longer than the TTL lists the instance as passing again."""
    agent = new_consul_agent()
    with Members() as members:
        registration = members.registered(f"{agent.url}?ttl_s=1&timeout_s=0.5", instance(unique))
        agent.freeze()
        threading.Event().wait(1.5)  # the outage itself, not a wait for a condition
        agent.thaw()
        thawed_at = SYSTEM_CLOCK.now()
        eventually(lambda: registration._taken._sent_at > thawed_at, timeout=40, because="a heartbeat is taken")
        eventually(lambda: agent.instances(unique, passing=True), timeout=40, because="heartbeats go on")


def test_trouble_is_logged_once_and_its_end_too(
    new_consul_agent: NewConsulAgent, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Heartbeats that fail for a while make one warning, and one line when they work again."""
    agent = new_consul_agent()
    with Members() as members, caplog.at_level(logging.INFO, "registry_drain"):
        members.registered(agent.url + FAST, instance(unique))
        agent.kill()
        eventually(lambda: "heartbeat failed" in caplog.text, because="the failure is logged")
        threading.Event().wait(BEATS)
        agent.start()
        eventually(lambda: "heartbeat works again" in caplog.text, because="the recovery is logged")
        assert caplog.text.count("heartbeat failed") == 1


def test_repr_shows_the_state(consul_agent: ConsulAgent, unique: str) -> None:
    """The repr names instance, registry and state."""
    with Members() as members:
        registration = members.new(consul_agent.url, instance(unique))
        assert repr(registration) == f"<ConsulRegistration one (192.0.2.7:9090) at {consul_agent.url} not registered>"
        registration.register(soon())
        assert repr(registration).endswith(" registered>")
        registration.fence(soon())
        assert repr(registration).endswith(" registered fenced>")


def test_an_invalid_answer_fails_the_registration(consul_agent: ConsulAgent, unique: str) -> None:
    """A register through a link that is reset raises an error of our tree, and on_shutdown still ends well."""
    with TcpProxy(consul_agent.http_address) as link, Members() as members:
        registration = members.new(f"consul://{link.address}", instance(unique))
        link.reset()
        with pytest.raises(RegistryDrainError) as caught:
            registration.register(soon())
        assert caught.value.retryable
        link.pass_through()
        registration.register(soon())
        assert registration.on_shutdown(soon()).outcome is RemovalOutcome.CONFIRMED


@pytest.mark.slow
def test_the_agent_removes_what_its_owner_left_behind(consul_agent: ConsulAgent, unique: str) -> None:
    """Without heartbeats the entry is critical within the TTL, and gone within about a minute and a half."""
    with Members() as members:
        registration = members.registered(f"{consul_agent.url}?ttl_s=1", instance(unique))
        registration.fence(soon())
        eventually(lambda: not consul_agent.instances(unique, passing=True), timeout=40, because="it is critical")
        eventually(lambda: not consul_agent.instances(unique), timeout=150, because="the agent has removed it")


def test_the_stop_imports_nothing(consul_agent: ConsulAgent, unique: str) -> None:
    """What is imported late is imported by registering: the time of a stop is for leaving."""
    program = (
        "import sys\n"
        "from registry_drain import Deadline, ServiceInstance, open_registry\n"
        f"registry, instance = open_registry({consul_agent.url!r}), ServiceInstance({unique!r}, '192.0.2.7', 1)\n"
        "registration = registry.registration(instance)\n"
        "registration.register(Deadline.after(30))\n"
        "before = set(sys.modules)\n"
        "assert registration.on_shutdown(Deadline.after(30)).is_gone\n"
        "print(sorted(set(sys.modules) - before))\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=120)
    assert ran.stdout == "[]\n"
