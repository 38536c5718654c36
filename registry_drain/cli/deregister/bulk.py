"""Removing many, one outcome for each: in bulk where the registry can, and one after the other otherwise.

Rules: what is refused, gone or changed spares no other one. What was interrupted is looked at once more, so that each
entry is known to be gone, or known to be there, or said to be unknown; a second run finishes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from registry_drain.cli.choosing.selection import key_of
from registry_drain.cli.command.output import Output
from registry_drain.clock import Deadline
from registry_drain.errors import RegistryDrainError, RegistryUnavailableError
from registry_drain.registries.abilities import BulkRegistry, RemovalResult
from registry_drain.registries.base import Registry, RegistryEntry

MORE_TIME_EACH = 0.1
"""Seconds by which each entry prolongs the command's time limit: some ten times what one takes, one after the other."""
LAST_LOOK = 5.0
"""Seconds for looking what an interruption left behind: who pressed Ctrl-C wants to leave."""


@dataclass(slots=True)
class BulkRemoval:
    """What became of many.

    Attributes:
        entries: what was to be removed.
        results: by the position in ``entries``; what is missing has no result.
        failure: why it ended early; None if it did not.
        is_interrupted: whether Ctrl-C ended it.
    """

    entries: Sequence[RegistryEntry]
    results: dict[int, RemovalResult] = field(default_factory=dict)
    failure: RegistryDrainError | None = None
    is_interrupted: bool = False


def remove_all(
    registry: Registry,
    entries: Sequence[RegistryEntry],
    deadline: Deadline,
    output: Output,
    *,
    force: bool = False,
) -> BulkRemoval:
    """Remove each of ``entries``, as they were listed, with a progress bar for a person at a terminal.

    Never raises for an entry's sake, nor for Ctrl-C: both are in what is returned.
    """
    removal = BulkRemoval(entries)
    positions = {key_of(entry): position for position, entry in enumerate(entries)}
    with progress(len(entries), output) as advance:

        def on_result(entry: RegistryEntry, result: RemovalResult) -> None:
            removal.results[positions[key_of(entry)]] = result
            advance()

        try:
            if isinstance(registry, BulkRegistry):
                registry.remove_many(entries, deadline, on_result, force=force)
            else:
                _one_by_one(registry, entries, deadline, on_result, force=force)
        except KeyboardInterrupt:
            removal.is_interrupted = True
        except RegistryDrainError as error:
            removal.failure = error
    return removal


def _one_by_one(
    registry: Registry,
    entries: Sequence[RegistryEntry],
    deadline: Deadline,
    on_result: Callable[[RegistryEntry, RemovalResult], None],
    *,
    force: bool,
) -> None:
    for entry in entries:
        if deadline.is_past:
            raise RegistryUnavailableError("the time was up before its turn came")
        result: RemovalResult
        try:
            result = registry.remove(entry, deadline, force=force)
        except RegistryDrainError as error:
            result = error
        on_result(entry, result)


@contextlib.contextmanager
def progress(total: int, output: Output, what: str = "removing") -> Iterator[Callable[[], None]]:
    """Give a function to call after each one of ``total``; a person at a terminal sees a bar move, if rich is there."""
    if not output.is_watched:
        yield lambda: None
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    except ModuleNotFoundError:
        yield lambda: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)
