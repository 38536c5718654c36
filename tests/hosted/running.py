"""A service that a command line runs, and clients that call it all the time."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.rolling_restart.clients.http import Client
from registry_drain import Deadline, open_registry
from registry_drain.registries.base import RegistryEntry
from tests.support.processes import REPOSITORY, ManagedProcess, eventually, free_port

_APP = "tests.hosted.service_app:new_app"
PATIENCE = 60.0
_GRANIAN = ("granian", "--interface", "asgi", "--loop", "asyncio", "--factory")
_PATIENT = ["--timeout-worker-healthcheck", "60"]
"""On a machine that is busy enough uvicorn takes a worker for hung after 5 s, and gives up a restart."""


class HostedService:
    """One command line with its registry; a context that ends it."""

    def __init__(
        self,
        kind: str,
        directory: Path,
        *,
        registry_url: str = "",
        soft_drain: float = 0.0,
        is_registered: bool = True,
    ) -> None:
        """Start it. ``kind`` may end in ``-late``: all workers but one stand still before they open the registry."""
        is_late = kind.endswith("-late")
        kind = kind.removesuffix("-late")
        self._directory = directory
        self.port = free_port()
        registry_url = registry_url or f"local://{directory}/registry"
        self.registry = open_registry(registry_url)
        self.gate = directory / "gate"
        command = {
            "uvicorn": ["uvicorn", "--factory", _APP, "--port", str(self.port)],
            "uvicorn-workers": ["uvicorn", "--factory", _APP, "--port", str(self.port), "--workers", "2", *_PATIENT],
            "granian": [*_GRANIAN, _APP, "--port", str(self.port)],
            "granian-workers": [*_GRANIAN, _APP, "--port", str(self.port), "--workers", "2"],
            "hypercorn-in-process": ["hypercorn", "--workers", "0", "--bind", f"127.0.0.1:{self.port}", f"{_APP}()"],
            "hypercorn-worker": ["hypercorn", "--bind", f"127.0.0.1:{self.port}", f"{_APP}()"],
        }[kind]
        env = dict(
            os.environ,
            SERVICE_REGISTRY=registry_url if is_registered else "",
            SERVICE_SOFT_DRAIN=str(soft_drain),
            SERVICE_LATE=str(directory / "late") if is_late else "",
            SERVICE_PORT=str(self.port),
            SERVICE_GATE=str(self.gate),
            PYTHONPATH=str(REPOSITORY),
            TMPDIR=str(directory),
        )
        self.process = ManagedProcess([sys.executable, "-m", *command], log=directory / f"{kind}.log", env=env)

    @property
    def entries(self) -> list[RegistryEntry]:
        """What is listed."""
        return list(self.registry.entries("hosted", Deadline.after(5)))

    def started(self) -> HostedService:
        """Wait until the instance is listed."""
        eventually(lambda: self.entries or self._ended(), timeout=PATIENCE, because="the instance is listed")
        return self

    def _ended(self) -> bool:
        assert self.process.is_running, self.process.output_tail()
        return False

    def workers(self) -> set[int]:
        """Return the pids that answer."""
        pids = set()
        for _ in range(40):
            client = Client(("127.0.0.1", self.port))
            pids.add(int(client.call(b"pid")))
            client.close()
        return pids

    def agreement(self) -> dict[str, Any]:
        """Return what the workers agree on."""
        (path,) = self._directory.glob("registry-drain-*/*/agreement")
        agreed: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return agreed

    def all_serve(self, workers: int) -> HostedService:
        """Wait until so many workers serve, and know of each other."""
        eventually(lambda: len(self.workers()) == workers, timeout=PATIENCE, because="all workers serve")
        if workers > 1:
            assert len(self.agreement()["states"]) == workers, "who serves has joined the others"
        return self

    def signal_group(self, number: int) -> None:
        """Signal the whole process group, as systemd does."""
        os.killpg(self.process.pid, number)

    def __enter__(self) -> HostedService:
        """Begin."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it."""
        self.gate.touch()
        if self.process.is_running:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.registry.close()


class Callers:
    """Clients that call a service in threads until it refuses them; a context that ends them.

    Attributes:
        failures: what went wrong, in words: anything but an answer, or a refused connection.
        answered: how many requests were answered.
        last_listed_at: when the last look began that found the instance listed.
        unlisted_at: when the first look ended that did not.
        refused_at: when the first connection was refused.
    """

    def __init__(self, service: HostedService) -> None:
        """Begin to call: two with a connection for each request, two that keep theirs as long as they may."""
        self._service = service
        self._ended = threading.Event()
        self.failures: list[str] = []
        self.answered = 0
        self.last_listed_at: float | None = None
        self.unlisted_at: float | None = None
        self.refused_at: float | None = None
        self.has_vanished = False
        self._threads = [
            threading.Thread(target=self._call, args=(keeps,), name="caller") for keeps in (False, False, True, True)
        ]
        self._threads.append(threading.Thread(target=self._look, name="caller-look"))
        for each in self._threads:
            each.start()

    def _call(self, keeps: bool) -> None:
        client: Client | None = None
        while not self._ended.is_set():
            try:
                if client is None:
                    client = Client(("127.0.0.1", self._service.port))
            except ConnectionRefusedError:
                self.refused_at = self.refused_at or time.monotonic()
                return
            except OSError as error:
                self.failures.append(f"connecting: {error!r}")
                return
            try:
                assert client.call(b"hello") == b"hello"
                self.answered += 1
            except (OSError, EOFError) as error:
                self.failures.append(f"calling: {error!r}")
                client.close()
                return
            if not keeps or client.is_closed():
                client.close()
                client = None
        if client is not None:
            client.close()

    def _look(self) -> None:
        while not self._ended.wait(0.005):
            began_at = time.monotonic()
            if self._service.entries:
                self.last_listed_at = began_at
            else:
                self.unlisted_at = self.unlisted_at or time.monotonic()

    def warmed_up(self) -> Callers:
        """Wait for some answers from now on."""
        before = self.answered
        eventually(
            lambda: self.answered > before + 50 and self.last_listed_at,
            timeout=PATIENCE,
            because="callers are answered, and the instance is listed",
        )
        return self

    def __enter__(self) -> Callers:
        """Begin."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End all of them."""
        self._ended.set()
        for each in self._threads:
            each.join(PATIENCE)
