"""Looking after a removal whether it lasts, and saying who undid it: what the looks mean for the verdict."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

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

_REMOVED = frozenset({ExitStatus.DONE, ExitStatus.UNVERIFIABLE, ExitStatus.CAME_BACK})
"""After anything else there is nothing that could come back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LookingAfter:
    """How removals are looked after; times in seconds.

    Attributes:
        listed: what was listed before the removals, the removed ones included or not.
        seconds: how long to look; 0 is a single look, which tells of what is back already who it was.
        read_timeout: how long each read may take.
    """

    registry: Registry
    listed: Iterable[RegistryEntry]
    seconds: float
    read_timeout: float
    output: Output
    clock: Clock

    def removed(self, outcomes: Sequence[Outcome], documents: Sequence[Document]) -> list[Outcome]:
        """Return ``outcomes`` after a look for those that were removed; fills in ``watched_back`` of their documents.

        Raises:
            KeyboardInterrupt: nothing of what was seen is told.
        """
        looked_after = _REMOVED if self.seconds else {ExitStatus.CAME_BACK}
        positions = [position for position, outcome in enumerate(outcomes) if outcome.status in looked_after]
        after = list(outcomes)
        if positions:
            watch, blind = self._look([outcomes[position] for position in positions])
            for number, position in enumerate(positions):
                after[position] = self._seen(outcomes[position], watch, number, blind, documents[position])
        return after

    def _look(self, outcomes: Sequence[Outcome]) -> tuple[BackWatch, RegistryError | None]:
        """Return what was seen, and why the last look failed, if it did."""
        if self.seconds:
            one = len(outcomes) == 1
            what = outcomes[0].message if one else f"removed {len(outcomes)} instances"
            self.output.remark(
                f"{what}; looking for {self.seconds:g} s whether {'it comes' if one else 'any comes'} back"
            )
        watch = BackWatch([outcome.entry for outcome in outcomes], self.listed)
        try:
            watch.run(self.registry, seconds=self.seconds, read_timeout=self.read_timeout, clock=self.clock)
        except RegistryError as error:
            return watch, error
        return watch, watch.failure

    def _seen(
        self, outcome: Outcome, watch: BackWatch, number: int, blind: RegistryError | None, document: Document
    ) -> Outcome:
        """Return what ``outcome`` becomes by what was seen of it, which is the ``number``-th that was looked for."""
        url, returned = self.registry.url, watch.returned.get(number)
        document["watched_back"] = watched_document(outcome.entry, watch.looked_for, returned, url)
        if returned is not None:
            return _came_back(outcome, returned, url)
        if outcome.status is ExitStatus.CAME_BACK:
            return outcome
        if blind is not None:
            return _unseen(outcome, blind)
        message = f"{outcome.message}; it did not come back within {self.seconds:g} s"
        return dataclasses.replace(outcome, message=message)


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
