"""A restart under a connect storm, both ways: stopped and started again, and by hand-over.

    python -m benchmarks.handover [--restarts 5] [--clients 8]

One instance on one port, clients that connect anew for each call and know no registry. ``stop, start`` is drained, as
well as a single instance can be: between its exit and the new one's start the port refuses connections.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from examples.thrift_calculator.client import Connection

_LIMIT_S = 60.0
_LOOK_S = 0.01


class _Service:
    """The example service; its log tells which process serves."""

    def __init__(self, directory: Path, port: int) -> None:
        self._log = directory / "log"
        self._command = [
            *(sys.executable, "-u", "-m", "examples.handover.server", "--registry", f"local://{directory}/registry"),
            *("--port", str(port), "--admin-port", str(port + 1)),
        ]
        self._processes: list[subprocess.Popen[bytes]] = []
        self.pid = 0

    def start(self) -> None:
        """Start it, and return when it is registered."""
        with self._log.open("ab") as log:
            process = subprocess.Popen(self._command, stdout=log, stderr=log)
        self._processes.append(process)
        self.pid = process.pid
        self._await(rf"{self.pid} registered")

    def stop(self) -> None:
        """SIGTERM, and return when it has stopped."""
        os.kill(self.pid, signal.SIGTERM)
        self._await(rf"{self.pid} stopped")

    def hand_over(self) -> None:
        """SIGHUP, and return when the old process has stopped."""
        os.kill(self.pid, signal.SIGHUP)
        self.pid = int(self._await(rf"{self.pid} stopped \(handed over to pid (\d+)\)")[1])

    def end(self) -> None:
        """End what runs."""
        self.stop()
        for process in self._processes:
            process.wait(_LIMIT_S)

    def _await(self, pattern: str) -> re.Match[str]:
        until = time.monotonic() + _LIMIT_S
        while (found := re.search(pattern, self._log.read_text())) is None:
            if time.monotonic() > until:
                raise SystemExit(f"{pattern!r} is not in the log:\n{self._log.read_text()}")
            time.sleep(_LOOK_S)
        return found


class _Storm:
    """Clients, for the length of a ``with`` block."""

    def __init__(self, port: int, clients: int) -> None:
        self._port = port
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]
        self._lock = threading.Lock()
        self.ok = 0
        self.failed = 0
        self.longest = 0.0

    def _run(self) -> None:
        while not self._is_over.is_set():
            began_at = time.monotonic()
            is_ok = False
            with contextlib.suppress(Exception):
                connection = Connection("127.0.0.1", self._port)
                is_ok = connection.calculator.add(1, 2) == 3
                connection.close()
            with self._lock:
                self.ok += is_ok
                self.failed += not is_ok
                self.longest = max(self.longest, time.monotonic() - began_at)
            time.sleep(0.002)

    def __enter__(self) -> _Storm:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()


def main() -> None:
    """Measure both, and print a line for each."""
    parser = argparse.ArgumentParser(description="Restart under a connect storm: stopped and started, and handed over.")
    parser.add_argument("--restarts", type=int, default=5)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--port", type=int, default=29090)
    options = parser.parse_args()
    logging.getLogger("thrift").setLevel(logging.CRITICAL)  # a line for each refused connection
    print(f"{'restart':<12} {'ok':>8} {'failed':>8} {'longest call':>13} {'a restart takes':>16}")
    for way in ("stop, start", "hand-over"):
        with tempfile.TemporaryDirectory() as directory:
            service = _Service(Path(directory), options.port)
            service.start()
            try:
                with _Storm(options.port, options.clients) as storm:
                    began_at = time.monotonic()
                    for _ in range(options.restarts):
                        if way == "hand-over":
                            service.hand_over()
                        else:
                            service.stop()
                            service.start()
                    took = (time.monotonic() - began_at) / options.restarts
            finally:
                service.end()
        print(f"{way:<12} {storm.ok:>8} {storm.failed:>8} {storm.longest:>11.3f} s {took:>14.2f} s")


if __name__ == "__main__":
    main()
