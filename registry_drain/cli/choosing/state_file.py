"""What a command remembers from one run to the next: a small JSON file of the user's own.

Rules: it is replaced as a whole, so that no reader and no crash ever sees half of it; who changes it holds a lock from
reading to writing, so that two runs at once lose nothing; only its user may read it; what cannot be understood counts
as empty, because everything in it can be seen again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from registry_drain.clock import SYSTEM_CLOCK, Deadline
from registry_drain.errors import ConfigurationError

_LOCK_TIMEOUT = 5.0
"""Seconds. Who holds the lock reads and writes one small file."""
_LARGEST = 64 * 1024 * 1024
"""Bytes: some hundred thousand instances. What is larger is not ours."""


def state_directory() -> Path:
    """Return where a user's programs keep their state, by the XDG Base Directory Specification.

    Raises:
        ConfigurationError: the user has no home directory, and names none.
    """
    given = os.environ.get("XDG_STATE_HOME", "")
    if given.startswith("/"):  # a relative one is to be ignored: specifications.freedesktop.org/basedir-spec
        return Path(given) / "registry-drain"
    try:
        return Path.home() / ".local" / "state" / "registry-drain"
    except RuntimeError as error:
        raise ConfigurationError(f"{error}: set XDG_STATE_HOME to a directory that is kept between the runs") from error


def name_of(text: str) -> str:
    """Return a file's name that stands for ``text``, and differs for any other one."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class StateFile:
    """One file. Safe for concurrent processes and threads.

    Args:
        path: of the file; its directory is made when it is needed.
    """

    def __init__(self, path: Path) -> None:
        """Touch nothing yet."""
        self.path = path

    def __repr__(self) -> str:
        """Name the path."""
        return f"<StateFile {self.path}>"

    def update(self, change: Callable[[object], object]) -> None:
        """Replace what is in the file by what ``change`` makes of it; None stands for nothing readable.

        Raises:
            ConfigurationError: it cannot be kept there; the message says why and what to do.
        """
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._locked():
                self._replace(json.dumps(change(self._content())))
        except OSError as error:
            raise ConfigurationError(
                f"cannot remember what was seen in {self.path}: {error.strerror or error}: make it writable, or set"
                " XDG_STATE_HOME to a directory that is"
            ) from error

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        deadline = Deadline.after(_LOCK_TIMEOUT, SYSTEM_CLOCK)
        # A file beside it: the one that is replaced would be locked under an old name by one of two.
        descriptor = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if deadline.is_past:
                        raise
                    deadline.capped(0.02).wait(threading.Event())
            yield
        finally:
            os.close(descriptor)

    def _content(self) -> object:
        try:
            if self.path.stat().st_size > _LARGEST:
                return None
            content: object = json.loads(self.path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError, RecursionError):
            return None
        return content

    def _replace(self, text: str) -> None:
        # mkstemp: readable by the user alone.
        descriptor, name = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.stem}-")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(descriptor)
            Path(name).replace(self.path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
