"""How requests reach a real Consul: TLS, a hostile environment, IPv6, one connection per process."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest

from registry_drain.errors import RegistryTimeoutError, RegistryUnavailableError
from registry_drain.registries.base import RemovalOutcome
from registry_drain.registries.consul import ConsulRegistry
from registry_drain.registries.consul.http import ConsulClient
from registry_drain.registries.url import parse_registry_url
from tests.conftest import NewConsulAgent
from tests.registries.consul_tools import FAST, Liar, Members, instance, soon
from tests.support.consul_process import ConsulAgent
from tests.support.processes import eventually
from tests.support.tcp_proxy import TcpProxy
from tests.support.tls_files import TlsFiles

HOSTILE = {
    "CONSUL_HTTP_ADDR": "http://127.0.0.1:1",
    "CONSUL_HTTP_SSL": "true",
    "CONSUL_HTTP_SSL_VERIFY": "true",
    "CONSUL_NAMESPACE": "nowhere",
    "CONSUL_CACERT": "/no/such/file",
    "HTTP_PROXY": "http://127.0.0.1:1",
    "http_proxy": "http://127.0.0.1:1",
    "HTTPS_PROXY": "http://127.0.0.1:1",
    "https_proxy": "http://127.0.0.1:1",
    "ALL_PROXY": "http://127.0.0.1:1",
    "REQUESTS_CA_BUNDLE": "/no/such/file",
    "CURL_CA_BUNDLE": "/no/such/file",
}


def tls_url(agent: ConsulAgent, files: TlsFiles, **changed: Path | None) -> str:
    """Return the agent's HTTPS URL with CA and client certificate, except for what is ``changed``."""
    options = {"ca_file": files.ca, "cert_file": files.client_cert, "key_file": files.client_key, **changed}
    query = "&".join(f"{name}={path}" for name, path in options.items() if path is not None)
    return f"{agent.url}{FAST}&{query}"


def full_round(members: Members, url: str, service: str) -> None:
    """Register, watch, list and remove with proof."""
    registry = members.registry(url)
    registration = members.registered(url, instance(service))
    assert len(registry.watch(service, soon()).instances) == 1
    assert len(registry.entries(service, soon())) == 1
    assert registration.on_shutdown(soon()).outcome is RemovalOutcome.CONFIRMED


def test_tls_with_ca_and_client_certificate(
    new_consul_agent: NewConsulAgent, tls_files: TlsFiles, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything works with CA and client certificate, and the environment is moot; see also test_consul_tls."""
    agent = new_consul_agent(tls=tls_files)
    for name, value in HOSTILE.items():
        monkeypatch.setenv(name, value)
    with Members() as members:
        full_round(members, tls_url(agent, tls_files), unique)


def test_tls_reads_end_by_the_deadline(new_consul_agent: NewConsulAgent, tls_files: TlsFiles, unique: str) -> None:
    """A frozen agent behind TLS: reads on an open connection and new handshakes both end in time; a watch closes."""
    agent = new_consul_agent(tls=tls_files)
    url = tls_url(agent, tls_files)
    with Members() as members:
        registry = members.registry(url)
        registry.entries(None, soon())
        watch = registry.watch(unique, soon())
        agent.freeze()
        for each in (registry, members.registry(url)):
            began = time.monotonic()
            with pytest.raises(RegistryTimeoutError):
                each.entries(unique, soon(0.5))
            assert time.monotonic() - began < 4
        began = time.monotonic()
        watch.close()
        assert time.monotonic() - began < 4
        agent.thaw()


def test_a_hostile_environment_changes_nothing(
    consul_agent: ConsulAgent, unique: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Neither addresses, TLS switches, proxies nor netrc of the environment reach a request."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login user password netrc-password")
    monkeypatch.setenv("NETRC", str(netrc))
    for name, value in HOSTILE.items():
        monkeypatch.setenv(name, value)
    with TcpProxy(consul_agent.http_address) as link, Members() as members:
        full_round(members, f"consul://{link.address}{FAST}", unique)
        assert b"Authorization" not in link.recorded
        assert b"Cookie" not in link.recorded


def test_ipv6(consul_agent: ConsulAgent, unique: str) -> None:
    """An agent at an IPv6 address is reached; its URL keeps the brackets."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 on this machine")
    with Liar(consul_agent, at=("::1", 0)) as front, Members() as members:
        registration = members.registered(f"consul://{front.address}", instance(unique))
        removal = registration.on_shutdown(soon())
        assert removal.outcome is RemovalOutcome.CONFIRMED
        assert removal.registry == f"consul://[::1]:{front.port}"


def test_connections_are_kept_and_belong_to_one_process(
    consul_agent: ConsulAgent, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls share one connection; a forked child opens its own instead of talking into its parent's."""
    with TcpProxy(consul_agent.http_address) as link:
        registry = ConsulRegistry(parse_registry_url(f"consul://{link.address}"))
        for _ in range(5):
            registry.entries(unique, soon())
        assert link.accepted_connections == 1
        with monkeypatch.context() as child:
            child.setattr(os, "getpid", lambda: 1)
            registry.entries(unique, soon())
            assert link.accepted_connections == 2
            registry.close()
        registry.entries(unique, soon())
        assert link.accepted_connections == 2
        registry.close()


def test_an_aborted_client_sends_nothing_more(consul_agent: ConsulAgent) -> None:
    """After abort a client neither uses its connection nor opens one."""
    with TcpProxy(consul_agent.http_address) as link:
        address = ConsulRegistry(parse_registry_url(f"consul://{link.address}"))._address
        used, unused = ConsulClient(address), ConsulClient(address)
        used.call("GET", "status", "leader", deadline=soon())
        sent = len(link.recorded)
        for client in (used, unused):
            client.abort()
            client.abort()
            with pytest.raises(RegistryUnavailableError, match="closed"):
                client.call("GET", "status", "leader", deadline=soon())
        assert link.accepted_connections == 1
        assert len(link.recorded) == sent
        assert repr(used) == f"<ConsulClient consul://{link.address} aborted>"


def test_a_refused_connection_says_where_and_why(unique: str) -> None:
    """The message names the registry and what to look at, without the library's object dumps."""
    with Members() as members, pytest.raises(RegistryUnavailableError) as caught:
        members.registry("consul://127.0.0.1:1").entries(unique, soon(4))
    assert str(caught.value) == (
        f"consul://127.0.0.1:1: GET /v1/health/service/{unique}: Connection refused: is the Consul agent running there?"
    )


def test_a_connection_that_was_closed_meanwhile_is_not_used_again(consul_agent: ConsulAgent) -> None:
    """An idle connection that the agent has given up costs no attempt: what it has to say is heard before its use."""
    with TcpProxy(consul_agent.http_address) as link:
        client = ConsulClient(ConsulRegistry(parse_registry_url(f"consul://{link.address}"))._address)
        for number in range(1, 4):
            client.call("GET", "status", "leader", deadline=soon())
            assert client.opened == number
            link.drop_connections()
            eventually(lambda: link.open_connections == 0, because="the agent's side is closed")
        client.close()
