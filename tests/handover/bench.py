"""What the tests of hand-overs share: a service that changes its process, a connect storm, a watcher."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from registry_drain import Deadline, open_registry
from tests.support.calculator_load import call_once
from tests.support.processes import ManagedProcess, eventually, free_port

BUDGET = {"grace_period": 20.0, "floor": 0.4, "quiet_period": 0.1, "ceiling": 2.0, "deregister": 5.0}


class HandedService:
    """A service under test, whichever process serves it at the moment. Ends all of them in the end."""

    def __init__(
        self,
        registry_url: str,
        service: str,
        tmp_path: Path,
        *options: str,
        handover: dict[str, float] | None = None,
        env: dict[str, str] | None = None,
    ) -> None:
        self.registry_url = registry_url
        self.service = service
        self.port, self.admin_port = free_port(), free_port()
        self.orders = tmp_path / "orders"
        self.process = ManagedProcess.python(
            "-m",
            "tests.handover.handover_program",
            *([f"--registry={registry_url}"] if registry_url else []),
            f"--service={service}",
            f"--port={self.port}",
            f"--admin-port={self.admin_port}",
            f"--budget={json.dumps(BUDGET)}",
            f"--handover={json.dumps(handover or {})}",
            f"--orders={self.orders}",
            *options,
            log=tmp_path / "log",
            env={**os.environ, **(env or {})},
        )

    @property
    def endpoint(self) -> str:
        """Where it serves, in all its processes."""
        return f"127.0.0.1:{self.port}"

    def output(self) -> str:
        """Return what all processes have written."""
        return self.process.output()

    def wait_for(self, pattern: str, *, count: int = 1) -> list[str]:
        """Wait until the log matches ``pattern`` so many times; return the first groups."""
        try:
            return eventually(
                lambda: found if len(found := re.findall(pattern, self.output())) >= count else [],
                timeout=60,
                because=f"{pattern!r} {count} times in the log",
            )
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.process.output_tail(60)}") from error

    def serving_pid(self) -> int:
        """Return the process that answers on the admin port, which must be there."""
        with socket.create_connection(("127.0.0.1", self.admin_port), timeout=20) as sock:
            sock.sendall(b"version\n")
            return int(sock.recv(200).split()[-1])

    def hang_up(self, pid: int) -> None:
        """SIGHUP."""
        os.kill(pid, signal.SIGHUP)

    def hang_up_until_heard(self, pid: int) -> None:
        """SIGHUP until a hand-over begins: after one that failed the signal is ignored until that is cleared up."""
        heard = rf"EVENT {pid} hand-over requested \(SIGHUP\): started"
        ignored = rf"LOG {pid} hand-over requested \(SIGHUP\): ignored, one is under way"
        begun = len(re.findall(heard, self.output()))
        while True:
            answers = len(re.findall(f"{heard}|{ignored}", self.output()))
            self.hang_up(pid)
            self.wait_for(f"({heard}|{ignored})", count=answers + 1)
            if len(re.findall(heard, self.output())) > begun:
                return

    def pids(self) -> set[int]:
        """Return every process of this service that still runs: they keep to one session."""
        alive: set[int] = set()
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == self.process.pid and fields[0] != "Z":
                    alive.add(int(entry.name))
        return alive

    def report_of(self, pid: int) -> dict[str, Any]:
        """Return the report of a process that has stopped."""
        [text] = self.wait_for(rf"REPORT {pid} (\{{.*\}})")
        report: dict[str, Any] = json.loads(text)
        return report

    def __enter__(self) -> HandedService:
        """Wait until it serves."""
        try:
            self.wait_for(r"SERVING (\d+)")
        except BaseException:
            self.process.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End what is left, each by its own id."""
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        eventually(lambda: not self.pids(), because="all processes of the service have ended")


class Storm:
    """Clients that connect, call once and hang up, again and again; whatever goes wrong is kept."""

    def __init__(self, call: Callable[[], object], *, clients: int = 6) -> None:
        self._call = call
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(clients)]
        self._lock = threading.Lock()
        self.calls = 0
        self.failures: list[str] = []

    def _run(self) -> None:
        while not self._is_over.is_set():
            try:
                self._call()
            except Exception as error:  # noqa: BLE001 - every failure is what this looks for
                with self._lock:
                    self.failures.append(f"{type(error).__name__}: {error}")
                time.sleep(0.01)
            with self._lock:
                self.calls += 1

    def __enter__(self) -> Storm:
        """Begin."""
        for thread in self._threads:
            thread.start()
        eventually(lambda: self.calls > 50, because="the storm has begun")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End."""
        self._is_over.set()
        for thread in self._threads:
            thread.join(30)


def storm_of_both(service: HandedService) -> Storm:
    """Return a storm on both ports, one connection for each call."""
    turn = iter(range(1_000_000_000))

    def call() -> None:
        if next(turn) % 3 == 0:
            service.serving_pid()
        else:
            assert call_once(service.endpoint, "add", 20, 22) == 42

    return Storm(call)


class Watcher:
    """Looks at a registry all the time, in two ways: the library's own watch, and a look of its own."""

    def __init__(self, service: HandedService) -> None:
        self._registry = open_registry(service.registry_url)
        self._service = service
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.watched: list[int] = []
        self.looks: list[int] = []
        self.errors: list[str] = []

    def _look(self) -> None:
        while not self._is_over.is_set():
            try:
                self.looks.append(len(self._entries()))
            except Exception as error:  # noqa: BLE001, PERF203 - said by the test
                self.errors.append(repr(error))

    def _entries(self) -> list[object]:
        url = self._service.registry_url
        if url.startswith("consul://"):
            # Not through the library: what any other client of Consul sees.
            address = url.removeprefix("consul://").partition("?")[0].strip("/")
            with urllib.request.urlopen(
                f"http://{address}/v1/health/service/{self._service.service}?passing&consistent", timeout=10
            ) as answer:
                found: list[object] = json.load(answer)
                return found
        return list(self._registry.entries(self._service.service, Deadline.after(10)))

    def __enter__(self) -> Watcher:
        """Begin, with one instance listed."""
        self._registry.watch(
            self._service.service, Deadline.after(10), lambda instances: self.watched.append(len(instances))
        )
        self._thread.start()
        eventually(lambda: self.watched and self.looks, because="the watcher sees the service")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End."""
        self._is_over.set()
        self._thread.join(30)
        self._registry.close()

    def check(self) -> None:
        """Fail if it ever saw none, or two."""
        assert not self.errors, self.errors[:3]
        assert set(self.looks) == {1}, f"{len(self.looks)} looks: {set(self.looks)}"
        assert set(self.watched) == {1}, self.watched
