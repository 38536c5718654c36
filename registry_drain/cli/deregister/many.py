"""Removing several instances: each has its own outcome, all of them are told, and the worst one is the exit status.

An interruption, or a registry that went away half way, leaves entries without a result. They are looked for once more,
so that each of them is known to be gone or to be there; the same command again removes what is left.
"""

from __future__ import annotations

from collections.abc import Sequence

from registry_drain.cli.choosing.finding import Found
from registry_drain.cli.command.entries import entry_document
from registry_drain.cli.command.exit_status import ExitStatus, worst
from registry_drain.cli.command.invocation import Document, Verdict
from registry_drain.cli.command.output import Output
from registry_drain.cli.command.table import Table, show_table
from registry_drain.cli.deregister.bulk import LAST_LOOK, MORE_TIME_EACH, BulkRemoval, remove_all
from registry_drain.cli.deregister.deregistration import Request
from registry_drain.cli.deregister.outcome import Outcome, outcome_of
from registry_drain.cli.deregister.watched import LookingAfter
from registry_drain.clock import Clock, Deadline
from registry_drain.errors import RegistryError
from registry_drain.registries.base import Registry, RegistryEntry

_MOST_ROWS = 100
"""Outcomes shown one by one; of more only those that are not as they should be."""
_STYLES = {status.word: "green" if status is ExitStatus.DONE else "red" for status in ExitStatus}


def remove_many(
    registry: Registry, found: Found, request: Request, output: Output, document: Document, clock: Clock
) -> Verdict:
    """Remove all that was found, and tell what became of each."""
    entries = found.chosen
    deadline = Deadline.after(request.timeout + MORE_TIME_EACH * len(entries), clock)
    removal = remove_all(registry, entries, deadline, output, force=request.is_forced)
    is_interrupted = removal.is_interrupted
    outcomes = _outcomes(registry, removal, clock)
    documents = [_document(outcome) for outcome in outcomes]
    document["results"] = documents
    is_watched_to_end = True
    if not is_interrupted and (request.watch_back or any(each.status is ExitStatus.CAME_BACK for each in outcomes)):
        looking = LookingAfter(
            registry=registry,
            listed=found.listed,
            seconds=request.watch_back,
            read_timeout=request.timeout,
            output=output,
            clock=clock,
        )
        try:
            outcomes = looking.removed(outcomes, documents)
        except KeyboardInterrupt:
            is_interrupted, is_watched_to_end = True, False
        for each, outcome in zip(documents, outcomes, strict=True):
            each.update(_verdict(outcome))
    _show(outcomes, output)
    message = _summary(outcomes, registry.url)
    if not is_interrupted:
        watched = f"; looked for {request.watch_back:g} s whether any comes back" if request.watch_back else ""
        return worst(outcome.status for outcome in outcomes), f"{message}{watched}"
    how_far = "not watched to the end" if not is_watched_to_end else "the same command again removes the rest"
    return ExitStatus.INTERRUPTED, f"interrupted: {message}; {how_far}"


def _outcomes(registry: Registry, removal: BulkRemoval, clock: Clock) -> list[Outcome]:
    outcomes: dict[int, Outcome] = {
        position: outcome_of(removal.entries[position], result, registry.url)
        for position, result in removal.results.items()
    }
    unknown = [position for position in range(len(removal.entries)) if position not in outcomes]
    if unknown:
        left = _still_listed(registry, [removal.entries[position] for position in unknown], clock)
        for position in unknown:
            outcomes[position] = _without_result(removal.entries[position], removal, left)
    return [outcomes[position] for position in range(len(removal.entries))]


def _still_listed(
    registry: Registry, entries: Sequence[RegistryEntry], clock: Clock
) -> set[tuple[str, str, str]] | str:
    """Return which entries are listed as they were; or why that cannot be seen."""
    deadline = Deadline.after(LAST_LOOK, clock)
    listed: set[tuple[str, str, str]] = set()
    try:
        for service in sorted({entry.service for entry in entries}):
            listed |= {_place(entry) for entry in registry.entries(service, deadline)}
    except RegistryError as error:
        return str(error)
    except KeyboardInterrupt:
        return "interrupted again"
    return listed


def _without_result(entry: RegistryEntry, removal: BulkRemoval, left: set[tuple[str, str, str]] | str) -> Outcome:
    status = ExitStatus.INTERRUPTED if removal.is_interrupted else ExitStatus.UNREACHABLE
    why = "interrupted" if removal.failure is None else str(removal.failure)
    if isinstance(left, str):
        return Outcome(entry, status, f"{entry} may have been removed or not: {why}; {left}")
    if _place(entry) in left:
        return Outcome(entry, status, f"{entry} was not removed, and is still listed: {why}")
    # Not DONE: whether it was us or its owner, and whether the removal was complete, was not waited for.
    return Outcome(entry, status, f"{entry} is not listed any more, but its removal was not waited for: {why}")


def _place(entry: RegistryEntry) -> tuple[str, str, str]:
    return entry.service, entry.id, entry.version


def _document(outcome: Outcome) -> Document:
    return {
        "instance": entry_document(outcome.entry),
        **_verdict(outcome),
        "removal": outcome.removal_document(),
        "watched_back": None,
    }


def _verdict(outcome: Outcome) -> Document:
    return {"status": int(outcome.status), "outcome": outcome.status.word, "message": outcome.message}


def _show(outcomes: Sequence[Outcome], output: Output) -> None:
    shown = outcomes
    if len(outcomes) > _MOST_ROWS:
        shown = [outcome for outcome in outcomes if outcome.status is not ExitStatus.DONE]
    if not shown:
        return
    columns = ("service", "instance", "outcome", "detail")
    rows = [
        (
            outcome.entry.service,
            str(outcome.entry),
            outcome.status.word,
            "" if outcome.status is ExitStatus.DONE else outcome.message,
        )
        for outcome in shown
    ]
    show_table(Table(columns, rows, styles=_STYLES), output)


def _summary(outcomes: Sequence[Outcome], registry_url: str) -> str:
    counts: dict[ExitStatus, list[Outcome]] = {}
    for outcome in outcomes:
        counts.setdefault(outcome.status, []).append(outcome)
    gone = len(counts.pop(ExitStatus.DONE, ()))
    total = len(outcomes)
    message = f"removed {gone} of {total} instances from {registry_url}, and they are proven to be gone"
    if gone == 0:
        message = f"none of {total} instances at {registry_url} was removed and proven to be gone"
    if not counts:
        return message
    others = ", ".join(f"{len(some)} {status.word.replace('_', ' ')}" for status, some in counts.items())
    return f"{message}; {others}: {counts[worst(counts)][0].message}"
