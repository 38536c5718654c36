"""How long it takes to start: ``import registry_drain`` beyond bare Python, and ``deregister --help`` as a whole.

The interpreter alone, the import and the installed command take turns, so a slow moment of the machine hits all three.
Bytecode is cached as it is for every user, in a directory of the benchmark's own.

The package's public names are imported when they are first used; what importing ``serve`` takes is shown as well.

Goals: the median import adds at most 40 ms to bare Python; ``deregister --help`` takes at most 100 ms. The second is an
absolute time, so the fastest run counts: a busy machine only ever adds to it, and says nothing about the command. The
median is printed beside it.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import wait_for_exit

GOAL_IMPORT_S = 0.040
GOAL_HELP_S = 0.100
ROUNDS = 40

BARE = [sys.executable, "-c", "pass"]
IMPORT = [sys.executable, "-c", "import registry_drain"]
SERVE = [sys.executable, "-c", "from registry_drain import serve"]
HELP = [str(Path(sys.executable).with_name("deregister")), "--help"]


def seconds_to_run(argv: list[str], environment: dict[str, str]) -> float:
    """Run a program to its end and return the seconds it took."""
    began = time.perf_counter()
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, env=environment) as process:
        status = wait_for_exit(process)
    elapsed = time.perf_counter() - began
    if status:
        raise SystemExit(f"{argv} exited with {status}")
    return elapsed


def main() -> int:
    """Measure, print, and return whether a goal was missed."""
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": cache}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        programs = (BARE, IMPORT, HELP, SERVE)
        for program in programs:  # which fills the cache
            seconds_to_run(program, environment)
        rounds = [[seconds_to_run(program, environment) for program in programs] for _ in range(ROUNDS)]
    fastest = min(row[2] for row in rounds)
    bare, imported, helped, serving = (statistics.median(times) for times in zip(*rounds, strict=True))
    added = statistics.median(row[1] - row[0] for row in rounds)
    print(f"bare Python            {bare * 1000:6.1f} ms")
    print(
        f"import registry_drain  {imported * 1000:6.1f} ms, {imported / bare:.2f} times bare Python, adding"
        f" {added * 1000:.1f} ms (goal: at most {GOAL_IMPORT_S * 1000:.0f} ms)"
    )
    print(f"... import serve       {serving * 1000:6.1f} ms, {serving / bare:.2f} times bare Python")
    print(
        f"deregister --help      {helped * 1000:6.1f} ms, {helped / bare:.2f} times bare Python"
        f"; the fastest {fastest * 1000:.1f} ms (goal: at most {GOAL_HELP_S * 1000:.0f} ms)"
    )
    return int(added > GOAL_IMPORT_S or fastest > GOAL_HELP_S)


if __name__ == "__main__":
    sys.exit(main())
