"""What fence, proof and report cost: our deregistration beside kazoo's own calls, made bare.

Both sides start from the same state: an ephemeral node on a session of its own, and a second session that is connected
already. The bare side makes the calls that a proof cannot do without: kazoo's ``stop()`` of the first client, and
``sync()`` and ``exists()`` with the second. Ours also fences (stops and joins the worker), makes sure that the server
itself ended the session, retries and reports. Interleaved in one run, so that the noise of the machine hits both.

    python -m benchmarks.zookeeper_deregistration [rounds]

Exits with 1 if the median ratio is above the goal.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from kazoo.client import KazooClient

from registry_drain.clock import Deadline
from registry_drain.instance import ServiceInstance
from registry_drain.registries.base import RemovalOutcome
from registry_drain.registries.url import open_registry
from tests.support.zookeeper_process import ZooKeeperServer

GOAL = 1.3
ROUNDS = 200
SETTLE = 0.01
"""Seconds; no process stops in the millisecond in which it started. Both sides begin with all their threads asleep."""


def main() -> int:
    """Run, print medians and ratio, return the exit status."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    with tempfile.TemporaryDirectory() as directory, ZooKeeperServer(Path(directory)) as server:
        times: dict[str, list[float]] = {"bare": [], "ours": []}
        with BareSide(server) as bare, OurSide(server) as ours:
            sides: dict[str, Callable[[int], float]] = {"bare": bare.deregister, "ours": ours.deregister}
            for number in range(rounds):
                # Whoever goes first alternates, too.
                for name in sorted(sides, reverse=bool(number % 2)):
                    times[name].append(sides[name](number))
    # The first rounds pay for imports and for the server's warm-up.
    medians = {name: statistics.median(each[rounds // 10 :]) for name, each in times.items()}
    for name, median in medians.items():
        p95 = statistics.quantiles(times[name][rounds // 10 :], n=20)[-1]
        print(f"{name}: median {median * 1e3:.2f} ms, p95 {p95 * 1e3:.2f} ms")
    ratio = medians["ours"] / medians["bare"]
    print(f"proven deregistration / bare calls: {ratio:.2f} (goal: at most {GOAL})")
    return 0 if ratio <= GOAL else 1


class BareSide:
    """Kazoo alone."""

    def __init__(self, server: ZooKeeperServer) -> None:
        self._hosts = server.hosts
        self._kept_alive = KazooClient(hosts=server.hosts)

    def __enter__(self) -> BareSide:
        """Connect the client that reads."""
        self._kept_alive.start()
        self._kept_alive.ensure_path("/bare")
        return self

    def __exit__(self, *_: object) -> None:
        """Disconnect it."""
        self._kept_alive.stop()
        self._kept_alive.close()

    def deregister(self, number: int) -> float:
        """Return the seconds that one deregistration took."""
        owner = KazooClient(hosts=self._hosts)
        owner.start()
        path = f"/bare/{number}"
        owner.create(path, b"{}", ephemeral=True)
        time.sleep(SETTLE)
        began = time.perf_counter()
        owner.stop()
        self._kept_alive.sync(path)
        stat = self._kept_alive.exists(path)
        took = time.perf_counter() - began
        assert stat is None
        owner.close()
        return took


class OurSide:
    """This library."""

    def __init__(self, server: ZooKeeperServer) -> None:
        self._registry = open_registry(f"{server.url}/ours")

    def __enter__(self) -> OurSide:
        """Connect the session that reads, as the first registration of a process does."""
        self._registry.entries(None, Deadline.after(10.0))
        return self

    def __exit__(self, *_: object) -> None:
        """Disconnect it."""
        self._registry.close()

    def deregister(self, number: int) -> float:
        """Return the seconds that one deregistration took."""
        registration = self._registry.registration(ServiceInstance("echo", "127.0.0.1", 9090, id=f"{number}"))
        registration.register(Deadline.after(10.0))
        time.sleep(SETTLE)
        began = time.perf_counter()
        removal = registration.on_shutdown(Deadline.after(10.0))
        took = time.perf_counter() - began
        assert removal.outcome is RemovalOutcome.CONFIRMED, removal
        return took


if __name__ == "__main__":
    sys.exit(main())
