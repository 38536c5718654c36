"""A registry's entries as commands show them: as JSON, as rows of a table, in one line."""

from __future__ import annotations

from collections.abc import Iterable

from registry_drain.cli.table import Table
from registry_drain.registries.base import RegistryEntry

_COLUMNS = ("service", "id", "address", "owner", "live", "health", "kind", "age", "locator", "problem")
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
    }


def entry_table(entries: Iterable[RegistryEntry], now: float) -> Table:
    """Return a row for each entry; ``now`` is UNIX seconds, for their ages."""
    rows = [_row(entry, now) for entry in entries]
    return Table(_COLUMNS, rows, numeric=frozenset({"age"}), wide=frozenset({"locator"}), styles=_STYLES)


def described(entry: RegistryEntry) -> str:
    """Return in one line everything that helps to be sure that it is the right one."""
    facts = [
        f"owner {entry.owner}" if entry.owner else "owner unknown",
        {True: "alive", False: "dead", None: ""}[entry.is_live],
        entry.health,
        {True: "ephemeral", False: "persistent", None: ""}[entry.is_ephemeral],
        f"at {entry.locator}" if entry.locator else "",
        entry.problem,
    ]
    return f"{entry} of service {entry.service!r} ({', '.join(fact for fact in facts if fact)})"


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
    ]
