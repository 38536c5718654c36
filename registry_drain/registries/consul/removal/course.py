"""The rounds of a removal: look, settle, send, look again. See the package for the theory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from registry_drain.clock import Clock, Deadline
from registry_drain.errors import (
    InstanceNotFoundError,
    LiveOwnerError,
    PermissionRefusedError,
    RegistryDrainError,
    RegistryUnavailableError,
)
from registry_drain.registries.abilities import RemovalResult
from registry_drain.registries.base import RegistryEntry, RemovalOutcome
from registry_drain.registries.consul.agents import Agents
from registry_drain.registries.consul.catalog import Listed, read_service
from registry_drain.registries.consul.http import ConsulAddress, ConsulClient
from registry_drain.registries.consul.look import Look
from registry_drain.registries.consul.removal.case import Case, Target
from registry_drain.registries.consul.removal.companions import Companions
from registry_drain.registries.consul.removal.transaction import MOST_OPERATIONS
from registry_drain.registries.consul.removal.ways import Ways
from registry_drain.registries.retry import persistently

_AT_ONCE = 8 * MOST_OPERATIONS
"""Entries of one round: their results come together, and one proof is asked for all of them."""


class ConsulRemovals:
    """One removal of any number of entries. Not reusable."""

    def __init__(
        self, client: ConsulClient, clock: Clock, *, agent: ConsulAddress | None = None, force: bool = False
    ) -> None:
        """Prepare; sends nothing. ``agent``: the one to ask, instead of whichever is found."""
        self._client = client
        self._clock = clock
        self._force = force
        self._agents = Agents(client, agent)
        self._ways = Ways(client, self._agents)

    def run(
        self,
        entries: Sequence[RegistryEntry],
        deadline: Deadline,
        on_result: Callable[[RegistryEntry, RemovalResult], None],
    ) -> None:
        """Remove and prove. See :meth:`registry_drain.registries.abilities.BulkRegistry.remove_many`."""
        url = self._client.address.url
        try:
            for first in range(0, len(entries), _AT_ONCE):
                cases = [Case(entry, url, self._clock) for entry in entries[first : first + _AT_ONCE]]
                self._run_some(cases, deadline, on_result)
        finally:
            self._agents.close()

    def _run_some(
        self, cases: list[Case], deadline: Deadline, on_result: Callable[[RegistryEntry, RemovalResult], None]
    ) -> None:
        def unsettled() -> list[Case]:
            return [case for case in cases if case.result is None]

        teller = _Teller(cases, on_result)
        try:
            persistently(lambda: self._round(unsettled(), deadline), deadline, teller.tell)
        except RegistryDrainError as error:
            if error is teller.error:
                raise
            for case in unsettled():
                if case.sent is not None:
                    case.fail(error)
            teller.tell()
            if unsettled():
                raise

    def companions(self, entries: Sequence[RegistryEntry], deadline: Deadline) -> list[tuple[str, ...]]:
        """Return what would go with each entry. See :class:`CompanionRegistry`."""

        def read() -> list[tuple[str, ...]]:
            look = Look(self._client, entries, deadline)
            found = [look.find(entry) for entry in entries]
            known = self._companions(
                {entry.service for entry, one in zip(entries, found, strict=True) if one}, deadline
            )
            return [
                tuple(each.what for each in known[entry.service].of(one)) if one else ()
                for entry, one in zip(entries, found, strict=True)
            ]

        return persistently(read, deadline)

    def _companions(self, services: set[str], deadline: Deadline) -> dict[str, Companions]:
        return {service: Companions.read(self._client, service, deadline) for service in services}

    # --- one round ----------------------------------------------------------------------------------------------------

    def _round(self, cases: list[Case], deadline: Deadline) -> None:
        look = Look(self._client, [case.entry for case in cases], deadline)
        targets = []
        for case in cases:
            case.attempts += 1
            listed = self._judge(case, look, deadline)
            if listed is not None:
                targets.append(Target(case, listed, look.is_ambiguous(listed, case.entry.service)))
        if targets:
            known = self._companions({target.case.entry.service for target in targets}, deadline)
            for target in targets:
                target.case.companions = known[target.case.entry.service].of(target.listed)
            failure = self._ways.send(targets, deadline)
            self._prove([target.case for target in targets if target.case.result is None], deadline)
            if failure is not None and any(case.result is None for case in cases):
                raise failure
        if left := [case.entry for case in cases if case.result is None]:
            raise RegistryUnavailableError(f"{self._client.address.url}: {left[0]} is still listed")

    def _prove(self, cases: list[Case], deadline: Deadline) -> None:
        if not cases:
            return
        look = Look(self._client, [case.entry for case in cases], deadline)
        for case in cases:
            # What is listed as before stays unsettled.
            self._judge(case, look, deadline)

    def _judge(self, case: Case, look: Look, deadline: Deadline) -> Listed | None:
        """Return what is to be removed; or settle the case, and return None."""
        try:
            listed = look.find(case.entry)
            if listed is None:
                self._absent(case, look, deadline)
            elif listed.version != case.entry.version:
                self._changed(case)
            else:
                if case.sent is None:
                    self._check_owner(listed)
                return listed
        except RegistryUnavailableError:
            raise
        except RegistryDrainError as error:
            if case.sent is not None and isinstance(error, PermissionRefusedError):
                # It was seen, and removed; now the right to see is gone.
                case.conclude(RemovalOutcome.UNVERIFIABLE, f"{case.sent.how}, and then: {error}")
            else:
                case.fail(error)
        return None

    def _check_owner(self, listed: Listed) -> None:
        if self._force:
            return
        what = f"{listed.locator} ({listed.entry().endpoint})"
        if manager := listed.manager:
            raise LiveOwnerError(
                f"{what} belongs to {manager.name}, which puts it back: {manager.remedy}", yields_to_force=True
            )
        if listed.is_live:
            raise LiveOwnerError(
                f"{what}: its owner is alive, its checks pass on {listed.node}: stop its process",
                yields_to_force=True,
            )

    def _changed(self, case: Case) -> None:
        if case.sent is None:
            raise LiveOwnerError(f"{case.url}: {case.entry.locator} was registered anew since it was shown: look again")
        case.conclude(RemovalOutcome.SUCCESSOR, f"{case.sent.how}; it was registered anew since", is_proven=True)

    def _absent(self, case: Case, look: Look, deadline: Deadline) -> None:
        if look.has_namesake(case.entry):
            self._changed(case)
            return
        # Also where it has been seen: it may be the right to see it that is gone.
        look.require_sight(case.entry.service, deadline)
        if case.sent is None:
            raise InstanceNotFoundError(f"{case.url}: {case.entry.locator} is not listed (any more)")
        left = self._left_of(case, deadline)
        gone = [each.what for each in case.companions if each.what not in left]
        also = f", and with it went {', '.join(gone)}" if gone else ""
        note = f"; what belongs to it is still listed: {', '.join(left)}" if left else ""
        detail = f"{case.sent.how}; not listed by a consistent read{also}{note}{case.sent.caveat}"
        case.conclude(RemovalOutcome.CONFIRMED, detail, is_proven=True)

    def _left_of(self, case: Case, deadline: Deadline) -> list[str]:
        """Return what was to go with it, and is still listed."""
        left = []
        for each in case.companions:
            if each.listed is not None:
                found = read_service(self._client, each.listed.service, deadline)
                is_listed = any(one.locator == each.listed.locator for one in found)
            else:
                params = {"consistent": ""}
                answer = self._client.call("GET", "health", "node", each.node, deadline=deadline, params=params).data
                is_listed = any(isinstance(one, dict) and one.get("CheckID") == each.id for one in answer or ())
            if is_listed:
                left.append(each.what)
        return left


class _Teller:
    """Hands results on, each once, and remembers what the receiver raised: that is nobody's to retry."""

    def __init__(self, cases: list[Case], on_result: Callable[[RegistryEntry, RemovalResult], None]) -> None:
        self._cases = cases
        self._on_result = on_result
        self.error: BaseException | None = None

    def tell(self) -> None:
        for case in self._cases:
            if case.result is None or case.is_told:
                continue
            case.is_told = True
            try:
                self._on_result(case.entry, case.result)
            except BaseException as error:
                self.error = error
                raise
