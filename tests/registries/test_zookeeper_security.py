"""Who may do what: SASL, digests and access lists on a real server, and what a refusal says.

The least rights that docs/zookeeper-security.md names are tried here one by one: they suffice, and without any one of
them the command is refused.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import socketserver
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from registry_drain.cli.main import main
from registry_drain.clock import SYSTEM_CLOCK
from registry_drain.errors import (
    ConfigurationError,
    MissingExtraError,
    PermissionRefusedError,
    RegistryDrainError,
    RegistryUnavailableError,
)
from registry_drain.instance import ServiceInstance
from registry_drain.registries.abilities import RemovalResult
from registry_drain.registries.base import RemovalOutcome
from registry_drain.registries.url import open_registry
from registry_drain.registries.zookeeper import ZooKeeperRegistry
from registry_drain.registries.zookeeper.session import ZooKeeperSession
from registry_drain.registries.zookeeper.settings import SessionSettings
from tests.conftest import NewZooKeeper, _require
from tests.registries.zookeeper_bench import INSTANCE, SERVICE, within
from tests.registries.zookeeper_identities import ADMIN, USERS, GuardedStage, Identities, digest_acl
from tests.support.processes import eventually, free_port
from tests.support.tcp_proxy import TcpProxy
from tests.support.zookeeper_process import ZooKeeperServer, find_zookeeper

pytestmark = pytest.mark.zookeeper
SCHEMES = ("digest", "sasl")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ZooKeeperServer]:
    """Give a server that knows digests, as every one does, and users of SASL."""
    _require("ZooKeeper", find_zookeeper())
    with ZooKeeperServer(tmp_path_factory.mktemp("zookeeper-sasl"), users=USERS) as server:
        yield server


@pytest.fixture
def stage(server: ZooKeeperServer, unique: str) -> Iterator[GuardedStage]:
    """Give a base path of the test's own."""
    stage = GuardedStage(server, f"/{unique}")
    yield stage
    stage.close()


@pytest.fixture
def identities(tmp_path: Path) -> Identities:
    """Give the files with credentials."""
    return Identities(tmp_path)


# --- credentials ------------------------------------------------------------------------------------------------------


def test_a_wrong_sasl_password_is_refused_at_once(stage: GuardedStage, identities: Identities) -> None:
    """Kazoo says that it is connected, and finds out later; nobody here waits for a time-out."""
    registry = stage.registry(options=identities.option("sasl", "deployer", "wr0ng"))
    began = time.monotonic()
    for call in (
        lambda: registry.entries(None, within(60.0)),
        lambda: registry.watch(SERVICE, within(60.0)),
        lambda: stage.registration(registry).register(within(60.0)),
    ):
        with pytest.raises(PermissionRefusedError, match="refused the credentials of sasl:deployer") as caught:
            call()
        assert "wr0ng" not in str(caught.value)
    assert time.monotonic() - began < 60.0


def test_a_wrong_digest_password_is_named_where_it_shows(stage: GuardedStage, identities: Identities) -> None:
    """The server takes any digest: the first refusal says that our name is listed, with another password."""
    stage.plant({"*": "cdrwa"}, {stage.base: b""})
    registry = stage.registry(options=identities.option("digest", "deployer", "wr0ng"))
    with stage.eyes() as client:  # a list that may be read, or else nothing can be told
        acls, _ = client.get_acls(stage.base)
        client.set_acls(stage.base, [*acls, *(_anyone("r"))])
    with pytest.raises(PermissionRefusedError, match="takes CREATE") as caught:
        stage.registration(registry).register(within())
    assert "it knows digest:deployer, so is the password in auth_file the right one?" in str(caught.value)
    assert "digest:admin:cdrwa" in str(caught.value)
    assert "wr0ng" not in str(caught.value)


def _anyone(letters: str) -> list[object]:
    from kazoo.security import ACL, ANYONE_ID_UNSAFE

    return [ACL(digest_acl("any", "body", letters).perms, ANYONE_ID_UNSAFE)]


def test_a_server_that_requires_sasl_is_understood(new_zookeeper: NewZooKeeper, identities: Identities) -> None:
    """Clients that prove nothing are told what is wanted of them, and the others are served."""
    server = new_zookeeper(
        users=USERS,
        settings={"enforce.auth.enabled": "true", "enforce.auth.schemes": "sasl", "4lw.commands.whitelist": "*"},
    )
    stage = GuardedStage(server, "/guarded")
    try:
        for options in ("", identities.option("digest", "deployer")):
            with pytest.raises(PermissionRefusedError, match="serves no client that has not proven who it is"):
                stage.registry(options=options).entries(None, within(60.0))
        assert list(stage.registry(options=identities.option("sasl", "deployer")).entries(None, within())) == []
    finally:
        stage.close()


@contextlib.contextmanager
def _hangs_up_during_sasl(may_hang_up: threading.Event) -> Iterator[str]:
    """Give the address of a server that grants a session, and ends the connection in the middle of SASL.

    As one does that is being stopped.
    """

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):
                self.request.recv(4096)
                answer = struct.pack("!iiq", 0, 10_000, 0x1234) + struct.pack("!i", 16) + bytes(16) + b"\0"
                self.request.sendall(struct.pack("!i", len(answer)) + answer)
                self.request.recv(4096)
                may_hang_up.wait(30.0)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}"
        finally:
            may_hang_up.set()
            server.shutdown()
            thread.join()


def test_a_server_that_ends_during_sasl_has_refused_nobody(identities: Identities) -> None:
    """A restart must not look like a wrong password, after which a registration would rest; the message says both."""
    may_hang_up = threading.Event()
    may_hang_up.set()
    with _hangs_up_during_sasl(may_hang_up) as address:
        registry = open_registry(f"zookeeper://{address}?auth_file={identities.file('sasl', 'deployer')}")
        try:
            with pytest.raises(RegistryUnavailableError, match="hung up during SASL"):
                registry.entries(None, within(20.0))
        finally:
            registry.close()


def test_a_goodbye_behind_a_failed_authentication_was_not_answered(identities: Identities) -> None:
    """Kazoo says that it is connected before SASL: a session that ends then is not known to be dead."""
    may_hang_up = threading.Event()
    with _hangs_up_during_sasl(may_hang_up) as address:
        auth_file = identities.file("sasl", "deployer")
        settings = SessionSettings("zookeeper://test", address, 10.0, 5.0, auth_file=auth_file)
        session = ZooKeeperSession(settings, SYSTEM_CLOCK)
        try:
            session.wait_connected(within())
            session.begin_end()
            may_hang_up.set()
            assert session.wait_stopped(within())
            assert not session.is_dead
        finally:
            session.begin_end()


def test_a_server_without_sasl_is_named(zookeeper_server: ZooKeeperServer, unique: str, identities: Identities) -> None:
    """It answers nothing, neither to SASL nor to anything behind it."""
    stage = GuardedStage(zookeeper_server, f"/{unique}")
    try:
        options = f"{identities.option('sasl', 'deployer')}&timeout_s=1"
        with pytest.raises(RegistryUnavailableError, match="does not finish SASL; is that enabled there"):
            # A short session: kazoo's threads wait for as long for the answer, and end then.
            stage.registry(options=options, session_timeout=4.0).entries(None, within())
    finally:
        stage.close()


def test_sasl_without_its_library_names_the_extra(identities: Identities, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is connected."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    with pytest.raises(MissingExtraError, match=r"registry-drain\[zookeeper-sasl\]"):
        open_registry(f"zookeeper://h?auth_file={identities.file('sasl', 'deployer')}")


@pytest.mark.parametrize(
    ("option", "content", "reason"),
    [
        ("acl=private", "", "must be one of: open, creator, public-read"),
        ("acl=creator", "", "needs an auth_file or a cert_file"),
        ("acl_file={file}", "auth::cdrwa", "needs an auth_file or a cert_file"),
        ("acl_file={file}", "# nothing\n\n", "holds no line"),
        ("acl_file={file}", "world:anyone", "line 1: not of the form"),
        ("acl_file={file}", "world:anyone:rx", "letters of cdrwa"),
        ("acl_file={file}", "world::r", "world needs an id"),
        ("acl_file={file}", "digest:deployer:s3cr3t:cdrwa", "and not a password"),
        ("acl_file=/nowhere/at-all", "", "No such file"),
        ("acl=open&acl_file={file}", "world:anyone:r", "exclude each other"),
        ("auth_file={file}", "digest:deployer", "one line digest:user:password"),
        ("auth_file={file}", "sasl:deployer:", "one line sasl:user:password"),
    ],
)
def test_settings_that_cannot_work_are_refused(option: str, content: str, reason: str, tmp_path: Path) -> None:
    """One line, before anything is connected, and without what might be a secret."""
    file = tmp_path / "file"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigurationError, match=reason) as caught:
        open_registry(f"zookeeper://h/services?{option.format(file=file)}")
    assert "\n" not in str(caught.value)
    assert "s3cr3t" not in str(caught.value)


# --- what we create ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("acl", "of_world"), [("creator", 0), ("public-read", 1)])
def test_what_is_created_belongs_to_its_creator(
    scheme: str, acl: str, of_world: int, stage: GuardedStage, identities: Identities
) -> None:
    """Instance and folder have the list; the base lets other services in, and nobody take anything away."""
    registration = stage.registered(stage.registry(options=f"{identities.option(scheme, 'deployer')}&acl={acl}"))
    expected = {f"{scheme}:deployer": 31} | ({"world:anyone": of_world} if of_world else {})
    assert _acl_of(stage, scheme, stage.path) == expected
    assert _acl_of(stage, scheme, f"{stage.base}/{SERVICE}") == expected
    assert _acl_of(stage, scheme, stage.base) == {f"{scheme}:deployer": 31, "world:anyone": 4 + 1}
    other = stage.registry(options=f"{identities.option(scheme, 'rival')}&acl={acl}")
    stage.registered(other, ServiceInstance("another-service", "192.0.2.8", 80))
    assert registration.on_shutdown(within()).outcome is RemovalOutcome.CONFIRMED


def _acl_of(stage: GuardedStage, scheme: str, path: str) -> dict[str, int]:
    """Return a node's list, read by its owner: nobody else may."""
    from kazoo.client import KazooClient

    sasl = {"mechanism": "DIGEST-MD5", "username": "deployer", "password": USERS["deployer"]}
    client = KazooClient(
        hosts=stage.server.hosts,
        sasl_options=sasl if scheme == "sasl" else None,
        auth_data=[("digest", f"deployer:{USERS['deployer']}")] if scheme == "digest" else None,
    )
    client.start(timeout=30)
    try:
        acls, _ = client.get_acls(path)
    finally:
        client.stop()
        client.close()
    return {f"{each.id.scheme}:{each.id.id.partition(':')[0]}": each.perms for each in acls}


def test_a_list_from_a_file_is_given_as_it_stands(stage: GuardedStage, identities: Identities, tmp_path: Path) -> None:
    """Everywhere, the base included."""
    file = tmp_path / "acl"
    admin = digest_acl(*ADMIN, "cdrwa").id.id
    file.write_text(f"# who may what\ndigest:{admin}:cdrwa\nauth::cdrwa\nworld:anyone:r\n", encoding="utf-8")
    options = f"{identities.option('sasl', 'deployer')}&acl_file={file}"
    stage.registered(stage.registry(options=options))
    for path in (stage.base, f"{stage.base}/{SERVICE}", stage.path):
        assert stage.acl_of(path) == {"digest:admin": 31, "sasl:deployer": 31, "world:anyone": 1}


def test_a_root_that_nobody_may_change_does_not_matter(new_zookeeper: NewZooKeeper, identities: Identities) -> None:
    """ZooKeeper refuses to create what exists to whoever may not create it: that is no reason not to register."""
    server = new_zookeeper()
    stage = GuardedStage(server, "/services")
    try:
        stage.plant({"*": "c"}, {"/services": b""})
        with stage.eyes() as client:
            client.set_acls("/", [digest_acl(*ADMIN, "cdrwa")])
        stage.registered(stage.registry(options=identities.option("digest", "deployer")))
        rival = stage.registration(
            stage.registry(options=identities.option("digest", "rival")), ServiceInstance("other", "h", 1)
        )
        with pytest.raises(PermissionRefusedError, match=r"creating /services/other takes CREATE .* of /services,"):
            rival.register(within())
        lost = GuardedStage(server, "/nowhere")
        with pytest.raises(PermissionRefusedError, match=r"creating /nowhere takes CREATE .* of /,"):
            lost.registration(lost.registry(options=identities.option("digest", "rival"))).register(within())
        lost.close()
    finally:
        stage.close()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_another_identity_cannot_remove_ours(
    scheme: str, stage: GuardedStage, identities: Identities, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever is somebody else is refused with status 7, and the message says what is lacking, and of what."""
    ours = f"{identities.option(scheme, 'deployer')}&acl=public-read"
    stage.registered(stage.registry(options=ours))
    arguments = ["--service", SERVICE, "--id", INSTANCE.id, "--force", "--timeout", "20"]
    for options in ("", identities.option(scheme, "rival")):
        url = f"{stage.server.url}{stage.base}?session_timeout_s=4{options}"
        assert main(["deregister", url, *arguments]) == 7
        error = capsys.readouterr().err
        assert f"deleting {stage.path} takes DELETE in the access list of {stage.base}/{SERVICE}, which" in error
        assert f"{scheme}:rival does not have" in error or "an anonymous client does not have" in error
        assert (
            f"it grants world:anyone:r, {scheme}:deployer:cdrwa" in error or f"{scheme}:deployer:cdrwa, world" in error
        )
    assert _acl_of(stage, scheme, stage.path)


@pytest.mark.parametrize("command", ["deregister", "list"])
def test_refused_credentials_are_status_7(
    command: str, stage: GuardedStage, identities: Identities, capsys: pytest.CaptureFixture[str]
) -> None:
    """And no time-out, and no empty list."""
    url = f"{stage.server.url}{stage.base}?auth_file={identities.file('sasl', 'deployer', 'wr0ng')}"
    which = ["--service", SERVICE, "--id", INSTANCE.id] if command == "deregister" else []
    assert main([command, url, *which, "--timeout", "60"]) == 7
    assert "refused the credentials of sasl:deployer" in capsys.readouterr().err


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_life_under_creator_lists(
    scheme: str,
    stage: GuardedStage,
    identities: Identities,
    tcp_proxy: Callable[[str], TcpProxy],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Registering, watching, a take-over, expiry, a broken connection and removal: nothing is refused to its owner."""
    caplog.set_level(1)
    options = f"{identities.option(scheme, 'deployer')}&acl=creator"
    proxy = tcp_proxy(stage.server.hosts)
    registry = stage.registry(hosts=proxy.address, options=options)
    watch = registry.watch(SERVICE, within())
    elder = stage.registered(registry)
    eventually(lambda: [each.id for each in watch.instances] == [INSTANCE.id])
    younger = stage.registered(stage.registry(options=options))
    assert younger.is_registered
    eventually(lambda: not elder.is_registered)
    assert elder.on_shutdown(within()).outcome is RemovalOutcome.SUCCESSOR
    stage.expire(younger)
    eventually(lambda: younger.is_registered)
    proxy.drop_connections()
    second = stage.registered(registry, ServiceInstance(SERVICE, "192.0.2.9", 81, id="two"))
    eventually(lambda: {each.id for each in watch.instances} == {INSTANCE.id, "two"})
    assert younger.on_shutdown(within()).outcome is RemovalOutcome.CONFIRMED
    assert second.on_shutdown(within()).outcome is RemovalOutcome.CONFIRMED
    eventually(lambda: not watch.instances)
    assert USERS["deployer"] not in caplog.text


def test_a_stop_with_credentials_that_are_no_longer_good_is_refused(
    new_zookeeper: NewZooKeeper, identities: Identities
) -> None:
    """The password was changed, and the connection lost: what is left expires, and nobody calls it removed."""
    server = new_zookeeper(users=USERS)
    stage = GuardedStage(server, "/guarded")
    try:
        registration = stage.registered(stage.registry(options=identities.option("sasl", "deployer")))
        server.kill()
        server.users = {"deployer": "changed-w0rd"}
        server.start()
        eventually(lambda: not registration.is_registered)
        removal = registration.on_shutdown(within())
        assert removal.outcome is RemovalOutcome.REFUSED
        assert "refused the credentials of sasl:deployer" in removal.detail
    finally:
        stage.close()


# --- the least rights -------------------------------------------------------------------------------------------------

BASE, FOLDER, NODE = "base", "folder", "node"


def _list_all(registry: ZooKeeperRegistry, _stage: GuardedStage) -> None:
    _whole(registry, None)


def _list_one(registry: ZooKeeperRegistry, _stage: GuardedStage) -> None:
    _whole(registry, SERVICE)


def _whole(registry: ZooKeeperRegistry, service: str | None) -> None:
    [entry] = registry.entries(service, within())
    if entry.problem:
        raise PermissionRefusedError(entry.problem)


def _watch(registry: ZooKeeperRegistry, _stage: GuardedStage) -> None:
    watch = registry.watch(SERVICE, within())
    if not watch.instances:
        raise PermissionRefusedError("it may not read the node, and leaves it out")


def _deregister(*which: str) -> Callable[[ZooKeeperRegistry, GuardedStage], None]:
    def act(registry: ZooKeeperRegistry, stage: GuardedStage) -> None:
        address = _address(stage)
        arguments = [each.format(address=address) for each in which]
        status = main(["deregister", registry.url, *arguments, "--force", "--timeout", "20"])
        if status in {4, 7}:  # of whom nothing may be known, nothing is found
            raise PermissionRefusedError(f"status {status}")
        assert status == 0
        with stage.eyes() as client:
            assert client.exists(f"{stage.base}/{SERVICE}/old") is None

    return act


def _address(stage: GuardedStage) -> str:
    """Return where the planted instance says that it listens."""
    with stage.eyes() as client:
        data, _ = client.get(f"{stage.base}/{SERVICE}/old")
    said = json.loads(data)
    return f"{said['address']}:{said['port']}"


def _remove_several(registry: ZooKeeperRegistry, stage: GuardedStage) -> None:
    entries = registry.entries(SERVICE, within())
    results: list[RemovalResult] = []
    registry.remove_many(entries, within(), lambda _, result: results.append(result))
    [result] = results
    if isinstance(result, RegistryDrainError):
        raise result
    assert result.outcome is RemovalOutcome.CONFIRMED
    with stage.eyes() as client:
        assert client.exists(entries[0].locator) is None


def _drain(registry: ZooKeeperRegistry, _stage: GuardedStage) -> None:
    [entry] = registry.entries(SERVICE, within())
    assert registry.drain(entry, within()).is_out
    [entry] = registry.entries(SERVICE, within())
    assert not registry.undrain(entry, within()).is_out


def _sweep(registry: ZooKeeperRegistry, stage: GuardedStage) -> None:
    status = main(["sweep", registry.url, "--loopback", "--tries", "1", "--yes", "--force", "--quiet"])
    with stage.eyes() as client:
        is_gone = client.exists(f"{stage.base}/{SERVICE}/old") is None
    if not is_gone:
        # What cannot be read has no address that could be tried, and is left alone.
        raise PermissionRefusedError(f"status {status}")


def _register_and_leave(registry: ZooKeeperRegistry, stage: GuardedStage) -> None:
    registration = stage.registered(registry)
    assert registration.on_shutdown(within()).outcome is RemovalOutcome.CONFIRMED


def _register_first(registry: ZooKeeperRegistry, stage: GuardedStage) -> None:
    with stage.eyes() as client:
        client.delete(f"{stage.base}/{SERVICE}", recursive=True)
    _register_and_leave(registry, stage)


def _take_over(registry: ZooKeeperRegistry, stage: GuardedStage) -> None:
    """Meet a predecessor that another process of the same service wrote, and replace it."""
    with stage.eyes() as client:
        acls, _ = client.get_acls(f"{stage.base}/{SERVICE}/old")
        client.create(stage.path, b"{}", acl=acls, ephemeral=True)
        stage.registered(registry)
        assert client.exists(stage.path).ephemeralOwner != client.client_id[0]


LEAST_RIGHTS: dict[str, tuple[Callable[[ZooKeeperRegistry, GuardedStage], None], dict[str, str]]] = {
    "list": (_list_all, {BASE: "r", FOLDER: "r", NODE: "r"}),
    "list --service": (_list_one, {FOLDER: "r", NODE: "r"}),
    "watch": (_watch, {FOLDER: "r", NODE: "r"}),
    "deregister --service --id": (_deregister("--service", SERVICE, "--id", "old"), {FOLDER: "rd"}),
    "deregister --service --address": (
        _deregister("--service", SERVICE, "--address", "{address}"),
        {FOLDER: "rd", NODE: "r"},
    ),
    "deregister --address": (_deregister("--address", "{address}"), {BASE: "r", FOLDER: "rd", NODE: "r"}),
    "deregister several": (_remove_several, {FOLDER: "rd"}),
    "drain and undrain": (_drain, {FOLDER: "r", NODE: "rw"}),
    "sweep": (_sweep, {BASE: "r", FOLDER: "rd", NODE: "r"}),
    "register": (_register_and_leave, {FOLDER: "c"}),
    "register the first of a service": (_register_first, {BASE: "c"}),
    "take over": (_take_over, {FOLDER: "cd", NODE: "r"}),
}
CASES = [
    (name, node, letter)
    for name, (_, rights) in LEAST_RIGHTS.items()
    for node, letters in [*rights.items(), ("", "-")]
    for letter in letters
]


@pytest.mark.parametrize(("name", "node", "letter"), CASES)
def test_the_least_rights_suffice_and_none_is_too_many(
    name: str, node: str, letter: str, stage: GuardedStage, identities: Identities
) -> None:
    """With all of them the command works; without the one named it is refused."""
    act, rights = LEAST_RIGHTS[name]
    paths = {BASE: stage.base, FOLDER: f"{stage.base}/{SERVICE}", NODE: f"{stage.base}/{SERVICE}/old"}
    given = {paths[key]: letters.replace(letter, "") if key == node else letters for key, letters in rights.items()}
    data = b'{"name":"calculator","id":"old","address":"127.0.0.1","port":%d,"serviceType":"STATIC"}' % free_port()
    stage.plant(given, {paths[BASE]: b"", paths[FOLDER]: b"", paths[NODE]: data})
    registry = stage.registry(options=identities.option("digest", "deployer"))
    if node:
        with pytest.raises(PermissionRefusedError):
            act(registry, stage)
    else:
        act(registry, stage)
