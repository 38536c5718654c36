"""A service is handed from process to process: nobody is refused, and the registry shows it once at every moment."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from registry_drain import Deadline, open_registry
from tests.handover.bench import HandedService, Storm, Watcher, storm_of_both
from tests.support.calculator_load import SlowCall
from tests.support.processes import eventually

pytestmark = pytest.mark.slow

HAND_OVERS = {"local": 5, "consul": 3, "zookeeper": 3}


def registry_url(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the URL of a real registry of that kind."""
    if kind == "local":
        return f"local://{tmp_path}/registry"
    server = request.getfixturevalue("consul_agent" if kind == "consul" else "zookeeper_server")
    return f"{server.url}/{tmp_path.name}" if kind == "zookeeper" else str(server.url)


REGISTRIES = [
    "local",
    pytest.param("consul", marks=pytest.mark.consul),
    pytest.param("zookeeper", marks=pytest.mark.zookeeper),
]


def listed_pids(url: str, service: str) -> list[str]:
    """Return the process ids that the registry's entries tell of."""
    registry = open_registry(url)
    try:
        return [entry.metadata.get("pid", "") for entry in registry.entries(service, Deadline.after(10))]
    finally:
        registry.close()


@pytest.mark.parametrize("kind", REGISTRIES)
def test_hand_overs_under_a_storm_refuse_nobody_and_show_one_entry(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, unique: str
) -> None:
    """Hand-overs in a row, by SIGHUP, two ports: 0 refused, 0 reset, neither gap nor double, clean reports."""
    url = registry_url(kind, request, tmp_path)
    with HandedService(url, unique, tmp_path, handover=PATIENT) as service:
        pid = service.process.pid
        storm = storm_of_both(service)
        with Watcher(service) as watcher, storm:
            for number in range(1, HAND_OVERS[kind] + 1):
                service.hang_up(pid)
                successor = int(service.wait_for(rf"REPORT {pid} .*\"handed_over_to\": (\d+)")[0])
                report = service.report_of(pid)
                assert report["exit_code"] == 0, report
                assert [each["outcome"] for each in report["removals"]] == ["handed_over"]
                assert report["listener"] == "rpc: handed over, admin: handed over"
                pid = successor
                calls = storm.calls
                eventually(lambda: storm.calls > calls + 50, because=f"the storm goes on after hand-over {number}")  # noqa: B023
        watcher.check()
        assert storm.failures == []
        assert listed_pids(url, unique) == [str(pid)]
        assert service.serving_pid() == pid
        eventually(lambda: service.pids() == {pid}, because="its predecessors have ended")
        os.kill(pid, signal.SIGTERM)
        report = service.report_of(pid)
        assert report["exit_code"] == 0, report
        assert report["removals"][0]["outcome"] == "confirmed"
        eventually(lambda: not service.pids(), because="the last process has ended")
    assert listed_pids(url, unique) == []


def test_a_request_in_flight_is_finished_by_the_old_process(tmp_path: Path, unique: str) -> None:
    """A call that is under way while the process is replaced is answered; its connection is not cut."""
    with HandedService(f"local://{tmp_path}/registry", unique, tmp_path, handover=PATIENT) as service:
        with SlowCall(service.endpoint, seconds=2.0) as call:
            service.hang_up(service.process.pid)
            service.wait_for(rf"EVENT {service.process.pid} handed over to pid (\d+)")
            assert call.result() == 2
        assert service.report_of(service.process.pid)["exit_code"] == 0


def test_a_service_without_registry_is_handed_over_too(tmp_path: Path, unique: str) -> None:
    """Nothing to register: listening is being ready."""
    with HandedService("", unique, tmp_path, handover=PATIENT) as service:
        with Storm(service.serving_pid) as storm:
            service.hang_up(service.process.pid)
            report = service.report_of(service.process.pid)
        assert storm.failures == []
        assert report["handed_over_to"] == service.serving_pid()


FAILURES = {
    "exit": "it ended with status 3 before it was ready",
    "hang": "it was not listening within 1 s",
    "deaf": "it was not listening within 4 s",
    "garble": "it closed its channel before it was ready",
    "babble": "TypeError: 'int' object is not iterable",
    "crash": "it ended with status 4 before it was ready",
    "refuse": "it stopped before it was ready",
}
QUICK = {"ready_within": 1.0, "end_within": 2.0}
DEAF = {**QUICK, "ready_within": 4.0}
"""It is deaf only once it runs."""
PATIENT = {"ready_within": 60.0}


@pytest.mark.parametrize(
    ("kind", "order"),
    [
        *(("local", order) for order in FAILURES),
        # The other ways to fail never touch a registry.
        pytest.param("consul", "crash", marks=pytest.mark.consul),
        pytest.param("consul", "refuse", marks=pytest.mark.consul),
        pytest.param("zookeeper", "crash", marks=pytest.mark.zookeeper),
        pytest.param("zookeeper", "refuse", marks=pytest.mark.zookeeper),
    ],
)
def test_a_new_process_that_does_not_become_ready_leaves_the_old_one_serving(
    kind: str, order: str, request: pytest.FixtureRequest, tmp_path: Path, unique: str
) -> None:
    """It exits, hangs, is deaf, or fails when it was registered: it is ended, and the old one serves, registered."""
    url = registry_url(kind, request, tmp_path)
    handover = {"hang": QUICK, "deaf": DEAF}.get(order, PATIENT)
    with HandedService(url, unique, tmp_path, "--flaky", handover=handover) as service:
        pid = service.process.pid
        storm = storm_of_both(service)
        with Watcher(service) as watcher, storm:
            service.orders.write_text(order)
            service.hang_up(pid)
            failed = rf"hand-over to pid \d+ failed: {FAILURES[order]}; this process serves on, registered as before"
            service.wait_for(rf"EVENT {pid} ({failed})")
            eventually(lambda: service.pids() == {pid}, because="the new process was ended")
            if order == "deaf" and "HANGING" in service.output():  # it had begun to be deaf in time
                service.wait_for(r"(did not end within 2 s: killed)")
            calls = storm.calls
            eventually(lambda: storm.calls > calls + 50, because="the storm goes on")
            if order == "exit":
                service.orders.write_text("")
                service.hang_up_until_heard(pid)
                report = service.report_of(pid)
                assert report["handed_over_to"] == service.serving_pid(), "the next attempt works"
                pid = report["handed_over_to"]
        if (kind, order) != ("local", "crash"):  # the kernel tells at once; the other registries wait for a while
            watcher.check()
        if order != "crash":  # what a process that crashes has accepted is lost
            assert storm.failures == []
        assert listed_pids(url, unique) == [str(pid)]
        assert service.serving_pid() == pid


def test_a_second_sighup_is_ignored_while_one_is_under_way(tmp_path: Path, unique: str) -> None:
    """One new process, and a log line for the second signal; when the new one is killed the old one serves on."""
    with HandedService(f"local://{tmp_path}/registry", unique, tmp_path, handover=PATIENT) as service:
        service.orders.write_text("hang")
        service.hang_up(service.process.pid)
        [new] = service.wait_for(r"HANGING (\d+)")
        service.hang_up(service.process.pid)
        service.wait_for(rf"(hand-over requested \(SIGHUP\): ignored, one is under way, to pid {new})")
        os.kill(int(new), signal.SIGKILL)
        service.wait_for(rf"(hand-over to pid {new} failed: it was ended by SIGKILL before it was ready)")
        assert service.output().count(": started pid") == 1
        assert service.serving_pid() == service.process.pid


@pytest.mark.parametrize(
    ("kind", "order"),
    [
        ("local", "hang"),
        ("local", "deaf"),
        ("local", ""),
        pytest.param("consul", "flaky", marks=pytest.mark.consul),
        pytest.param("zookeeper", "flaky", marks=pytest.mark.zookeeper),
    ],
)
def test_sigterm_during_a_hand_over_ends_both(
    kind: str, order: str, request: pytest.FixtureRequest, tmp_path: Path, unique: str
) -> None:
    """Whatever the new process is doing: no orphan, no entry; or, if it was faster, it serves on and is listed."""
    url = registry_url(kind, request, tmp_path)
    with HandedService(url, unique, tmp_path, "--flaky", handover=PATIENT) as service:
        pid = service.process.pid
        service.orders.write_text(order)
        service.hang_up(pid)
        [new] = service.wait_for(r": started pid (\d+)")
        if order in {"hang", "deaf"}:
            service.wait_for(r"HANGING (\d+)")
        if order == "flaky":
            service.wait_for(rf"LOG {new} (serving, but not registered)")
        os.kill(pid, signal.SIGTERM)
        report = service.report_of(pid)
        eventually(lambda: pid not in service.pids(), because="the old process has ended")
        if report["handed_over_to"] is None:
            eventually(lambda: not service.pids(), because="no orphan is left")
            assert listed_pids(url, unique) == []
            assert report["removals"][0]["outcome"] == "confirmed", report
        else:
            assert order == "", "only a process that becomes ready can be handed anything"
            assert service.serving_pid() == int(new)
            assert listed_pids(url, unique) == [new]


def test_a_new_process_whose_predecessor_is_killed_goes_on_alone(tmp_path: Path, unique: str) -> None:
    """SIGKILL to the old one before the hand-over is done: the new one serves, registers and owns the socket."""
    url = f"local://{tmp_path}/registry"
    with HandedService(url, unique, tmp_path, "--flaky", handover=PATIENT) as service:
        service.orders.write_text("flaky")
        service.hang_up(service.process.pid)
        [new] = service.wait_for(r": started pid (\d+)")
        service.wait_for(rf"LOG {new} (serving, but not registered)")
        os.kill(service.process.pid, signal.SIGKILL)
        service.wait_for(rf"LOG {new} (the process that handed over to this one is gone)")
        assert service.serving_pid() == int(new)
        os.kill(int(new), signal.SIGTERM)
        assert service.report_of(int(new))["removals"][0]["outcome"] == "confirmed"
    assert listed_pids(url, unique) == []
