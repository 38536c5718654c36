"""Listing, removing, watching, access lists and options of the ZooKeeper backend, on a real server."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from kazoo.security import make_acl, make_digest_acl

from registry_drain.clock import SYSTEM_CLOCK, Deadline
from registry_drain.errors import (
    ConfigurationError,
    InstanceNotFoundError,
    LiveOwnerError,
    PermissionRefusedError,
    RegistryDataError,
    RegistryUnavailableError,
)
from registry_drain.instance import ServiceInstance
from registry_drain.registries.base import RegistryEntry, RemovalOutcome
from registry_drain.registries.url import open_registry
from registry_drain.registries.zookeeper import ZooKeeperRegistry, session_client
from registry_drain.registries.zookeeper.layouts import CuratorLayout, NodeContent, NodeTree
from registry_drain.registries.zookeeper.layouts.base import Recognition
from registry_drain.registries.zookeeper.registration import ZooKeeperRegistration
from registry_drain.registries.zookeeper.registration.take_over import may_take_over
from registry_drain.registries.zookeeper.session import SessionPhase, session_text
from registry_drain.registries.zookeeper.session_client import address_in, client_of
from tests.conftest import NewZooKeeper
from tests.registries.zookeeper_bench import INSTANCE, SERVICE, Background, Stage, never, within
from tests.support.processes import eventually
from tests.support.tcp_proxy import TcpProxy
from tests.support.zookeeper_process import ZooKeeperServer

NewProxy = Callable[[str], TcpProxy]


@pytest.fixture
def stage(zookeeper_server: ZooKeeperServer, unique: str) -> Iterator[Stage]:
    """Give a base path of the test's own on the shared server."""
    stage = Stage(zookeeper_server, f"/{unique}")
    yield stage
    stage.close()


def _entry(stage: Stage, registry: ZooKeeperRegistry | None = None) -> RegistryEntry:
    [entry] = (registry or stage.registry()).entries(SERVICE, within())
    return entry


# --- entries ----------------------------------------------------------------------------------------------------------


def test_an_entry_says_who_keeps_it_and_where(stage: Stage) -> None:
    """Owner, locator, age and kind are those of the node."""
    stage.registered()
    stat, entry = stage.stat(), _entry(stage)
    assert entry.owner == session_text(stat.ephemeralOwner)
    assert entry.locator == stage.path
    assert entry.is_live is True
    assert entry.is_ephemeral is True
    assert entry.registered_at is not None
    assert abs(entry.registered_at - time.time()) < 60


def test_foreign_data_is_listed_with_its_problem(stage: Stage) -> None:
    """Garbage, folders and persistent nodes are shown, and hide nothing."""
    stage.registered()
    with stage.eyes() as client:
        client.create(f"{stage.base}/{SERVICE}/garbage", b"\xff\x00{", ephemeral=False)
        client.create(f"{stage.base}/{SERVICE}/folder/deep/deeper", b"x", makepath=True)
        client.create(f"{stage.base}/empty-service", b"")
        client.create(f"{stage.base}/other/two", b'{"address":"h","port":1}', makepath=True)
    entries = {(each.service, each.id): each for each in stage.registry().entries(None, within())}
    assert set(entries) == {(SERVICE, "one"), (SERVICE, "garbage"), (SERVICE, "folder"), ("other", "two")}
    assert entries[SERVICE, "garbage"].problem == "not JSON (3 bytes)"
    assert entries[SERVICE, "garbage"].is_live is None
    assert entries[SERVICE, "folder"].is_ephemeral is False
    assert entries[SERVICE, "one"].problem == ""
    assert (entries["other", "two"].address, entries["other", "two"].port) == ("h", 1)


def test_a_base_that_does_not_exist_is_empty(stage: Stage) -> None:
    """Nothing was ever registered: no entries, no error."""
    assert list(stage.registry().entries(None, within())) == []
    assert list(stage.registry().entries(SERVICE, within())) == []


def test_the_root_as_base_leaves_zookeepers_own_nodes_out(new_zookeeper: NewZooKeeper) -> None:
    """/zookeeper is never shown as a service. On a server of its own: the shared one has folders that others locked."""
    registry = open_registry(new_zookeeper().url)
    assert isinstance(registry, ZooKeeperRegistry)
    root = ZooKeeperRegistry(NodeTree.at("/", CuratorLayout()), registry._settings, SYSTEM_CLOCK)
    try:
        assert list(root.entries(None, within())) == []
    finally:
        root.close()
        registry.close()


def test_thousands_of_entries_that_come_and_go_are_listed(stage: Stage) -> None:
    """A big folder is read in about a second, while nodes of it vanish."""
    folder = f"{stage.base}/{SERVICE}"
    with stage.eyes() as client:
        client.ensure_path(folder)
        transaction = client.transaction()
        for number in range(2000):
            transaction.create(f"{folder}/{number:05}", b'{"address":"h","port":80}')
        transaction.commit()
        vanish = Background(lambda: [client.delete(f"{folder}/{number:05}") for number in range(300)])
        lists = [stage.registry().entries(SERVICE, within(30.0)) for _ in range(3)]
        vanish.result()
        assert len(stage.registry().entries(SERVICE, within())) == 1700
    for entries in lists:
        assert 1700 <= len(entries) <= 2000
        assert not any(entry.problem for entry in entries)
        assert [entry.id for entry in entries] == sorted(entry.id for entry in entries)


def test_entries_end_by_their_deadline(stage: Stage, tcp_proxy: NewProxy) -> None:
    """A black hole costs no more than the time allowed."""
    proxy = tcp_proxy(stage.server.hosts)
    proxy.black_hole()
    began = time.monotonic()
    with pytest.raises(RegistryUnavailableError):
        stage.registry(hosts=proxy.address).entries(None, within(0.5))
    assert time.monotonic() - began < 4.0


# --- remove -----------------------------------------------------------------------------------------------------------


def test_a_persistent_ghost_is_removed_without_force(stage: Stage) -> None:
    """Nobody keeps it, nobody is asked."""
    with stage.eyes() as client:
        client.create(stage.path, b'{"address":"h","port":1}', makepath=True)
    registry = stage.registry()
    removal = registry.remove(_entry(stage), within())
    assert removal.outcome is RemovalOutcome.CONFIRMED
    assert removal.attempts == 1
    assert stage.stat() is None


def test_a_folder_is_never_removed(stage: Stage) -> None:
    """A node with children is not an instance."""
    with stage.eyes() as client:
        client.create(f"{stage.path}/child", b"", makepath=True)
    with pytest.raises(RegistryDataError, match="1 children"):
        stage.registry().remove(_entry(stage), within(), force=True)


def test_an_entry_of_elsewhere_is_not_touched(stage: Stage) -> None:
    """A locator outside the base is refused, whatever it is."""
    with stage.eyes() as client:
        client.create(f"{stage.base}-elsewhere/x/y", b"", makepath=True)
    entry = RegistryEntry("x", "y", locator=f"{stage.base}-elsewhere/x/y")
    with pytest.raises(InstanceNotFoundError):
        stage.registry().remove(entry, within(), force=True)


def test_a_live_owner_is_named_with_the_address_of_its_client(
    stage: Stage, tcp_proxy: NewProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As far as the servers tell; it takes nothing away if they do not."""
    with stage.eyes() as client:
        client.create(stage.path, b"{}", makepath=True, ephemeral=True)
        own_port = client._connection._socket.getsockname()[1]
        registry = stage.registry()
        entry = _entry(stage)
        with monkeypatch.context() as patient:
            patient.setattr(session_client, "_MOST_SECONDS", 20.0)
            with pytest.raises(LiveOwnerError, match=rf"session {entry.owner} of the client 127\.0\.0\.1:{own_port}, "):
                registry.remove(entry, within())
        proxy = tcp_proxy(stage.server.hosts)
        proxy.black_hole()
        silent = replace(registry._settings, hosts=proxy.address)
        assert client_of(entry.owner, silent, within()) == ""
        assert client_of(entry.owner, replace(silent, hosts="127.0.0.1:1"), within()) == ""
        assert client_of("0x1", registry._settings, within()) == ""
        later = replace(silent, hosts=f"127.0.0.1:1,{stage.server.hosts}")
        with monkeypatch.context() as patient:
            patient.setattr(session_client, "_MOST_SECONDS", 20.0)
            assert client_of(entry.owner, later, within()) == f"127.0.0.1:{own_port}"
        proxy.pass_through()


def test_the_address_of_a_client_is_read_from_what_a_server_tells() -> None:
    """IPv6 too; a refusal, and sessions that begin alike, are nobody."""
    told = " /0:0:0:0:0:0:0:1:4711[1](queued=0,recved=5,sid=0x10a,lop=PING)\n /10.0.0.7:80[0](queued=0,sid=0x10)\n"
    assert address_in(told, "0x10a") == "0:0:0:0:0:0:0:1:4711"
    assert address_in(told, "0x10") == "10.0.0.7:80"
    assert address_in(told, "0x1") == ""
    assert address_in("cons is not executed because it is not in the whitelist.", "0x1") == ""


def test_a_live_owner_that_puts_it_back_is_reported(stage: Stage) -> None:
    """Forced out while its process keeps it: what was shown is gone, and the outcome says who is there now."""
    registry = stage.registry()
    outcomes = set()
    with stage.eyes() as client:

        def put_back(_event: object) -> None:
            client.create_async(stage.path, b"{}", ephemeral=True)
            client.exists_async(stage.path, put_back)

        client.create(stage.path, b"{}", makepath=True, ephemeral=True)
        client.exists(stage.path, put_back)
        for _ in range(20):
            eventually(stage.stat)
            removal = registry.remove(_entry(stage), within(), force=True)
            outcomes.add(removal.outcome)
            assert removal.is_gone
    assert outcomes <= {RemovalOutcome.CONFIRMED, RemovalOutcome.SUCCESSOR}


def test_a_delete_whose_answer_was_lost_is_a_success(
    stage: Stage, tcp_proxy: NewProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Applied, connection lost: the next attempt finds it gone and proves it."""
    with stage.eyes() as client:
        client.create(stage.path, b"{}", makepath=True)
    proxy = tcp_proxy(stage.server.hosts)
    registry = stage.registry(hosts=proxy.address, options="&timeout_s=60")
    entry = _entry(stage, registry)
    session = registry._shared.get()
    wait_connected = session.wait_connected

    def about_to_delete(deadline: Deadline) -> None:
        wait_connected(deadline)
        proxy.delay_answers(60.0)

    monkeypatch.setattr(session, "wait_connected", about_to_delete)
    remove = Background(lambda: registry.remove(entry, within(60.0)))
    eventually(lambda: stage.stat() is None, because="the delete was applied")
    assert remove.is_running
    proxy.drop_connections()
    proxy.pass_through()
    removal = remove.result()
    assert removal.outcome is RemovalOutcome.CONFIRMED
    assert removal.attempts == 1


def test_a_removal_that_is_cut_off_is_not_made_up_for_later(stage: Stage, tcp_proxy: NewProxy) -> None:
    """What was not sent before the deadline is never sent: a successor under the same path survives the link's return.

    The successor's node has version 0 as well, so that a delete which is still queued would remove it.
    """
    with stage.eyes() as client:
        client.create(stage.path, b"{}", makepath=True)
        proxy = tcp_proxy(stage.server.hosts)
        registry = stage.registry(hosts=proxy.address)
        entry = _entry(stage, registry)
        proxy.refuse()
        proxy.drop_connections()
        with pytest.raises(RegistryUnavailableError):
            registry.remove(entry, within(1.0))
        client.delete(stage.path)
    stage.registered()
    proxy.pass_through()
    eventually(lambda: registry.entries(SERVICE, within()))
    never(lambda: stage.stat() is None, seconds=1.0, because="the late delete removed a successor")
    with pytest.raises(LiveOwnerError, match="anew"):
        registry.remove(entry, within(), force=True)


# --- watch ------------------------------------------------------------------------------------------------------------


def test_a_watch_survives_the_expiry_of_its_session(stage: Stage) -> None:
    """The list is kept meanwhile, and followed afterwards."""
    stage.registered()
    registry = stage.registry()
    watch = registry.watch(SERVICE, within())
    session = registry._shared.get()
    stage.expire_session(session)
    assert watch.instances == (INSTANCE,)
    two = ServiceInstance(SERVICE, "192.0.2.8", 9091, id="two")
    stage.registered(instance=two)
    eventually(lambda: watch.instances == (INSTANCE, two), timeout=40)
    assert registry._shared.get() is not session


def test_a_watch_survives_a_restart_and_never_shows_an_empty_list(new_zookeeper: NewZooKeeper) -> None:
    """Stale beats empty: while the server is away, and after it, the list is the same."""
    stage = Stage(new_zookeeper(), "/services")
    try:
        # Short sessions: kazoo waits for as long when it connects to a server that is still starting.
        stage.registered(stage.registry(session_timeout=4.0))
        told: list[tuple[ServiceInstance, ...]] = []
        watch = stage.registry(session_timeout=4.0).watch(SERVICE, within(), told.append)
        stage.server.kill()
        never(lambda: not watch.instances, seconds=0.5, because="the outage emptied the list")
        stage.server.start()
        two = ServiceInstance(SERVICE, "192.0.2.8", 9091, id="two")
        stage.registered(instance=two)
        eventually(lambda: watch.instances == (INSTANCE, two), timeout=40)
        eventually(lambda: told == [(INSTANCE,), (INSTANCE, two)], timeout=40, because=f"told {told}")
    finally:
        stage.close()


def test_a_watch_reads_everything_anew_after_an_outage(stage: Stage, tcp_proxy: NewProxy) -> None:
    """What changed unseen is shown afterwards, and followed again, although the list of names is the same."""
    path = f"{stage.base}/{SERVICE}/foreign"
    proxy = tcp_proxy(stage.server.hosts)
    with stage.eyes() as client:
        client.create(path, b'{"address":"h","port":1}', makepath=True)
        watch = stage.registry(hosts=proxy.address).watch(SERVICE, within())
        for port in (2, 4):
            proxy.refuse()
            proxy.drop_connections()
            client.set(path, f'{{"address":"h","port":{port}}}'.encode())
            proxy.pass_through()
            eventually(lambda port=port: [each.port for each in watch.instances] == [port], timeout=40)  # type: ignore[misc]
            client.set(path, f'{{"address":"h","port":{port + 1}}}'.encode())
            eventually(lambda port=port: [each.port for each in watch.instances] == [port + 1], timeout=40)  # type: ignore[misc]


def test_a_watch_follows_data_and_leaves_out_what_cannot_be_called(stage: Stage) -> None:
    """A node that is switched off, broken, mended and re-created under the same name is followed."""
    path = f"{stage.base}/{SERVICE}/foreign"
    watch = stage.registry().watch(SERVICE, within())
    steps = [
        ({"address": "h", "port": 1}, 1),
        ({"address": "h", "port": 1, "enabled": False}, 0),
        ({"address": "h", "port": 2}, 2),
        ({"address": "0.0.0.0", "port": 2}, 0),
        ({"port": 3}, 0),
        ({"address": "h", "port": 4}, 4),
    ]
    with stage.eyes() as client:
        client.create(path, b"garbage", makepath=True)
        for document, port in steps:
            client.set(path, json.dumps(document).encode())
            eventually(
                lambda port=port: [each.port for each in watch.instances] == ([port] if port else []),  # type: ignore[misc]
                timeout=40,
            )
        transaction = client.transaction()
        transaction.delete(path)
        transaction.create(path, b'{"address":"h","port":5}')
        transaction.commit()
        eventually(lambda: [each.port for each in watch.instances] == [5], timeout=40)


def test_a_watch_closes_promptly_in_a_black_hole(stage: Stage, tcp_proxy: NewProxy) -> None:
    """No time-out has to pass first."""
    proxy = tcp_proxy(stage.server.hosts)
    registry = stage.registry(hosts=proxy.address)
    watch = registry.watch(SERVICE, within())
    proxy.black_hole()
    with stage.eyes() as client:
        client.ensure_path(f"{stage.base}/{SERVICE}")
    watch._wake.set()
    began = time.monotonic()
    watch.close()
    assert time.monotonic() - began < 4.0
    eventually(lambda: not watch._thread.is_alive(), timeout=5, because="its thread has ended")
    proxy.pass_through()


def test_a_watch_without_a_first_list_is_an_error_and_leaves_no_thread(stage: Stage, tcp_proxy: NewProxy) -> None:
    """The deadline passes, the error names the service, and the thread has ended."""
    proxy = tcp_proxy(stage.server.hosts)
    proxy.black_hole()
    registry = stage.registry(hosts=proxy.address)
    with pytest.raises(RegistryUnavailableError, match=SERVICE):
        registry.watch(SERVICE, within(0.5))
    assert not registry._watches
    proxy.pass_through()


# --- access lists -----------------------------------------------------------------------------------------------------


def _secret_file(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text("digest:deployer:s3cr3t-w0rd\n", encoding="utf-8")
    return path


def test_credentials_come_from_a_file_and_stand_nowhere(
    stage: Stage, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With the file a protected base can be used, and not without; the secret is in no log line and no repr."""
    caplog.set_level(1)
    with stage.eyes() as client:
        client.create(stage.base, b"", acl=[make_digest_acl("deployer", "s3cr3t-w0rd", all=True)])
    stranger = stage.registration()
    with pytest.raises(PermissionRefusedError):
        stranger.register(within())
    assert not stranger.is_registered
    with pytest.raises(PermissionRefusedError):
        stage.registry().entries(None, within())
    registry = stage.registry(options=f"&auth_file={_secret_file(tmp_path)}")
    registration = stage.registered(registry)
    assert len(registry.entries(None, within())) == 1
    stage.expire(registration)
    eventually(lambda: len(registry.entries(None, within())) == 1, timeout=40)
    assert registration.on_shutdown(within()).outcome is RemovalOutcome.CONFIRMED
    for text in (caplog.text, repr(registry), repr(registration), registry.url):
        assert "s3cr3t" not in text


def test_a_removal_without_the_permission_is_refused(stage: Stage) -> None:
    """Deleting takes the folder's permission; the entry stays."""
    with stage.eyes() as client:
        client.ensure_path(stage.base)
        client.create(f"{stage.base}/{SERVICE}", b"", acl=[make_acl("world", "anyone", read=True, create=True)])
        client.create(stage.path, b"{}")
    with pytest.raises(PermissionRefusedError):
        stage.registry().remove(_entry(stage), within(), force=True)
    assert stage.stat() is not None


def test_a_node_that_may_not_be_read_is_listed(stage: Stage) -> None:
    """Its problem says so, and who keeps it is known all the same."""
    with stage.eyes() as client:
        client.ensure_path(f"{stage.base}/{SERVICE}")
        client.create(stage.path, b"{}", ephemeral=True, acl=[make_digest_acl("x", "y", all=True)])
        entry = _entry(stage)
    assert "may not read" in entry.problem
    assert entry.is_live
    assert entry.owner


# --- take-over rule and layouts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("theirs", "held_before", "is_own", "expected"),
    [
        (None, False, False, True),
        (50.0, False, False, True),
        (100.0, False, False, True),
        (150.0, False, False, False),
        (200.0, False, False, False),
        (201.0, False, False, True),
        (150.0, False, True, True),
        (50.0, True, False, False),
        (None, True, False, False),
        (50.0, True, True, True),
    ],
)
def test_who_may_take_over(theirs: float | None, held_before: bool, is_own: bool, expected: bool) -> None:
    """We started at 100 and it is 200: older and unknown holders yield; younger ones and our successors do not."""
    assert may_take_over(theirs, 100.0, 200.0, held_before=held_before, is_own=is_own) is expected


class _Sequential:
    """A layout like ServerSet's, to prove the seam."""

    name = "sequential"
    is_sequential = True

    def folder(self, service: str) -> str:
        return f"{service}/providers"

    def node_name(self, instance: ServiceInstance) -> str:
        return f"{instance.id}_"

    def encode(self, instance: ServiceInstance, registered_at: float) -> bytes:
        return f"{instance.endpoint} {registered_at}".encode()

    def decode(self, node_name: str, data: bytes) -> NodeContent:
        host, _, port = data.split()[0].decode().rpartition(":")
        return NodeContent(node_name, host, int(port))

    def recognises(self, node_name: str, data: bytes) -> Recognition:
        del node_name, data
        return Recognition.NONE


def test_a_sequential_layout_registers_lists_survives_expiry_and_leaves(stage: Stage) -> None:
    """The seam holds for layouts whose nodes get a number, in folders below the service."""
    settings = stage.registry()._settings
    registry = ZooKeeperRegistry(NodeTree.at(stage.base, _Sequential()), settings, SYSTEM_CLOCK)
    registration: ZooKeeperRegistration | None = None
    try:
        registration = registry.registration(INSTANCE)
        registration.register(within())
        [first] = registry.entries(None, within())
        assert first.locator == f"{stage.base}/{SERVICE}/providers/one_0000000000"
        stage.expire(registration)
        [second] = eventually(lambda: registry.entries(SERVICE, within()), timeout=40)
        assert second.id == "one_0000000001"
        assert registration.on_shutdown(within()).outcome is RemovalOutcome.CONFIRMED
        assert list(registry.entries(SERVICE, within())) == []
    finally:
        if registration is not None:
            registration.on_shutdown(within(2.0))
        registry.close()


# --- options and limits, no server needed -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("zookeeper:///services", "name at least one server"),
        ("zookeeper://h/services?layouts=curator", "unknown option 'layouts'"),
        ("zookeeper://h/services?layout=spring", "must be one of: armeria, auto, curator, dubbo"),
        ("zookeeper://h/services?session_timeout_s=0", "positive number"),
        ("zookeeper://h/services?timeout_s=soon", "timeout_s"),
        ("zookeeper://h/a//b", "cannot be one segment"),
        ("zookeeper://h/a/../b", "cannot be one segment"),
        ("zookeeper://h/a%F0%9F%9A%80", "refuses in paths"),
        ("zookeeper://h/services?auth_file=", "must be the path"),
        ("zookeeper://h/services?auth_file=/nowhere/at-all", "No such file"),
    ],
)
def test_settings_that_cannot_work_are_refused(url: str, reason: str) -> None:
    """One line, before anything is connected."""
    with pytest.raises(ConfigurationError, match=reason) as caught:
        open_registry(url)
    assert "\n" not in str(caught.value)


def test_a_malformed_auth_file_is_refused_without_being_repeated(tmp_path: Path) -> None:
    """The message names the file, never what is in it."""
    path = tmp_path / "auth"
    path.write_text("s3cr3t", encoding="utf-8")
    with pytest.raises(ConfigurationError, match="scheme:credential") as caught:
        open_registry(f"zookeeper://h/services?auth_file={path}")
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize("path", ["", "/"])
def test_a_url_without_a_path_means_services(path: str) -> None:
    """The default is where Spring Cloud looks."""
    registry = open_registry(f"zookeeper://h{path}")
    assert isinstance(registry, ZooKeeperRegistry)
    assert registry._tree.base == "/services"
    assert registry._settings.hosts == "h:2181"


def test_instances_that_zookeeper_refuses_are_refused_early() -> None:
    """Characters beyond U+FFFF and a megabyte of metadata would fail at every attempt, for ever."""
    registry = open_registry("zookeeper://h/services")
    with pytest.raises(ConfigurationError, match="refuses in paths"):
        registry.registration(ServiceInstance(SERVICE, "h", 1, id="🚀"))
    with pytest.raises(ConfigurationError, match="bytes"):
        registry.registration(ServiceInstance(SERVICE, "h", 1, metadata={"big": "x" * 1_100_000}))


def test_phases_read_as_words() -> None:
    """A repr in a log tells the phase."""
    assert [phase.value for phase in SessionPhase] == ["connecting", "connected", "suspended", "over"]


def test_kazoos_chatter_holds_no_secrets(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing below INFO of kazoo's gets through, whatever the level: it prints credentials and session passwords."""
    from registry_drain.registries.zookeeper.client import _kazoo_log

    caplog.set_level(1)
    logger = _kazoo_log()
    logger.debug("Sending request: Auth(auth='s3cr3t')")
    logger.log(5, "session_passwd: s3cr3t")
    logger.info("Zookeeper connection established")
    assert [record.levelno for record in caplog.records] == [logging.INFO]
