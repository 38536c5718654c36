"""A registry's entries as commands show them: as JSON, as rows of a table, in one line."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from registry_drain.cli.command.table import Table, compact
from registry_drain.instance import format_endpoint
from registry_drain.registries.base import RegistryEntry

_COLUMNS = (
    *("service", "id", "address", "owner", "live", "health", "kind", "age", "locator", "problem"),
    # Later ones stand behind, so that `cut -f` goes on finding the others.
    *("node", "managed_by", "checks", "endpoints", "layout"),
)
_SEVERITY = ("critical", "maintenance", "warning", "passing")
_STYLES = {
    "passing": "green",
    "warning": "yellow",
    "maintenance": "yellow",
    "critical": "red",
    "no": "red",
    "persistent": "yellow",
}


def entry_document(entry: RegistryEntry) -> dict[str, object]:
    """Return every field of ``entry``, JSON-ready; what is unknown is null."""
    return {
        "service": entry.service,
        "id": entry.id,
        "address": entry.address or None,
        "port": entry.port or None,
        "tags": list(entry.tags),
        "metadata": dict(entry.metadata),
        "owner": entry.owner or None,
        "is_live": entry.is_live,
        "health": entry.health or None,
        "is_ephemeral": entry.is_ephemeral,
        "registered_at": entry.registered_at,
        "problem": entry.problem or None,
        "locator": entry.locator or None,
        "version": entry.version or None,
        "endpoints": [{"address": address, "port": port} for address, port in entry.endpoints],
        "node": entry.node or None,
        "managed_by": entry.managed_by or None,
        "checks": [
            {
                "id": check.id,
                "status": check.status,
                "is_own": check.is_own,
                "output": check.output or None,
                "version": check.version or None,
            }
            for check in entry.checks
        ],
        "layout": entry.layout or None,
    }


def entry_table(entries: Iterable[RegistryEntry], now: float) -> Table:
    """Return a row for each entry; ``now`` is UNIX seconds, for their ages."""
    shown = list(entries)
    wide = {"locator"}
    if all(entry.node in {"", entry.owner} for entry in shown):
        wide.add("node")  # it would be there twice
    rows = [_row(entry, now) for entry in shown]
    return Table(_COLUMNS, rows, numeric=frozenset({"age"}), wide=frozenset(wide), styles=_STYLES)


def choice_table(entries: Sequence[RegistryEntry], now: float) -> Table:
    """Return what an operator chooses from: everything that tells them apart, and where they stand."""
    table = entry_table(entries, now)
    is_one_service = len({entry.service for entry in entries}) == 1
    wide = (table.wide - {"locator"}) | ({"service"} if is_one_service else set())
    return compact(dataclasses.replace(table, wide=frozenset(wide)))


def described(entry: RegistryEntry) -> str:
    """Return in one line everything that helps to be sure that it is the right one."""
    facts = [
        f"owner {entry.owner}" if entry.owner else "owner unknown",
        {True: "alive", False: "dead", None: ""}[entry.is_live],
        entry.health,
        {True: "ephemeral", False: "persistent", None: ""}[entry.is_ephemeral],
        f"managed by {entry.managed_by}" if entry.managed_by else "",
        f"at {entry.locator}" if entry.locator else "",
        entry.problem,
    ]
    return f"{entry} of service {entry.service!r} ({', '.join(fact for fact in facts if fact)})"


def checks_text(entry: RegistryEntry) -> str:
    """Return how many checks are in which state, the worst first: ``1 critical, 2 passing``."""
    counts: dict[str, int] = {}
    for check in entry.checks:
        counts[check.status] = counts.get(check.status, 0) + 1
    known = [status for status in _SEVERITY if status in counts]
    return ", ".join(f"{counts[status]} {status}" for status in [*known, *sorted(counts.keys() - set(_SEVERITY))])


def age(seconds: float) -> str:
    """Return a duration in its two largest units, as people say it: ``3d4h``, ``12m5s``, ``2h``, ``0s``."""
    left = max(int(seconds), 0)  # clocks of two machines may disagree
    units: list[tuple[str, int]] = []
    for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)):
        count, left = divmod(left, length)
        if count or units or unit == "s":
            units.append((unit, count))
    return "".join(f"{count}{unit}" for unit, count in units[:2] if count) or "0s"


def _row(entry: RegistryEntry, now: float) -> list[str]:
    return [
        entry.service,
        entry.id,
        entry.endpoint if entry.address else "",
        entry.owner,
        {True: "yes", False: "no", None: ""}[entry.is_live],
        entry.health,
        {True: "ephemeral", False: "persistent", None: ""}[entry.is_ephemeral],
        "" if entry.registered_at is None else age(now - entry.registered_at),
        entry.locator,
        entry.problem,
        entry.node,
        entry.managed_by,
        checks_text(entry),
        " ".join(format_endpoint(*endpoint) for endpoint in entry.endpoints),
        entry.layout,
    ]
