"""Expired sessions, dead servers and broken links, on a real ZooKeeper."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from registry_drain.clock import SYSTEM_CLOCK, Deadline
from registry_drain.errors import LiveOwnerError, RegistryTimeoutError, RegistryUnavailableError
from registry_drain.registries.base import RemovalOutcome
from registry_drain.registries.zookeeper.registration import ZooKeeperRegistration
from registry_drain.registries.zookeeper.session import SessionPhase, ZooKeeperSession
from registry_drain.registries.zookeeper.settings import SessionSettings
from tests.conftest import NewZooKeeper
from tests.registries.zookeeper_bench import INSTANCE, SERVICE, Background, Stage, never, within
from tests.registries.zookeeper_owner import start_owner
from tests.support.processes import ManagedProcess, eventually
from tests.support.tcp_proxy import TcpProxy
from tests.support.zookeeper_process import ZooKeeperServer

NewProxy = Callable[[str], TcpProxy]


@pytest.fixture
def stage(zookeeper_server: ZooKeeperServer, unique: str) -> Iterator[Stage]:
    """Give a base path of the test's own on the shared server."""
    stage = Stage(zookeeper_server, f"/{unique}")
    yield stage
    stage.close()


@pytest.fixture
def own_stage(new_zookeeper: NewZooKeeper) -> Iterator[Stage]:
    """Give a server of the test's own, to be frozen and killed."""
    stage = Stage(new_zookeeper(), "/services")
    yield stage
    stage.server.thaw()
    stage.close()


@pytest.fixture(scope="module")
def patient_server(
    zookeeper_server: ZooKeeperServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ZooKeeperServer]:
    """Give a server that grants sessions of a minute; ``zookeeper_server`` decides where there is no ZooKeeper."""
    del zookeeper_server
    with ZooKeeperServer(tmp_path_factory.mktemp("patient"), settings={"maxSessionTimeout": 60_000}) as server:
        yield server


@pytest.fixture
def patient_stage(patient_server: ZooKeeperServer, unique: str) -> Iterator[Stage]:
    """Give a base path on it: kazoo gives up a connection that hangs after 40 to 60 s, and we long before."""
    stage = Stage(patient_server, f"/{unique}")
    yield stage
    stage.close()


def no_answer_to_create(proxy: TcpProxy, registration: ZooKeeperRegistration, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the link hold back every answer from the moment at which the node is about to be created."""
    create = registration._node._create

    def create_unanswered(session: ZooKeeperSession, deadline: Deadline) -> None:
        proxy.delay_answers(60.0)
        create(session, deadline)

    monkeypatch.setattr(registration._node, "_create", create_unanswered)


# --- while serving ----------------------------------------------------------------------------------------------------


def test_a_session_that_expires_while_serving_is_replaced(stage: Stage) -> None:
    """The node comes back under a new session, by itself."""
    registration = stage.registered()
    before = stage.stat()
    stage.expire(registration)
    after = eventually(stage.stat, timeout=40, because="the node is re-created")
    assert after.ephemeralOwner != before.ephemeralOwner
    assert eventually(lambda: registration.is_registered, timeout=40)
    assert registration.on_shutdown(within()).outcome is RemovalOutcome.CONFIRMED
    assert stage.stat() is None


def test_a_session_that_expires_again_and_again_is_replaced_each_time(stage: Stage) -> None:
    """Re-creation works more than once, and every session that it used is ended at last."""
    registration = stage.registered()
    ids = set()
    for _ in range(4):
        eventually(lambda: registration.is_registered, timeout=40)
        ids.add(eventually(stage.stat, timeout=40).ephemeralOwner)
        stage.expire(registration)
    eventually(stage.stat, timeout=40)
    assert registration.on_shutdown(within()).outcome is RemovalOutcome.CONFIRMED
    assert len(ids) == 4
    assert not ids & stage.server.session_ids()


@pytest.mark.parametrize("kill", [False, True])
def test_a_server_that_restarts_while_serving_keeps_us(own_stage: Stage, kill: bool) -> None:
    """After a restart the instance is listed, soon, and on."""
    registration = own_stage.registered()
    own_stage.server.restart(kill=kill)
    eventually(lambda: own_stage.stat() and registration.is_registered, timeout=40, because="registered again")
    assert registration.on_shutdown(within()).outcome is RemovalOutcome.CONFIRMED


def test_a_server_that_lost_its_data_gets_us_back(own_stage: Stage) -> None:
    """A server that comes back empty has the session expired, and the node and its parents are made anew."""
    # A short session: kazoo waits for as long when it connects to a server that is still starting.
    registration = own_stage.registered(own_stage.registry(session_timeout=4.0))
    own_stage.server.kill()
    for log in (own_stage.server.directory / "data" / "version-2").iterdir():
        log.unlink()
    own_stage.server.start()
    eventually(own_stage.stat, timeout=40, because="registered again")
    eventually(lambda: registration.is_registered, timeout=40)


def test_a_long_outage_is_told_once(
    own_stage: Stage, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log says once that the registration is in doubt, not once per attempt."""
    caplog.set_level(logging.INFO, logger="registry_drain")
    registration = own_stage.registered()
    with monkeypatch.context() as outage:
        # Brief attempts, and many: but only while nobody answers, who would need more time.
        brief = replace(registration._worker._settings, call_timeout=0.2)
        outage.setattr(registration._worker, "_settings", brief)
        own_stage.server.kill()
        eventually(lambda: "may have lost" in caplog.text, timeout=40)
        never(lambda: caplog.text.count("may have lost") > 1, seconds=2.0, because="said again")
    own_stage.server.start()
    eventually(lambda: own_stage.stat() and registration.is_registered, timeout=40)


# --- predecessors and successors --------------------------------------------------------------------------------------


def test_a_dead_predecessor_is_taken_over_at_once(stage: Stage, tmp_path: Path) -> None:
    """A restart need not wait for the session of the process that crashed, and outlives its time-out."""
    url = f"{stage.server.url}{stage.base}?session_timeout_s=6"
    owner = start_owner(url, INSTANCE, tmp_path)
    predecessor = stage.stat().ephemeralOwner
    owner.kill()
    stage.registered()
    assert predecessor in stage.server.session_ids(), "nothing waited for its end"
    ours = stage.stat()
    assert ours.ephemeralOwner != predecessor
    eventually(lambda: predecessor not in stage.server.session_ids(), timeout=40)
    assert stage.stat().czxid == ours.czxid


def test_whoever_was_taken_over_yields_for_good(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """The elder notices, says so once, and does not come back, not even with a new session."""
    caplog.set_level(logging.WARNING, logger="registry_drain")
    elder = stage.registered()
    successor = stage.registered()
    owner = stage.stat().ephemeralOwner
    eventually(lambda: not elder.is_registered, timeout=40)
    stage.expire(elder)
    never(lambda: stage.stat().ephemeralOwner != owner, seconds=1.5, because="the elder took the path back")
    eventually(lambda: f"{INSTANCE} yields" in caplog.text, because="it is said, a moment later")
    assert caplog.text.count(f"{INSTANCE} yields") == 1
    # Until kazoo notices, a call may still be answered by the session that is over.
    eventually(lambda: elder._node.sessions[-1].is_over, because="the expiry is noticed")
    with pytest.raises(LiveOwnerError):
        elder.register(within())
    removal = elder.on_shutdown(within())
    assert removal.outcome is RemovalOutcome.SUCCESSOR
    assert successor.is_registered
    assert stage.stat().ephemeralOwner == owner


def test_an_elder_whose_session_expired_meets_its_successor_and_yields(stage: Stage, tcp_proxy: NewProxy) -> None:
    """A process that was cut off while it was replaced finds out when it is back."""
    proxy = tcp_proxy(stage.server.hosts)
    elder = stage.registered(stage.registry(hosts=proxy.address))
    proxy.refuse()
    proxy.drop_connections()
    stage.expire(elder)
    successor = stage.registered()
    owner = stage.stat().ephemeralOwner
    proxy.pass_through()
    eventually(lambda: not elder.is_registered, timeout=40)
    never(lambda: stage.stat().ephemeralOwner != owner, seconds=1.5, because="the elder took the path back")
    assert successor.is_registered
    assert elder.on_shutdown(within()).outcome is RemovalOutcome.SUCCESSOR


def test_an_elder_that_is_late_does_not_replace_a_newer_instance(stage: Stage) -> None:
    """A first registration that succeeds only after the successor's is refused."""
    elder = stage.registration()
    eventually(lambda: int(SYSTEM_CLOCK.unix_time() * 1000) / 1000 > elder._node._started_at)
    stage.registered()
    with pytest.raises(LiveOwnerError, match="newer instance"):
        elder.register(within())
    assert elder.on_shutdown(within()).is_gone
    assert stage.stat() is not None


def test_a_leftover_of_ones_own_is_not_taken_for_a_successor(
    stage: Stage, tcp_proxy: NewProxy, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A re-creation was applied, its answer and the goodbye were lost: the next session replaces that node."""
    caplog.set_level(logging.WARNING, logger="registry_drain")
    proxy = tcp_proxy(stage.server.hosts)
    registration = stage.registered(stage.registry(hosts=proxy.address, options="&timeout_s=30"))
    before = stage.stat()
    with monkeypatch.context() as fault:
        no_answer_to_create(proxy, registration, fault)
        stage.expire(registration)
        leftover = eventually(stage.stat, because="re-created, and not yet answered")
    proxy.black_hole()
    proxy.drop_connections()
    assert leftover.ephemeralOwner != before.ephemeralOwner
    eventually(lambda: registration._node.sessions[-1].id != leftover.ephemeralOwner, timeout=40, because="given up")
    assert stage.stat().ephemeralOwner == leftover.ephemeralOwner, "the goodbye was not lost"
    proxy.pass_through()
    eventually(lambda: registration.is_registered and stage.stat().ephemeralOwner != leftover.ephemeralOwner)
    assert f"{INSTANCE} yields" not in caplog.text


def test_a_persistent_node_is_never_taken_over(stage: Stage) -> None:
    """What no session keeps was put there on purpose."""
    with stage.eyes() as client:
        client.create(stage.path, b"{}", makepath=True)
    with pytest.raises(LiveOwnerError, match="persistent"):
        stage.registration().register(within())
    assert stage.stat().ephemeralOwner == 0


def test_consecutive_take_overs_never_share_a_version(stage: Stage) -> None:
    """The guard of a take-over fails on a node that somebody else took over meanwhile."""
    versions = []
    for _ in range(10):
        stage.registered()
        versions.append(stage.stat().version)
    assert all(before != after for before, after in itertools.pairwise(versions)), versions


# --- the stop ---------------------------------------------------------------------------------------------------------


def test_a_session_that_expires_during_the_stop_is_never_replaced(stage: Stage) -> None:
    """Fenced, then expired: nothing brings the node back, whatever reconnects."""
    registration = stage.registered()
    registration.fence(within())
    stage.expire(registration)
    never(stage.stat, seconds=3.0, because="resurrected")
    assert registration.on_shutdown(within()).outcome is RemovalOutcome.CONFIRMED
    never(stage.stat, seconds=1.0, because="resurrected")


def test_expiry_races_with_the_fence(stage: Stage) -> None:
    """Whenever the fence comes while a lost session is being replaced, nothing is listed after the removal."""
    for step in range(8):
        registration = stage.registered()
        expiry = Background(lambda registration=registration: stage.expire(registration))  # type: ignore[misc]
        threading.Event().wait(0.02 * step)  # spreads the race; no state is waited for
        removal = registration.on_shutdown(within())
        assert removal.is_gone, removal
        assert stage.stat() is None
        expiry.result()
        never(stage.stat, seconds=0.2, because=f"resurrected in step {step}")


def _ends_in_time(call: Callable[[], object], seconds: float) -> None:
    began = time.monotonic()
    call()
    assert time.monotonic() - began < seconds


@pytest.mark.parametrize("fault", ["frozen", "killed"])
def test_a_dead_server_ends_the_removal_by_its_deadline(own_stage: Stage, fault: str) -> None:
    """The removal ends unconfirmed and in time; what is left behind goes by the session time-out."""
    registration = own_stage.registered(own_stage.registry())
    if fault == "frozen":
        own_stage.server.freeze()
    else:
        own_stage.server.kill()
    began = time.monotonic()
    removal = registration.on_shutdown(within(1.0))
    # kazoo itself would notice only after 6.7 s that nobody answers.
    assert time.monotonic() - began < 6.0
    assert removal.outcome is RemovalOutcome.UNCONFIRMED
    assert "after 10 s" in removal.detail
    assert not registration.is_registered
    if fault == "frozen":
        own_stage.server.thaw()
    else:
        own_stage.server.start()
    eventually(lambda: own_stage.stat() is None, timeout=40, because="gone by the session time-out")
    never(own_stage.stat, seconds=1.0, because="resurrected")


@pytest.mark.parametrize("fault", ["black hole", "refused", "stalled"])
@pytest.mark.parametrize("when", ["before", "during"])
def test_a_broken_link_ends_the_removal_by_its_deadline(
    stage: Stage, tcp_proxy: NewProxy, fault: str, when: str
) -> None:
    """Cut off before or in the middle of the removal: unconfirmed, in time, and gone by the session time-out."""
    proxy = tcp_proxy(stage.server.hosts)
    registration = stage.registered(stage.registry(hosts=proxy.address, session_timeout=2.0))

    def cut() -> None:
        if fault == "black hole":
            proxy.black_hole()
        elif fault == "stalled":
            proxy.stall()
        else:
            proxy.refuse()
            proxy.drop_connections()

    if when == "during":
        proxy.delay(10.0)  # the goodbye does not arrive, however late the cut is
        stop = Background(lambda: registration.on_shutdown(within(1.5)))
        eventually(lambda: registration._node.sessions[-1]._state.is_ending, interval=0.001)
        cut()
    else:
        cut()
        stop = Background(lambda: registration.on_shutdown(within(1.5)))
    removal = stop.result(timeout=8.0)
    assert removal.outcome is RemovalOutcome.UNCONFIRMED, removal
    eventually(lambda: stage.stat() is None, timeout=40, because="gone by the session time-out")
    never(stage.stat, seconds=0.5, because="resurrected")


@pytest.mark.parametrize("fault", ["frozen", "restarted"])
def test_a_server_that_is_back_in_time_confirms(own_stage: Stage, fault: str) -> None:
    """A removal that began while the server was away is finished and proven inside its budget."""
    registration = own_stage.registered(own_stage.registry())
    if fault == "frozen":
        own_stage.server.freeze()
    else:
        own_stage.server.kill()
    stop = Background(lambda: registration.on_shutdown(within(30.0)))
    eventually(lambda: registration._worker.is_fenced)
    if fault == "frozen":
        own_stage.server.thaw()
    else:
        own_stage.server.start()
    assert stop.result().outcome is RemovalOutcome.CONFIRMED
    assert own_stage.stat() is None


def test_a_goodbye_that_never_arrived_is_said_again(stage: Stage, tcp_proxy: NewProxy) -> None:
    """The link swallowed it: the session is resumed and closed, long before its time-out."""
    proxy = tcp_proxy(stage.server.hosts)
    registration = stage.registered(stage.registry(hosts=proxy.address))
    began = time.monotonic()
    session = registration._node.sessions[-1]
    proxy.black_hole()
    sent = len(proxy.recorded)
    stop = Background(lambda: registration.on_shutdown(within(9.0)))
    eventually(lambda: session._state.is_ending and len(proxy.recorded) > sent)
    proxy.pass_through()  # resets what was in the hole
    removal = stop.result()
    assert removal.outcome is RemovalOutcome.CONFIRMED, removal
    assert session.is_dead
    assert stage.stat() is None
    assert time.monotonic() - began < 9.0


def test_a_goodbye_whose_answer_was_lost_is_a_success(stage: Stage, tcp_proxy: NewProxy) -> None:
    """Applied, but the answer never came: the resumed session turns out to have ended."""
    proxy = tcp_proxy(stage.server.hosts)
    registration = stage.registered(stage.registry(hosts=proxy.address))
    proxy.delay_answers(60.0)
    stop = Background(lambda: registration.on_shutdown(within(9.0)))
    eventually(lambda: stage.stat() is None, because="the goodbye was applied")
    assert stop.is_running
    proxy.pass_through()
    proxy.drop_connections()
    assert stop.result().outcome is RemovalOutcome.CONFIRMED


def hanging_reconnects(stage: Stage, proxy: TcpProxy) -> tuple[ZooKeeperRegistration, int]:
    """Return a registration whose two sessions connect anew, in vain; and how many connections there were before."""
    registry = stage.registry(hosts=proxy.address, session_timeout=60.0)  # kazoo gives an attempt up after as long
    registration = stage.registered(registry)
    registry.entries(SERVICE, within())  # the shared session is connected
    before = proxy.accepted_connections
    proxy.delay_answers(300.0)
    proxy.drop_connections()
    return registration, before


def test_an_attempt_to_reconnect_that_hangs_keeps_no_removal(patient_stage: Stage, tcp_proxy: NewProxy) -> None:
    """The server is back, but not for those who connected while it started: it is asked by a new connection."""
    proxy = tcp_proxy(patient_stage.server.hosts)
    registration, before = hanging_reconnects(patient_stage, proxy)
    eventually(lambda: proxy.accepted_connections >= before + 2, because="both sessions try")
    proxy.pass_through()
    removal = registration.on_shutdown(within(20.0))
    assert removal.outcome is RemovalOutcome.CONFIRMED, removal


def test_the_first_new_connection_may_hang_too(patient_stage: Stage, tcp_proxy: NewProxy) -> None:
    """Each is given up in time for the next."""
    proxy = tcp_proxy(patient_stage.server.hosts)
    registration, before = hanging_reconnects(patient_stage, proxy)
    stop = Background(lambda: registration.on_shutdown(within(25.0)))
    eventually(lambda: proxy.accepted_connections >= before + 3, because="the removal tries")
    proxy.pass_through()
    removal = stop.result()
    assert removal.outcome is RemovalOutcome.CONFIRMED, removal


def test_a_lost_goodbye_alone_is_no_proof(stage: Stage, tcp_proxy: NewProxy) -> None:
    """An absent node is not called confirmed while our session may live and its requests lie unread somewhere."""
    proxy = tcp_proxy(stage.server.hosts)
    registry = stage.registry(hosts=proxy.address)
    registration = stage.registered(registry)
    with stage.eyes() as client:
        registration.fence(within())
        client.delete(stage.path)
    registry._shared.close(within(1.0))
    proxy.stall()
    assert registration.on_shutdown(within(1.0)).outcome is RemovalOutcome.UNCONFIRMED
    proxy.pass_through()
    assert registration.on_shutdown(within()).outcome is RemovalOutcome.CONFIRMED


def test_on_shutdown_works_after_the_registry_was_closed(stage: Stage) -> None:
    """Closed in the wrong order, the proof is read with a session of its own."""
    registry = stage.registry()
    registration = stage.registered(registry)
    registry.close()
    assert registration.on_shutdown(within()).outcome is RemovalOutcome.CONFIRMED


# --- stop during start-up ---------------------------------------------------------------------------------------------


def test_fence_cancels_a_register_that_cannot_connect(stage: Stage, tcp_proxy: NewProxy) -> None:
    """A register that waits for a black hole ends at once, and so does the fence."""
    proxy = tcp_proxy(stage.server.hosts)
    proxy.black_hole()
    registration = stage.registration(stage.registry(hosts=proxy.address))
    register = Background(lambda: registration.register(within(60.0)))
    eventually(lambda: proxy.recorded)
    _ends_in_time(lambda: registration.fence(within(10.0)), 4.0)
    with pytest.raises(LiveOwnerError):
        register.result()
    assert registration.on_shutdown(within()).outcome is RemovalOutcome.NOT_REGISTERED
    proxy.pass_through()
    never(stage.stat, seconds=1.0, because="resurrected")


def test_fence_undoes_a_create_whose_answer_is_on_its_way(
    stage: Stage, tcp_proxy: NewProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node exists already when the fence comes: its session ends, and the proof says that it is gone."""
    with stage.eyes() as client:
        client.ensure_path(f"{stage.base}/{INSTANCE.service}")
    proxy = tcp_proxy(stage.server.hosts)
    registration = stage.registration(stage.registry(hosts=proxy.address, options="&timeout_s=60"))
    no_answer_to_create(proxy, registration, monkeypatch)
    register = Background(lambda: registration.register(within(60.0)))
    eventually(stage.stat, because="created, and not yet answered")
    assert register.is_running
    proxy.pass_through()  # for new connections: what was held back stays so
    removal = registration.on_shutdown(within(30.0))
    with pytest.raises(LiveOwnerError):
        register.result()
    assert removal.outcome is RemovalOutcome.CONFIRMED
    assert stage.stat() is None


def test_register_against_a_silent_server_ends_by_its_deadline(stage: Stage, tcp_proxy: NewProxy) -> None:
    """A host that accepts and says nothing costs no more than the deadline; a later call succeeds."""
    proxy = tcp_proxy(stage.server.hosts)
    proxy.black_hole()
    registration = stage.registration(stage.registry(hosts=proxy.address))

    def fails() -> None:
        with pytest.raises(RegistryUnavailableError):
            registration.register(within(1.0))

    _ends_in_time(fails, 4.0)
    proxy.pass_through()
    registration.register(within())
    assert registration.is_registered


# --- the session ------------------------------------------------------------------------------------------------------


def test_calls_while_disconnected_never_hang_their_caller(stage: Stage, tcp_proxy: NewProxy) -> None:
    """Kazoo would block the 279th request of an outage; ours all end by their deadline."""
    proxy = tcp_proxy(stage.server.hosts)
    settings = SessionSettings("zookeeper://test", proxy.address, session_timeout=10.0, call_timeout=5.0)
    session = ZooKeeperSession(settings, SYSTEM_CLOCK)
    try:
        session.wait_connected(within())
        proxy.refuse()
        proxy.drop_connections()
        eventually(lambda: session._state.phase is SessionPhase.SUSPENDED)

        def try_all() -> None:
            for _ in range(400):
                with pytest.raises(RegistryUnavailableError):
                    session.call(lambda client: client.exists_async("/"), deadline=within(0.002))

        Background(try_all).result(20.0)
        proxy.pass_through()
        assert session.call(lambda client: client.exists_async("/"), deadline=within())[0]
    finally:
        session.begin_end()
        assert session.wait_stopped(within())


def test_calls_to_a_frozen_server_never_hang_their_caller(own_stage: Stage) -> None:
    """The same while the connection looks healthy: unanswered requests are not piled up without limit."""
    settings = SessionSettings("zookeeper://test", own_stage.server.hosts, session_timeout=10.0, call_timeout=0.002)
    session = ZooKeeperSession(settings, SYSTEM_CLOCK)
    try:
        session.wait_connected(within())
        own_stage.server.freeze()

        def try_all() -> None:
            for _ in range(400):
                with pytest.raises(RegistryUnavailableError):
                    session.call(lambda client: client.exists_async("/"), deadline=within(0.002))

        Background(try_all).result(30.0)
        own_stage.server.thaw()
        eventually(lambda: session._state._outstanding == 0, because="late answers give their places back")
    finally:
        own_stage.server.thaw()
        session.begin_end()
        assert session.wait_stopped(within(20.0))


def test_a_forked_child_leaves_its_parents_registration_alone(stage: Stage, tmp_path: Path) -> None:
    """The child's on_shutdown returns at once and removes nothing."""
    program = textwrap.dedent(
        f"""
        import os, sys, warnings
        from registry_drain.clock import Deadline
        from registry_drain.errors import LiveOwnerError
        from registry_drain.instance import ServiceInstance
        from registry_drain.registries.url import open_registry
        warnings.simplefilter("ignore")
        registry = open_registry("{stage.server.url}{stage.base}")
        registration = registry.registration(ServiceInstance("{INSTANCE.service}", "192.0.2.7", 9090, id="one"))
        registration.register(Deadline.after(10))
        child = os.fork()
        if child == 0:
            removal = registration.on_shutdown(Deadline.after(5))
            try:
                registration.register(Deadline.after(5))
            except LiveOwnerError:
                print(removal.outcome.value, len(registry.entries(None, Deadline.after(5))), flush=True)
            os._exit(0)
        os.waitpid(child, 0)
        print(len(registry.entries(None, Deadline.after(5))), "listed", registration.is_registered, flush=True)
        registration.on_shutdown(Deadline.after(5))
        """
    )
    assert sys.platform != "win32"
    assert os.environ
    with ManagedProcess.python("-c", program, log=tmp_path / "fork.log") as process:
        output = process.wait_output("listed")
    assert "not registered 1" in output
    assert "1 listed True" in output


@pytest.mark.parametrize("whose", ["the registration's", "the shared"])
def test_a_server_that_hangs_is_left_for_another(patient_stage: Stage, tcp_proxy: NewProxy, whose: str) -> None:
    """The goodbye, or the proof, is not answered: it goes to another server long before kazoo notices."""
    stage = patient_stage
    links = [tcp_proxy(stage.server.hosts) for _ in range(2)]
    hosts = ",".join(link.address for link in links)
    registry = stage.registry(hosts=hosts, session_timeout=60.0, options="&timeout_s=60")
    registration = stage.registered(registry)
    registry.entries(SERVICE, within())  # the shared session is connected
    session = registration._node.sessions[-1] if whose == "the registration's" else registry._shared.get()
    [silent] = [link for link in links if link.address == session._state.notes.server]
    silent.black_hole()
    removal = registration.on_shutdown(within(20.0))  # kazoo would notice after 40
    assert removal.outcome is RemovalOutcome.CONFIRMED, removal
    assert stage.stat() is None


def test_a_caller_that_shares_an_attempt_keeps_its_own_deadline(stage: Stage, tcp_proxy: NewProxy) -> None:
    """Two threads register at once: the impatient one does not wait as long as the other."""
    proxy = tcp_proxy(stage.server.hosts)
    proxy.black_hole()
    registration = stage.registration(stage.registry(hosts=proxy.address))
    first = Background(lambda: registration.register(within(20.0)))
    eventually(lambda: registration._worker._requests, because="the first one waits")
    with pytest.raises(RegistryTimeoutError):
        registration.register(within(0.3))
    assert first.is_running
    registration.fence(within())
    with pytest.raises(LiveOwnerError):
        first.result()


def test_a_process_without_threads_today_registers_later(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker that could not start is an error that can be retried, and the next call starts one."""
    registration = stage.registration()
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "registry-drain-zookeeper-one":
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as limit:
        limit.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RegistryUnavailableError, match="limit of threads"):
            registration.register(within())
    registration.register(within())
    assert registration.is_registered


def test_a_child_forked_while_a_lock_was_held_is_answered(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that held it does not exist in the child: nothing there may wait for it."""
    registration = stage.registered()
    session = registration._node.sessions[-1]
    locks = (registration._lock, registration._worker._lock, session._state._lock)
    with contextlib.ExitStack() as held, monkeypatch.context() as child:
        child.setattr(os, "getpid", lambda: 1)
        for lock in locks:
            held.enter_context(lock)
        assert not Background(lambda: registration.is_registered).result(10)
        with pytest.raises(LiveOwnerError, match="forked"):
            Background(lambda: registration.register(within())).result(10)
        removal = Background(lambda: registration.on_shutdown(within())).result(10)
    assert removal.outcome is RemovalOutcome.NOT_REGISTERED
    assert registration.is_registered
    assert stage.stat() is not None
