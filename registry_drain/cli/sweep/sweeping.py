"""One sweep, step by step.

Theory of operation: read the registry; collect what speaks against each entry, which for addresses takes several tries
over some seconds; read it again, because some seconds are enough to recover; remove exactly what was shown then and
nothing that was registered since (the registry compares); prove it; report which evidence led to which removal.

Rules:

1. Nothing is removed without ``--yes``, and nothing that anything alive is known to keep.
2. Each entry stands for itself. What an interruption leaves undone, the next sweep finds again; what it interrupted is
   looked at once more, so that nothing is said to be removed that nobody saw to be gone.
3. Weak evidence is shown, and is enough only if it is asked for by name.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from registry_drain.cli.choosing.consent import Consent
from registry_drain.cli.choosing.critical_since import CriticalSince
from registry_drain.cli.choosing.moment import Moment
from registry_drain.cli.choosing.observation import observed, too_young
from registry_drain.cli.choosing.patience import read_entries
from registry_drain.cli.choosing.selection import key_of, unread_note
from registry_drain.cli.command.exit_status import ExitStatus, status_of_error, worst
from registry_drain.cli.command.invocation import Document, Verdict
from registry_drain.cli.command.output import Output
from registry_drain.cli.command.table import write_table
from registry_drain.cli.deregister.bulk import LAST_LOOK, MORE_TIME_EACH, BulkRemoval, remove_all
from registry_drain.cli.deregister.outcome import Outcome, outcome_of
from registry_drain.cli.deregister.watched import LookingAfter
from registry_drain.cli.sweep.evidence import (
    OPTIONS,
    Finders,
    can_be_probed,
    endpoints_of,
    evidence_against,
    reason_to_spare,
)
from registry_drain.cli.sweep.leftovers import treated
from registry_drain.cli.sweep.probes import Answer, Endpoint, Probe, ProbePlan, probe_all
from registry_drain.cli.sweep.report import Ghost, ghost_document, ghost_table
from registry_drain.clock import Clock, Deadline
from registry_drain.errors import RegistryError
from registry_drain.registries.base import Registry, RegistryEntry

_MOST_CAVEATS = 3
"""Lines below the table: what holds for one ghost of a dead host usually holds for all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the operator asked for; times in seconds."""

    finders: Finders
    consent: Consent
    plan: ProbePlan
    service: str | None = None
    timeout: float = 10.0
    observes: bool = False
    watch_back: float = 0.0


class Sweep:
    """One sweep. Fills in ``document`` as it goes, so that JSON tells on failures how far it came."""

    def __init__(
        self,
        registry: Registry,
        request: Request,
        since: CriticalSince,
        output: Output,
        document: Document,
        clock: Clock,
    ) -> None:
        """Send nothing yet."""
        self._registry = registry
        self._request = request
        self._since = since
        self._output = output
        self._document = document
        self._clock = clock
        self._ghosts: list[Ghost] = []
        self._is_refused = False

    def run(self) -> Verdict:
        """Do it, once."""
        try:
            entries = self._look()
            probes = self._probe(entries)
            if probes:
                entries = self._look_again(entries)
        except RegistryError as error:
            return status_of_error(error), f"nothing was removed: {error}"
        except KeyboardInterrupt:
            return ExitStatus.INTERRUPTED, "interrupted: nothing was removed"
        status, message = self._with_leftovers(self._treat(entries, probes))
        if unread := [entry for entry in entries if _is_hidden(entry)]:
            return worst((status, ExitStatus.REFUSED)), f"{message}; {unread_note(unread, 'may be ghosts')}"
        return status, message

    def _with_leftovers(self, verdict: Verdict) -> Verdict:
        """Return ``verdict`` with what else is left of instances that are gone; deleted, if ghosts were, too."""
        if verdict[0] is ExitStatus.INTERRUPTED:
            return verdict
        request = self._request
        deletes = request.consent.has_agreed and not self._is_refused
        deadline = Deadline.after(request.timeout, self._clock)
        return treated(verdict, self._registry, request.service, deadline, self._document, deletes=deletes)

    def _treat(self, entries: Sequence[RegistryEntry], probes: dict[Endpoint, Probe]) -> Verdict:
        """Show or remove what is a ghost, as asked."""
        self._judge(entries, probes)
        going = [ghost for ghost in self._ghosts if ghost.is_to_go]
        found = f"{_number(len(going), 'ghost')} among {_number(len(entries), 'instance')}"
        notes = self._notes(entries, probes, going)
        if not self._request.consent.has_agreed:
            self._report()
            most = self._request.consent.most
            if most is not None and len(going) > most:
                found += f", which is more than the {most} of --max"
            asked = [f"--yes removes {'it' if len(going) == 1 else 'them'}"] if going else []
            return ExitStatus.DONE, "; ".join([found, *asked, *notes])
        missing = self._request.consent.missing([ghost.entry for ghost in going], entries)
        if missing is not None:
            self._is_refused = True
            self._report()
            return missing[0], f"nothing was removed: {missing[1]}"
        if not going:
            self._report()
            return ExitStatus.DONE, "; ".join([found, *notes])
        return self._remove(going, entries, notes)

    def _look(self) -> Sequence[RegistryEntry]:
        request = self._request

        def read() -> Sequence[RegistryEntry]:
            deadline = Deadline.after(request.timeout, self._clock)
            return read_entries(self._registry, request.service, deadline, self._output)

        if request.finders.critical_for is None:
            return read()
        return observed(
            read,
            self._since,
            request.finders.critical_for,
            waits=request.observes,
            output=self._output,
            clock=self._clock,
        )

    def _look_again(self, entries: Sequence[RegistryEntry]) -> Sequence[RegistryEntry]:
        """Return those that are listed now as they were; whatever changed meanwhile lives."""
        before = {key_of(entry): entry.version for entry in entries}
        deadline = Deadline.after(self._request.timeout, self._clock)
        asked_at = Moment.now()
        now = read_entries(self._registry, self._request.service, deadline, self._output)
        if self._request.finders.critical_for is not None:
            self._since.note(now, asked_at)
        return [entry for entry in now if before.get(key_of(entry)) == entry.version]

    def _probe(self, entries: Sequence[RegistryEntry]) -> dict[Endpoint, Probe]:
        finders, plan = self._request.finders, self._request.plan
        if not finders.needs_probes:
            return {}
        endpoints = list(
            dict.fromkeys(
                endpoint
                for entry in entries
                if can_be_probed(entry) and not reason_to_spare(entry)
                for endpoint in endpoints_of(entry)
            )
        )
        if not endpoints:
            return {}
        self._document["probed"] = {
            "from_host": socket.gethostname(),
            "addresses": len(endpoints),
            "tries": plan.tries,
            "connect_timeout": plan.connect_timeout,
        }

        def on_round(number: int, left: int) -> None:
            self._output.remark(f"trying {left} addresses from this host, {number} of {plan.tries} times")

        return probe_all(endpoints, plan, self._clock, on_round)

    def _judge(self, entries: Sequence[RegistryEntry], probes: dict[Endpoint, Probe]) -> None:
        finders = self._request.finders
        for entry in entries:
            evidence = evidence_against(entry, finders, self._since, probes)
            if not evidence:
                continue
            spared = reason_to_spare(entry)
            if not spared and not any(finders.wants(each.kind) for each in evidence):
                options = ", ".join(dict.fromkeys(OPTIONS[each.kind] for each in evidence))
                spared = f"this alone is not enough without {options}"
            self._ghosts.append(Ghost(entry, evidence, spared))

    def _notes(
        self, entries: Sequence[RegistryEntry], probes: dict[Endpoint, Probe], going: Sequence[Ghost]
    ) -> list[str]:
        """Return how it was looked, and where the search was blind."""
        finders = self._request.finders
        told = []
        if spared := len(self._ghosts) - len(going):
            told.append(f"{spared} more left alone")
        if probes:
            told.append(f"addresses tried from {socket.gethostname()}")
        untried = Counter(probe.answer for probe in probes.values())[Answer.NOT_TRIED]
        if untried:
            told.append(f"{_number(untried, 'loopback address', 'loopback addresses')} not tried: --loopback does")
        if finders.critical_for is not None:
            judged = {key_of(ghost.entry) for ghost in self._ghosts}
            rest = [entry for entry in entries if key_of(entry) not in judged]
            if young := too_young(rest, self._since, finders.critical_for):
                told.append(young)
        return told

    def _remove(self, going: Sequence[Ghost], listed: Sequence[RegistryEntry], notes: Sequence[str]) -> Verdict:
        deadline = Deadline.after(self._request.timeout + MORE_TIME_EACH * len(going), self._clock)
        bulk = remove_all(self._registry, [ghost.entry for ghost in going], deadline, self._output)
        for position, result in bulk.results.items():
            going[position].outcome = outcome_of(going[position].entry, result, self._registry.url)
        is_interrupted = bulk.is_interrupted
        try:
            self._look_after([ghost for ghost in going if ghost.outcome is None], bulk)
            if self._request.watch_back and not is_interrupted:
                self._watch_back(going, listed)
        except KeyboardInterrupt:
            is_interrupted = True
            for ghost in going:
                if ghost.outcome is None:
                    message = f"{ghost.entry} may have been removed or not (interrupted)"
                    ghost.outcome = Outcome(ghost.entry, ExitStatus.UNREACHABLE, message)
        self._report()
        self._show_caveats(going)
        gone = sum(1 for ghost in going if ghost.is_gone)
        told = f"removed {gone} of {_number(len(going), 'ghost')}"
        if is_interrupted:
            return ExitStatus.INTERRUPTED, f"interrupted: {told}; sweep again to finish"
        # What is gone already is what was wanted.
        status = worst(ghost.status for ghost in going if ghost.status is not None and not ghost.is_gone)
        if status is ExitStatus.DONE:
            return status, "; ".join([f"{told} among {_number(len(listed), 'instance')}", *notes])
        first = next(ghost.outcome for ghost in going if ghost.outcome is not None and ghost.status is status)
        return status, f"{told}; {first.message if bulk.failure is None else bulk.failure}"

    def _show_caveats(self, going: Sequence[Ghost]) -> None:
        """Say what the registry said of each removal, such as what will undo it: the table has no room for that."""
        lines = [
            f"{ghost.entry}: {ghost.outcome.removal.detail}"
            for ghost in going
            if ghost.outcome is not None and ghost.outcome.removal is not None and ghost.outcome.removal.detail
        ]
        for line in lines[:_MOST_CAVEATS]:
            self._output.say(line)
        if len(lines) > _MOST_CAVEATS:
            self._output.say(f"... and {len(lines) - _MOST_CAVEATS} more: --json tells of each")

    def _look_after(self, rest: Sequence[Ghost], bulk: BulkRemoval) -> None:
        """Say of those without a result whether they are gone: what was asked for may have happened unseen."""
        if not rest:
            return
        why = "interrupted" if bulk.is_interrupted else str(bulk.failure)
        try:
            now = self._registry.entries(self._request.service, Deadline.after(LAST_LOOK, self._clock))
        except RegistryError as error:
            for ghost in rest:
                message = f"{ghost.entry} may have been removed or not ({why}; {error})"
                ghost.outcome = Outcome(ghost.entry, ExitStatus.UNREACHABLE, message)
            return
        there = {key_of(entry): entry.version for entry in now}
        for ghost in rest:
            if there.get(key_of(ghost.entry)) != ghost.entry.version:
                message = f"{ghost.entry} is gone ({why} before that was reported, and not listed any more)"
                ghost.outcome = Outcome(ghost.entry, ExitStatus.DONE, message)
            elif bulk.failure is not None:
                message = f"{ghost.entry} is still there ({why})"
                ghost.outcome = Outcome(ghost.entry, status_of_error(bulk.failure), message)
            else:
                message = f"{ghost.entry} is still there ({why})"
                ghost.outcome = Outcome(ghost.entry, ExitStatus.INTERRUPTED, message)

    def _watch_back(self, tried: Sequence[Ghost], listed: Iterable[RegistryEntry]) -> None:
        """Look for as long as asked whether any of them comes back, under its id or at its address."""
        before = [ghost.outcome for ghost in tried if ghost.outcome is not None]
        seen: list[Document] = [{} for _ in before]
        looking = LookingAfter(
            registry=self._registry,
            listed=listed,
            seconds=self._request.watch_back,
            read_timeout=self._request.timeout,
            output=self._output,
            clock=self._clock,
        )
        after = looking.removed(before, seen)
        for ghost, outcome, document in zip(tried, after, seen, strict=True):
            ghost.outcome, ghost.watched_back = outcome, document.get("watched_back")

    def _report(self) -> None:
        self._document["ghosts"] = [ghost_document(ghost) for ghost in self._ghosts]
        if self._ghosts:
            write_table(ghost_table(self._ghosts), self._output)


def _is_hidden(entry: RegistryEntry) -> bool:
    """Whether ``entry`` is, or holds, something that nobody keeps, as far as can be told, and that may not be read."""
    return entry.refused == "children" or (entry.refused == "data" and not entry.is_live and not can_be_probed(entry))


def _number(count: int, what: str, several: str = "") -> str:
    return f"{count} {what if count == 1 else several or what + 's'}"
