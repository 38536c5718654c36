"""Taking instances out of rotation, or putting them back, one after the other, each with an outcome of its own.

Doing so is reversible, and doing it twice is no error: whatever ends it half way, the same command again finishes, and
the other one undoes it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from registry_drain.cli.choosing.consent import Consent
from registry_drain.cli.choosing.finding import Found, find, require_some
from registry_drain.cli.choosing.selection import Selection
from registry_drain.cli.command.entries import choice_table, described, entry_document
from registry_drain.cli.command.exit_status import ExitStatus, status_of_error, worst
from registry_drain.cli.command.invocation import Document, Verdict
from registry_drain.cli.command.output import Output
from registry_drain.cli.command.table import Table, show_table
from registry_drain.cli.deregister.bulk import MORE_TIME_EACH, progress
from registry_drain.clock import Clock, Deadline
from registry_drain.errors import ConfigurationError, RegistryDataError, RegistryDrainError, RegistryError
from registry_drain.registries.abilities import Rotation, RotationRegistry
from registry_drain.registries.base import Registry, RegistryEntry

_NO_CHANGE = "nothing was changed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the operator asked for; times in seconds."""

    is_drain: bool
    selection: Selection
    consent: Consent
    timeout: float
    reason: str = ""
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
            is_drain=options.is_drain,
            selection=selection,
            consent=Consent.of(options),
            timeout=options.timeout,
            reason=options.reason or "",
            is_dry_run=options.dry_run,
            observe=options.observe,
        )


@dataclass(frozen=True, slots=True)
class _Outcome:
    entry: RegistryEntry
    status: ExitStatus
    message: str
    rotation: Rotation | None = None

    def document(self) -> Document:
        rotation = self.rotation
        return {
            "instance": entry_document(self.entry),
            "status": int(self.status),
            "outcome": self.status.word,
            "message": self.message,
            "rotation": None
            if rotation is None
            else {"is_out": rotation.is_out, "how": rotation.how, "detail": rotation.detail or None},
        }


class Rotating:
    """One run of the command. Fills in ``document`` as it goes."""

    def __init__(self, registry: Registry, request: Request, output: Output, document: Document, clock: Clock) -> None:
        """Send nothing yet."""
        self._registry = registry
        self._request = request
        self._output = output
        self._document = document
        self._clock = clock

    def run(self) -> Verdict:
        """Do it, once.

        Raises:
            ConfigurationError: this registry has no such state.
        """
        registry, request = self._registry, self._request
        if not isinstance(registry, RotationRegistry):
            raise ConfigurationError(
                f"{registry.url}: this registry has no state in which an instance is listed and not called:"
                " `deregister` removes it"
            )
        deadline = Deadline.after(request.timeout, self._clock)
        try:
            found = find(registry, request.selection, deadline, self._output, observe=request.observe)
            require_some(found, request.selection, registry.url)
        except KeyboardInterrupt:
            return ExitStatus.INTERRUPTED, f"interrupted: {_NO_CHANGE}"
        except RegistryError as error:
            return status_of_error(error), f"{_NO_CHANGE}: {error}"
        return found.qualified(self._treat(registry, found))

    def _treat(self, registry: RotationRegistry, found: Found) -> Verdict:
        """Show or change what was found, as asked."""
        request, chosen = self._request, found.chosen
        self._document["candidates"] = [entry_document(entry) for entry in chosen]
        missing = self._missing(found)
        if (missing or request.is_dry_run) and len(chosen) > 1:
            show_table(choice_table(chosen, self._clock.unix_time()), self._output)
        if request.is_dry_run:
            return ExitStatus.DONE, self._intention(chosen, missing)
        if missing:
            return missing[0], f"{_NO_CHANGE}: {missing[1]}"
        return self._rotate_all(registry, chosen)

    def _missing(self, found: Found) -> Verdict | None:
        leaves = None if self._request.is_drain else (lambda _entry: False)
        return self._request.consent.missing(found.chosen, found.listed, leaves=leaves)

    def _intention(self, chosen: Sequence[RegistryEntry], missing: Verdict | None) -> str:
        what = described(chosen[0]) if len(chosen) == 1 else f"these {len(chosen)} instances"
        where = "out of rotation" if self._request.is_drain else "back into rotation"
        return f"would take {what} {where} at {self._registry.url}" + (f"; but {missing[1]}" if missing else "")

    def _rotate_all(self, registry: RotationRegistry, chosen: Sequence[RegistryEntry]) -> Verdict:
        deadline = Deadline.after(self._request.timeout + MORE_TIME_EACH * len(chosen), self._clock)
        outcomes: list[_Outcome] = []
        is_interrupted = False
        try:
            with progress(len(chosen), self._output, "draining" if self._request.is_drain else "undraining") as advance:
                for entry in chosen:
                    outcomes.append(self._rotate(registry, entry, deadline))
                    advance()
        except KeyboardInterrupt:
            is_interrupted = True
        reached = len(outcomes)
        for position, entry in enumerate(chosen[reached:], reached):
            state = "may have been changed or not" if position == reached else "was not changed"
            outcomes.append(_Outcome(entry, ExitStatus.INTERRUPTED, f"{entry} {state}: interrupted"))
        self._document["results"] = [outcome.document() for outcome in outcomes]
        if len(outcomes) == 1:
            return outcomes[0].status, outcomes[0].message
        self._show(outcomes)
        again = "; the same command again does the rest" if is_interrupted else ""
        return worst(outcome.status for outcome in outcomes), f"{self._summary(outcomes)}{again}"

    def _rotate(self, registry: RotationRegistry, entry: RegistryEntry, deadline: Deadline) -> _Outcome:
        is_drain = self._request.is_drain
        try:
            if is_drain:
                rotation = registry.drain(entry, deadline, reason=self._request.reason)
            else:
                rotation = registry.undrain(entry, deadline)
        except RegistryDrainError as error:
            # What is written there has no such state: no waiting and no credentials change that.
            is_mistake = isinstance(error, RegistryDataError)
            status = ExitStatus.BAD_USAGE if is_mistake else status_of_error(error)
            state = "it may have been changed or not; run the command again" if error.retryable else _NO_CHANGE
            return _Outcome(entry, status, f"{state}: {error}")
        detail = f", {rotation.detail}" if rotation.detail else ""
        where = f"{entry} of service {entry.service!r} at {registry.url}"
        if rotation.is_out is is_drain:
            state = "is out of rotation" if is_drain else "is back in rotation"
            return _Outcome(entry, ExitStatus.DONE, f"{where} {state} ({rotation.how}{detail})", rotation)
        state = "is still in rotation" if is_drain else "is still out of rotation"
        return _Outcome(
            entry,
            ExitStatus.FAILED,
            f"{where} {state}, as a consistent read shows ({rotation.how}{detail})",
            rotation,
        )

    def _show(self, outcomes: Sequence[_Outcome]) -> None:
        rows = [
            (
                outcome.entry.service,
                str(outcome.entry),
                outcome.status.word,
                outcome.rotation.how if outcome.rotation and outcome.status is ExitStatus.DONE else outcome.message,
            )
            for outcome in outcomes
        ]
        show_table(Table(("service", "instance", "outcome", "detail"), rows), self._output)

    def _summary(self, outcomes: Sequence[_Outcome]) -> str:
        done = sum(1 for outcome in outcomes if outcome.status is ExitStatus.DONE)
        what = "out of rotation" if self._request.is_drain else "back in rotation"
        message = f"{done} of {len(outcomes)} instances at {self._registry.url} are {what}"
        status = worst(outcome.status for outcome in outcomes)
        if status is ExitStatus.DONE:
            return message
        return f"{message}; {next(outcome.message for outcome in outcomes if outcome.status is status)}"
