"""Fixtures of the whole suite: real servers, faults, unique names, and the watch for leaks.

``consul_agent`` and ``zookeeper_server`` are shared by all tests, which therefore keep to names of their own
(``unique``) and leave the servers running. A test that freezes, kills or restarts one asks for its own:
``new_consul_agent(...)``, ``new_consul_cluster(...)``, ``new_zookeeper(...)``. Whoever uses one of these is marked
``consul`` or ``zookeeper`` by that; a test that asks for them through ``request.getfixturevalue`` marks itself.
"""

from __future__ import annotations

import contextlib
import os
import re
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import pytest

from registry_drain.testing.server_contract import ServerContract
from tests.support.consul_process import ConsulAgent, ConsulCluster, find_consul
from tests.support.leaks import child_processes, guarded_threads
from tests.support.processes import eventually
from tests.support.tcp_proxy import TcpProxy
from tests.support.tls_files import TlsFiles, make_tls_files
from tests.support.zookeeper_process import ZooKeeperServer, find_zookeeper

_NEEDS = {
    "consul": {"consul_agent", "new_consul_agent", "new_consul_cluster"},
    "zookeeper": {"zookeeper_server", "new_zookeeper"},
}
_LEAK_GRACE = 5.0

# The shared servers: they outlive the test that happened to start them.
_shared: list[ConsulAgent | ZooKeeperServer] = []


class NewConsulAgent(Protocol):
    """Starts an agent of the test's own."""

    def __call__(
        self,
        *,
        acl: bool = False,
        tls: TlsFiles | None = None,
        keeps_data: bool = False,
        settings: dict[str, object] | None = None,
    ) -> ConsulAgent:
        """Return it ready; it is stopped when the test ends. Arguments: those of ``ConsulAgent``."""
        ...


class NewConsulCluster(Protocol):
    """Starts a server and client agents of the test's own."""

    def __call__(self, *, agents: int = 1, acl: bool = False) -> ConsulCluster:
        """Return it ready; it is stopped when the test ends."""
        ...


class NewZooKeeper(Protocol):
    """Starts a ZooKeeper of the test's own."""

    def __call__(
        self,
        *,
        tick_time_ms: int = 500,
        settings: dict[str, object] | None = None,
        users: dict[str, str] | None = None,
        tls: TlsFiles | None = None,
        client_auth: str = "need",
    ) -> ZooKeeperServer:
        """Return it ready; it is stopped when the test ends. Arguments: those of ``ZooKeeperServer``."""
        ...


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by the servers that their fixtures need, and the contract of servers, before ``-m`` selects."""
    for item in items:
        of_class = getattr(item, "cls", None)
        if of_class is not None and issubclass(of_class, ServerContract):
            item.add_marker("server_contract")
        fixtures = set(getattr(item, "fixturenames", ()))
        for marker, names in _NEEDS.items():
            if fixtures & names:
                item.add_marker(marker)


def pytest_report_header() -> list[str]:
    """Say which servers the run has."""
    return [
        f"consul: {find_consul() or 'NONE, its tests cannot run'}",
        f"zookeeper: {find_zookeeper() or 'NONE, its tests cannot run'}",
    ]


def _require(name: str, found: Path | None) -> None:
    if found is not None:
        return
    message = f"no {name} on this machine: `.ci/servers` fetches one"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture(scope="session")
def consul_agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsulAgent]:
    """Give the shared development agent, without ACLs."""
    _require("Consul", find_consul())
    with ConsulAgent(tmp_path_factory.mktemp("consul")) as agent:
        _shared.append(agent)
        yield agent


@pytest.fixture(scope="session")
def zookeeper_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ZooKeeperServer]:
    """Give the shared ZooKeeper."""
    _require("ZooKeeper", find_zookeeper())
    with ZooKeeperServer(tmp_path_factory.mktemp("zookeeper")) as server:
        _shared.append(server)
        yield server


@pytest.fixture
def new_consul_agent(tmp_path: Path) -> Iterator[NewConsulAgent]:
    """Give a factory of Consul agents."""
    _require("Consul", find_consul())
    with contextlib.ExitStack() as stack:

        def new(
            *,
            acl: bool = False,
            tls: TlsFiles | None = None,
            keeps_data: bool = False,
            settings: dict[str, object] | None = None,
        ) -> ConsulAgent:
            directory = tmp_path / f"consul-{uuid.uuid4().hex[:6]}"
            agent = ConsulAgent(directory, acl=acl, tls=tls, keeps_data=keeps_data, settings=settings)
            stack.callback(agent.kill)
            agent.start()
            return agent

        yield new


@pytest.fixture
def new_consul_cluster(tmp_path: Path) -> Iterator[NewConsulCluster]:
    """Give a factory of Consul clusters."""
    _require("Consul", find_consul())
    with contextlib.ExitStack() as stack:

        def new(*, agents: int = 1, acl: bool = False) -> ConsulCluster:
            cluster = ConsulCluster(tmp_path / f"cluster-{uuid.uuid4().hex[:6]}", agents=agents, acl=acl)
            stack.callback(cluster.stop)
            cluster.start()
            return cluster

        yield new


@pytest.fixture
def new_zookeeper(tmp_path: Path) -> Iterator[NewZooKeeper]:
    """Give a factory of ZooKeeper servers."""
    _require("ZooKeeper", find_zookeeper())
    with contextlib.ExitStack() as stack:

        def new(
            *,
            tick_time_ms: int = 500,
            settings: dict[str, object] | None = None,
            users: dict[str, str] | None = None,
            tls: TlsFiles | None = None,
            client_auth: str = "need",
        ) -> ZooKeeperServer:
            directory = tmp_path / f"zookeeper-{uuid.uuid4().hex[:6]}"
            server = ZooKeeperServer(
                directory, tick_time_ms=tick_time_ms, settings=settings, users=users, tls=tls, client_auth=client_auth
            )
            stack.callback(server.kill)
            server.start()
            return server

        yield new


@pytest.fixture
def tcp_proxy() -> Iterator[Callable[[str], TcpProxy]]:
    """Give a factory: ``tcp_proxy("host:port")`` is a link to there, closed when the test ends."""
    with contextlib.ExitStack() as stack:
        yield lambda target: stack.enter_context(TcpProxy(target))


@pytest.fixture(scope="session")
def tls_files(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    """Give the certificates of a throw-away authority."""
    return make_tls_files(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def unique(request: pytest.FixtureRequest) -> str:
    """Give a name that no other test has, fit for a service, an id and a path: ``[a-z0-9-]``, at most 49 characters."""
    words = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")
    return f"{words[:40].rstrip('-')}-{uuid.uuid4().hex[:8]}"


@pytest.fixture(autouse=True)
def nothing_stays_with_the_shared_agent(request: pytest.FixtureRequest) -> Iterator[None]:
    """Clear it behind each test: ids of services and checks are unique per agent, whatever the service's name."""
    if "consul_agent" not in request.fixturenames:
        yield
        return
    agent: ConsulAgent = request.getfixturevalue("consul_agent")
    yield
    agent.forget_everything()


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """Fail a test after which threads that keep a process alive, threads of ours, or child processes still run."""
    threads_before, children_before = guarded_threads(), child_processes()
    yield

    def leaks() -> list[str]:
        shared = {server.process.pid for server in _shared}
        threads = [f"thread {each.name}" for each in guarded_threads() - threads_before]
        children = child_processes()
        new = children.keys() - children_before.keys() - shared
        return threads + [f"process {pid}: {children[pid]}" for pid in new]

    # What has been told to end may take a moment.
    with contextlib.suppress(AssertionError):
        eventually(lambda: not leaks(), timeout=_LEAK_GRACE)
    if left := leaks():
        pytest.fail("left behind: " + "; ".join(sorted(left)))
