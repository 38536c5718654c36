"""``registry-drain list``: tab-separated for scripts, a table for people."""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path

import pytest

from registry_drain.cli.command.entries import age
from registry_drain.cli.command.table import Table, aligned
from registry_drain.registries.base import EntryCheck, RegistryEntry
from registry_drain.testing.faults import REFUSED, Step
from registry_drain.testing.faulty_registry import FaultyRegistry
from tests.cli.running import Run

GHOST = RegistryEntry(
    "calculator",
    "a-rather-long-id-that-must-be-copied-whole",
    "10.0.0.7",
    9090,
    owner="host-a",
    is_live=False,
    health="critical",
    is_ephemeral=False,
    registered_at=0.0,
    locator="host-a/ghost",
    endpoints=(("10.0.0.7", 9091), ("::1", 80)),
    node="host-a",
    managed_by="Nomad",
    checks=(EntryCheck("a", "critical"), EntryCheck("b", "passing", is_own=False), EntryCheck("c", "critical")),
    layout="curator",
)
JUNK = RegistryEntry("calculator", "ju\tnk\x1b[31m", problem="[bold]not JSON[/bold]", locator="host-b/junk")


@pytest.fixture
def _at_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("registry_drain.cli.command.output.Output.is_terminal", True)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("NO_COLOR", "1")


def test_scripts_get_tabs(registry_drain: Run, faulty: FaultyRegistry) -> None:
    """A heading, then a line for each instance, always with the same columns."""
    faulty.cluster.put(GHOST)
    faulty.cluster.put(JUNK)
    heading, ghost, junk = registry_drain("list", "x://").out.splitlines()
    columns = ["service", "id", "address", "owner", "live", "health", "kind", "age", "locator", "problem"]
    columns += ["node", "managed_by", "checks", "endpoints", "layout"]
    assert heading.split("\t") == columns
    row = dict(zip(columns, ghost.split("\t"), strict=True))
    assert re.fullmatch(r"\d{5}d(\d+h)?", row.pop("age")), "of 1970: in the first hour of a day without hours"
    assert row == {
        "service": "calculator",
        "id": GHOST.id,
        "address": "10.0.0.7:9090",
        "owner": "host-a",
        "live": "no",
        "health": "critical",
        "kind": "persistent",
        "locator": "host-a/ghost",
        "problem": "",
        "node": "host-a",
        "managed_by": "Nomad",
        "checks": "2 critical, 1 passing",
        "endpoints": "10.0.0.7:9091 [::1]:80",
        "layout": "curator",
    }
    assert junk.split("\t") == [
        "calculator",
        "ju\\tnk\\x1b[31m",
        "",
        "",
        "",
        "",
        "",
        "",
        "host-b/junk",
        "[bold]not JSON[/bold]",
        *[""] * 5,
    ]


@pytest.mark.usefixtures("_at_a_terminal")
@pytest.mark.parametrize("has_rich", [True, False], ids=["rich", "plain"])
def test_people_get_a_table(
    registry_drain: Run, faulty: FaultyRegistry, monkeypatch: pytest.MonkeyPatch, has_rich: bool
) -> None:
    """With rich or without, an id stays in one piece in a narrow window, and nobody's text is obeyed."""
    if has_rich:
        pytest.importorskip("rich")
    else:
        monkeypatch.setitem(sys.modules, "rich", None)
    faulty.cluster.put(GHOST)
    faulty.cluster.put(JUNK)
    out = registry_drain("list", "x://").out
    assert GHOST.id in out
    assert "[bold]not JSON[/bold]" in out
    assert "\x1b[31m" not in out
    assert "locator" not in out
    assert ("─" in out) is has_rich


@pytest.mark.usefixtures("_at_a_terminal")
def test_a_terminal_that_cannot_be_written(
    registry_drain: Run, faulty: FaultyRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line, as for a file: rich's table is written like everything else."""
    pytest.importorskip("rich")
    faulty.cluster.put(GHOST)
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stdout", full)
        ran = registry_drain("list", "x://")
    assert ran.status == 1
    assert "No space left" in ran.complaint


@pytest.mark.usefixtures("_at_a_terminal")
def test_thousands_are_there_at_once(registry_drain: Run, faulty: FaultyRegistry) -> None:
    """As plain text, which rich would take seconds for: all of them, with their ids whole."""
    for number in range(600):
        faulty.cluster.put(dataclasses.replace(GHOST, id=f"{GHOST.id}-{number}", locator=f"host-a/{number}"))
    out = registry_drain("list", "x://").out
    assert f"{GHOST.id}-599" in out
    assert out.count("\n") == 601
    assert "─" not in out


@pytest.mark.usefixtures("_at_a_terminal")
def test_a_terminal_is_spared_empty_columns(registry_drain: Run, faulty: FaultyRegistry) -> None:
    """What no instance has is not shown."""
    faulty.cluster.put(dataclasses.replace(GHOST, owner="", is_ephemeral=None))
    heading = registry_drain("list", "x://").out
    assert "owner" not in heading
    assert "kind" not in heading
    assert "health" in heading


def test_only_one_service(registry_drain: Run, faulty: FaultyRegistry) -> None:
    """--service narrows it; without, all are shown."""
    faulty.cluster.put(GHOST)
    faulty.cluster.put(dataclasses.replace(GHOST, service="other"))
    assert registry_drain("list", "x://").out.count("\n") == 3
    assert registry_drain("list", "x://", "--service", "other").out.count("\n") == 2


def test_only_what_is_selected(registry_drain: Run, faulty: FaultyRegistry) -> None:
    """The selectors of deregister narrow a list, too; that none fits is an answer."""
    faulty.cluster.put(GHOST)
    faulty.cluster.put(dataclasses.replace(GHOST, service="other", health="passing", is_live=True, node="host-b"))
    for words in (
        ("--node", "host-a"),
        ("--all-unhealthy",),
        ("--address", "10.0.0.7:9091", "--service", "calculator"),
    ):
        document = registry_drain("list", "x://", *words, "--json").document
        assert [entry["service"] for entry in document["instances"]] == ["calculator"]
    ran = registry_drain("list", "x://", "--tag", "none")
    assert (ran.status, ran.out.count("\n"), ran.err) == (0, 1, "")


def test_quiet_leaves_errors_only(registry_drain: Run, faulty: FaultyRegistry) -> None:
    """The status says whether it could be read; what is wrong is said all the same."""
    faulty.cluster.put(GHOST)
    ran = registry_drain("list", "x://", "--quiet")
    assert (ran.status, ran.out, ran.err) == (0, "", "")
    faulty.faults.add(Step.READ, REFUSED)
    assert registry_drain("list", "x://", "--quiet").complaint


def test_nothing_registered_is_no_error(registry_drain: Run, local_url: str) -> None:
    """The heading alone, status 0: the question was answered."""
    ran = registry_drain("list", local_url)
    assert (ran.status, ran.out.count("\n"), ran.err) == (0, 1, "")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "0s"),
        (0, "0s"),
        (59.9, "59s"),
        (60, "1m"),
        (61, "1m1s"),
        (3600, "1h"),
        (3661, "1h1m"),
        (7205, "2h"),
        (90000, "1d1h"),
        (400 * 86400, "400d"),
    ],
)
def test_ages_are_short(seconds: float, text: str) -> None:
    """Two units at most, and never negative."""
    assert age(seconds) == text


def test_plain_text_is_aligned() -> None:
    """Numbers to the right, words to the left, nothing behind the last one."""
    table = Table(("name", "n"), [("a", "1"), ("bcdefg", "100")], numeric=frozenset({"n"}))
    assert aligned(table) == "name      n\na         1\nbcdefg  100\n"
