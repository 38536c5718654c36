"""One removal by an operator, step by step.

Order: find the instance by a consistent read; refuse if it is not exactly one; remove exactly what was found, and
nothing that was registered since; have the registry prove it; look again for as long as asked. Every error before the
removal says that nothing was removed, so that nobody has to wonder.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from registry_drain.cli.entries import described, entry_document
from registry_drain.cli.exit_status import ExitStatus, status_of_error, status_of_removal
from registry_drain.cli.invocation import Document, Verdict
from registry_drain.cli.output import Output
from registry_drain.cli.patience import read_entries
from registry_drain.cli.selection import Selection, named
from registry_drain.cli.watch_back import watch_back
from registry_drain.clock import Clock, Deadline
from registry_drain.errors import ConfigurationError, LiveOwnerError, RegistryError
from registry_drain.registries.base import Registry, RegistryEntry, Removal

_NO_CHANGE = "nothing was removed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the operator asked for; times in seconds."""

    service: str | None
    selection: Selection
    timeout: float
    watch_back: float = 0.0
    is_forced: bool = False
    is_dry_run: bool = False

    @classmethod
    def of(cls, options: argparse.Namespace) -> Request:
        """Take it from the command's arguments.

        Raises:
            ConfigurationError: they name no instance, or not as an address is written.
        """
        selection = Selection.of(options)
        selection.require()
        return cls(
            service=selection.service,
            selection=selection,
            timeout=options.timeout,
            watch_back=options.watch_back,
            is_forced=options.force,
            is_dry_run=options.dry_run,
        )


class Deregistration:
    """One removal. Fills in ``document`` as it goes, so that JSON tells on failures how far it came."""

    def __init__(self, registry: Registry, request: Request, output: Output, document: Document, clock: Clock) -> None:
        """Send nothing yet."""
        self._registry = registry
        self._request = request
        self._output = output
        self._document = document
        self._clock = clock
        self._left_behind = _NO_CHANGE
        """What an interruption at this moment leaves behind, in words."""

    def run(self) -> Verdict:
        """Do it, once."""
        try:
            return self._run(Deadline.after(self._request.timeout, self._clock))
        except KeyboardInterrupt:
            return ExitStatus.INTERRUPTED, f"interrupted: {self._left_behind}"

    def _run(self, deadline: Deadline) -> Verdict:
        try:
            entry, others = self._find(deadline)
            if self._request.is_dry_run:
                return ExitStatus.DONE, self._intention(entry)
            self._left_behind = "it may have been removed or not; run the command again"
            removal = self._registry.remove(entry, deadline, force=self._request.is_forced)
        except RegistryError as error:
            # Whatever goes wrong after the registry was asked to remove it is an outcome of the removal, not an error.
            return status_of_error(error), f"{_NO_CHANGE}: {error}{self._advice(error)}"
        self._document["removal"] = {
            "outcome": removal.outcome.name.lower(),
            "detail": removal.detail or None,
            "attempts": removal.attempts,
        }
        status = status_of_removal(removal.outcome)
        message = _told(status, entry, removal, self._registry.url)
        self._left_behind = message
        if status is ExitStatus.CAME_BACK:  # it is back already, and a single look tells who it was
            return self._watch_back(entry, others, 0.0, status, message)
        if self._request.watch_back and status in {ExitStatus.DONE, ExitStatus.UNVERIFIABLE}:
            self._left_behind = f"{message}; not watched to the end"
            return self._watch_back(entry, others, self._request.watch_back, status, message)
        return status, message

    def _find(self, deadline: Deadline) -> tuple[RegistryEntry, Sequence[RegistryEntry]]:
        selection, service = self._request.selection, self._request.service
        entries = read_entries(self._registry, service, deadline, self._output)
        found = selection.select(entries)
        if not found:
            raise selection.not_found(entries, self._registry.url)
        self._document["candidates"] = [entry_document(entry) for entry in found]
        if len(found) > 1:
            raise ConfigurationError(
                f"nothing was removed: {len(found)} instances have {selection}; choose one with --id:"
                f" {named(found, with_locator=True)}"
            )
        self._document["instance"] = entry_document(found[0])
        return found[0], [entry for entry in entries if entry is not found[0]]

    def _intention(self, entry: RegistryEntry) -> str:
        what = f"would remove {described(entry)} from {self._registry.url}"
        if entry.is_live and not self._request.is_forced:
            return f"{what}; but its owner is alive, so it takes --force (or stopping the owner)"
        return what

    def _advice(self, error: RegistryError) -> str:
        if isinstance(error, LiveOwnerError) and error.yields_to_force:
            return "; or use --force, and --watch-back 30 to see whether its owner puts it back"
        if error.retryable:
            return f" (tried for {self._request.timeout:g} s: check the address, or give it more --timeout)"
        return ""

    def _watch_back(
        self, entry: RegistryEntry, others: Sequence[RegistryEntry], asked: float, status: ExitStatus, message: str
    ) -> Verdict:
        """Return the verdict after looking for ``asked`` seconds; it was ``status`` and ``message`` before."""
        self._output.remark(f"{message}; looking for {asked:g} s whether it comes back")
        blind: RegistryError | None
        try:
            seen = watch_back(
                self._registry, entry, others, seconds=asked, read_timeout=self._request.timeout, clock=self._clock
            )
        except RegistryError as error:
            blind = error
        else:
            blind = seen.failure
            self._document["watched_back"] = {
                "seconds": round(seen.looked_for, 3),
                "returned": None if seen.returned is None else entry_document(seen.returned),
            }
            if seen.returned is not None:
                return ExitStatus.CAME_BACK, _came_back(entry, seen.returned, seen.looked_for)
        if status is ExitStatus.CAME_BACK:
            return status, message
        if blind is None:
            return status, f"{message}; it did not come back within {asked:g} s"
        # The removal itself was well: what is missing is the look afterwards.
        is_refused = status is ExitStatus.UNVERIFIABLE or not blind.retryable
        unseen = ExitStatus.UNVERIFIABLE if is_refused else ExitStatus.UNREACHABLE
        return unseen, f"{message}; but whether it comes back cannot be seen: {blind}"


def _told(status: ExitStatus, entry: RegistryEntry, removal: Removal, url: str) -> str:
    detail = f" ({removal.detail})" if removal.detail else ""
    subject = f"{entry} of service {entry.service!r}"
    if status is ExitStatus.DONE:
        return f"removed {subject} from {url}, and it is proven to be gone{detail}"
    if status is ExitStatus.UNVERIFIABLE:
        return f"removed {subject} from {url}, but nothing we may read shows whether it is gone{detail}"
    if status is ExitStatus.UNREACHABLE:
        return f"{subject} at {url} may have been removed or not; run the command again{detail}"
    if status is ExitStatus.NOT_FOUND:
        return f"{subject} is not in {url} any more{detail}"
    if status is ExitStatus.CAME_BACK:
        return f"removed {subject} from {url}, and it came back at once{detail}: stop its owner, then run this again"
    return f"{subject} at {url} was not removed ({removal.outcome.value}){detail}"


def _came_back(removed: RegistryEntry, returned: RegistryEntry, after: float) -> str:
    who = returned.owner or "an owner that the registry does not name"
    what = "it" if returned.id == removed.id else f"{returned.id} with its address"
    version = f" (version {returned.version}, was {removed.version})" if returned.version else ""
    where = f" at {returned.locator}" if returned.locator else ""
    return (
        f"{removed} was removed, and {after:.1f} s later {who} had registered {what} again{version}{where}:"
        " stop that owner, or have it deregister itself, then run this again"
    )
