"""The servers' own command lines, stopped under load: nothing fails, whoever gets the signal."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from benchmarks.rolling_restart.clients.http import Client
from tests.hosted.running import PATIENCE, Callers, HostedService
from tests.support.processes import eventually

pytestmark = pytest.mark.slow

LAME_DUCK = 0.25
"""Seconds; the floor of the budget, less what two threads need to notice."""


@pytest.mark.parametrize(
    ("kind", "to_group", "status"),
    [
        ("uvicorn", False, -signal.SIGTERM),  # uvicorn raises the signal again at its end
        ("uvicorn-workers", False, 0),
        ("uvicorn-workers", True, 0),
        ("granian-workers", True, 0),
        ("hypercorn-in-process", False, 0),
    ],
)
def test_a_stop_fails_no_request(kind: str, to_group: bool, status: int, tmp_path: Path) -> None:
    """The instance leaves the registry, is served until callers know, and only then refuses."""
    with HostedService(kind, tmp_path) as service:
        service.started()
        # A worker that is still starting has no handlers, and dies of the signal: nothing that could be tested.
        workers = 2 if "workers" in kind else 1
        eventually(lambda: len(service.workers()) == workers, timeout=PATIENCE, because="all workers serve")
        assert len(service.entries) == 1, "several workers are one instance"
        with Callers(service) as callers:
            callers.warmed_up()
            if to_group:
                service.signal_group(signal.SIGTERM)
            else:
                service.process.signal(signal.SIGTERM)
            assert service.process.wait(timeout=PATIENCE) == status
            eventually(lambda: callers.refused_at, timeout=PATIENCE, because="callers are refused in the end")
        assert callers.failures == []
        assert callers.unlisted_at is not None
        assert callers.refused_at is not None
        assert callers.refused_at - callers.unlisted_at > LAME_DUCK, "callers have time to notice that it is unlisted"
        output = service.process.output()
        assert output.count("stopped (SIGTERM)") == workers, output
        assert "INCOMPLETE" not in output


def test_workers_come_and_go_and_the_instance_stays(tmp_path: Path) -> None:
    """A worker that crashes is succeeded; workers that are replaced (SIGHUP) fail nothing, and leave no gap."""
    with HostedService("uvicorn-workers", tmp_path) as service:
        service.started()
        eventually(lambda: len(service.workers()) == 2, timeout=PATIENCE, because="two workers")
        keeper = int(service.entries[0].owner.split()[1])
        os.kill(keeper, signal.SIGKILL)
        eventually(
            lambda: service.entries and int(service.entries[0].owner.split()[1]) != keeper,
            timeout=PATIENCE,
            because="another worker keeps the registration",
        )
        eventually(lambda: len(service.workers() - {keeper}) == 2, timeout=PATIENCE, because="a new worker")
        before = service.workers()
        with Callers(service) as callers:
            callers.warmed_up()
            service.process.signal(signal.SIGHUP)
            eventually(
                lambda: len(service.workers() - before) == 2 and not service.workers() & before,
                timeout=PATIENCE,
                because="both workers are replaced",
            )
            callers.warmed_up()
            assert callers.failures == []
            assert callers.unlisted_at is None, "the instance was listed all the time"
        service.process.signal(signal.SIGTERM)
        assert service.process.wait(timeout=PATIENCE) == 0
        assert service.entries == []


def test_a_second_signal_hurries(tmp_path: Path) -> None:
    """What is in flight is cut off and named; the registry is left all the same."""
    with HostedService("uvicorn", tmp_path) as service:
        service.started()
        client = Client(("127.0.0.1", service.port))
        client.send(b"wait")
        service.process.signal(signal.SIGTERM)
        service.process.wait_output("DRAINING: at most", timeout=PATIENCE)
        service.process.signal(signal.SIGTERM)
        assert service.process.wait(timeout=PATIENCE) == -signal.SIGTERM
        with pytest.raises((OSError, EOFError)):
            client.receive()
        client.close()
        assert "cut off       POST / from 127.0.0.1" in service.process.output()
        assert service.entries == []


def test_a_hypercorn_worker_says_that_it_cannot_be_drained(tmp_path: Path) -> None:
    """In one line, at the start, and not by lost requests at the first deploy."""
    with HostedService("hypercorn-worker", tmp_path) as service:
        service.process.wait_output("start hypercorn with --workers 0", timeout=PATIENCE)
