"""``deregister`` and ``list`` against a real Consul: every status that one can show."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from tests.cli.conftest import RegisterAt
from tests.cli.running import Run, run_script
from tests.conftest import NewConsulAgent
from tests.support.consul_process import ConsulAgent


def _plant(agent: ConsulAgent, service: str, instance_id: str, *, port: int = 9090, status: str = "critical") -> None:
    """Register as somebody else would: a TTL check, which nobody renews once it is critical."""
    check = {"TTL": "60s", "Status": status}
    body = {"Name": service, "ID": instance_id, "Address": "10.0.0.7", "Port": port, "Check": check}
    agent.put("/v1/agent/service/register", body)


def test_0_a_ghost_is_removed(deregister: Run, consul_agent: ConsulAgent, unique: str) -> None:
    """Somebody else's dead instance goes, its neighbour stays."""
    _plant(consul_agent, unique, "ghost")
    _plant(consul_agent, unique, "neighbour", port=9091)
    ran = deregister(consul_agent.url, "--service", unique, "--address", "10.0.0.7:9090", "--watch-back", "0.5")
    assert (ran.status, ran.err) == (0, "")
    assert "proven to be gone" in ran.out
    assert set(consul_agent.instances(unique)) == {"neighbour"}


def test_0_by_the_id_that_consul_shows(
    deregister: Run, registered: RegisterAt, consul_agent: ConsulAgent, unique: str
) -> None:
    """An instance of ours has another id in Consul than its own: both find it."""
    registered(consul_agent.url, unique, instance_id="one")
    [consul_id] = consul_agent.instances(unique)
    words = (consul_agent.url, "--service", unique, "--dry-run", "--id")
    assert deregister(*words, "one").status == 0
    assert deregister(*words, consul_id).status == 0
    assert deregister(*words, f"{consul_agent.node_name}/{consul_id}").status == 0


def test_a_dry_run_removes_nothing(deregister: Run, consul_agent: ConsulAgent, unique: str) -> None:
    """It names owner and state."""
    _plant(consul_agent, unique, "ghost")
    ran = deregister(consul_agent.url, "--service", unique, "--id", "ghost", "--dry-run")
    assert ran.status == 0
    assert consul_agent.node_name in ran.out
    assert "critical" in ran.out
    assert set(consul_agent.instances(unique)) == {"ghost"}


def test_2_an_unknown_option(deregister: Run, consul_agent: ConsulAgent) -> None:
    """Nothing is sent."""
    ran = deregister(f"{consul_agent.url}?tll_s=3", "--service", "s", "--id", "i")
    assert ran.status == 2
    assert "ttl_s" in ran.complaint


def test_2_several_have_the_address(deregister: Run, consul_agent: ConsulAgent, unique: str) -> None:
    """The places are named, none is removed; one of them then is enough."""
    _plant(consul_agent, unique, "ghost")
    _plant(consul_agent, unique, "ghost-management")
    ran = deregister(consul_agent.url, "--service", unique, "--address", "10.0.0.7:9090")
    assert ran.status == 2
    place = f"{consul_agent.node_name}/ghost-management"
    assert place in ran.complaint
    assert len(consul_agent.instances(unique)) == 2
    assert deregister(consul_agent.url, "--service", unique, "--id", place).status == 0
    assert set(consul_agent.instances(unique)) == {"ghost"}


def test_3_a_frozen_agent(deregister: Run, new_consul_agent: NewConsulAgent, unique: str) -> None:
    """Accepts and is silent: the time is up, nothing was removed."""
    agent = new_consul_agent()
    _plant(agent, unique, "ghost")
    agent.freeze()
    ran = deregister(agent.url, "--service", unique, "--id", "ghost", "--timeout", "0.5")
    agent.thaw()
    assert ran.status == 3
    assert "nothing was removed" in ran.complaint
    assert set(agent.instances(unique)) == {"ghost"}


def test_4_no_such_instance(deregister: Run, consul_agent: ConsulAgent, unique: str) -> None:
    """No such service, and no such instance of a service that there is."""
    assert deregister(consul_agent.url, "--service", unique, "--id", "ghost").status == 4
    _plant(consul_agent, unique, "ghost")
    ran = deregister(consul_agent.url, "--service", unique, "--id", "goost")
    assert ran.status == 4
    assert "ghost (10.0.0.7:9090)" in ran.complaint


def test_5_a_live_owner_brings_it_back(deregister: Run, consul_agent: ConsulAgent, unique: str) -> None:
    """A heartbeat that registers again whenever it is not found, as many frameworks have it, is caught."""
    _plant(consul_agent, unique, "one", status="passing")
    with _Recreator(lambda: consul_agent.instances(unique), lambda: _plant(consul_agent, unique, "one")):
        ran = deregister(consul_agent.url, "--service", unique, "--id", "one", "--force", "--watch-back", "30")
    assert ran.status == 5
    assert consul_agent.node_name in ran.complaint
    assert "stop that process" in ran.complaint


def test_7_a_live_owner_is_left_alone(
    deregister: Run, registered: RegisterAt, consul_agent: ConsulAgent, unique: str
) -> None:
    """Without --force nothing happens to an instance whose heartbeat passes."""
    registered(consul_agent.url, unique, instance_id="one")
    ran = deregister(consul_agent.url, "--service", unique, "--id", "one")
    assert ran.status == 7
    assert "alive" in ran.complaint
    assert "--force" in ran.complaint
    assert len(consul_agent.instances(unique)) == 1


def test_7_the_token_may_only_look(new_consul_agent: NewConsulAgent, unique: str) -> None:
    """A refusal is told as one, and the token stands nowhere."""
    agent = new_consul_agent(acl=True)
    _plant(agent, unique, "ghost")
    token = agent.create_token('service_prefix "" { policy = "read" } node_prefix "" { policy = "read" }')
    env = {"CONSUL_HTTP_TOKEN": token}
    ran = run_script("deregister", agent.url, "--service", unique, "--id", "ghost", "--debug", "--json", env=env)
    assert ran.status == 7
    assert ran.document["outcome"] == "refused"
    assert token not in ran.out + ran.err
    assert set(agent.instances(unique)) == {"ghost"}


def test_7_the_token_may_not_look(new_consul_agent: NewConsulAgent, unique: str) -> None:
    """An empty answer to a blind token is a refusal, not "no such instance"."""
    agent = new_consul_agent(acl=True)
    _plant(agent, unique, "ghost")
    token = agent.create_token(f'service "{unique}" {{ policy = "write" }}')
    env = {"CONSUL_HTTP_TOKEN": token}
    ran = run_script("deregister", agent.url, "--service", unique, "--id", "ghost", env=env)
    assert ran.status == 7
    assert "nothing was removed" in ran.complaint


def test_list_shows_owner_health_and_age(
    registry_drain: Run, registered: RegisterAt, consul_agent: ConsulAgent, unique: str
) -> None:
    """Ours and somebody else's, side by side."""
    registered(consul_agent.url, unique, instance_id="ours")
    _plant(consul_agent, unique, "theirs", port=9091)
    document = registry_drain("list", consul_agent.url, "--service", unique, "--json").document
    found = {entry["id"]: entry for entry in document["instances"]}
    assert {name: (entry["health"], entry["is_live"]) for name, entry in found.items()} == {
        "ours": ("passing", True),
        "theirs": ("critical", False),
    }
    assert all(entry["owner"] == consul_agent.node_name for entry in found.values())
    assert found["ours"]["registered_at"] is not None
    assert unique in registry_drain("list", consul_agent.url).out


class _Recreator(threading.Thread):
    """Puts an instance back whenever it is missing, for the length of a ``with`` block."""

    def __init__(self, look: Callable[[], object], put_back: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self._look, self._put_back = look, put_back
        self._stopped = threading.Event()

    def run(self) -> None:
        while not self._stopped.wait(0.05):
            if not self._look():
                self._put_back()

    def __enter__(self) -> None:
        self.start()

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self.join(30)


pytestmark = pytest.mark.consul
