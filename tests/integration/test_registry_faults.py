"""The registry fails while a service stops: the service drains and exits in time, says so, and what is left expires."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import NewConsulAgent, NewZooKeeper
from tests.integration.fleet import BRIEF, FAST, ServiceProcess, ended, listed
from tests.support.calculator_load import SlowCall, call_once
from tests.support.consul_process import ConsulAgent
from tests.support.processes import eventually
from tests.support.tcp_proxy import TcpProxy
from tests.support.zookeeper_process import ZooKeeperServer

Server = ConsulAgent | ZooKeeperServer
SESSION = 4
"""Seconds; the shortest time limits that still leave room on a busy machine."""


def consul_url(address: str) -> str:
    """Return the URL of a Consul agent with a short check TTL."""
    return f"consul://{address}?ttl_s={SESSION}"


def zookeeper_url(address: str) -> str:
    """Return the URL of a ZooKeeper with a short session."""
    return f"zookeeper://{address}/services?session_timeout_s={SESSION}"


@pytest.fixture(
    params=[pytest.param("consul", marks=pytest.mark.consul), pytest.param("zookeeper", marks=pytest.mark.zookeeper)]
)
def server(request: pytest.FixtureRequest) -> Server:
    """Give a registry server of the test's own, to be broken."""
    if request.param == "consul":
        new_agent: NewConsulAgent = request.getfixturevalue("new_consul_agent")
        return new_agent(keeps_data=True)
    new_server: NewZooKeeper = request.getfixturevalue("new_zookeeper")
    return new_server()


def url_of(server: Server, address: str = "") -> str:
    """Return the server's URL, perhaps by way of a proxy."""
    if isinstance(server, ConsulAgent):
        return consul_url(address or server.http_address)
    return zookeeper_url(address or server.hosts)


FAULTS: dict[str, Callable[[Server, TcpProxy], None]] = {
    "frozen": lambda server, _proxy: server.freeze(),
    "killed": lambda server, _proxy: server.kill(),
    "black hole": lambda _server, proxy: proxy.black_hole(),
    "reset": lambda _server, proxy: proxy.reset(),
}


def mend(server: Server, proxy: TcpProxy, fault: str) -> None:
    """Bring the registry back."""
    proxy.pass_through()
    if fault == "frozen":
        server.thaw()
    elif fault == "killed":
        server.start()


@pytest.mark.parametrize("when", ["before", "during"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_registry_that_fails_never_keeps_the_stop(
    server: Server, tcp_proxy: Callable[[str], TcpProxy], tmp_path: Path, unique: str, fault: str, when: str
) -> None:
    """The stop stays inside its budget, the request in flight is answered, and the report says what is unconfirmed."""
    direct = server.http_address if isinstance(server, ConsulAgent) else server.hosts
    proxy = tcp_proxy(direct)
    budget = {**FAST, "deregister": 2.0}  # all of it is waited for
    service = ServiceProcess(url_of(server, proxy.address), unique, tmp_path / "log", budget=budget)
    with ended(service):
        service.wait_listed(url_of(server))
        with SlowCall(service.endpoint, seconds=2) as call:
            if when == "before":
                FAULTS[fault](server, proxy)
                service.process.signal(signal.SIGTERM)
            else:
                # The registry's answers come far too late, so that the fault hits a deregistration under way.
                proxy.delay_answers(10.0)
                service.process.signal(signal.SIGTERM)
                service.process.wait_output("EVENT DEREGISTERING")
                FAULTS[fault](server, proxy)
            assert call.result() == 2
        service.process.wait(timeout=60)
    report = service.report()
    assert report["elapsed"] < report["grace_period"]
    assert report["removals"][0]["outcome"] == "unconfirmed", report["removals"]
    assert report["removals"][0]["detail"]
    assert report["cut_off"] == []
    assert report["exit_code"] == service.process.returncode == 1
    mend(server, proxy, fault)
    eventually(lambda: not is_callable(server, unique), timeout=60, because="what was left behind has expired")


def is_callable(server: Server, service: str) -> bool:
    """Whether callers would still be sent to an instance of ``service``."""
    if isinstance(server, ConsulAgent):
        return bool(server.instances(service, passing=True))
    return bool(listed(zookeeper_url(server.hosts), service))


@pytest.mark.parametrize("phase", ["LISTENING", "DEREGISTERING", "PROPAGATING", "CLOSING", "DRAINING", "NOTIFYING"])
def test_killed_in_any_phase_it_expires(server: Server, tmp_path: Path, unique: str, phase: str) -> None:
    """SIGKILL at the start of a phase: callers are sent there no longer than the TTL or the session time-out."""
    budget = {**BRIEF, "floor": 1.0, "quiet_period": 0.5}
    service = ServiceProcess(url_of(server), unique, tmp_path / "log", budget=budget)
    with ended(service), SlowCall(service.endpoint, seconds=30):
        service.wait_listed()
        if phase != "LISTENING":
            service.process.signal(signal.SIGTERM)
            service.process.wait_output(f"EVENT {phase}")
        service.process.kill()
    eventually(lambda: not is_callable(server, unique), timeout=60, because="what was left behind has expired")


def test_sigterm_while_the_registry_is_still_down(server: Server, tmp_path: Path, unique: str) -> None:
    """The registry is down from the start to the end: the service serves, and one SIGTERM ends it in time."""
    server.kill()
    service = ServiceProcess(url_of(server), unique, tmp_path / "log", budget={**FAST, "deregister": 2.0})
    with ended(service):
        service.process.wait_output("serving, but not registered", timeout=90)
        assert call_once(service.endpoint, "add", 1, 2) == 3
        report = service.stop()
    assert report["elapsed"] < report["grace_period"]
    server.start()
    assert not is_callable(server, unique)


def test_a_restarted_registry_gets_the_instance_back_while_serving(server: Server, tmp_path: Path, unique: str) -> None:
    """The registry forgets everything, sessions included: registered again within seconds."""
    service = ServiceProcess(url_of(server), unique, tmp_path / "log")
    with ended(service):
        service.wait_listed()
        server.kill()
        shutil.rmtree(server.directory / "data")
        server.start()
        service.wait_listed()
        report = service.stop()
    assert report["is_clean"], report
    assert not is_callable(server, unique)
