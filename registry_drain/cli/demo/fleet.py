"""The demo's server processes: started, followed through the registry, stopped, and ended on every way out.

Rules: a process is ended by its own id, and by nobody's name. Each leads a session of its own, so that Ctrl-C in a
terminal reaches the demo alone, which then ends them in order. A pipe to each tells it when the demo is gone.
"""

from __future__ import annotations

import contextlib
import itertools
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from registry_drain.cli.demo.instance import Style
from registry_drain.cli.demo.leftovers import sweep
from registry_drain.cli.demo.tally import Stop
from registry_drain.clock import Clock, Deadline
from registry_drain.errors import ServerError
from registry_drain.instance import ServiceInstance
from registry_drain.registries.base import Registry, Watch

REACH_TIMEOUT = 10.0
"""Seconds until the registry has answered for the first time."""
START_TIMEOUT = 30.0
"""Seconds from starting a process until it is listed: an interpreter, some imports, a registration."""
STOP_TIMEOUT = 60.0
"""Seconds; twice the instances' grace period, so that whoever is killed has broken its promise."""
END_TIMEOUT = 5.0
"""Seconds for what is still running when the demo ends, before it is killed."""
_LAST_LINES = 10
"""Lines of its log that stand for the report of an instance which did not get to make one."""
_LOOK_EVERY = 0.05
"""Seconds between two looks whether a process that is awaited has died."""


class _Process:
    """One running instance."""

    def __init__(self, instance_id: str, arguments: list[str], log: Path) -> None:
        self.id = instance_id
        self.log = log
        with log.open("wb") as output:
            self._popen = subprocess.Popen(  # noqa: S603 -- this very interpreter and our own arguments
                [sys.executable, "-m", "registry_drain.cli.demo.instance", "--id", instance_id, *arguments],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def exit_status(self) -> int | None:
        """Negative for a signal; None while it runs."""
        return self._popen.poll()

    def terminate(self) -> None:
        """SIGTERM."""
        self._popen.terminate()

    def end(self, timeout: float) -> int:
        """Wait for its end, kill it after ``timeout`` seconds, and return the exit status."""
        try:
            status = self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            status = self._popen.wait()
        if self._popen.stdin is not None:
            with contextlib.suppress(OSError):
                self._popen.stdin.close()
        return status

    def last_words(self) -> str:
        """Return the last line it wrote."""
        lines = self._lines()
        return lines[-1] if lines else "it said nothing"

    def report(self) -> str:
        """Return what it said of its stop."""
        return report_in(self._lines())

    def _lines(self) -> list[str]:
        return self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()


def report_in(log: list[str]) -> str:
    """Return the report of the stop that ``log`` ends with; without one, its last lines."""
    begins = [number for number, line in enumerate(log) if ": stopped (" in line]
    return "\n".join(log[begins[-1] :] if begins else log[-_LAST_LINES:])


class Fleet:
    """The instances of one service, all of one style, for the length of a ``with`` block."""

    def __init__(
        self, registry: Registry, registry_url: str, service: str, style: Style, directory: Path, clock: Clock
    ) -> None:
        """Start nothing yet. Logs go to ``directory``."""
        self._registry = registry
        self._service = service
        self._arguments = ["--registry", registry_url, "--service", service, "--style", style.value]
        self._directory = directory
        self._clock = clock
        self._numbers = itertools.count(1)
        self._processes: list[_Process] = []
        self._changed = threading.Event()
        self._watch: Watch | None = None

    @property
    def watch(self) -> Watch:
        """The live list, which the clients follow too."""
        assert self._watch is not None, "not entered"  # noqa: S101
        return self._watch

    def start(self, count: int) -> None:
        """Start ``count`` instances at once, and wait until they are listed.

        Raises:
            ServerError: one of them died, or was not listed in time.
        """
        started = [self._start_one() for _ in range(count)]
        self._await_listed(started)

    def restart(self, turn: int) -> Stop:
        """Stop the instance whose turn it is, start another in its place, and wait until that is listed."""
        slot = turn % len(self._processes)
        process = self._processes[slot]
        began_at = self._clock.now()
        process.terminate()
        status = process.end(STOP_TIMEOUT)
        stop = Stop(began_at, self._clock.now(), status, process.report())
        del self._processes[slot]
        successor = self._start_one(slot)
        self._await_listed([successor])
        return stop

    def _start_one(self, slot: int | None = None) -> _Process:
        instance_id = f"{self._service}-{next(self._numbers)}"
        process = _Process(instance_id, self._arguments, self._directory / f"{instance_id}.log")
        self._processes.insert(len(self._processes) if slot is None else slot, process)
        return process

    def _await_listed(self, processes: list[_Process]) -> None:
        deadline = Deadline.after(START_TIMEOUT, self._clock)
        wanted = {process.id for process in processes}
        while True:
            self._changed.clear()
            listed = {instance.id for instance in self.watch.instances}
            if wanted <= listed:
                return
            for process in processes:
                if process.exit_status is not None:
                    raise ServerError(
                        f"{process.id} exited with status {process.exit_status} at its start: {process.last_words()}"
                    )
            if deadline.is_past:
                missing = next(process for process in processes if process.id not in listed)
                raise ServerError(f"{missing.id} is not listed after {START_TIMEOUT:g} s: {missing.last_words()}")
            deadline.capped(_LOOK_EVERY).wait(self._changed)

    def _on_change(self, _instances: tuple[ServiceInstance, ...]) -> None:
        self._changed.set()

    def __enter__(self) -> Fleet:
        """Follow the service."""
        self._watch = self._registry.watch(self._service, Deadline.after(REACH_TIMEOUT, self._clock), self._on_change)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End every process, and remove what one that was killed has left in the registry."""
        with _undisturbed():
            for process in self._processes:
                process.terminate()
            deadline = Deadline.after(END_TIMEOUT, self._clock)
            for process in self._processes:
                process.end(deadline.remaining())
            self.watch.close()
            sweep(self._registry, self._service, self._clock)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Ignore Ctrl-C and SIGTERM: another one must not leave processes behind. What happens meanwhile is bounded."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
