"""The page of facts names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def test_every_named_test_exists() -> None:
    """A fact whose test was renamed or removed would be held by nothing."""
    page = (ROOT / "docs" / "facts.md").read_text(encoding="utf-8")
    named = set(NAMED.findall(page))
    assert len(named) >= page.count("::") / 2
    for path, name in named:
        assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), f"{path}::{name}"


def test_every_fact_has_tests() -> None:
    """Each numbered row names at least one."""
    page = (ROOT / "docs" / "facts.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if re.match(r"\| \d+ \|", line)]
    assert len(rows) >= 7
    assert all(NAMED.search(row) for row in rows)
