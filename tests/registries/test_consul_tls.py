"""Certificates that one side refuses, on real agents: a clear line each, at once, and whose fault it is.

What we do not trust is unreachable (status 3), an agent that does not take our certificate refuses us (status 7).
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import trustme

from registry_drain.cli.command.exit_status import ExitStatus, status_of_error
from registry_drain.clock import Deadline
from registry_drain.errors import PermissionRefusedError, RegistryError
from tests.registries.consul_tools import Members, put_service, soon
from tests.support.consul_process import ConsulAgent
from tests.support.tls_files import TlsFiles

LONG_AGO = dt.datetime(2020, 1, 1, tzinfo=dt.timezone.utc)
NOT_SO_LONG_AGO = dt.datetime(2020, 2, 1, tzinfo=dt.timezone.utc)


@dataclass(frozen=True)
class Authority:
    """One that signs whatever a test asks for, into a directory."""

    ca: trustme.CA
    directory: Path

    def issue(self, name: str, *identities: str, expired: bool = False) -> tuple[Path, Path]:
        """Return the files of a certificate and its key."""
        begin, end = (LONG_AGO, NOT_SO_LONG_AGO) if expired else (None, None)
        issued = self.ca.issue_cert(*identities, not_before=begin, not_after=end)
        certificate, key = self.directory / f"{name}.pem", self.directory / f"{name}.key"
        issued.cert_chain_pems[0].write_to_path(certificate)
        issued.private_key_pem.write_to_path(key)
        return certificate, key


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Give the authority that everybody here should trust."""
    directory = tmp_path_factory.mktemp("authority")
    ca = trustme.CA()
    ca.cert_pem.write_to_path(directory / "ca.pem")
    return Authority(ca, directory)


@pytest.fixture(scope="module")
def files(authority: Authority) -> TlsFiles:
    """Give certificates that are all right, and the certificate of an authority that signed none of them."""
    stranger = authority.directory / "stranger.pem"
    trustme.CA().cert_pem.write_to_path(stranger)
    server, server_key = authority.issue("server", "127.0.0.1", "localhost", "server.dc1.consul")
    client, client_key = authority.issue("client", "client.test")
    return TlsFiles(
        ca=authority.directory / "ca.pem",
        server_cert=server,
        server_key=server_key,
        client_cert=client,
        client_key=client_key,
        stranger_ca=stranger,
    )


@pytest.fixture(scope="module")
def agent(
    consul_agent: ConsulAgent, files: TlsFiles, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ConsulAgent]:
    """Give an agent whose certificate is all right, and which wants one of its clients."""
    del consul_agent
    with ConsulAgent(tmp_path_factory.mktemp("tls"), tls=files) as agent:
        yield agent


def refused(url: str, files: TlsFiles, service: str, **changed: Path | None) -> RegistryError:
    """Return the error of a listing with everything right except for what is ``changed``; it came at once."""
    options = {"ca_file": files.ca, "cert_file": files.client_cert, "key_file": files.client_key, **changed}
    query = "&".join(f"{name}={path}" for name, path in options.items() if path is not None)
    deadline = Deadline.after(20)
    with Members() as members, pytest.raises(RegistryError) as caught:
        members.registry(f"{url}?{query}").entries(service, deadline)
    assert not caught.value.retryable
    assert deadline.remaining() > 10, "it was tried again and again"
    assert "\n" not in str(caught.value)
    return caught.value


def test_everything_is_right(agent: ConsulAgent, files: TlsFiles, unique: str) -> None:
    """Mutual TLS, with what the other tests here change: an instance is listed."""
    put_service(agent, unique, unique)
    query = f"ca_file={files.ca}&cert_file={files.client_cert}&key_file={files.client_key}"
    with Members() as members:
        registry = members.registry(f"{agent.url}?{query}")
        (entry,) = registry.entries(unique, soon())
        registry.remove(entry, soon())


@pytest.mark.parametrize("ca", ["stranger", "well-known"])
def test_a_wrong_authority(agent: ConsulAgent, files: TlsFiles, unique: str, ca: str) -> None:
    """The agent is not trusted: as good as unreachable, and the option to look at is named."""
    error = refused(agent.url, files, unique, ca_file=files.stranger_ca if ca == "stranger" else None)
    assert not isinstance(error, PermissionRefusedError)
    assert status_of_error(error) is ExitStatus.UNREACHABLE
    assert "is ca_file the authority that has signed the agent's certificate?" in str(error)


def test_no_client_certificate(agent: ConsulAgent, files: TlsFiles, unique: str) -> None:
    """The agent refuses who has none: our credentials, and the options to give are named."""
    error = refused(agent.url, files, unique, cert_file=None, key_file=None)
    assert status_of_error(error) is ExitStatus.REFUSED
    assert "the agent refuses a client without a certificate" in str(error)
    assert "give cert_file and key_file" in str(error)


@pytest.mark.parametrize("why", ["a stranger's", "expired"])
def test_a_client_certificate_that_is_refused(
    agent: ConsulAgent, authority: Authority, files: TlsFiles, unique: str, why: str
) -> None:
    """Signed by an authority that the agent does not know, or expired: refused, and said to be."""
    expired = why == "expired"
    signer = authority if expired else replace(authority, ca=trustme.CA())
    certificate, key = signer.issue(f"{'expired' if expired else 'stranger'}-client", "client.test", expired=expired)
    error = refused(agent.url, files, unique, cert_file=certificate, key_file=key)
    assert status_of_error(error) is ExitStatus.REFUSED
    assert "the agent refuses the certificate in cert_file" in str(error)


@pytest.mark.parametrize(
    ("identities", "expired", "said"),
    [
        (("127.0.0.1", "server.dc1.consul"), True, "expired: renew the agent's certificate"),
        (("consul.test", "server.dc1.consul"), False, "the agent's certificate is not for 127.0.0.1"),
    ],
)
def test_an_agent_that_is_not_to_be_trusted(
    consul_agent: ConsulAgent,
    authority: Authority,
    files: TlsFiles,
    tmp_path: Path,
    unique: str,
    identities: tuple[str, ...],
    expired: bool,
    said: str,
) -> None:
    """Its certificate has expired, or is for another host."""
    del consul_agent
    server, key = authority.issue("other-server", *identities, expired=expired)
    with ConsulAgent(tmp_path / "agent", tls=replace(files, server_cert=server, server_key=key)) as other:
        error = refused(other.url, files, unique)
    assert status_of_error(error) is ExitStatus.UNREACHABLE
    assert said in str(error)
