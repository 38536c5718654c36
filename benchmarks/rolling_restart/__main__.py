"""Restart every kind of server under load, stopped its own way and drained, and print what became of the requests.

    python -m benchmarks.rolling_restart                      # all of them, 20 stops each and way; takes an hour
    python -m benchmarks.rolling_restart --stops 5 thrift_threaded grpc_aio
    python -m benchmarks.rolling_restart --list

Two instances of the server are registered in a local registry, in a directory of their own; twelve clients call them;
one instance after the other is stopped by SIGTERM and started again. Promised of those drained: no request of a client
that follows the registry fails, and of those that ignore it at most one connection in a thousand, for gRPC and HTTP
none. The exit status is 1 if that is not kept.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pkgutil
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from benchmarks.rolling_restart import subjects
from benchmarks.rolling_restart.fleet import Fleet, Stop, SubjectError
from benchmarks.rolling_restart.load import IGNORING, DelayedList, Load
from benchmarks.rolling_restart.outcome import Outcome, table_of
from registry_drain import Deadline, open_registry

_BEFORE_S = 0.5
"""Seconds of load before the first stop, and between two: everybody has found the new instance."""
_LIST_LIMIT_S = 10.0


def measure(subject: str, how: str, stops: int) -> Outcome:
    """Restart one subject ``stops`` times under load."""
    traits = importlib.import_module(f"benchmarks.rolling_restart.subjects.{subject}")
    protocol = importlib.import_module(f"benchmarks.rolling_restart.clients.{traits.CLIENT}")
    with tempfile.TemporaryDirectory(prefix="rolling-restart-") as name:
        url = f"local://{name}/registry"
        registry = open_registry(url)
        listed = DelayedList()
        watch = registry.watch(subject, Deadline.after(_LIST_LIMIT_S), listed)
        try:
            with Fleet(subject, how, url, subject, Path(name)) as fleet:
                load = Load(
                    protocol.Client,
                    listed,
                    fleet.addresses,
                    keeps_connections=getattr(traits, "KEEPS_CONNECTIONS", True),
                )
                with load:
                    taken = [_restart(fleet, turn) for turn in range(stops)]
                    time.sleep(_BEFORE_S)
        finally:
            watch.close()
            registry.close()
    return Outcome(subject, how, load.samples, taken, load.connections(IGNORING), traits.IGNORING_LIMIT)


def _restart(fleet: Fleet, turn: int) -> Stop:
    time.sleep(_BEFORE_S)
    return fleet.restart(turn)


def main() -> int:
    """Run the subjects that were asked for."""
    known = sorted(module.name for module in pkgutil.iter_modules(subjects.__path__))
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rolling_restart")
    parser.add_argument("subjects", nargs="*", metavar="SERVER", help="default: all")
    parser.add_argument("--stops", type=int, default=20, help="of each server and way (default: %(default)s)")
    parser.add_argument("--how", choices=["own", "drained", "both"], default="both")
    parser.add_argument("--list", action="store_true", help="name the servers and exit")
    parser.add_argument("--json", type=Path, help="write the rows to this file, too")
    given = parser.parse_args()
    if given.list:
        print("\n".join(known))
        return 0
    unknown = [name for name in given.subjects if name not in known]
    if unknown:
        parser.error(f"no such server: {', '.join(unknown)}; there are {', '.join(known)}")
    outcomes: list[Outcome] = []
    broken: list[str] = []
    for subject in given.subjects or known:
        for how in ["own", "drained"] if given.how == "both" else [given.how]:
            print(f"{subject}, {how} ...", file=sys.stderr, flush=True)
            try:
                outcomes.append(measure(subject, how, given.stops))
            except SubjectError as error:
                broken.append(str(error))
                continue
            if how == "drained" and not outcomes[-1].is_kept:
                broken.append(f"{subject}, drained: {outcomes[-1].remarks}")
    Console(width=None if sys.stdout.isatty() else 140).print(table_of(outcomes))
    if given.json:
        given.json.write_text(json.dumps([each.as_dict() for each in outcomes], indent=1) + "\n", encoding="utf-8")
    for each in broken:
        print(f"not kept: {each}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
