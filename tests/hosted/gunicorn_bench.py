"""Real gunicorns with real clients: started from a configuration file, watched in their registry, under load."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import re
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmarks.rolling_restart.clients.http import Client
from benchmarks.rolling_restart.load import FOLLOWING, IGNORING, NOTICE_S, DelayedList, Load, Sample
from registry_drain import Deadline, ServiceInstance, open_registry
from tests.support.processes import ManagedProcess, eventually, free_port

HOST = "127.0.0.1"
BUDGET = {"grace_period": 20.0, "floor": 0.4, "quiet_period": 0.1, "ceiling": 0.8, "closing": 3.0}
"""For clients that notice a change of the registry within 0.1 s. A phase ends when it is done, so
that a long ``closing`` costs no time.
"""

LISTED_ONCE = [1]
LISTED_AND_GONE = [1, 0]
"""What :meth:`Site.changes` says of an instance that is there, and of one that has stopped."""

WORKERS: dict[str, dict[str, object]] = {
    "sync": {"worker_class": "sync", "workers": 3},
    "gthread": {"worker_class": "gthread", "workers": 2, "threads": 8},
    "asgi": {"worker_class": "asgi", "workers": 2},
    "uvicorn": {"worker_class": "uvicorn.workers.UvicornWorker", "workers": 2},
}
"""By the name of a worker class: gunicorn's settings."""


_HEAD = """
import logging
logging.basicConfig(level=logging.INFO)
from registry_drain import StopBudget
from registry_drain.hosted.gunicorn import drain
from registry_drain.shutdown.events import InstanceRemoved, log_event
def say_when_gone(event):
    log_event(event)
    if isinstance(event, InstanceRemoved) and event.removal.outcome.name == "CONFIRMED":
        logging.info("gone since %r on the monotonic clock", event.removal.confirmed_at)
"""
_NAIVE = """
from registry_drain import Deadline, ServiceInstance, open_registry
registration = open_registry({url!r}).registration(ServiceInstance({service!r}, "127.0.0.1", {port}))
def when_ready(server):
    registration.register(Deadline.after(10))
    logging.info("registered ")
def on_exit(server):
    registration.on_shutdown(Deadline.after(10))
"""


class Gunicorn:
    """One gunicorn, which leads a process group of its own.

    Args:
        directory: for its files.
        kind: of :data:`WORKERS`.
        registry_url: where it registers.
        settings: more settings of gunicorn's.
        head: lines of the configuration before ``drain()``.
        arguments: more arguments of ``drain()``, as they are written there.
        tail: lines behind it.
        naive: without ``drain()``: the last hook that gunicorn has deregisters.
    """

    def __init__(
        self,
        directory: Path,
        kind: str = "gthread",
        *,
        registry_url: str = "",
        service: str = "web",
        settings: Mapping[str, object] | None = None,
        budget: Mapping[str, float] = BUDGET,
        head: str = "",
        arguments: str = "",
        tail: str = "",
        naive: bool = False,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.registry_url = registry_url or f"local://{directory}/registry"
        self.service = service
        self.budget = dict(budget)
        self.port = free_port()
        chosen = {
            "bind": f"{HOST}:{self.port}",
            "control_socket_disable": True,
            "pidfile": str(directory / "pid"),
            **WORKERS[kind],
            **(settings or {}),
        }
        lines = [f"{name} = {value!r}" for name, value in chosen.items()]
        drain = (
            f"drain(globals(), registry={self.registry_url!r}, service={service!r}, "
            f"budget=StopBudget(**{json.dumps(self.budget)}), sinks=[say_when_gone], {arguments})"
        )
        if naive:
            drain = _NAIVE.format(url=self.registry_url, service=service, port=self.port)
        self.configuration = directory / "gunicorn.conf.py"
        self.configuration.write_text("\n".join([_HEAD, *lines, head, drain, tail, ""]), encoding="utf-8")
        app = "asgi" if kind in {"asgi", "uvicorn"} else "wsgi"
        # uvicorn.workers says on import that it is deprecated.
        self.process = ManagedProcess.python(
            "-W",
            "ignore::DeprecationWarning",
            "-m",
            "gunicorn",
            "-c",
            str(self.configuration),
            f"tests.hosted.gunicorn_apps:{app}",
            log=directory / "gunicorn.log",
        )

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        return HOST, self.port

    def children(self) -> set[int]:
        """Return the pids of its workers."""
        return children_of(self.process.pid)

    def signal_group(self, number: int) -> None:
        """Signal the master and all workers, as systemd does by default."""
        os.killpg(self.process.pid, number)

    def request(self, path: str = "/", payload: bytes = b"x") -> bytes:
        """Make one request on a connection of its own."""
        client = Client(self.address)
        try:
            client.path = path
            return client.call(payload)
        finally:
            client.close()

    def gone_at(self) -> float | None:
        """Return when the removal was proven, by the monotonic clock, which all processes share; None: not yet."""
        found = re.findall(r"gone since ([\d.]+) on the", self.process.output())
        return float(found[-1]) if found else None

    def wait_stopped(self) -> str:
        """Wait for the exit of the master and of every worker; return all that they said."""
        self.process.wait(timeout=40)
        eventually(lambda: not group_members(self.process.pid), because="no worker outlives its master")
        return self.process.output()


class Site:
    """A gunicorn under load, and what the registry has listed, in order."""

    def __init__(self, gunicorn: Gunicorn, listed: DelayedList, load: Load) -> None:
        self.gunicorn = gunicorn
        self.listed = listed
        self.load = load

    def answered(self, kind: str = FOLLOWING) -> int:
        """How many requests of one kind of clients have been answered."""
        return sum(1 for sample in self.load.samples if sample.kind == kind and not sample.failure)

    def wait_answered(self, more: int = 40) -> None:
        """Wait until that many more requests of either kind have been answered."""
        targets = {kind: self.answered(kind) + more for kind in (FOLLOWING, IGNORING)}
        eventually(
            lambda: all(self.answered(kind) >= target or self.failures() for kind, target in targets.items()),
            because=f"{more} more requests are answered",
        )

    def failures(self) -> list[str]:
        """Return what failed, but for what these clients did too late.

        They follow a list that this process updates, and it may have stood still when the instance was removed. Then
        they go on calling when any other caller has long been told, and it is they who are late.
        """
        failed = [sample for sample in self.load.samples if sample.failure]
        gone_at = self.gunicorn.gone_at() if failed else None
        served_until = math.inf if gone_at is None else gone_at + self.gunicorn.budget["floor"]
        return [f"{each.kind}: {each.failure}" for each in failed if not _is_late(each, served_until)]

    def changes(self) -> list[int]:
        """Return how many instances the registry has listed, from the first one on, after each of its changes."""
        return [len(instances) for _, instances in self._changes()]

    def wait_gone(self) -> None:
        """Wait until the watch has seen the instance leave, and nothing else."""
        eventually(lambda: self.changes() == LISTED_AND_GONE, because="the registry is left, once")

    def _changes(self) -> list[tuple[float, tuple[ServiceInstance, ...]]]:
        return list(itertools.dropwhile(lambda change: not change[1], tuple(self.listed._changes)))


def _is_late(sample: Sample, served_until: float) -> bool:
    if sample.kind is not FOLLOWING:
        return False
    # Who was refused had sent nothing yet, however long before that the call began.
    looked_at = sample.began_at + (sample.seconds if sample.failure == "refused" else 0.0)
    return looked_at > served_until


@contextlib.contextmanager
def site(gunicorn: Gunicorn) -> Iterator[Site]:
    """Put a gunicorn under load, once it is listed, and end it afterwards."""
    registry = open_registry(gunicorn.registry_url)
    listed = DelayedList()
    watch = registry.watch(gunicorn.service, Deadline.after(30), listed)
    try:
        gunicorn.process.wait_output("registered ")
        eventually(lambda: listed.newest, because="the instance is listed")
        with Load(Client, listed, [gunicorn.address], keeps_connections=True) as load:
            here = Site(gunicorn, listed, load)
            here.wait_answered()
            yield here
    finally:
        watch.close()
        registry.close()
        gunicorn.process.kill()
        for pid in group_members(gunicorn.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def stopped(here: Site) -> str:
    """Wait for the end, and return all that gunicorn said, if nothing was lost and the registry was left first."""
    output = here.gunicorn.wait_stopped()
    assert here.failures() == [], output
    here.wait_gone()
    gone_at = here.gunicorn.gone_at()
    assert gone_at is not None, output
    # If this process stood still meanwhile, nobody called.
    called = any(
        gone_at + NOTICE_S < each.began_at < gone_at + here.gunicorn.budget["floor"] for each in here.load.samples
    )
    assert not called or re.search(r"late +\d+ requests after deregistration", output), output
    assert ": clean" in output, output
    return output


def listed_owners(gunicorn: Gunicorn) -> list[str]:
    """Return who owns the entries that a consistent read of the registry finds."""
    registry = open_registry(gunicorn.registry_url)
    try:
        return [entry.owner for entry in registry.entries(gunicorn.service, Deadline.after(10))]
    finally:
        registry.close()


def children_of(pid: int) -> set[int]:
    """Return the pids of a process' children."""
    return _processes(lambda _group, parent: parent == pid)


def group_members(group: int) -> set[int]:
    """Return the pids of a process group, zombies left out."""
    return _processes(lambda its_group, _parent: its_group == group)


def _processes(matches: object) -> set[int]:
    assert callable(matches)
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                state, parent, group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
                if state != "Z" and matches(int(group), int(parent)):
                    found.add(int(entry.name))
    return found
