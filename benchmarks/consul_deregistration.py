"""What fence, proof and report cost: our deregistration beside its own two requests, made bare.

Both sides start from the same state: registered by this library, listed, nothing idle cut. The bare side makes the two
calls that a proof cannot do without, deregister and a consistent read, on one ``requests`` session that is connected
already. Ours also fences (stops and joins the heartbeat), proves ownership, retries and reports. Interleaved in one
run, so that the noise of the machine hits both.

    python -m benchmarks.consul_deregistration [rounds]

Exits with 1 if the median ratio is above the goal.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import requests

from registry_drain.clock import Deadline
from registry_drain.instance import ServiceInstance
from registry_drain.registries.base import RemovalOutcome
from registry_drain.registries.consul.registration import ConsulRegistration
from registry_drain.registries.url import open_registry
from tests.support.consul_process import ConsulAgent

GOAL = 1.3
ROUNDS = 200


def main() -> int:
    """Run, print medians and ratio, return the exit status."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    with tempfile.TemporaryDirectory() as directory, ConsulAgent(Path(directory) / "consul") as agent:
        sides: dict[str, Callable[[ConsulAgent, int], float]] = {"bare": bare, "ours": ours}
        times: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(rounds):
            # Whoever goes first alternates, too.
            for name in sorted(sides, reverse=bool(number % 2)):
                times[name].append(sides[name](agent, number))
    # The first rounds pay for imports and for the agent's warm-up.
    medians = {name: statistics.median(each[rounds // 10 :]) for name, each in times.items()}
    for name, median in medians.items():
        p95 = statistics.quantiles(times[name][rounds // 10 :], n=20)[-1]
        print(f"{name}: median {median * 1e3:.2f} ms, p95 {p95 * 1e3:.2f} ms")
    ratio = medians["ours"] / medians["bare"]
    print(f"proven deregistration / bare calls: {ratio:.2f} (goal: at most {GOAL})")
    return 0 if ratio <= GOAL else 1


def registered(agent: ConsulAgent, number: int) -> ConsulRegistration:
    """Return a new, listed registration."""
    instance = ServiceInstance("benchmark", "127.0.0.1", 9000 + number % 1000)
    registration = open_registry(agent.url).registration(instance)
    assert isinstance(registration, ConsulRegistration)
    registration.register(Deadline.after(10))
    return registration


def ours(agent: ConsulAgent, number: int) -> float:
    """Return the seconds of one ``on_shutdown``."""
    registration = registered(agent, number)
    began = time.perf_counter()
    removal = registration.on_shutdown(Deadline.after(10))
    took = time.perf_counter() - began
    assert removal.outcome is RemovalOutcome.CONFIRMED, removal
    return took


def bare(agent: ConsulAgent, number: int) -> float:
    """Return the seconds of deregister and consistent read."""
    registration = registered(agent, number)
    registration.fence(Deadline.after(10))
    base = f"http://{agent.http_address}/v1"
    query = {"consistent": "", "filter": f'Service.ID == "{registration.consul_id}"'}
    with requests.Session() as session:
        session.trust_env = False
        session.get(f"{base}/status/leader", timeout=10)
        began = time.perf_counter()
        session.put(f"{base}/agent/service/deregister/{registration.consul_id}", timeout=10).raise_for_status()
        listed = session.get(f"{base}/health/service/benchmark", params=query, timeout=10).json()
        took = time.perf_counter() - began
    assert listed == [], listed
    registration.on_shutdown(Deadline.after(10))
    return took


if __name__ == "__main__":
    sys.exit(main())
