"""The commands at a real terminal: one that knows ASCII only, a dumb one, a small one."""

from __future__ import annotations

import contextlib
import os
import pty
import subprocess
from collections.abc import Sequence

import pytest

from registry_drain.cli.command.entries import entry_table
from registry_drain.cli.command.table import Table
from registry_drain.cli.listing import watch
from registry_drain.registries.base import RegistryEntry
from tests.cli.conftest import RegisterAt
from tests.cli.running import Ran, run_script, script

LONG_ID = "a-rather-long-id-that-must-be-copied-whole-" + "x" * 100


def run_at_terminal(*words: str, **environment: str) -> Ran:
    """Run ``registry-drain`` with standard output at a terminal, to its end."""
    # The size is the terminal's to tell.
    inherited = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "LINES"}}
    reading, writing = pty.openpty()
    process = subprocess.Popen(
        [script("registry-drain"), *words],
        stdin=subprocess.DEVNULL,
        stdout=writing,
        stderr=subprocess.PIPE,
        env={**inherited, "TERM": "xterm", **environment},
    )
    os.close(writing)
    out = b""
    with process, contextlib.closing(os.fdopen(reading, "rb", buffering=0)) as terminal:
        with contextlib.suppress(OSError):  # EIO: nobody has the terminal open any more
            while chunk := terminal.read(65_536):
                out += chunk
        _, err = process.communicate(timeout=60)
    return Ran(process.returncode, out.decode().replace("\r\n", "\n"), err.decode())


def test_ascii_alone(registered: RegisterAt, local_url: str) -> None:
    """What the terminal cannot show is escaped, in tables too, and no status says that something went wrong."""
    registered(local_url, "büro", instance_id="eins")
    registered(local_url, "büro", port=9091, instance_id="zwölf")
    ran = run_at_terminal("list", local_url, PYTHONIOENCODING="ascii")
    assert (ran.status, ran.err) == (0, "")
    assert "zw\\xf6lf" in ran.out
    words = ("deregister", local_url, "--service", "büro", "--all", "--yes", "--force")
    ran = run_at_terminal(*words, PYTHONIOENCODING="ascii")
    assert ran.status == 0
    assert "zw\\xf6lf" in ran.out
    assert run_script("registry-drain", "list", local_url).out.count("\n") == 1


def test_a_dumb_terminal(registered: RegisterAt, local_url: str) -> None:
    """It has a width of its own, and an id is whole all the same."""
    registered(local_url, "calculator", instance_id=LONG_ID)
    ran = run_at_terminal("list", local_url, TERM="dumb")
    assert ran.status == 0
    assert LONG_ID in ran.out


@pytest.mark.parametrize("columns", ["0", "1", "²"])
def test_a_width_that_is_none(columns: str) -> None:
    """A help comes all the same."""
    ran = run_script("registry-drain", "list", "--help", env={"COLUMNS": columns})
    assert (ran.status, ran.err) == (0, "")


def test_following_renders_what_the_window_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry of thousands is drawn each second: all of it would take longer than that."""
    pytest.importorskip("rich")
    monkeypatch.setenv("LINES", "20")
    rows = []

    def counting(entries: Sequence[RegistryEntry], now: float) -> Table:
        rows.append(len(entries))
        return entry_table(entries, now)

    monkeypatch.setattr("registry_drain.cli.listing.watch.entry_table", counting)
    entries = [RegistryEntry("calculator", f"i{number}", "10.0.0.7", 9090) for number in range(1000)]
    with watch._live("x://") as draw:
        draw(entries, 0.0, "")
    assert rows
    assert max(rows) <= 20
