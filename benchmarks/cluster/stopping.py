"""One instance of the cluster that stops: how long it took, what it said, and until when it was listed."""

from __future__ import annotations

import re
import threading
import time
from dataclasses import dataclass

from benchmarks.cluster.compose import Cluster, Container
from registry_drain.errors import RegistryError
from tests.support.processes import eventually

_STOPPED = re.compile(r"stopped \(\w+\) in ([0-9.]+) s of ([0-9.]+) s: (.*)$", re.MULTILINE)
_STILL_CALLED = re.compile(r"PROPAGATING: out of time")
_REGISTRY = re.compile(r"^ +registry +\S+ \(\S+\) at \S+: ([a-z ]+)", re.MULTILINE)
LISTED_LIMIT_S = 120.0
"""Seconds after which an entry that is still listed counts as left behind."""


@dataclass(frozen=True)
class Stopped:
    """What was seen of one stop.

    Attributes:
        seconds: from the signal to the exit, as its report says.
        outcome: what its report says became of the registration.
        verdict: what its report says of the whole.
        was_called: whether callers still came when it closed its listener.
        listed_for: seconds that it was still listed after its exit; None: still listed when we stopped looking.
    """

    seconds: float
    outcome: str
    verdict: str
    was_called: bool
    listed_for: float | None


class Stopping:
    """One stop of one instance, by SIGTERM, watched until the end.

    Args:
        cluster: it is in.
        which: the registry.
        container: the instance.
        service: the name that it is listed under.
    """

    def __init__(self, cluster: Cluster, which: str, container: Container, service: str = "calculator") -> None:
        self._cluster = cluster
        self._which = which
        self._service = service
        self._container = container
        self._address = container.address
        self._began_at = 0.0
        self._exited_at = 0.0
        self._waiter: threading.Thread | None = None

    def begin(self) -> None:
        """Send the signal."""
        self._began_at = time.time()
        self._container.kill("TERM")
        self._waiter = threading.Thread(target=self._wait, name="stopping", daemon=True)
        self._waiter.start()

    def _wait(self) -> None:
        self._container.await_exit()
        self._exited_at = time.time()

    def await_exit(self) -> None:
        """Wait until it has ended."""
        if self._waiter is not None:
            self._waiter.join()

    def seen(self, *, patience: float = LISTED_LIMIT_S) -> Stopped:
        """Wait until it has ended, and is not listed any more, and return what was seen."""
        self.await_exit()
        listed_for = self._listed_for(patience)
        log = self._container.log(since=self._began_at - 1)
        stopped, registry = _STOPPED.search(log), _REGISTRY.search(log)
        return Stopped(
            seconds=float(stopped[1]) if stopped else self._exited_at - self._began_at,
            outcome=registry[1] if registry else "(no report)",
            verdict=stopped[3] if stopped else "(no report)",
            was_called=_STILL_CALLED.search(log) is not None,
            listed_for=listed_for,
        )

    def _listed_for(self, patience: float) -> float | None:
        until = time.monotonic() + patience
        while time.monotonic() < until:
            try:
                entries = self._cluster.listed(self._which, self._service)
            except RegistryError:
                time.sleep(0.1)
                continue
            if all(entry.address != self._address for entry in entries):
                return max(time.time() - self._exited_at, 0.0)
            time.sleep(0.1)
        return None

    def start_again(self) -> None:
        """Start the instance again, and wait until it is listed; its health check may come later."""
        self._container.start()
        address = self._container.address

        def is_listed() -> bool:
            try:
                return any(
                    entry.address == address and entry.is_live is not False
                    for entry in self._cluster.listed(self._which, self._service)
                )
            except RegistryError:
                return False

        eventually(is_listed, timeout=60.0, interval=0.2)
