"""``registry-drain completion``: what a real bash completes, and the other shells where they are installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from registry_drain.cli.main import COMMANDS
from tests.cli.running import Run

pytest.importorskip("shtab")


def completed(script: str, *words: str) -> set[str]:
    """Return what bash offers for the last of ``words``."""
    asking = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
how=$(complete -p "$1"); name=${how##*-F }; "${name%% *}" "$1" "${!#}" "${@:$#-1:1}"
printf '%s\\n' "${COMPREPLY[@]}"
"""
    ran = subprocess.run(
        ["bash", "--norc", "-c", asking, "bash", script, *words], capture_output=True, text=True, timeout=60, check=True
    )
    return {line.strip() for line in ran.stdout.splitlines()} - {""}


@pytest.fixture
def bash(registry_drain: Run, tmp_path: Path) -> str:
    """Give the file of bash's script."""
    file = tmp_path / "completion.bash"
    file.write_text(registry_drain("completion", "bash").out)
    return str(file)


def test_commands(bash: str) -> None:
    """All of them, and those that begin as was typed."""
    assert set(COMMANDS) <= completed(bash, "registry-drain", "")
    assert completed(bash, "registry-drain", "de") == {"demo", "deregister"}


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (("sweep", "--dead"), {"--dead-agents"}),
        (("list", "--wa"), {"--watch"}),
        (("deregister", "--watch"), {"--watch-back"}),
        (("drain", "consul://127.0.0.1:8500", "--rea"), {"--reason"}),
        (("undrain", "--rea"), set()),
        (("completion", "z"), {"zsh"}),
    ],
    ids=" ".join,
)
def test_options_of_a_command(bash: str, words: tuple[str, ...], options: set[str]) -> None:
    """Its own, and nobody else's."""
    assert completed(bash, "registry-drain", *words) == options


def test_the_short_command_has_its_own(registry_drain: Run, tmp_path: Path) -> None:
    """``deregister`` without the program before it."""
    file = tmp_path / "completion.bash"
    file.write_text(registry_drain("completion", "bash", "--program", "deregister").out)
    assert completed(str(file), "deregister", "--watch") == {"--watch-back"}


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells(registry_drain: Run, tmp_path: Path, shell: str) -> None:
    """Every command is in it; the shell itself finds no mistake, where it is installed."""
    ran = registry_drain("completion", shell)
    assert ran.status == 0
    assert all(name in ran.out for name in COMMANDS)
    assert "dead-agents" in ran.out
    if shutil.which(shell):
        file = tmp_path / "script"
        file.write_text(ran.out)
        subprocess.run([shell, "-n", file], check=True, timeout=60)


def test_without_the_library(registry_drain: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line that names the extra."""
    monkeypatch.setitem(sys.modules, "shtab", None)
    ran = registry_drain("completion", "bash")
    assert ran.status == 2
    assert "registry-drain[cli]" in ran.complaint


def test_no_such_shell(registry_drain: Run) -> None:
    """One line that names those that there are."""
    ran = registry_drain("completion", "ksh")
    assert ran.status == 2
    assert "bash" in ran.complaint
