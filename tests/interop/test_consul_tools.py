"""Consul's own DNS and command line show what we register, and not what we have removed."""

from __future__ import annotations

import socket
import struct
import subprocess
from collections.abc import Iterator

import pytest

from registry_drain.clock import Deadline
from registry_drain.instance import ServiceInstance
from registry_drain.registries.base import Registry, RemovalOutcome
from registry_drain.registries.url import open_registry
from tests.support.consul_process import ConsulAgent, find_consul
from tests.support.processes import eventually

_SRV = 33


def _within() -> Deadline:
    return Deadline.after(30.0)


@pytest.fixture
def registry(consul_agent: ConsulAgent) -> Iterator[Registry]:
    """Give our side."""
    registry = open_registry(consul_agent.url)
    yield registry
    registry.close()


def _srv_ports(agent: ConsulAgent, service: str) -> list[int]:
    """Return the ports that the agent's DNS answers for a service; RFC 1035 and RFC 2782, as far as it is needed."""
    labels = f"{service}.service.consul".split(".")
    name = b"".join(bytes([len(label)]) + label.encode() for label in labels) + b"\0"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(2.0)
        sock.sendto(
            struct.pack("!6H", 1, 0x0100, 1, 0, 0, 0) + name + struct.pack("!2H", _SRV, 1),
            ("127.0.0.1", agent.dns_port),
        )
        answer = sock.recv(4096)
    (count,) = struct.unpack_from("!H", answer, 6)
    offset = 12 + len(name) + 4
    ports = []
    for _ in range(count):
        offset = _after_name(answer, offset)
        kind, _, _, length = struct.unpack_from("!HHIH", answer, offset)
        offset += 10
        if kind == _SRV:
            ports.append(struct.unpack_from("!3H", answer, offset)[2])
        offset += length
    return sorted(ports)


def _after_name(answer: bytes, offset: int) -> int:
    while answer[offset] != 0:
        if answer[offset] >= 0xC0:  # a pointer ends it
            return offset + 2
        offset += 1 + answer[offset]
    return offset + 1


def _catalog(agent: ConsulAgent) -> list[str]:
    return _consul(agent, "catalog", "services").split()


def _consul(agent: ConsulAgent, group: str, command: str, *arguments: str) -> str:
    """Run one of Consul's own commands, and return what it writes."""
    program = find_consul()
    assert program
    argv = [str(program), group, command, f"-http-addr=http://127.0.0.1:{agent.http_port}", *arguments]
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=30).stdout


def test_dns_and_the_command_line_see_ours_come_and_go(
    registry: Registry, consul_agent: ConsulAgent, unique: str
) -> None:
    """Two come, and leave one after the other."""
    ours = [registry.registration(ServiceInstance(unique, "192.0.2.7", port)) for port in (9090, 9091)]
    try:
        for each in ours:
            each.register(_within())
        eventually(lambda: _srv_ports(consul_agent, unique) == [9090, 9091])
        assert unique in _catalog(consul_agent)
        assert ours[0].on_shutdown(_within()).outcome is RemovalOutcome.CONFIRMED
        eventually(lambda: _srv_ports(consul_agent, unique) == [9091])
        assert unique in _catalog(consul_agent)
        assert ours[1].on_shutdown(_within()).outcome is RemovalOutcome.CONFIRMED
        eventually(lambda: _srv_ports(consul_agent, unique) == [])
        eventually(lambda: unique not in _catalog(consul_agent))
    finally:
        for each in ours:
            each.on_shutdown(_within())


def test_we_see_and_remove_what_consuls_command_registered(
    registry: Registry, consul_agent: ConsulAgent, unique: str
) -> None:
    """`consul services register` wrote it, without a check; nobody keeps it, and it is gone for its tools, too."""
    arguments = [f"-name={unique}", f"-id={unique}-1", "-address=192.0.2.1", "-port=80", "-tag=blue"]
    _consul(consul_agent, "services", "register", *arguments)
    [entry] = registry.entries(unique, _within())
    assert (entry.id, entry.address, entry.port, entry.tags) == (f"{unique}-1", "192.0.2.1", 80, ("blue",))
    assert registry.remove(entry, _within(), force=True).outcome is RemovalOutcome.CONFIRMED
    eventually(lambda: _srv_ports(consul_agent, unique) == [])
    assert unique not in _catalog(consul_agent)
