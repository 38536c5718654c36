"""``registry-drain sweep`` against a real Consul: dead agents, and how long a check has been critical."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.cli.running import Run
from tests.conftest import NewConsulAgent, NewConsulCluster
from tests.support.consul_process import ConsulAgent
from tests.support.processes import eventually

pytestmark = pytest.mark.consul


@pytest.fixture(autouse=True)
def _state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def plant(agent: ConsulAgent, service: str, instance_id: str, status: str) -> None:
    """Register as somebody else would, with a TTL check that nobody renews."""
    check = {"CheckID": f"check-{instance_id}", "TTL": "600s", "Status": status}
    body = {"Name": service, "ID": instance_id, "Address": "127.0.0.1", "Port": 9, "Check": check}
    agent.put("/v1/agent/service/register", body)


def test_what_a_dead_agent_left_behind(registry_drain: Run, new_consul_cluster: NewConsulCluster, unique: str) -> None:
    """Everything on the dead host goes; what lives, and what is merely critical, stays."""
    cluster = new_consul_cluster(agents=1)
    server, [dying] = cluster.server, cluster.agents
    for number in range(20):
        plant(dying, unique, f"ghost-{number}", "passing")
    plant(server, unique, "alive", "passing")
    plant(server, unique, "critical", "critical")
    eventually(lambda: len(server.instances(unique)) == 22, because="all are listed")
    assert registry_drain("sweep", server.url, "--dead-agents", "--json").document["ghosts"] == []
    dying.kill()

    def dead() -> int:
        found = registry_drain("sweep", server.url, "--dead-agents", "--json").document["ghosts"]
        return len([ghost for ghost in found if ghost["spared"] is None])

    eventually(lambda: dead() == 20, timeout=60, interval=0.3, because="the gossip has noticed")
    ran = registry_drain("sweep", server.url, "--dead-agents", "--yes", "--max", "20", "--json")
    assert ran.status == 0
    assert {ghost["evidence"][0]["detail"] for ghost in ran.document["ghosts"]} == {
        f"the agent of {dying.node_name} is dead"
    }
    assert {ghost["outcome"] for ghost in ran.document["ghosts"]} == {"done"}
    assert set(server.instances(unique)) == {"alive", "critical"}


def test_critical_for_is_proven_by_the_checks_index(
    registry_drain: Run, consul_agent: ConsulAgent, unique: str
) -> None:
    """A check that passed in between starts again, although every look finds it critical."""
    plant(consul_agent, unique, "ghost", "critical")
    words = ("sweep", consul_agent.url, "--service", unique, "--json", "--critical-for")

    def found(seconds: str, *more: str) -> list[str]:
        document = registry_drain(*words, seconds, *more).document
        return [ghost["instance"]["id"] for ghost in document["ghosts"]]

    assert found("2s") == []
    # Looks that a busy machine makes too far apart prove nothing; then it is observed again.
    eventually(lambda: found("2s", "--observe") == ["ghost"], because="it was critical all the while")
    # The agent tells the catalog by itself, a moment later.
    consul_agent.put("/v1/agent/check/pass/check-ghost")
    eventually(lambda: consul_agent.instances(unique, passing=True), because="the catalog knows that it passes")
    consul_agent.put("/v1/agent/check/fail/check-ghost")
    eventually(lambda: not consul_agent.instances(unique, passing=True), because="the catalog knows that it fails")
    assert found("2s") == []
    eventually(lambda: found("1s", "--observe", "--yes") == ["ghost"], because="and is again")
    assert consul_agent.instances(unique) == {}


class _Failing(BaseHTTPRequestHandler):
    """Answers 500, and something else each time."""

    def do_GET(self) -> None:
        """Answer."""
        self.send_response(500)
        self.end_headers()
        self.wfile.write(str(time.monotonic_ns()).encode())

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def failing_url() -> Iterator[str]:
    """Give the URL of a service that fails its check with another output each time."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Failing)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_output_that_changes_all_the_time_keeps_nothing_young_that_is_observed(
    registry_drain: Run, new_consul_agent: NewConsulAgent, unique: str, failing_url: str
) -> None:
    """The check's index changes with it; looks that are close prove that it did not pass meanwhile."""
    agent = new_consul_agent(settings={"check_update_interval": "0s"})
    check = {"CheckID": "check-ghost", "HTTP": failing_url, "Interval": "1s"}
    agent.put("/v1/agent/service/register", {"Name": unique, "ID": "ghost", "Port": 9, "Check": check})
    words = ("sweep", agent.url, "--service", unique, "--json", "--critical-for")

    def found(seconds: str, *more: str) -> list[str]:
        document = registry_drain(*words, seconds, *more).document
        return [ghost["instance"]["id"] for ghost in document["ghosts"]]

    def index() -> int:
        (entry,) = agent.get(f"/v1/health/service/{unique}")
        (index,) = {each["ModifyIndex"] for each in entry["Checks"] if each["CheckID"] == "check-ghost"}
        return int(index)

    def has_changed_since(before: int) -> bool:
        return index() > before

    eventually(lambda: found("1h") == [] and "500" in str(agent.get(f"/v1/health/service/{unique}")))
    eventually(partial(has_changed_since, index()), because="the catalog has another output")
    # A machine that is too busy for two looks a second proves nothing, and says so: another try.
    eventually(lambda: found("2.5s", "--observe") == ["ghost"], timeout=30, because="observed all the time")
    for _ in range(3):  # a second apart: the next look is not close
        eventually(partial(has_changed_since, index()), because="the catalog has another output")
    assert found("2.5s") == [], "nobody has seen what was in between"
