"""Running a command, in this process or as the installed script, and looking at what it said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Ran:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The one line on standard error; there must be no other."""
        assert self.err.endswith("\n"), self
        assert self.err.count("\n") == 1, self
        assert "Traceback" not in self.err
        return self.err.rstrip("\n")

    @property
    def document(self) -> dict[str, Any]:
        """The one JSON object on standard output."""
        assert self.out.count("\n") == 1, self
        document = json.loads(self.out)
        assert isinstance(document, dict)
        assert document["status"] == self.status
        return document


class Run(Protocol):
    """Runs a command in this process: much quicker than a process of its own, and stubs can be put in its way."""

    def __call__(self, *words: str) -> Ran:
        """Run it with these words after the program's name."""
        ...


def script(program: str) -> str:
    """Return the path of an installed command of the environment that runs the tests."""
    path = Path(sys.executable).with_name(program)
    assert path.exists(), f"{path} is missing: is the package installed?"
    return str(path)


def run_script(program: str, *words: str, env: Mapping[str, str] | None = None, timeout: float = 120.0) -> Ran:
    """Run an installed command to its end."""
    ended = subprocess.run(
        [script(program), *words],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **(env or {})},
        timeout=timeout,
        check=False,
    )
    return Ran(ended.returncode, ended.stdout, ended.stderr)
