"""gunicorn's stop under load: whoever is signalled, no request is lost, and the registry knows first."""

from __future__ import annotations

import contextlib
import signal
import threading
from pathlib import Path

import pytest

from benchmarks.rolling_restart.clients.http import Client
from tests.hosted.gunicorn_bench import Gunicorn, listed_owners, site, stopped
from tests.support.consul_process import ConsulAgent
from tests.support.processes import eventually

pytestmark = pytest.mark.slow

LONG = {"grace_period": 60.0, "floor": 14.0, "quiet_period": 0.1, "ceiling": 15.0}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT])
def test_the_master_is_signalled(number: signal.Signals, tmp_path: Path) -> None:
    """As containers do, with the application loaded in the master; SIGQUIT, which means a quick stop, is graceful too.

    Observers are told in the master, once, after the workers have gone; the user's own hooks are called as well.
    """
    head = (
        "import os\n"
        "def observe():\n    print('OBSERVED', os.getpid(), flush=True)\n"
        "def on_exit(server):\n    print('EXIT', os.getpid(), flush=True)\n"
    )
    gunicorn = Gunicorn(tmp_path, settings={"preload_app": True}, head=head, arguments="observers=[observe]")
    with site(gunicorn) as here:
        gunicorn.process.signal(number)
        output = stopped(here)
    assert f"stopped ({number.name})" in output
    assert output.count("OBSERVED") == 1
    assert f"OBSERVED {gunicorn.process.pid}" in output.partition("Worker exiting")[2]
    assert f"EXIT {gunicorn.process.pid}" in output.partition("OBSERVED")[2]


def test_ctrl_c(tmp_path: Path) -> None:
    """A terminal sends SIGINT to the group, at which workers of gunicorn would exit at once."""
    with site(Gunicorn(tmp_path, "sync")) as here:
        here.gunicorn.signal_group(signal.SIGINT)
        stopped(here)


def test_real_consul(tmp_path: Path, unique: str, consul_agent: ConsulAgent) -> None:
    """The same with Consul, whose heartbeat thread lives in the master: forked workers have none of it."""
    gunicorn = Gunicorn(tmp_path, registry_url=consul_agent.url, service=unique)
    with site(gunicorn) as here:
        before = gunicorn.children()
        gunicorn.process.signal(signal.SIGHUP)
        eventually(lambda: not before & gunicorn.children(), timeout=40, because="the workers are replaced")
        here.wait_answered()
        gunicorn.signal_group(signal.SIGTERM)
        stopped(here)
        assert listed_owners(gunicorn) == []


def test_gunicorn_alone_loses_requests(tmp_path: Path) -> None:
    """What all this is for: deregistered in ``on_exit``, its own last hook, gunicorn fails callers."""
    with site(Gunicorn(tmp_path, "sync", naive=True)) as here:
        here.gunicorn.process.signal(signal.SIGTERM)
        here.gunicorn.wait_stopped()
        assert here.failures()


@pytest.mark.parametrize("kind", ["gthread", "asgi", "uvicorn"])
def test_a_second_signal_hurries(kind: str, tmp_path: Path) -> None:
    """Nothing is waited for any more, but the registry is left first all the same.

    From that moment on answers close their connection: what the client sends next goes to somebody else.
    """
    gunicorn = Gunicorn(tmp_path, kind, budget=LONG, settings={"graceful_timeout": 60, "keepalive": 30})
    with site(gunicorn) as here, contextlib.closing(Client(gunicorn.address)) as client:
        client.call(b"before")
        assert not client.is_closed()
        gunicorn.process.signal(signal.SIGTERM)
        gunicorn.process.wait_output("PROPAGATING")
        client.call(b"while callers find out")
        assert client.is_closed()
        here.wait_gone()
        gunicorn.process.signal(signal.SIGINT)  # another one: the same again at once is taken for a repetition
        assert "PROPAGATING: skipped" in gunicorn.wait_stopped()


def test_a_third_signal_ends_it(tmp_path: Path) -> None:
    """At once, and no worker is left behind."""
    gunicorn = Gunicorn(tmp_path, budget=LONG, settings={"graceful_timeout": 60})
    with site(gunicorn):
        # Frozen, so that it gets all three before the second one has had time to end it.
        gunicorn.process.freeze()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            gunicorn.process.signal(number)
        gunicorn.process.thaw()
        output = gunicorn.wait_stopped()
        assert gunicorn.process.returncode is not None
        assert gunicorn.process.returncode > 128, output


def test_a_stuck_request_is_cut_off_and_named(tmp_path: Path) -> None:
    """At the end of its time the drain gives up, and the report says on what: the master knows by shared memory."""
    budget = {"grace_period": 6.0, "floor": 0.2, "quiet_period": 0.1, "ceiling": 0.3, "notify": 0.5}
    gunicorn = Gunicorn(tmp_path, "sync", budget=budget)
    with site(gunicorn) as here:

        def ask() -> None:
            with contextlib.suppress(OSError, EOFError):
                gunicorn.request("/slow?60")

        asking = threading.Thread(target=ask)
        asking.start()
        gunicorn.process.wait_output("SLOW")
        gunicorn.signal_group(signal.SIGTERM)
        output = gunicorn.wait_stopped()
        asking.join(timeout=30)
        assert not asking.is_alive()
        assert "POST /slow from 127.0.0.1:" in output.partition("cut off ")[2], output
        here.wait_gone()
