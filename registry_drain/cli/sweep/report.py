"""What a sweep found and did, as JSON and as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from registry_drain.cli.command.entries import entry_document
from registry_drain.cli.command.exit_status import ExitStatus
from registry_drain.cli.command.table import Table
from registry_drain.cli.deregister.outcome import Outcome
from registry_drain.cli.sweep.evidence import Evidence
from registry_drain.registries.base import RegistryEntry

_COLUMNS = ("service", "id", "address", "evidence", "result", "locator")
_STYLES = {"removed": "green", "would be removed": "yellow", "came back": "red"}
_RESULTS = {
    ExitStatus.DONE: "removed",
    ExitStatus.NOT_FOUND: "gone already",
    ExitStatus.UNVERIFIABLE: "removed, unproven",
    ExitStatus.UNREACHABLE: "removed or not",
    ExitStatus.CAME_BACK: "came back",
}


@dataclass(slots=True)
class Ghost:
    """One entry that something speaks against, and what became of it.

    Attributes:
        entry: as it was shown.
        evidence: everything that was found.
        spared: why it is left alone; empty if it is to go.
        outcome: how its removal ended; None if none was tried.
        watched_back: what was seen of it afterwards, JSON-ready; None if nobody looked.
    """

    entry: RegistryEntry
    evidence: Sequence[Evidence]
    spared: str = ""
    outcome: Outcome | None = None
    watched_back: object = None

    @property
    def is_to_go(self) -> bool:
        """Whether the evidence is enough and nothing spares it."""
        return not self.spared

    @property
    def status(self) -> ExitStatus | None:
        """How its removal ended; None if none was tried."""
        return None if self.outcome is None else self.outcome.status

    @property
    def is_gone(self) -> bool:
        """Whether it is proven to be gone."""
        return self.status in {ExitStatus.DONE, ExitStatus.NOT_FOUND}


def ghost_document(ghost: Ghost) -> dict[str, object]:
    """Return it JSON-ready; what does not apply is null."""
    return {
        "instance": entry_document(ghost.entry),
        "evidence": [
            {"kind": each.kind.value, "detail": each.detail, "seconds": each.seconds, "tries": each.tries}
            for each in ghost.evidence
        ],
        "spared": ghost.spared or None,
        "status": None if ghost.outcome is None else int(ghost.outcome.status),
        "outcome": None if ghost.outcome is None else ghost.outcome.status.word,
        "message": None if ghost.outcome is None else ghost.outcome.message,
        "removal": None if ghost.outcome is None else ghost.outcome.removal_document(),
        "watched_back": ghost.watched_back,
    }


def ghost_table(ghosts: Sequence[Ghost]) -> Table:
    """Return a row for each ghost."""
    rows = [
        [
            ghost.entry.service,
            ghost.entry.id,
            ghost.entry.endpoint if ghost.entry.address else "",
            "; ".join(each.detail for each in ghost.evidence),
            _told(ghost),
            ghost.entry.locator,
        ]
        for ghost in ghosts
    ]
    return Table(_COLUMNS, rows, wide=frozenset({"locator"}), styles=_STYLES)


def _told(ghost: Ghost) -> str:
    if ghost.spared:
        return f"left alone: {ghost.spared}"
    if ghost.outcome is None:
        return "would be removed"
    if ghost.outcome.status is ExitStatus.DONE:
        return _RESULTS[ExitStatus.DONE]
    return _RESULTS.get(ghost.outcome.status, "not removed")
