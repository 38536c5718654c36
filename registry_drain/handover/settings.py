"""How the next process is started, and how long it may take."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from registry_drain.errors import ConfigurationError


def _own_argv() -> tuple[str, ...]:
    return (sys.executable, *sys.orig_argv[1:])


def _logical_directory() -> str:
    """Return the working directory as the shell named it: ``/srv/app/current``, which is another one after a deploy."""
    named = os.environ.get("PWD", "")
    try:
        return named if named and os.path.samefile(named, ".") else os.getcwd()  # noqa: PTH109, PTH121 - a name is wanted
    except OSError:
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Handover:
    """Restart by hand-over, on SIGHUP or by a call: see docs/handover.md. Immutable; checked when made.

    Attributes:
        argv: what is executed; default: what this process was started with, so a new version that was installed in its
            place.
        cwd: in which directory; default: the one at this object's making, by the name in ``PWD`` if it has one: a
            symbolic link that a deploy changes is followed anew.
        env: the environment; default: this process' at the time.
        ready_within: seconds in which the new process must be listening and registered.
        end_within: seconds that a new process which failed has for finishing its requests, before it is killed.

    Raises:
        ConfigurationError: a limit that is no positive number, or nothing to execute.
    """

    argv: Sequence[str] = field(default_factory=_own_argv)
    cwd: str = field(default_factory=_logical_directory)
    env: Mapping[str, str] | None = None
    ready_within: float = 30.0
    end_within: float = 30.0

    def __post_init__(self) -> None:
        """Check."""
        if isinstance(self.argv, str) or not self.argv or not self.argv[0]:
            raise ConfigurationError(f"Handover(argv={self.argv!r}): must be a list, the program first")
        for name in ("ready_within", "end_within"):
            value = getattr(self, name)
            if not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
                raise ConfigurationError(f"Handover({name}={value!r}): must be a positive number of seconds")
