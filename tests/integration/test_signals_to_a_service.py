"""Signals to a real, registered service process: what it does, what it says, and with which status it ends."""

from __future__ import annotations

import os
import pty
import signal
import sys
import threading
from pathlib import Path

from registry_drain.clock import SYSTEM_CLOCK
from tests.integration.fleet import BRIEF, FAST, ServiceProcess, ended, listed
from tests.support.calculator_load import SlowCall, call_once
from tests.support.processes import REPOSITORY, eventually

SLOW_PROPAGATION = {**BRIEF, "floor": 1.5, "quiet_period": 1.0}
ENDLESS_PROPAGATION = {**FAST, "grace_period": 90.0, "floor": 20.0, "ceiling": 20.0}
"""Nobody waits for its end."""


def local_url(tmp_path: Path) -> str:
    """Return the URL of a registry of the test's own."""
    return f"local://{tmp_path}/registry"


def test_sigterm_leaves_drains_notifies_and_exits_cleanly(tmp_path: Path, unique: str) -> None:
    """One SIGTERM: deregistered first, observers in order, a clean report, status 0."""
    service = ServiceProcess(local_url(tmp_path), unique, tmp_path / "log")
    with ended(service):
        service.wait_listed()
        report = service.stop()
    assert service.process.returncode == 0
    assert report["is_clean"]
    assert [phase["phase"] for phase in report["phases"]] == [
        "deregistering",
        "propagating",
        "closing",
        "draining",
        "notifying",
    ]
    output = service.process.output()
    assert output.index("EVENT DEREGISTERING") < output.index("OBSERVER draining") < output.index("OBSERVER drained")
    assert listed(service.registry_url, unique) == {}


def test_a_second_sigterm_skips_the_waits_and_still_deregisters(tmp_path: Path, unique: str) -> None:
    """Two SIGTERMs during propagation, with a request in flight: gone from the registry, and the request is named."""
    service = ServiceProcess(local_url(tmp_path), unique, tmp_path / "log", budget=ENDLESS_PROPAGATION)
    with ended(service), SlowCall(service.endpoint, seconds=60):
        service.wait_listed()
        service.process.signal(signal.SIGTERM)
        service.process.wait_output("EVENT PROPAGATING")
        service.process.signal(signal.SIGINT)
        assert service.process.wait() == 1
    report = service.report()
    assert report["is_hurried"]
    assert report["removals"][0]["outcome"] == "confirmed"
    assert service.phase("propagating")["outcome"] == "skipped"
    assert [request["name"] for request in report["cut_off"]] == ["add_slowly"]
    assert "OBSERVER drained" in service.process.output()


def test_a_third_sigterm_exits_at_once(tmp_path: Path, unique: str) -> None:
    """Three signals while an observer hangs: the process is gone with 128 + SIGTERM, without a report."""
    budget = {**FAST, "notify": 10.0, "hurried_notify": 10.0, "grace_period": 60.0}
    service = ServiceProcess(local_url(tmp_path), unique, tmp_path / "log", "--hanging-observer=9", budget=budget)
    with ended(service):
        service.wait_listed()
        service.process.signal(signal.SIGTERM)
        service.process.wait_output("EVENT NOTIFYING")
        service.process.signal(signal.SIGINT)
        service.process.wait_output("hurried")
        service.process.signal(signal.SIGTERM)
        assert service.process.wait() == 128 + signal.SIGTERM
    assert "REPORT" not in service.process.output()
    assert listed(service.registry_url, unique) == {}


def test_ctrl_c_in_a_terminal_stops_gracefully(tmp_path: Path, unique: str) -> None:
    """The byte 3 typed into a real terminal: the same graceful stop as SIGTERM."""
    url = local_url(tmp_path)
    argv = [sys.executable, "-u", "-m", "tests.integration.service_program", f"--registry={url}", f"--service={unique}"]
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(REPOSITORY)
        os.execv(sys.executable, argv)  # noqa: S606 - a child of a pseudo-terminal
    try:
        eventually(lambda: listed(url, unique), because="the service is listed")
        os.write(terminal, b"\x03")
        output = b""

        def has_reported() -> bool:
            nonlocal output
            output += os.read(terminal, 65536)
            return b"REPORT" in output

        eventually(has_reported, because="the report is written")
        _, status = os.waitpid(pid, 0)
        pid = 0
    finally:
        if pid:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 0
    assert b'"reason": "SIGINT"' in output
    assert listed(url, unique) == {}


def test_a_hanging_observer_is_left_behind_and_the_next_one_is_told(tmp_path: Path, unique: str) -> None:
    """An observer that never returns costs its own time limit, is named with where it hangs, and status 1 says so."""
    service = ServiceProcess(local_url(tmp_path), unique, tmp_path / "log", "--hanging-observer=1")
    with ended(service):
        service.wait_listed()
        report = service.stop()
    results = {result["name"]: result for result in report["observers"]}
    assert results["hanging"]["outcome"] == "timed_out"
    assert "wait()" in results["hanging"]["detail"]
    assert results["last"]["outcome"] == "completed"
    assert service.process.returncode == 1


def test_an_observer_that_calls_stop_does_not_hang(tmp_path: Path, unique: str) -> None:
    """``stop()`` from inside the stop returns at once, and the stop stays clean."""
    service = ServiceProcess(local_url(tmp_path), unique, tmp_path / "log", "--stopping-observer")
    with ended(service):
        service.wait_listed()
        report = service.stop()
    assert report["is_clean"]


def test_stop_from_inside_a_request_handler_answers_that_request(tmp_path: Path, unique: str) -> None:
    """A handler that calls ``stop()`` is not waited for by itself: its caller gets an answer, and the stop is clean."""
    service = ServiceProcess(local_url(tmp_path), unique, tmp_path / "log", "--stop-on-divide")
    with ended(service):
        service.wait_listed()
        assert call_once(service.endpoint, "divide", 6, 3) == 2
        assert service.process.wait() == 0
    assert service.report()["is_clean"]


def test_a_deadlocked_thread_cannot_keep_the_process(tmp_path: Path, unique: str) -> None:
    """A thread that never ends outlives the stop: the watchdog dumps every stack and exits inside the grace period."""
    budget = {**BRIEF, "grace_period": 6.0, "margin": 1.0, "ceiling": 0.5, "floor": 0.1, "deregister": 1.0}
    service = ServiceProcess(local_url(tmp_path), unique, tmp_path / "log", "--deadlocked-thread", budget=budget)
    with ended(service):
        service.wait_listed()
        report = service.stop()
    assert report["is_clean"]
    # The report's own status would be 0: 1 is the watchdog's, too, if its C timer was faster than its thread.
    assert service.process.returncode in {70, 1}
    assert "somebody" in service.process.output() or "Thread 0x" in service.process.output()


def test_sigterm_while_registration_is_retried_ends_promptly(tmp_path: Path, unique: str) -> None:
    """The registry is down from the start: it serves, says so, and a SIGTERM ends it with nothing listed."""
    directory = tmp_path / "registry"
    directory.write_text("a file where the directory should be")
    service = ServiceProcess(f"local://{directory}", unique, tmp_path / "log")
    with ended(service):
        service.process.wait_output("serving, but not registered")
        assert call_once(service.endpoint, "add", 1, 2) == 3
        report = service.stop()
    assert report["removals"][0]["outcome"] in {"not_registered", "unconfirmed"}
    assert report["elapsed"] < report["grace_period"]


def test_killed_in_each_phase_leaves_nothing_in_the_local_registry(tmp_path: Path, unique: str) -> None:
    """SIGKILL at the start of every phase: the instance is not listed as alive afterwards."""
    for phase in ("LISTENING", "DEREGISTERING", "PROPAGATING", "CLOSING", "DRAINING", "NOTIFYING"):
        service = ServiceProcess(local_url(tmp_path), unique, tmp_path / phase, budget=SLOW_PROPAGATION)
        with ended(service), SlowCall(service.endpoint, seconds=30):
            service.wait_listed()
            if phase != "LISTENING":
                service.process.signal(signal.SIGTERM)
                service.process.wait_output(f"EVENT {phase}")
            service.process.kill()
        assert [entry for entry in listed(service.registry_url, unique).values() if entry.is_live] == [], phase


def test_a_signal_that_another_thread_takes_is_handled_all_the_same() -> None:
    """The kernel may hand a signal to any thread; a main thread waiting on our clock runs the handler nevertheless."""
    handled = threading.Event()
    previous = signal.signal(signal.SIGUSR1, lambda _number, _frame: handled.set())
    try:
        taker = threading.Thread(target=lambda: signal.pthread_kill(threading.get_ident(), signal.SIGUSR1))
        waits = threading.Timer(0.3, taker.start)
        waits.start()
        assert SYSTEM_CLOCK.wait(handled, 20)
        waits.join()
        taker.join()
    finally:
        signal.signal(signal.SIGUSR1, previous)
