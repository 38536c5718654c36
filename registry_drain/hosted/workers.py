"""What the worker processes of one supervisor know of each other: who serves, who leaves, who keeps the registration.

Theory of operation: the supervisor (uvicorn's, granian's parent process) cannot be hooked, so the workers agree among
themselves, in a directory that only this user can open. A worker holds a lock (``flock``) on a file named after its pid
as long as it lives, however it ends: the kernel lets go of it. What is agreed stands in one small file, which is
replaced as a whole, under a lock that is held for microseconds.

Rules:

1. A worker whose lock is free is dead, whatever the file says.
2. The directory belongs to one supervisor, by its pid, and one service and port. Whoever finds nobody alive there
   begins anew: it may be left from another process with that pid.
3. Nobody waits for the lock without end: a worker that is frozen (SIGSTOP) while it holds it must not stop the others.
4. What an operator has removed outlives all the workers, as long as their supervisor runs: those that it starts next
   must respect it. The supervisor is known by its pid and its start; where the system does not tell that (no
   ``/proc``), the removal is forgotten with the last worker.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from registry_drain.errors import ConfigurationError

_LOCK_LIMIT = 2.0
"""Seconds to wait for the others' lock."""
_LOOK_EVERY = 0.002


class WorkerState(Enum):
    """What a worker does."""

    SERVING = "serving"
    LEAVING = "leaving"
    """It was told to stop, and serves while callers catch up."""
    CLOSED = "closed"
    """It does not accept any more."""


@dataclass
class OperatorsRemoval:
    """An operator took the instance out of one registry.

    Attributes:
        how: when and how that was found out.
        is_rejoin_asked: whether a worker was told to rejoin, and the keeper has not done so yet.
        failure: why the last try to rejoin did not work: the error's class, and its message.
    """

    how: str
    is_rejoin_asked: bool = False
    failure: tuple[str, str] | None = None


@dataclass
class Agreement:
    """What the living workers agree on.

    Attributes:
        states: by pid.
        keeper: the worker that keeps the registration; None if nobody does.
        is_kept: whether the keeper's registration has reached every registry.
        removals: by registry: outcome, detail, and when it was confirmed, once the instance has left them all.
        removed: by registry, what an operator took out; also that of workers that are gone.
    """

    states: dict[int, WorkerState] = field(default_factory=dict)
    keeper: int | None = None
    is_kept: bool = False
    removals: dict[str, tuple[str, str, float | None]] = field(default_factory=dict)
    removed: dict[str, OperatorsRemoval] = field(default_factory=dict)

    def others_serve(self, pid: int) -> bool:
        """Whether a worker but ``pid`` serves, and was not told to stop."""
        return any(state is WorkerState.SERVING for other, state in self.states.items() if other != pid)


class Workers:
    """One worker's view of all. Thread-safe, as far as one process is concerned.

    Args:
        service: the cluster's name.
        port: the instance's.
        supervisor: the parent process.
        base: where directories of this kind are.

    Raises:
        ConfigurationError: the directory is somebody else's.
    """

    def __init__(self, service: str, port: int, supervisor: int, *, base: Path | None = None) -> None:
        base = Path(tempfile.gettempdir()) / f"registry-drain-{os.getuid()}" if base is None else base
        self._directory = base / f"{supervisor}-{port}-{service}"
        for each in (base, self._directory):
            _make_private(each)
        self._supervisor = _incarnation(supervisor)
        self.pid = os.getpid()
        self._mine: int | None = None

    def join(self) -> None:
        """Be a worker that serves."""
        with self.agreement() as agreed:
            self._mine = os.open(self._directory / str(self.pid), os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._mine, fcntl.LOCK_EX | fcntl.LOCK_NB)
            agreed.states[self.pid] = WorkerState.SERVING

    def leave(self) -> None:
        """Be none any more. Idempotent; the end of the process does the same."""
        mine, self._mine = self._mine, None
        if mine is None:
            return
        with contextlib.suppress(FileNotFoundError):
            (self._directory / str(self.pid)).unlink()
        os.close(mine)

    @contextlib.contextmanager
    def agreement(self) -> Iterator[Agreement]:
        """Give what is agreed, without the dead; what the block changes is agreed by all when it ends.

        Raises:
            TimeoutError: somebody held the lock for too long.
        """
        lock = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            _lock(lock)
            agreed = self._read()
            before = self._as_text(agreed)
            yield agreed
            after = self._as_text(agreed)
            if after != before:
                self._write(after)
        finally:
            os.close(lock)

    def _read(self) -> Agreement:
        try:
            data = json.loads((self._directory / "agreement").read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return Agreement()
        states = {int(pid): WorkerState(state) for pid, state in data["states"].items() if self._is_alive(int(pid))}
        # Without a name for the supervisor nobody knows whose workers those were.
        is_ours = bool(self._supervisor) and data.get("supervisor") == self._supervisor
        removed = {
            url: OperatorsRemoval(how, is_asked, (failure[0], failure[1]) if failure else None)
            for url, (how, is_asked, failure) in data.get("removed", {}).items()
            if states or is_ours
        }
        if not states:
            return Agreement(removed=removed)
        keeper = data["keeper"] if data["keeper"] in states else None
        removals = {url: (outcome, detail, at) for url, (outcome, detail, at) in data["removals"].items()}
        return Agreement(states, keeper, data["is_kept"] and keeper is not None, removals, removed)

    def _as_text(self, agreed: Agreement) -> str:
        return json.dumps(
            {
                "supervisor": self._supervisor,
                "states": {str(pid): state.value for pid, state in agreed.states.items()},
                "keeper": agreed.keeper,
                "is_kept": agreed.is_kept,
                "removals": agreed.removals,
                "removed": {
                    url: (each.how, each.is_rejoin_asked, each.failure) for url, each in agreed.removed.items()
                },
            }
        )

    def _write(self, text: str) -> None:
        new = self._directory / f"agreement.{self.pid}"
        new.write_text(text, encoding="utf-8")
        new.replace(self._directory / "agreement")

    def _is_alive(self, pid: int) -> bool:
        if pid == self.pid:
            return self._mine is not None
        path = self._directory / str(pid)
        try:
            held = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            if not _try_lock(held):
                return True
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
            return False
        finally:
            os.close(held)

    def __repr__(self) -> str:
        """Show where they meet."""
        return f"<Workers {self._directory.name} pid={self.pid}>"


def _make_private(directory: Path) -> None:
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=0o700, parents=True)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise ConfigurationError(f"{directory} belongs to somebody else: set TMPDIR to a directory of this user's")


def _lock(descriptor: int) -> None:
    ends_at = time.monotonic() + _LOCK_LIMIT
    while not _try_lock(descriptor):
        if time.monotonic() >= ends_at:
            raise TimeoutError("another worker holds the lock of the agreement")
        time.sleep(_LOOK_EVERY)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _incarnation(pid: int) -> str:
    """Return what no other process has had since this system was started, nor will; empty if that is unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        # proc(5): the 22nd field is the start; the second one is a name in parentheses, which may hold anything.
        started_at = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return f"{boot} {pid} {started_at[19]}"
    except (OSError, IndexError):
        return ""
