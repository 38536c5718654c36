"""An operator's removal, told from a lost session on a real ZooKeeper: the one stays out, the other is restored."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import pytest

from registry_drain.clock import Deadline
from registry_drain.errors import LiveOwnerError, RemovedByOperatorError
from registry_drain.registries.base import RemovalOutcome
from registry_drain.registries.zookeeper.registration import ZooKeeperRegistration
from registry_drain.registries.zookeeper.session import ZooKeeperSession
from tests.conftest import NewZooKeeper
from tests.registries.zookeeper_bench import INSTANCE, Stage, never, within
from tests.support.processes import eventually
from tests.support.tcp_proxy import TcpProxy
from tests.support.zookeeper_process import ZooKeeperServer

NewProxy = Callable[[str], TcpProxy]
LOOK = 0.5
"""Seconds; the worker puts back within milliseconds what it thinks was lost."""


@pytest.fixture
def stage(zookeeper_server: ZooKeeperServer, unique: str) -> Iterator[Stage]:
    """Give a base path of the test's own on the shared server."""
    stage = Stage(zookeeper_server, f"/{unique}")
    yield stage
    stage.close()


def delete(stage: Stage) -> None:
    """Delete the node as ``zkCli delete`` does."""
    with stage.eyes() as client:
        client.delete(stage.path)


def stays_out(stage: Stage, registration: ZooKeeperRegistration) -> None:
    """Fail unless the removal is found out, and nothing comes back."""
    eventually(lambda: registration.removed_by_operator, timeout=40, because="the removal is found out")
    assert not registration.is_registered
    never(stage.stat, seconds=LOOK, because="it came back")


def test_a_deleted_node_stays_out(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """Said once, told once; register() refuses, and the stop confirms at once and says who it was."""
    caplog.set_level(logging.INFO, logger="registry_drain")
    registration = stage.registered()
    told: list[str] = []
    registration.on_removed(told.append)
    assert registration.removed_by_operator == ""
    delete(stage)
    stays_out(stage, registration)
    eventually(lambda: told, because="it is told, a moment later")
    assert told == [registration.removed_by_operator]
    assert stage.path in told[0]
    assert caplog.text.count("stays out of") == 1
    with pytest.raises(RemovedByOperatorError, match="rejoin"):
        registration.register(within())
    never(stage.stat, seconds=0.2, because="register() brought it back")
    removal = registration.on_shutdown(within())
    assert removal.outcome is RemovalOutcome.CONFIRMED
    assert "removed by an operator" in removal.detail
    assert len(told) == 1


def test_a_folder_deleted_with_all_that_is_in_it_stays_out(stage: Stage) -> None:
    """``zkCli deleteall`` of the service is as much on purpose."""
    registration = stage.registered()
    with stage.eyes() as client:
        client.delete(stage.base, recursive=True)
    stays_out(stage, registration)


def test_a_callback_that_fails_is_logged_and_ends_nothing(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """It is called in the thread that keeps the node, which must live on, to rejoin."""

    def fail(_line: str) -> None:
        raise ValueError("somebody's callback")

    registration = stage.registered()
    registration.on_removed(fail)
    delete(stage)
    stays_out(stage, registration)
    eventually(lambda: "somebody's callback" in caplog.text, because="it is logged, a moment later")
    registration.rejoin(within())
    assert stage.stat() is not None


def test_it_rejoins_when_told_to(stage: Stage) -> None:
    """rejoin() lists it again. What is lost afterwards is restored, what is removed once more stays out once more."""
    registration = stage.registered()
    told: list[str] = []
    registration.on_removed(told.append)
    before = stage.stat()
    delete(stage)
    stays_out(stage, registration)
    registration.rejoin(within())
    assert stage.stat().ephemeralOwner == before.ephemeralOwner
    assert (registration.is_registered, registration.removed_by_operator) == (True, "")
    stage.expire(registration)
    eventually(stage.stat, timeout=40, because="an expired session is restored")
    eventually(lambda: registration.is_registered, timeout=40)
    delete(stage)
    stays_out(stage, registration)
    eventually(lambda: len(told) >= 2, because="it is told, a moment later")
    assert len(told) == 2


def test_a_removed_one_does_not_come_back_with_a_new_session(stage: Stage) -> None:
    """Its session expires while it is out: nothing is made anew."""
    registration = stage.registered()
    delete(stage)
    stays_out(stage, registration)
    stage.expire(registration)
    eventually(lambda: registration._node.sessions[-1].is_over, because="the expiry is noticed")
    never(stage.stat, seconds=LOOK, because="it came back with a new session")
    with pytest.raises(RemovedByOperatorError):
        registration.register(within())
    assert stage.stat() is None
    registration.rejoin(within())
    assert registration.is_registered
    assert stage.stat()


def test_deleted_before_its_first_look_stays_out(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Created, and gone when we look for the first time: register() says so, and puts nothing back."""
    registration = stage.registration()
    create = registration._node._create
    deleted: list[str] = []

    def create_and_lose(session: ZooKeeperSession, deadline: Deadline) -> None:
        create(session, deadline)
        if stage.stat():  # the first attempt finds no folders
            delete(stage)
            deleted.append(stage.path)

    monkeypatch.setattr(registration._node, "_create", create_and_lose)
    with pytest.raises(RemovedByOperatorError):
        registration.register(within(60.0))
    assert len(deleted) == 1
    stays_out(stage, registration)


def test_deleted_while_cut_off_stays_out(stage: Stage, tcp_proxy: NewProxy) -> None:
    """The connection is down, the session lives: found out after the reconnect."""
    proxy = tcp_proxy(stage.server.hosts)
    registration = stage.registered(stage.registry(hosts=proxy.address))
    proxy.refuse()
    proxy.drop_connections()
    delete(stage)
    proxy.pass_through()
    stays_out(stage, registration)


def test_an_expiry_that_is_noticed_late_is_restored(stage: Stage, tcp_proxy: NewProxy) -> None:
    """Cut off, and the session ended meanwhile: the node went with it, and comes back."""
    proxy = tcp_proxy(stage.server.hosts)
    registration = stage.registered(stage.registry(hosts=proxy.address))
    proxy.refuse()
    proxy.drop_connections()
    stage.expire(registration)
    assert stage.stat() is None
    proxy.pass_through()
    eventually(lambda: stage.stat() and registration.is_registered, timeout=40, because="it is restored")
    assert registration.removed_by_operator == ""


def test_a_removal_whose_session_ends_before_it_was_seen_is_in_doubt(stage: Stage, tcp_proxy: NewProxy) -> None:
    """Nobody can tell it from a loss any more, and a service that nobody finds is the worse fault: restored."""
    proxy = tcp_proxy(stage.server.hosts)
    registration = stage.registered(stage.registry(hosts=proxy.address))
    proxy.refuse()
    proxy.drop_connections()
    delete(stage)
    stage.expire(registration)
    proxy.pass_through()
    eventually(lambda: stage.stat() and registration.is_registered, timeout=40, because="it is restored")


def test_expiries_are_never_taken_for_removals(stage: Stage) -> None:
    """Again and again, with the connection up: it is restored each time."""
    registration = stage.registered()
    for _ in range(6):
        stage.expire(registration)
        eventually(lambda: stage.stat() and registration.is_registered, timeout=40, because="it is restored")
    assert registration.removed_by_operator == ""


def test_a_server_that_lost_its_data_is_no_operator(new_zookeeper: NewZooKeeper) -> None:
    """A server that comes back empty knows no session of ours: restored."""
    server = new_zookeeper()
    stage = Stage(server, "/services")
    try:
        # A short session: kazoo waits for as long when it connects to a server that is still starting.
        registration = stage.registered(stage.registry(session_timeout=4.0))
        server.kill()
        for log in (server.directory / "data" / "version-2").iterdir():
            log.unlink()
        server.start()
        eventually(lambda: stage.stat() and registration.is_registered, timeout=40, because="it is restored")
        assert registration.removed_by_operator == ""
    finally:
        stage.close()


def test_a_take_over_is_no_removal(stage: Stage) -> None:
    """The elder of two says that it yields, and no more."""
    elder = stage.registered()
    stage.registered()
    eventually(lambda: not elder.is_registered, timeout=40)
    assert elder.removed_by_operator == ""


def test_a_successor_is_left_alone_by_rejoin(stage: Stage) -> None:
    """Removed, then started anew elsewhere: the old process may not push the new one out."""
    elder = stage.registered()
    delete(stage)
    stays_out(stage, elder)
    successor = stage.registered()
    owner = stage.stat().ephemeralOwner
    with pytest.raises(LiveOwnerError):
        elder.rejoin(within())
    assert elder.on_shutdown(within()).outcome is RemovalOutcome.SUCCESSOR
    assert stage.stat().ephemeralOwner == owner
    assert successor.is_registered


def test_a_successor_that_does_not_say_when_it_began_is_left_alone_too(stage: Stage) -> None:
    """Whoever stands at a path that we once held came later, whatever its data say."""
    registry = stage.registry(options="&layout=plain")
    elder = stage.registered(registry)
    (entry,) = registry.entries(INSTANCE.service, within())
    registry.remove(entry, within(), force=True)
    eventually(lambda: elder.removed_by_operator, timeout=40)
    stage.registered(registry)
    (before,) = registry.entries(INSTANCE.service, within())
    with pytest.raises(LiveOwnerError):
        elder.rejoin(within())
    assert list(registry.entries(INSTANCE.service, within())) == [before]


def test_a_removed_one_is_not_handed_over(stage: Stage) -> None:
    """It has nothing to offer; taking back an offer that was never made lists nothing."""
    registration = stage.registered()
    delete(stage)
    stays_out(stage, registration)
    assert registration.offer(within()) == ""
    registration.take_back(within())
    never(stage.stat, seconds=LOOK, because="take_back() brought it back")


def test_a_sequential_node_rejoins_under_another_number(stage: Stage) -> None:
    """ServerSet members are numbered by ZooKeeper: a removed one stays out, and comes back as another."""
    registry = stage.registry(options="&layout=serverset")
    registration = stage.registered(registry)
    (before,) = registry.entries(INSTANCE.service, within())
    with stage.eyes() as client:
        client.delete(before.locator)
    eventually(lambda: registration.removed_by_operator, timeout=40)
    never(lambda: registry.entries(INSTANCE.service, within()), seconds=LOOK, because="it came back")
    registration.rejoin(within())
    (after,) = registry.entries(INSTANCE.service, within())
    assert after.locator > before.locator


def test_rejoin_after_the_fence_is_refused(stage: Stage) -> None:
    """A stop is for good."""
    registration = stage.registered()
    delete(stage)
    stays_out(stage, registration)
    registration.fence(within())
    with pytest.raises(LiveOwnerError):
        registration.rejoin(within())
    assert stage.stat() is None
