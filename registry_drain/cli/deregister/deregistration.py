"""A removal by an operator, of one instance or of several, step by step.

Order: find the instances by a consistent read; refuse if something is missing that it takes; remove exactly what was
found, and nothing that was registered since; have the registry prove it; look again for as long as asked. Every error
before the removal says that nothing was removed, so that nobody has to wonder.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from registry_drain.cli.choosing.consent import Consent, left_without
from registry_drain.cli.choosing.finding import Found, find, require_some
from registry_drain.cli.choosing.selection import Selection
from registry_drain.cli.command.entries import choice_table, described, entry_document
from registry_drain.cli.command.exit_status import ExitStatus, status_of_error
from registry_drain.cli.command.invocation import Document, Verdict
from registry_drain.cli.command.output import Output
from registry_drain.cli.deregister.outcome import NO_CHANGE, Outcome, outcome_of
from registry_drain.clock import Clock, Deadline
from registry_drain.errors import RegistryDrainError, RegistryError
from registry_drain.registries.base import Registry, RegistryEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the operator asked for; times in seconds."""

    selection: Selection
    consent: Consent
    timeout: float
    watch_back: float = 0.0
    is_forced: bool = False
    is_dry_run: bool = False
    observe: bool = False

    @classmethod
    def of(cls, options: argparse.Namespace) -> Request:
        """Take it from the command's arguments.

        Raises:
            ConfigurationError: they name no instance, or not as an address is written.
        """
        selection = Selection.of(options)
        selection.require()
        return cls(
            selection=selection,
            consent=Consent.of(options),
            timeout=options.timeout,
            watch_back=options.watch_back,
            is_forced=options.force,
            is_dry_run=options.dry_run,
            observe=options.observe,
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
        self._left_behind = NO_CHANGE
        """What an interruption at this moment leaves behind, in words."""

    def run(self) -> Verdict:
        """Do it, once."""
        try:
            return self._run(Deadline.after(self._request.timeout, self._clock))
        except KeyboardInterrupt:
            return ExitStatus.INTERRUPTED, f"interrupted: {self._left_behind}"

    def _run(self, deadline: Deadline) -> Verdict:
        request = self._request
        try:
            found = find(self._registry, request.selection, deadline, self._output, observe=request.observe)
            require_some(found, request.selection, self._registry.url)
        except RegistryError as error:
            return status_of_error(error), f"{NO_CHANGE}: {error}{self._retry_advice(error)}"
        return found.qualified(self._treat(found, deadline))

    def _treat(self, found: Found, deadline: Deadline) -> Verdict:
        """Show or remove what was found, as asked."""
        request, chosen = self._request, found.chosen
        self._document["candidates"] = [entry_document(entry) for entry in chosen]
        if len(chosen) == 1:
            self._document["instance"] = entry_document(chosen[0])
        missing = request.consent.missing(chosen, found.listed, leaves=self._leaves)
        if request.is_dry_run or missing:
            self._show(chosen, deadline)
        if request.is_dry_run:
            return ExitStatus.DONE, self._intention(found, missing)
        if missing:
            return missing[0], f"{NO_CHANGE}: {missing[1]}"
        if len(chosen) == 1:
            return self._remove_one(found, deadline)
        from registry_drain.cli.deregister.many import remove_many  # here, because most commands remove one

        return remove_many(self._registry, found, request, self._output, self._document, self._clock)

    def _leaves(self, entry: RegistryEntry) -> bool:
        """Whether the registry lets go of ``entry``: without force it refuses what would come back."""
        return self._request.is_forced or not (entry.is_live or entry.managed_by)

    def _show(self, chosen: Sequence[RegistryEntry], deadline: Deadline) -> None:
        """Show what is meant, if the line about it cannot."""
        if len(chosen) > 1 and not (self._output.is_json or self._output.is_quiet):
            from registry_drain.cli.command.table import show_table

            show_table(choice_table(chosen, self._clock.unix_time()), self._output)
        for line in self._companions(chosen, deadline):
            self._output.say(line)

    def _companions(self, chosen: Sequence[RegistryEntry], deadline: Deadline) -> list[str]:
        """Return what else would go, a line each."""
        from registry_drain.registries.abilities import CompanionRegistry

        if not isinstance(self._registry, CompanionRegistry):
            return []
        try:
            companions = self._registry.companions(chosen, deadline)
        except RegistryError as error:
            return [f"what goes with it cannot be told: {error}"]
        told: list[str] = []
        for entry, lines in zip(chosen, companions, strict=True):
            told += [f"with {entry}: {line}" for line in lines]
        self._document["companions"] = [list(lines) for lines in companions]
        return told

    def _intention(self, found: Found, missing: Verdict | None) -> str:
        chosen, request = found.chosen, self._request
        if len(chosen) > 1:
            what = f"would remove these {len(chosen)} instances from {self._registry.url}"
            kept = [] if request.is_forced else [entry for entry in chosen if not self._leaves(entry)]
            of_them = f"; {len(kept)} of them are kept alive, and stay without --force" if kept else ""
            return f"{what}{of_them}" + (f"; but {missing[1]}" if missing else "")
        [entry] = chosen
        what = f"would remove {described(entry)} from {self._registry.url}"
        if not self._leaves(entry):
            owner = f"{entry.managed_by} manages it" if entry.managed_by else "its owner is alive"
            return f"{what}; but {owner}, so it takes --force (or stopping it there)"
        if missing:
            return f"{what}; but {missing[1]}"
        last = left_without(chosen, found.listed)
        return f"{what}, the last healthy instance of {last[0]!r}" if last else what

    def _retry_advice(self, error: RegistryDrainError) -> str:
        if error.retryable:
            return f" (tried for {self._request.timeout:g} s: check the address, or give it more --timeout)"
        return ""

    # --- one ----------------------------------------------------------------------------------------------------------

    def _remove_one(self, found: Found, deadline: Deadline) -> Verdict:
        [entry] = found.chosen
        self._left_behind = "it may have been removed or not; run the command again"
        try:
            removal = self._registry.remove(entry, deadline, force=self._request.is_forced)
        except RegistryError as error:
            # Whatever goes wrong after the registry was asked to remove it is an outcome of the removal, not an error.
            outcome = outcome_of(entry, error, self._registry.url)
            message = f"{NO_CHANGE}: {outcome.message}{self._retry_advice(error)}"
            outcome = Outcome(entry, outcome.status, message)
        else:
            outcome = outcome_of(entry, removal, self._registry.url)
        self._document["removal"] = outcome.removal_document()
        self._left_behind = outcome.message
        if outcome.status is ExitStatus.CAME_BACK or self._request.watch_back:
            outcome = self._look_after(outcome, found)
        return self._finished(outcome)

    def _look_after(self, outcome: Outcome, found: Found) -> Outcome:
        from registry_drain.cli.deregister.watched import LookingAfter  # here, because it is not asked for in general

        self._left_behind = f"{outcome.message}; not watched to the end"
        looking = LookingAfter(
            registry=self._registry,
            listed=found.listed,
            # What is back already needs a single look, to tell who it was.
            seconds=0.0 if outcome.status is ExitStatus.CAME_BACK else self._request.watch_back,
            read_timeout=self._request.timeout,
            output=self._output,
            clock=self._clock,
        )
        [after] = looking.removed([outcome], [self._document])
        return after

    def _finished(self, outcome: Outcome) -> Verdict:
        self._document["results"] = [
            {
                "instance": self._document["instance"],
                "status": int(outcome.status),
                "outcome": outcome.status.word,
                "message": outcome.message,
                "removal": self._document["removal"],
                "watched_back": self._document["watched_back"],
            }
        ]
        return outcome.status, outcome.message
