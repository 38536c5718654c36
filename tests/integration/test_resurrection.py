"""Once the stop has begun the instance never comes back, and a successor is never taken down with it."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from registry_drain import Deadline, ServiceInstance, open_registry
from registry_drain.registries.base import Registry
from tests.conftest import NewConsulAgent, NewZooKeeper
from tests.integration.fleet import FAST, ServiceProcess, ended, listed
from tests.integration.test_rolling_restart import REGISTRIES, registry_url
from tests.support.processes import eventually
from tests.support.tcp_proxy import TcpProxy

LONG_PROPAGATION = {**FAST, "grace_period": 60.0, "floor": 9.0, "quiet_period": 0.1, "ceiling": 10.0}
"""The service goes on serving for 9 s after it has left: three renewal intervals of the URLs below."""


@pytest.mark.consul
def test_an_agent_restarted_during_the_stop_does_not_bring_it_back(
    new_consul_agent: NewConsulAgent, tmp_path: Path, unique: str
) -> None:
    """The agent forgets everything while the service propagates: no heartbeat registers it again, ever."""
    agent = new_consul_agent()
    service = ServiceProcess(f"{agent.url}?ttl_s=3", unique, tmp_path / "log", budget=LONG_PROPAGATION)
    with ended(service):
        service.wait_listed()
        service.process.signal(signal.SIGTERM)
        service.process.wait_output("EVENT PROPAGATING")
        agent.restart(kill=True)
        seen = watch_until_exit(service, lambda: list(agent.instances(unique)))
    assert seen == []
    assert service.report()["is_clean"]


@pytest.mark.zookeeper
def test_a_session_lost_during_the_stop_does_not_bring_it_back(
    new_zookeeper: NewZooKeeper, tcp_proxy: Callable[[str], TcpProxy], tmp_path: Path, unique: str
) -> None:
    """The connection breaks and comes back while the service propagates: nothing is created again, ever."""
    server = new_zookeeper()
    proxy = tcp_proxy(server.hosts)
    url = f"zookeeper://{proxy.address}/services?session_timeout_s=2"
    service = ServiceProcess(url, unique, tmp_path / "log", budget=LONG_PROPAGATION)
    direct = f"zookeeper://{server.hosts}/services"
    with ended(service):
        service.wait_listed(direct)
        service.process.signal(signal.SIGTERM)
        service.process.wait_output("EVENT PROPAGATING")
        proxy.reset()
        proxy.pass_through()
        seen = watch_until_exit(service, lambda: list(listed(direct, unique)))
    assert seen == []
    assert service.report()["is_clean"]


def watch_until_exit(service: ServiceProcess, look: Callable[[], list[str]]) -> list[str]:
    """Look into the registry until the process has ended; return everything seen."""
    seen: list[str] = []

    def has_ended() -> bool:
        is_running = service.process.is_running
        seen.extend(look())  # an OSError while the registry is restarting means "not yet", too
        return not is_running

    eventually(has_ended, timeout=60, interval=0.2, because="the process has ended")
    service.process.wait()
    return seen


@pytest.mark.parametrize("kind", REGISTRIES)
def test_a_successor_with_the_same_id_survives_the_old_process(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, unique: str
) -> None:
    """The successor is registered under the same id while the old process serves; its stop leaves it."""
    url = registry_url(kind, request, tmp_path)
    old = ServiceProcess(url, unique, tmp_path / "old", f"--id={unique}-1")
    registry: Registry = open_registry(url)
    with ended(old):
        old.wait_listed()
        successor = registry.registration(ServiceInstance(unique, "127.0.0.1", old.port, id=f"{unique}-1"))
        try:
            successor.register(Deadline.after(20))
            report = old.stop()
            assert report["removals"][0]["outcome"] == "successor", report
            assert [entry.id for entry in registry.entries(unique, Deadline.after(10))] == [f"{unique}-1"]
            assert successor.is_registered
        finally:
            successor.on_shutdown(Deadline.after(10))
            registry.close()
