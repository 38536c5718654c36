"""Two instances of one subject, as processes of their own, on fixed ports: started, stopped by SIGTERM, ended.

Each leads a process group of its own, so that what it has forked can be ended with it, and seen if it stays.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from benchmarks.rolling_restart.load import Address
from benchmarks.rolling_restart.subject import HOST

START_LIMIT_S = 30.0
STOP_LIMIT_S = 25.0
"""Seconds; more than any subject's own grace period. What is still there then is killed, and the table says so."""
_ORPHAN_AFTER_S = 10.0
"""Seconds at most for helpers of the process (multiprocessing's resource tracker) to notice that it has ended."""
SIZE = 2


class SubjectError(Exception):
    """A subject did not start; says which, and its last words."""


@dataclass(frozen=True)
class Stop:
    """One stop: from SIGTERM to the exit, on the monotonic clock.

    Attributes:
        began_at: when the signal was sent.
        ended_at: when the process had ended.
        status: as of :meth:`subprocess.Popen.wait`.
        has_orphans: whether a process that it had forked outlived it.
    """

    began_at: float
    ended_at: float
    status: int
    has_orphans: bool


class _Instance:
    def __init__(self, command: list[str], log: Path) -> None:
        self._log = log
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=errors, start_new_session=True, bufsize=0
            )

    def await_ready(self) -> None:
        assert self._process.stdout is not None
        heard = b""
        ends_at = time.monotonic() + START_LIMIT_S
        while b"READY\n" not in heard:
            left = ends_at - time.monotonic()
            readable = left > 0 and select.select([self._process.stdout], [], [], left)[0]
            chunk = os.read(self._process.stdout.fileno(), 4096) if readable else b""
            if not chunk:
                self.end()
                lines = self._log.read_text(errors="replace").strip().splitlines()
                raise SubjectError(f"{self._process.args!r} did not get ready: {lines[-1] if lines else 'no output'}")
            heard += chunk

    def stop(self) -> Stop:
        began_at = time.monotonic()
        self._process.terminate()
        ends_at = began_at + STOP_LIMIT_S
        # Popen.wait with a timeout looks every 50 ms; a descriptor of the process tells at once.
        watcher = os.pidfd_open(self._process.pid)
        try:
            select.select([watcher], [], [], max(ends_at - time.monotonic(), 0))
        finally:
            os.close(watcher)
        ended_at = time.monotonic()
        if self._process.poll() is None:
            self._process.kill()
        status = self._process.wait()
        return Stop(began_at, ended_at, status, self.end(_ORPHAN_AFTER_S))

    def end(self, patience: float = 0.0) -> bool:
        """End whatever is left of the group after ``patience`` seconds; return whether there was anything."""
        ends_at = time.monotonic() + patience
        while (has_left := _runs(self._process.pid)) and time.monotonic() < ends_at:
            time.sleep(0.01)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        return has_left


def _runs(group: int) -> bool:
    """Return whether any process of ``group`` runs; one that has ended and waits to be reaped does not."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # proc(5): pid, (name, which may hold anything), state, parent, group.
            state, _, its_group = stat.read_text(errors="replace").rpartition(")")[2].split()[:3]
            if int(its_group) == group and state not in "ZX":
                return True
    return False


class Fleet:
    """The instances of one subject, for the length of a ``with`` block."""

    def __init__(self, subject: str, how: str, registry_url: str, service: str, directory: Path) -> None:
        """Start nothing yet; logs go to ``directory``."""
        self._subject = subject
        self._options = ["--registry", registry_url, "--service", service, "--how", how]
        self._directory = directory
        self.addresses: list[Address] = [(HOST, port) for port in _free_ports(SIZE)]
        self._instances: list[_Instance] = []

    def __enter__(self) -> Fleet:
        """Start all, and wait until they are ready."""
        try:
            for _, port in self.addresses:
                self._instances.append(self._start(port))
            for instance in self._instances:
                instance.await_ready()
        except BaseException:
            self._end()
            raise
        return self

    def restart(self, turn: int) -> Stop:
        """Stop the instance whose turn it is, and start another one in its place."""
        place = turn % SIZE
        stop = self._instances[place].stop()
        self._instances[place] = self._start(self.addresses[place][1])
        self._instances[place].await_ready()
        return stop

    def _start(self, port: int) -> _Instance:
        module = f"benchmarks.rolling_restart.subjects.{self._subject}"
        command = [sys.executable, "-m", module, *self._options, "--port", str(port)]
        return _Instance(command, self._directory / f"{self._subject}-{port}.log")

    def _end(self) -> None:
        for instance in self._instances:
            with contextlib.suppress(OSError):
                instance.end()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Kill what runs; the clients have gone."""
        self._end()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server((HOST, 0))) for _ in range(count)]
        return [sock.getsockname()[1] for sock in sockets]
