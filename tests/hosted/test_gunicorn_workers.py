"""gunicorn's workers come and go under load: nobody's request is lost, and the registry hears nothing of it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from registry_drain import Deadline, open_registry
from tests.hosted.gunicorn_bench import (
    BUDGET,
    LISTED_ONCE,
    WORKERS,
    Gunicorn,
    Site,
    group_members,
    listed_owners,
    site,
    stopped,
)
from tests.support.processes import eventually
from tests.support.zookeeper_process import ZooKeeperServer

pytestmark = pytest.mark.slow


def wait_replaced(here: Site, before: set[int]) -> None:
    """Wait until other workers than before serve, and go on serving for a while."""
    eventually(lambda: not before & here.gunicorn.children(), timeout=40, because="the workers are replaced")
    here.wait_answered()


@pytest.mark.parametrize("kind", WORKERS)
def test_reload_and_stop_of_the_group(kind: str, tmp_path: Path) -> None:
    """SIGHUP: new workers, the same instance. Then SIGTERM to all at once, as systemd sends it by default.

    The workers, which are signalled too, serve on until the master has deregistered and callers know.
    """
    with site(Gunicorn(tmp_path, kind)) as here:
        before = here.gunicorn.children()
        here.gunicorn.process.signal(signal.SIGHUP)
        wait_replaced(here, before)
        assert here.failures() == [], here.gunicorn.process.output()
        assert here.changes() == LISTED_ONCE
        here.gunicorn.signal_group(signal.SIGTERM)
        stopped(here)


@pytest.mark.parametrize("kind", WORKERS)
def test_recycling(kind: str, tmp_path: Path) -> None:
    """``max_requests``: each worker goes after so many, and another one takes its place."""
    with site(Gunicorn(tmp_path, kind, settings={"max_requests": 100, "max_requests_jitter": 100})) as here:
        wait_replaced(here, here.gunicorn.children())
        assert here.failures() == [], here.gunicorn.process.output()
        assert here.changes() == LISTED_ONCE


def test_a_worker_is_signalled_alone(tmp_path: Path) -> None:
    """No stop of the master follows, so it is obeyed after a while; it serves until then."""
    head = "import registry_drain.hosted.gunicorn.worker as worker_agent\nworker_agent.ALONE_AFTER = 0.5"
    with site(Gunicorn(tmp_path, head=head)) as here:
        chosen = min(here.gunicorn.children())
        os.kill(chosen, signal.SIGTERM)
        wait_replaced(here, {chosen})
        assert here.failures() == [], here.gunicorn.process.output()
        assert here.changes() == LISTED_ONCE


def test_a_worker_that_dies_is_no_stop(tmp_path: Path) -> None:
    """It takes its own requests with it; the instance stays listed, and later stops as ever."""
    gunicorn = Gunicorn(tmp_path, settings={"timeout": 1})
    with site(gunicorn) as here:
        (owner,) = listed_owners(gunicorn)
        killed = max(gunicorn.children())
        os.kill(killed, signal.SIGKILL)
        wait_replaced(here, {killed})
        frozen = min(gunicorn.children())
        os.kill(frozen, signal.SIGSTOP)  # the arbiter kills it for not answering
        eventually(lambda: frozen not in gunicorn.children(), because="a worker that hangs is killed")
        here.wait_answered(60)
        assert here.changes() == LISTED_ONCE
        assert listed_owners(gunicorn) == [owner]
        gunicorn.process.signal(signal.SIGTERM)
        assert ": clean" in gunicorn.wait_stopped()
        here.wait_gone()


def test_a_reload_that_fails_is_a_stop(tmp_path: Path) -> None:
    """It exits when it cannot read its configuration, telling nobody; here it is a stop like another."""
    gunicorn = Gunicorn(tmp_path)
    with site(gunicorn) as here:
        gunicorn.configuration.write_text("workers = nonsense\n", encoding="utf-8")
        gunicorn.process.signal(signal.SIGHUP)
        output = gunicorn.wait_stopped()
        assert here.failures() == [], output
        here.wait_gone()
        assert gunicorn.process.returncode == 1


def test_binary_upgrade(tmp_path: Path) -> None:
    """SIGUSR2: the new master takes the registration over; the old one leaves their common listener alone."""
    gunicorn = Gunicorn(tmp_path)
    with site(gunicorn) as here:
        owner = listed_owners(gunicorn)
        gunicorn.process.signal(signal.SIGUSR2)
        new_pid_file = tmp_path / "pid.2"
        new = eventually(lambda: new_pid_file.exists() and int(new_pid_file.read_text()), because="a new master")
        eventually(lambda: listed_owners(gunicorn) != owner, because="the new master has the registration")
        assert len(listed_owners(gunicorn)) == 1
        gunicorn.process.signal(signal.SIGTERM)
        gunicorn.process.wait(timeout=40)
        here.wait_answered(60)
        assert here.failures() == [], gunicorn.process.output()
        assert here.changes() == LISTED_ONCE
        eventually(lambda: "promoted" in gunicorn.process.output(), because="the new master is the only one")
        os.kill(new, signal.SIGTERM)
        gunicorn.wait_stopped()
        assert here.failures() == [], gunicorn.process.output()
        here.wait_gone()


def test_the_master_is_killed(tmp_path: Path) -> None:
    """Its workers end, uvicorn's too, which do not look whether their master is there: else they would serve for ever.

    Nobody deregisters then; the registration expires by itself.
    """
    gunicorn = Gunicorn(tmp_path, "uvicorn")
    with site(gunicorn) as here:
        workers = here.gunicorn.children()
        assert workers
        gunicorn.process.signal(signal.SIGKILL)  # not kill(), which would end the workers, too
        gunicorn.process.wait(timeout=40)
        eventually(
            lambda: not workers & group_members(gunicorn.process.pid),
            timeout=40,
            because="no worker outlives its master",
        )


def test_recycling_brings_back_nothing_that_an_operator_removed(
    tmp_path: Path, unique: str, zookeeper_server: ZooKeeperServer
) -> None:
    """A request of any worker can; and the stop takes the instance out of rotation before it removes it."""
    url = f"{zookeeper_server.url}/{unique}?layout=curator"
    gunicorn = Gunicorn(
        tmp_path,
        registry_url=url,
        service=unique,
        settings={"graceful_timeout": 60},
        budget={**BUDGET, "grace_period": 60.0, "deregister": 20.0, "hurried_deregister": 10.0},
        arguments="soft_drain=8.0",
    )
    registry = open_registry(url)

    def states() -> list[str]:
        return [entry.health for entry in registry.entries(unique, Deadline.after(20))]

    try:
        eventually(states, timeout=40, because="it is listed")
        (entry,) = registry.entries(unique, Deadline.after(20))
        registry.remove(entry, Deadline.after(20), force=True)
        gunicorn.process.wait_output("stays out of", timeout=40)
        before = gunicorn.children()
        gunicorn.process.signal(signal.SIGHUP)
        eventually(lambda: not before & gunicorn.children(), timeout=40, because="the workers are replaced")
        gunicorn.request()
        assert states() == []
        gunicorn.request("/rejoin")
        # The node alone is not all of it: before the master is done a stop has nothing to take out of rotation.
        gunicorn.process.wait_output("told to rejoin, and registered at", timeout=40)
        assert states() == [""]
        gunicorn.process.signal(signal.SIGTERM)
        eventually(lambda: states() == ["maintenance"], timeout=40, because="listed, and out of rotation")
        gunicorn.process.signal(signal.SIGINT)  # that is all there is to see: do not wait for the end of it
        output = gunicorn.wait_stopped()
        assert "soft drain    " in output
        assert states() == []
    finally:
        registry.close()
        gunicorn.process.kill()


def test_a_soft_drain_that_does_not_fit_is_refused_at_the_start(tmp_path: Path) -> None:
    """In one line, before anything is opened."""
    gunicorn = Gunicorn(tmp_path, arguments="soft_drain=9.0")
    assert "soft_drain=9 s: must be between 0 and" in gunicorn.wait_stopped()
