"""Prints what restarts and faults do to the cluster of ``docker-compose.yml``, as tables in Markdown.

make cluster-faults        # gets an engine where there is none
python -m benchmarks.cluster --registry zookeeper --restarts 10
"""

from __future__ import annotations

import argparse
import sys

from benchmarks.cluster.compose import Cluster, Tally
from benchmarks.cluster.faults import Fault, all_faults
from benchmarks.cluster.restarts import one_node_down, restart_behind_the_proxy, restart_one_by_one
from benchmarks.cluster.stopping import LISTED_LIMIT_S, Stopped

REGISTRIES = ("zookeeper", "consul")


def _restarts(cluster: Cluster, registries: list[str], count: int) -> None:
    print("| fleet | restarts | requests | failed | longest stop | removal |")
    print("|---|---|---|---|---|---|")
    for which in registries:
        _print_restarts(f"Thrift on {which}", *restart_one_by_one(cluster, which, count))
        with one_node_down(cluster, which):
            _print_restarts(f"Thrift on {which}, one node down", *restart_one_by_one(cluster, which, count))
    if "consul" in registries:
        outcomes, stops = restart_behind_the_proxy(cluster, count)
        requests = sum(outcomes.values())
        failed = requests - outcomes["ok"]
        print(f"| HTTP behind HAProxy | {count} | {requests} | {failed} | {_summary(stops)} |", flush=True)


def _print_restarts(fleet: str, counted: Tally, stops: list[Stopped]) -> None:
    print(f"| {fleet} | {len(stops)} | {counted.calls} | {counted.failed} | {_summary(stops)} |", flush=True)


def _summary(stops: list[Stopped]) -> str:
    outcomes = ", ".join(sorted({stop.outcome for stop in stops}))
    return f"{max(stop.seconds for stop in stops):.1f} s | {outcomes}"


def _faults(cluster: Cluster, registries: list[str]) -> None:
    print("| registry | fault | requests | failed | of them not connected | stop | removal | listed after | besides |")
    print("|---|---|---|---|---|---|---|---|---|")
    for which in registries:
        for fault in all_faults(cluster, which):
            print(_line(fault), flush=True)


def _line(fault: Fault) -> str:
    stop = removal = listed = ""
    if fault.stopped is not None:
        stop, removal = f"{fault.stopped.seconds:.1f} s", fault.stopped.outcome
        after = fault.stopped.listed_for
        listed = f"over {LISTED_LIMIT_S:.0f} s" if after is None else f"{after:.1f} s"
    cells = (fault.which, fault.name, fault.calls, fault.failed, fault.unconnected, stop, removal, listed, fault.note)
    return f"| {' | '.join(map(str, cells))} |"


def main() -> int:
    """Run all of it."""
    parser = argparse.ArgumentParser(description="Restarts and faults of a cluster, measured.")
    parser.add_argument("--registry", choices=REGISTRIES, help="one of them alone")
    parser.add_argument("--restarts", type=int, default=10, help="of each fleet")
    options = parser.parse_args()
    registries = [options.registry] if options.registry else list(REGISTRIES)
    with Cluster(registries) as cluster:
        _restarts(cluster, registries, options.restarts)
        print()
        _faults(cluster, registries)
    return 0


if __name__ == "__main__":
    sys.exit(main())
