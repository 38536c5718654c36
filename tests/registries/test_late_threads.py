"""Two threads of one registration, and one of them is late: what it knows is out of date by then."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from registry_drain.clock import SYSTEM_CLOCK, Deadline
from registry_drain.errors import LiveOwnerError
from registry_drain.registries.base import RemovalOutcome
from registry_drain.registries.consul.registration import ConsulRegistration
from registry_drain.registries.membership import Membership, OperatorsRemoval
from tests.registries.consul_tools import FAST, Liar, Lie, Members, instance, never, proxied, soon
from tests.registries.zookeeper_bench import Background, Stage, within
from tests.support.consul_process import ConsulAgent
from tests.support.processes import eventually
from tests.support.zookeeper_process import ZooKeeperServer


@pytest.fixture
def stage(zookeeper_server: ZooKeeperServer, unique: str) -> Iterator[Stage]:
    """Give a base path of the test's own on the shared server."""
    stage = Stage(zookeeper_server, f"/{unique}")
    yield stage
    stage.close()


def test_a_new_token_does_not_list_it_beside_its_successor(
    consul_agent: ConsulAgent, unique: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The successor comes between the heartbeat that is taken and the registration with the new token."""
    file = tmp_path / "token"
    file.write_text("one")
    with Members() as members:
        old = members.registered(f"{consul_agent.url}{FAST}&token_file={file}", instance(unique))
        put = old._registering.put
        new: list[ConsulRegistration] = []

        def put_late(deadline: Deadline, *, keeps_checks: bool = False) -> None:
            if keeps_checks and not new:
                new.append(members.registered(consul_agent.url + FAST, instance(unique, 9091)))
            put(deadline, keeps_checks=keeps_checks)

        monkeypatch.setattr(old._registering, "put", put_late)
        file.write_text("two")
        eventually(lambda: new and not old.is_registered, timeout=20, because="it gives way")
        eventually(lambda: set(consul_agent.instances(unique)) == {new[0].consul_id}, timeout=20)
        never(lambda: set(consul_agent.instances(unique)) != {new[0].consul_id}, 1.0)


def test_a_heartbeat_from_before_a_rejoin_takes_nothing_back(
    consul_agent: ConsulAgent, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent did not know the check when it was asked; by the time that is heard it does."""
    is_armed, asked, heard = threading.Event(), threading.Event(), threading.Event()

    def answer_late(_method: str, path: str) -> Lie | None:
        if not is_armed.is_set() or "/check/pass/" not in path:
            return None
        is_armed.clear()
        asked.set()
        heard.wait(20)
        return 404, b'Unknown check ID "gone"'

    with Liar(consul_agent, answer_late) as link, Members() as members:
        registration = members.registered(
            proxied(consul_agent, link.address, "?ttl_s=1&timeout_s=20"), instance(unique)
        )
        consul_agent.put(f"/v1/agent/service/deregister/{registration.consul_id}")
        eventually(lambda: registration.removed_by_operator, timeout=20)
        is_armed.set()
        assert asked.wait(20)
        registration.rejoin(soon())
        was_missing = threading.Event()
        note_missing = registration._standing.note_missing

        def note() -> None:
            was_missing.set()
            note_missing()

        monkeypatch.setattr(registration._standing, "note_missing", note)
        taken = registration._taken._sent_at
        heard.set()
        eventually(lambda: registration._taken._sent_at > taken, timeout=20, because="the next heartbeat is taken")
        assert registration.is_registered
        assert not was_missing.is_set()
        monkeypatch.undo()


def test_a_registration_that_was_cut_off_and_is_taken_late_is_removed(consul_agent: ConsulAgent, unique: str) -> None:
    """It lay in the socket of a busy agent, which read it behind the removal and its proof."""
    sent, proven = threading.Event(), threading.Event()
    is_removed = threading.Event()

    def take_late(_method: str, path: str) -> Lie | None:
        if "/agent/service/register" in path:
            sent.set()
            proven.wait(20)
            threading.Event().wait(0.2)  # the proof is read
        elif "/agent/service/deregister/" in path:
            is_removed.set()
        elif "/health/service/" in path and is_removed.is_set():
            proven.set()
        return None

    with Liar(consul_agent, take_late) as link, Members() as members:
        registration = members.new(proxied(consul_agent, link.address, "?timeout_s=20"), instance(unique))
        register = Background(lambda: registration.register(soon(20)))
        assert sent.wait(20)
        removal = registration.on_shutdown(soon(8))
        with pytest.raises(LiveOwnerError):
            register.result()
        assert removal.outcome is RemovalOutcome.CONFIRMED, removal
        assert proven.is_set()
        never(lambda: consul_agent.instances(unique), 0.5)


def test_a_claim_while_another_request_is_served_is_served_next(stage: Stage) -> None:
    """It was forgotten with the one that had ended, and its caller waited in vain."""
    registration = stage.registration()
    worker = registration._worker
    settle = worker.node.settle
    serves, may_go_on = threading.Event(), threading.Event()

    def settle_late(deadline: Deadline) -> Any:
        serves.set()
        may_go_on.wait(20)
        return settle(deadline)

    worker.node.settle = settle_late  # type: ignore[method-assign]
    first = Background(lambda: registration.register(within(30)))
    assert serves.wait(20)
    second = Background(lambda: worker.claim_anew(within(20)))
    eventually(lambda: len(worker._requests) == 2, timeout=20)
    may_go_on.set()
    first.result()
    second.result()
    assert registration.is_registered


def test_a_removal_that_is_lifted_before_it_is_told_is_told_as_it_was(caplog: pytest.LogCaptureFixture) -> None:
    """Not as an empty line."""
    caplog.set_level(logging.WARNING)
    removal = OperatorsRemoval(Membership(instance("calculator"), "local://x"), SYSTEM_CLOCK, logging.getLogger("test"))
    told: list[str] = []
    removal.on_removed(told.append)
    line = removal.mark("by hand")
    removal.lift()
    removal.tell(line)
    assert told == [line]
    assert line in caplog.text
