"""Looking after a removal whether it lasts, and saying who undid it: what the looks mean for the verdict."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from registry_drain.cli.command.entries import entry_document
from registry_drain.cli.command.exit_status import ExitStatus
from registry_drain.cli.command.invocation import Document
from registry_drain.cli.command.output import Output
from registry_drain.cli.deregister.comeback import who_brought_back
from registry_drain.cli.deregister.outcome import Outcome
from registry_drain.cli.deregister.watch_back import BackWatch, Return
from registry_drain.clock import Clock
from registry_drain.errors import RegistryError
from registry_drain.registries.base import Registry, RegistryEntry

LOOKED_AFTER = frozenset({ExitStatus.DONE, ExitStatus.UNVERIFIABLE, ExitStatus.CAME_BACK})
"""After anything else there is nothing that could come back."""


def watch_one(
    registry: Registry,
    outcome: Outcome,
    listed: Iterable[RegistryEntry],
    *,
    seconds: float,
    read_timeout: float,
    output: Output,
    clock: Clock,
    document: Document,
) -> Outcome:
    """Return the outcome after looking for ``seconds``; fills in the document's ``watched_back``."""
    [after] = _watched(
        registry, [outcome], listed, [document], seconds=seconds, read_timeout=read_timeout, output=output, clock=clock
    )
    return after


def watch_many(
    registry: Registry,
    outcomes: Sequence[Outcome],
    listed: Iterable[RegistryEntry],
    documents: Sequence[Document],
    *,
    seconds: float,
    read_timeout: float,
    output: Output,
    clock: Clock,
) -> list[Outcome]:
    """Return the outcomes after looking for ``seconds`` for those that were removed, and fill in their documents.

    Raises:
        KeyboardInterrupt: nothing of what was seen is told.
    """
    looked_after = LOOKED_AFTER if seconds else {ExitStatus.CAME_BACK}  # a single look tells who it was
    positions = [position for position, outcome in enumerate(outcomes) if outcome.status in looked_after]
    after = list(outcomes)
    if not positions:
        return after
    watched = _watched(
        registry,
        [outcomes[position] for position in positions],
        listed,
        [documents[position] for position in positions],
        seconds=seconds,
        read_timeout=read_timeout,
        output=output,
        clock=clock,
    )
    for position, outcome in zip(positions, watched, strict=True):
        after[position] = outcome
    return after


def _watched(
    registry: Registry,
    outcomes: Sequence[Outcome],
    listed: Iterable[RegistryEntry],
    documents: Sequence[Document],
    *,
    seconds: float,
    read_timeout: float,
    output: Output,
    clock: Clock,
) -> list[Outcome]:
    if seconds:
        what = outcomes[0].message if len(outcomes) == 1 else f"removed {len(outcomes)} instances"
        output.remark(
            f"{what}; looking for {seconds:g} s whether {'it comes' if len(outcomes) == 1 else 'any comes'} back"
        )
    watch = BackWatch([outcome.entry for outcome in outcomes], listed)
    blind: RegistryError | None = None
    try:
        watch.run(registry, seconds=seconds, read_timeout=read_timeout, clock=clock)
    except RegistryError as error:
        blind = error
    blind = blind or watch.failure
    after = []
    for position, (outcome, document) in enumerate(zip(outcomes, documents, strict=True)):
        returned = watch.returned.get(position)
        document["watched_back"] = watched_document(outcome.entry, watch.looked_for, returned, registry.url)
        if returned is not None:
            after.append(_came_back(outcome, returned, registry.url))
        elif outcome.status is ExitStatus.CAME_BACK:
            after.append(outcome)
        elif blind is None:
            message = f"{outcome.message}; it did not come back within {seconds:g} s"
            after.append(dataclasses.replace(outcome, message=message))
        else:
            after.append(_unseen(outcome, blind))
    return after


def watched_document(
    removed: RegistryEntry, looked_for: float, returned: Return | None, registry_url: str
) -> dict[str, object]:
    """Return what was seen, JSON-ready."""
    if returned is None:
        return {"seconds": round(looked_for, 3), "returned": None, "brought_back_by": None}
    return {
        "seconds": round(returned.after, 3),
        "returned": entry_document(returned.entry),
        "brought_back_by": who_brought_back(removed, returned.entry, registry_url).document(),
    }


def _came_back(outcome: Outcome, returned: Return, registry_url: str) -> Outcome:
    removed, entry = outcome.entry, returned.entry
    comeback = who_brought_back(removed, entry, registry_url)
    what = "it" if entry.id == removed.id else f"{entry.id} with its address"
    where = f" at {entry.locator}" if entry.locator else ""
    message = (
        f"{removed} of service {removed.service!r} was removed, and {returned.after:.1f} s later {comeback.who} had"
        f" registered {what} again{where}: {comeback.advice}"
    )
    return dataclasses.replace(outcome, status=ExitStatus.CAME_BACK, message=message)


def _unseen(outcome: Outcome, blind: RegistryError) -> Outcome:
    # The removal itself was well: what is missing is the look afterwards.
    is_refused = outcome.status is ExitStatus.UNVERIFIABLE or not blind.retryable
    status = ExitStatus.UNVERIFIABLE if is_refused else ExitStatus.UNREACHABLE
    message = f"{outcome.message}; but whether it comes back cannot be seen: {blind}"
    return dataclasses.replace(outcome, status=status, message=message)
