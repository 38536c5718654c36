"""How long an idle, registered Thrift server takes from SIGTERM to its exit, beyond the bare registry calls.

Both processes hold the same libraries and one registration on the same Consul agent. The baseline answers SIGTERM with
the two bare calls on a kept-alive connection (deregister, consistent read) and exits; ours runs the whole stop, with no
floor and no quiet period. They take turns, so a slow moment of the machine hits both.

Goal: the median difference is at most 50 ms.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from benchmarks import wait_for_exit
from tests.support.consul_process import ConsulAgent

GOAL_S = 0.050
ROUNDS = 20


def run_baseline(agent: str) -> None:
    """Register by bare calls; on SIGTERM deregister, read back, exit."""
    import requests

    import registry_drain.registries.consul
    import registry_drain.servers.thrift_server  # noqa: F401 - the same libraries in both processes

    session = requests.Session()
    session.trust_env = False
    base = f"http://{agent}/v1"
    check = {"TTL": "60s", "Status": "passing"}
    body = {"Name": "baseline", "ID": "baseline", "Address": "127.0.0.1", "Port": 1, "Check": check}
    session.put(f"{base}/agent/service/register", json=body, timeout=10).raise_for_status()
    session.get(f"{base}/health/service/baseline?consistent", timeout=10).raise_for_status()
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda _number, _frame: stopped.set())
    sys.stdout.write("READY\n")
    sys.stdout.flush()
    stopped.wait()
    session.put(f"{base}/agent/service/deregister/baseline", timeout=10).raise_for_status()
    answer = session.get(f"{base}/health/service/baseline?consistent", timeout=10)
    if answer.json():
        raise SystemExit("still listed")


def run_ours(agent: str) -> None:
    """Serve with registry_drain, until SIGTERM."""
    from examples.thrift_calculator.server import Calculator, new_threaded_server
    from registry_drain import Service, StopBudget
    from registry_drain.servers.thrift_server import ThriftServer

    server = ThriftServer(new_threaded_server(Calculator(), "127.0.0.1", 0))
    budget = StopBudget(floor=0, quiet_period=0)
    service = Service(server, f"consul://{agent}", service="ours", budget=budget, sinks=[])

    def say_when_ready() -> None:
        while not service.is_ready:
            time.sleep(0.01)
        sys.stdout.write("READY\n")
        sys.stdout.flush()

    threading.Thread(target=say_when_ready, daemon=True).start()
    report = service.run()
    if not report.is_clean:
        raise SystemExit(str(report))


def seconds_to_exit(kind: str, agent: str) -> float:
    """Start a process of ``kind``, and return the seconds from SIGTERM to its exit."""
    argv = [sys.executable, "-m", "benchmarks.idle_stop", "--run", kind, "--agent", agent]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        if process.stdout.readline() != "READY\n":
            process.kill()
            raise SystemExit(f"{kind} did not start")
        began = time.perf_counter()
        process.send_signal(signal.SIGTERM)
        status = wait_for_exit(process)
        elapsed = time.perf_counter() - began
    if status:
        raise SystemExit(f"{kind} exited with {status}")
    return elapsed


def main() -> int:
    """Take turns, print both medians, their ratio and difference; status 1 if the goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", choices=["baseline", "ours"])
    parser.add_argument("--agent")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    if options.run:
        {"baseline": run_baseline, "ours": run_ours}[options.run](options.agent)
        return 0
    with tempfile.TemporaryDirectory() as directory, ConsulAgent(Path(directory)) as agent:
        times: dict[str, list[float]] = {"baseline": [], "ours": []}
        for _ in range(options.rounds):
            for kind, taken in times.items():
                taken.append(seconds_to_exit(kind, agent.http_address))
    baseline, ours = (statistics.median(times[kind]) for kind in ("baseline", "ours"))
    print(f"SIGTERM to exit, median of {options.rounds}: bare calls {baseline * 1e3:.1f} ms, ours {ours * 1e3:.1f} ms")
    print(f"ratio {ours / baseline:.2f}, beyond the bare calls {(ours - baseline) * 1e3:.1f} ms (goal: 50 ms at most)")
    return 0 if ours - baseline <= GOAL_S else 1


if __name__ == "__main__":
    sys.exit(main())
