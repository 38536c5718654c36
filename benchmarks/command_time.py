"""``deregister`` of one instance, a whole process from start to exit, beside the registries' own commands.

- Consul: ``consul services deregister`` (a compiled binary, which asks one agent and proves nothing). Goal: at most 6
  times its wall time.
- ZooKeeper: ``zkCli.sh delete``, or the Java class that it starts, without the shell around it and with the quickest
  start that the JVM offers. Goal: ours is faster.

Ours finds the instance, looks whether its owner is alive, removes it, and proves by a consistent read that it is gone.
The commands take turns, each on an instance of its own, so that the noise of the machine hits all. A bare Python
process is shown as well, and the processor time of each, which a busy machine lengthens less.

    python -m benchmarks.command_time [rounds]

Exits with 1 if a goal is missed. The fastest run of each counts: a busy machine only ever adds to it, most of all to
what takes longer, and says nothing about the command. The medians are printed beside it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import wait_for_exit
from tests.support.consul_process import ConsulAgent, find_consul
from tests.support.processes import eventually
from tests.support.zookeeper_process import ZooKeeperServer, find_zookeeper

GOAL_CONSUL = 6.0
GOAL_ZOOKEEPER = 1.0
ROUNDS = 30

DEREGISTER = str(Path(sys.executable).with_name("deregister"))
BARE = [sys.executable, "-c", "pass"]


def main() -> int:
    """Run both, print times and ratios, return the exit status."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(directory / "bytecode")}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        ratios = [consul(directory / "consul", environment, rounds), zookeeper(directory / "zk", environment, rounds)]
    return int(ratios[0] > GOAL_CONSUL or ratios[1] >= GOAL_ZOOKEEPER)


def consul(directory: Path, environment: dict[str, str], rounds: int) -> float:
    """Return how many times Consul's own command ours takes."""
    binary = find_consul()
    assert binary is not None, "there is no Consul on this machine: run .ci/servers"
    with ConsulAgent(directory) as agent:

        def plant(instance_id: str) -> None:
            body = {
                "Name": "benchmark",
                "ID": instance_id,
                "Address": "127.0.0.1",
                "Port": 9,
                "Check": {"TTL": "600s", "Status": "critical"},
            }
            agent.put("/v1/agent/service/register", body)
            eventually(lambda: instance_id in agent.instances("benchmark"))

        def is_there(instance_id: str) -> bool:
            return instance_id in agent.instances("benchmark")

        own = [str(binary), "services", "deregister", f"-http-addr={agent.http_address}"]
        return race(
            "consul services deregister",
            lambda instance_id: [*own, f"-id={instance_id}"],
            lambda instance_id: [DEREGISTER, agent.url, "--service", "benchmark", "--id", instance_id, "--quiet"],
            plant,
            is_there,
            environment,
            rounds,
        )


def zookeeper(directory: Path, environment: dict[str, str], rounds: int) -> float:
    """Return how many times zkCli's time ours takes."""
    with ZooKeeperServer(directory) as server, server.client() as client:
        client.ensure_path("/services/benchmark")

        def plant(instance_id: str) -> None:
            data = {"name": "benchmark", "id": instance_id, "address": "127.0.0.1", "port": 9}
            client.create(f"/services/benchmark/{instance_id}", json.dumps(data).encode())

        def is_there(instance_id: str) -> bool:
            client.sync("/services")
            return client.exists(f"/services/benchmark/{instance_id}") is not None

        cli = zkcli()
        url = f"{server.url}/services"
        return race(
            "zkCli.sh delete",
            lambda instance_id: [*cli, "-server", server.hosts, "delete", f"/services/benchmark/{instance_id}"],
            lambda instance_id: [DEREGISTER, url, "--service", "benchmark", "--id", instance_id, "--quiet"],
            plant,
            is_there,
            environment,
            rounds,
        )


def race(
    name: str,
    own: Callable[[str], list[str]],
    ours: Callable[[str], list[str]],
    plant: Callable[[str], Any],
    is_there: Callable[[str], bool],
    environment: dict[str, str],
    rounds: int,
) -> float:
    """Let both remove an instance in turns; print and return how many times as long ours takes."""
    times: dict[str, list[float]] = {"own": [], "ours": [], "bare": []}
    cpu = dict.fromkeys(times, 0.0)
    for number in range(-1, rounds):  # the first round fills caches
        for side, argv in sorted({"own": own, "ours": ours}.items(), reverse=bool(number % 2)):
            instance_id = f"{side}-{number}"
            plant(instance_id)
            before = cpu_of_children()
            took = seconds_to_run(argv(instance_id), environment)
            spent = cpu_of_children() - before
            assert not is_there(instance_id), f"{side} did not remove {instance_id}"
            if number >= 0:
                times[side].append(took)
                cpu[side] += spent / rounds
        before = cpu_of_children()
        times["bare"].append(seconds_to_run(BARE, environment))
        cpu["bare"] += (cpu_of_children() - before) / (rounds + 1)
    fastest = {side: min(each) for side, each in times.items()}
    medians = {side: statistics.median(each) for side, each in times.items()}
    ratio = fastest["ours"] / fastest["own"]
    print(f"{name}: {told(fastest['own'], medians['own'], cpu['own'])}")
    print(f"deregister: {told(fastest['ours'], medians['ours'], cpu['ours'])}")
    print(f"... bare Python: {told(fastest['bare'], medians['bare'], cpu['bare'])}")
    print(f"deregister / {name}: {ratio:.2f}; of the medians {medians['ours'] / medians['own']:.2f}")
    return ratio


def told(fastest: float, median: float, cpu: float) -> str:
    """Return the times of one side, in words."""
    return f"fastest {fastest * 1e3:.1f} ms, median {median * 1e3:.1f} ms, processor time {cpu * 1e3:.0f} ms"


def seconds_to_run(argv: list[str], environment: dict[str, str]) -> float:
    """Run a command to its end and return the seconds it took."""
    began = time.perf_counter()
    with subprocess.Popen(
        argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment, text=True
    ) as process:
        status = wait_for_exit(process)
        elapsed = time.perf_counter() - began
        assert process.stderr is not None
        said = process.stderr.read()
    if status:
        raise SystemExit(f"{argv} exited with {status}: {said}")
    return elapsed


def cpu_of_children() -> float:
    """Return the processor time of all commands that have ended, in seconds."""
    times = os.times()
    return times.children_user + times.children_system


def zkcli() -> list[str]:
    """Return what runs ZooKeeper's command line: the installed script, or its class with the server's jars."""
    for name in ("zkCli.sh", "/usr/share/zookeeper/bin/zkCli.sh"):
        if found := shutil.which(name):
            return [found]
    launcher = find_zookeeper()
    assert launcher is not None, "there is no ZooKeeper on this machine: run .ci/servers"
    # The launcher names the jars that the server needs; a client needs no others.
    named = re.search(r"for jar in (.*?); do", launcher.read_text())
    assert named is not None, f"{launcher} is not as .ci/servers writes it"
    folders = [launcher.parent.parent / "zookeeper" / "usr" / "share" / "java", Path("/usr/share/java")]
    jars = [folder / f"{jar}.jar" for jar in named[1].split() for folder in folders]
    classpath = ":".join(str(jar) for jar in jars if jar.exists())
    options = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xmx64m"]
    return ["java", *options, "-cp", classpath, "org.apache.zookeeper.ZooKeeperMain"]


if __name__ == "__main__":
    sys.exit(main())
