"""TLS to ZooKeeper on real servers: what is verified, on either side, and how a refusal is told."""

from __future__ import annotations

import contextlib
import socketserver
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from registry_drain.errors import ConfigurationError, PermissionRefusedError, RegistryError, RegistryUnavailableError
from registry_drain.registries.base import RemovalOutcome
from registry_drain.registries.url import open_registry
from registry_drain.registries.zookeeper import ZooKeeperRegistry
from registry_drain.registries.zookeeper.handler import ConnectionNotes, NotingHandler, noting
from tests.conftest import NewZooKeeper, _require
from tests.registries.zookeeper_bench import SERVICE, within
from tests.registries.zookeeper_identities import USERS, GuardedStage, Identities
from tests.support.processes import eventually, free_port
from tests.support.tcp_proxy import TcpProxy
from tests.support.tls_files import TlsFiles
from tests.support.zookeeper_process import ZooKeeperServer, find_zookeeper

pytestmark = pytest.mark.zookeeper


@pytest.fixture(scope="module", params=["TLSv1.2", "TLSv1.3"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tls_files: TlsFiles
) -> Iterator[ZooKeeperServer]:
    """Give a server whose TLS port wants a certificate of everybody. 1.3 refuses after the handshake, 1.2 inside."""
    _require("ZooKeeper", find_zookeeper())
    settings = {"ssl.protocol": request.param, "ssl.enabledProtocols": request.param}
    if request.param == "TLSv1.3":
        settings["ssl.ciphersuites"] = "TLS_AES_128_GCM_SHA256"  # ZooKeeper's own choice has none of 1.3
    directory = tmp_path_factory.mktemp("zookeeper-tls")
    with ZooKeeperServer(directory, tls=tls_files, users=USERS, settings=settings) as server:
        yield server


@pytest.fixture
def stage(server: ZooKeeperServer, unique: str) -> Iterator[GuardedStage]:
    """Give a base path of the test's own."""
    stage = GuardedStage(server, f"/{unique}")
    yield stage
    stage.close()


def _files(files: TlsFiles) -> str:
    return f"&ca_file={files.ca}&cert_file={files.client_cert}&key_file={files.client_key}"


def test_an_instance_is_registered_listed_and_removed_over_tls(stage: GuardedStage, tls_files: TlsFiles) -> None:
    """Everything works, and hundreds of answers at once arrive without a stall."""
    registry = stage.tls_registry(_files(tls_files))
    registration = stage.registered(registry)
    with stage.eyes() as client:
        transaction = client.transaction()
        for number in range(500):
            transaction.create(f"{stage.base}/{SERVICE}/{number:03}", b'{"address":"h","port":80}')
        transaction.commit()
    assert len(registry.entries(SERVICE, within())) == 501
    assert registration.on_shutdown(within()).outcome is RemovalOutcome.CONFIRMED
    assert len(registry.entries(SERVICE, within())) == 500


def _refused(stage: GuardedStage, options: str, kind: type[RegistryError] = PermissionRefusedError) -> str:
    began = time.monotonic()
    with pytest.raises(kind) as caught:
        stage.tls_registry(options).entries(None, within(60.0))
    assert type(caught.value) is kind
    # A time-out would have taken the whole minute.
    assert time.monotonic() - began < 30.0
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_client_without_a_certificate_is_told_so(stage: GuardedStage, tls_files: TlsFiles) -> None:
    """The server's alert becomes a refusal, and no time-out."""
    assert "refused us" in _refused(stage, f"&ca_file={tls_files.ca}")


def test_a_certificate_that_the_server_does_not_trust_is_refused(
    stage: GuardedStage, tls_files: TlsFiles, tmp_path: Path
) -> None:
    """Likewise."""
    stranger = trustme.CA().issue_cert("client.test")
    stranger.private_key_and_cert_chain_pem.write_to_path(tmp_path / "stranger.pem")
    assert "refused us" in _refused(stage, f"&ca_file={tls_files.ca}&cert_file={tmp_path / 'stranger.pem'}")


def test_a_server_that_we_do_not_trust_is_refused(stage: GuardedStage, tls_files: TlsFiles) -> None:
    """Its authority must be the one that we were given, or a well-known one; else it is not there, for us."""
    for options in (
        _files(tls_files).replace(str(tls_files.ca), str(tls_files.stranger_ca)),
        _files(tls_files).replace(f"ca_file={tls_files.ca}&", ""),
    ):
        assert "certificate of 127.0.0.1" in _refused(stage, options, RegistryError)


def test_the_host_name_is_verified(stage: GuardedStage, tls_files: TlsFiles) -> None:
    """A certificate of the right authority for another host is refused; a common one can be named."""
    options = f"{_files(tls_files)}&tls_server_name=other.example"
    assert "other.example" in _refused(stage, options, RegistryError)
    named = stage.tls_registry(f"{_files(tls_files)}&tls_server_name=server.dc1.consul")
    assert list(named.entries(None, within())) == []


@contextlib.contextmanager
def _tls_server(authority: trustme.CA, answer: bytes = b"") -> Iterator[str]:
    """Give the address of a TLS server with a certificate of ``authority``, which writes ``answer`` and ends."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError), context.wrap_socket(self.request, server_side=True) as encrypted:
                encrypted.sendall(answer)
                encrypted.recv(1)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def test_one_server_that_refuses_does_not_hide_one_that_does_not(stage: GuardedStage, tls_files: TlsFiles) -> None:
    """The verdict waits for a whole round, in whatever order kazoo tries."""
    with _tls_server(trustme.CA()) as impostor:
        for _ in range(4):
            registry = stage.tls_registry(_files(tls_files), hosts=f"{impostor},{stage.server.tls_hosts}")
            assert list(registry.entries(None, within())) == []
        with pytest.raises(RegistryError, match=f"certificate of {impostor}"):
            stage.tls_registry(_files(tls_files), hosts=f"{impostor},127.0.0.1:{free_port()}").entries(None, within())


def test_what_tls_has_decrypted_already_is_not_waited_for() -> None:
    """Two answers in one record: no file descriptor tells of the second, and kazoo would wait for a third."""
    authority, notes = trustme.CA(), ConnectionNotes(lambda: None)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with _tls_server(authority, b"two answers") as address:
        host, _, port = address.partition(":")
        handler = NotingHandler(notes, noting(context))
        with handler.create_connection((host, int(port)), hostname=host, timeout=30.0) as encrypted:
            assert encrypted.recv(3) == b"two"
            assert handler.select([encrypted], [], [], 0.0) == ([encrypted], [], [])
            assert encrypted.recv(8) == b" answers"
            assert handler.select([encrypted], [], [], 0.0) == ([], [], [])


def test_the_wrong_port_is_explained(stage: GuardedStage, tls_files: TlsFiles) -> None:
    """TLS to the plain port and the other way round are no refusals, and the message says what to look at."""
    with pytest.raises(RegistryUnavailableError, match="secureClientPort"):
        stage.tls_registry(_files(tls_files), hosts=stage.server.hosts).entries(None, within(4.0))
    with pytest.raises(RegistryUnavailableError, match="TLS port"):
        stage.registry(hosts=stage.server.tls_hosts).entries(None, within(4.0))


def test_the_holder_of_a_certificate_is_somebody(stage: GuardedStage, tls_files: TlsFiles) -> None:
    """What it creates belongs to it (x509), and others cannot remove it."""
    registry = stage.tls_registry(f"{_files(tls_files)}&acl=public-read")
    registration = stage.registered(registry)
    acl = {key.partition(":")[0]: permissions for key, permissions in stage.acl_of(stage.path).items()}
    assert acl == {"x509": 31, "world": 1}
    stranger = stage.registry()
    [entry] = stranger.entries(SERVICE, within())
    with pytest.raises(PermissionRefusedError, match=r"deleting .* takes DELETE .* an anonymous client"):
        stranger.remove(entry, within(), force=True)
    assert registration.on_shutdown(within()).outcome is RemovalOutcome.CONFIRMED


def test_a_registration_outlives_a_broken_connection_over_tls_with_sasl(
    stage: GuardedStage, tls_files: TlsFiles, tmp_path: Path, tcp_proxy: Callable[[str], TcpProxy]
) -> None:
    """Who we are is proven anew on each connection, before the next request: nothing is refused in between."""
    proxy = tcp_proxy(stage.server.tls_hosts)
    options = f"{_files(tls_files)}{Identities(tmp_path).option('sasl', 'deployer')}&acl=creator"
    registry = stage.tls_registry(options, hosts=proxy.address)
    registration = stage.registered(registry)
    for _ in range(3):
        proxy.drop_connections()
        # Retryable while the connection is away; PermissionRefusedError would end the test.
        eventually(lambda: _is_listed(registry), timeout=30.0)
    assert registration.is_registered
    assert registration.on_shutdown(within()).outcome is RemovalOutcome.CONFIRMED


def _is_listed(registry: ZooKeeperRegistry) -> bool:
    try:
        return bool(registry.entries(SERVICE, within()))
    except RegistryUnavailableError:
        return False


def test_a_certificate_that_nobody_asked_for_makes_us_nobody(
    new_zookeeper: NewZooKeeper, unique: str, tls_files: TlsFiles
) -> None:
    """A server with clientAuth=none takes no list that names the creator, and that is said."""
    stage = GuardedStage(new_zookeeper(tls=tls_files, client_auth="none"), f"/{unique}")
    try:
        registry = stage.tls_registry(f"{_files(tls_files)}&acl=creator")
        with pytest.raises(PermissionRefusedError, match="does not know the holder of"):
            stage.registration(registry).register(within())
        stage.registered(stage.tls_registry(f"&ca_file={tls_files.ca}"))
    finally:
        stage.close()


# --- files, no server needed ------------------------------------------------------------------------------------------


@pytest.fixture
def encrypted_key(tls_files: TlsFiles, tmp_path: Path) -> Path:
    """Give the client's key, encrypted with the password ``k3y-w0rd``."""
    key = serialization.load_pem_private_key(tls_files.client_key.read_bytes(), None)
    path = tmp_path / "encrypted.key"
    encryption = serialization.BestAvailableEncryption(b"k3y-w0rd")
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption))
    return path


def test_an_encrypted_key_is_opened_with_the_password_of_a_file(
    tls_files: TlsFiles, encrypted_key: Path, tmp_path: Path
) -> None:
    """Nobody is asked at a terminal, and no message holds the password."""
    url = f"zookeeper+tls://h?cert_file={tls_files.client_cert}&key_file={encrypted_key}"
    with pytest.raises(ConfigurationError, match="name the file with its password"):
        open_registry(url)
    password = tmp_path / "password"
    password.write_text("wr0ng\n", encoding="utf-8")
    with pytest.raises(ConfigurationError, match="does not open it") as caught:
        open_registry(f"{url}&key_password_file={password}")
    assert "wr0ng" not in str(caught.value)
    password.write_text("k3y-w0rd\n", encoding="utf-8")
    open_registry(f"{url}&key_password_file={password}").close()


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("zookeeper://h?ca_file=/tmp/ca.pem", "ca_file belongs to TLS: write zookeeper"),
        ("zookeeper+tls://h?ca_file=/nowhere/ca.pem", "ca_file /nowhere/ca.pem: No such file"),
        ("zookeeper+tls://h?cert_file=/nowhere/cert.pem", "cert_file /nowhere/cert.pem: No such file"),
        ("zookeeper+tls://h?key_file=/nowhere/key.pem", "belong to a cert_file"),
        ("zookeeper+tls://h?ca_file=", "must be the path of a file"),
        ("zookeeper+tls://h?ca_file={ca}&cert_file={ca}", "belong together"),
        ("zookeeper+tls://h?ca_file={key}", "not a certificate in PEM form"),
        ("zookeeper+tls://h?verify=false", "unknown option 'verify'"),
    ],
)
def test_settings_that_cannot_work_are_refused(url: str, reason: str, tls_files: TlsFiles) -> None:
    """One line, before anything is connected."""
    with pytest.raises(ConfigurationError, match=reason) as caught:
        open_registry(url.format(ca=tls_files.ca, key=tls_files.client_key))
    assert "\n" not in str(caught.value)


def test_the_default_port_of_tls_is_that_of_zookeepers_documentation() -> None:
    """There is no official one."""
    registry = open_registry("zookeeper+tls://h,i:7/services")
    assert "zookeeper+tls://h,i:7/services" in repr(registry)
    assert registry._settings.hosts == "h:2281,i:7"  # type: ignore[attr-defined]
