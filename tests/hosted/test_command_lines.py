"""The servers' own command lines, stopped under load: nothing fails, whoever gets the signal."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import pytest

from benchmarks.rolling_restart.clients.http import Client
from registry_drain import Deadline
from tests.hosted.running import PATIENCE, Callers, HostedService
from tests.support.processes import eventually
from tests.support.zookeeper_process import ZooKeeperServer

pytestmark = pytest.mark.slow

LAME_DUCK = 0.25
"""Seconds; the floor of the budget, less what two threads need to notice."""


@pytest.mark.parametrize(
    ("kind", "to_group", "status"),
    [
        ("uvicorn", False, -signal.SIGTERM),  # uvicorn raises the signal again at its end
        ("uvicorn-workers", False, 0),
        ("uvicorn-workers", True, 0),
        ("uvicorn-workers-late", True, 0),
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
        service.all_serve(workers)
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
        assert service.entries == []
        assert callers.last_listed_at is not None
        assert callers.refused_at is not None
        assert callers.refused_at - callers.last_listed_at > LAME_DUCK, (
            "callers have time to notice that it is unlisted"
        )
        output = service.process.output()
        assert output.count("stopped (SIGTERM)") == workers, output
        assert "INCOMPLETE" not in output


def test_workers_without_a_registry_come_and_go(tmp_path: Path) -> None:
    """One that is replaced leaves the listener to the others; when all leave nothing is lost, either."""
    with HostedService("uvicorn-workers", tmp_path, is_registered=False) as service:
        service.all_serve(2)
        with Callers(service) as callers:
            eventually(lambda: callers.answered > 50, timeout=PATIENCE, because="callers are answered")
            gone = min(service.workers())
            os.kill(gone, signal.SIGTERM)
            eventually(lambda: len(service.workers() - {gone}) == 2, timeout=PATIENCE, because="a new worker")
            service.process.signal(signal.SIGTERM)
            assert service.process.wait(timeout=PATIENCE) == 0
            eventually(lambda: callers.refused_at, timeout=PATIENCE, because="callers are refused in the end")
        assert callers.failures == []
        output = service.process.output()
        assert output.count("stopped (SIGTERM)") == 3, output
        assert "INCOMPLETE" not in output


def test_workers_come_and_go_and_the_instance_stays(tmp_path: Path) -> None:
    """A worker that crashes is succeeded; workers that are replaced (SIGHUP) fail nothing, and leave no gap."""
    with HostedService("uvicorn-workers", tmp_path) as service:
        service.started()
        service.all_serve(2)
        keeper = int(service.entries[0].owner.split()[1])
        os.kill(keeper, signal.SIGKILL)
        eventually(
            lambda: (entries := service.entries) and int(entries[0].owner.split()[1]) != keeper,
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


def test_a_worker_that_has_not_registered_yet_leaves_the_listener_to_the_others(tmp_path: Path) -> None:
    """It is stopped alone while it still opens its registry: nobody notices, and another one takes its place."""
    with HostedService("uvicorn-workers-late", tmp_path) as service:
        service.started().all_serve(2)
        (late,) = service.workers() - {service.agreement()["keeper"]}
        with Callers(service) as callers:
            callers.warmed_up()
            os.kill(late, signal.SIGTERM)
            eventually(
                lambda: len(service.workers() - {late}) == 2, timeout=PATIENCE, because="a new worker in its place"
            )
            callers.warmed_up()
            assert callers.failures == []
            assert callers.refused_at is None
            assert callers.unlisted_at is None
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


def test_an_operators_removal_survives_the_keeper_until_it_is_told_otherwise(
    tmp_path: Path, zookeeper_server: ZooKeeperServer, unique: str
) -> None:
    """Whichever worker is told; and the stop in the end takes the instance out of rotation first."""
    url = f"{zookeeper_server.url}/{unique}?layout=curator"
    with HostedService("uvicorn-workers", tmp_path, registry_url=url, soft_drain=4.0) as service:
        service.started()
        service.all_serve(2)
        service.registry.remove(service.entries[0], Deadline.after(PATIENCE), force=True)
        service.process.wait_output("stays out of", timeout=PATIENCE)
        eventually(lambda: service.agreement()["removed"], timeout=PATIENCE, because="the workers agree on it")
        keeper = service.agreement()["keeper"]
        os.kill(keeper, signal.SIGKILL)
        service.process.wait_output("which stays out of", timeout=PATIENCE)
        assert service.entries == []
        with contextlib.closing(Client(("127.0.0.1", service.port))) as client:
            assert client.call(b"rejoin").decode() == service.registry.url
        (entry,) = service.entries
        assert entry.health in {"", "passing"}
        service.process.signal(signal.SIGTERM)
        eventually(
            lambda: [each.health for each in service.entries] == ["maintenance"],
            timeout=PATIENCE,
            because="listed, and out of rotation",
        )
        assert service.process.wait(timeout=PATIENCE) == 0
        assert service.entries == []
        output = service.process.output()
        assert output.count("soft drain    hosted-") == 1, output
