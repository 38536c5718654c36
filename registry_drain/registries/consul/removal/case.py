"""One entry on its way out: what was sent for it, and what it comes to."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from registry_drain.clock import Clock
from registry_drain.errors import PermissionRefusedError, RegistryDrainError
from registry_drain.registries.abilities import RemovalResult
from registry_drain.registries.base import RegistryEntry, Removal, RemovalOutcome
from registry_drain.registries.consul.agents import Owner
from registry_drain.registries.consul.catalog import Listed
from registry_drain.registries.consul.removal.companions import Companion


@dataclass(frozen=True, slots=True)
class Sent:
    """What has been done about an entry, and what may undo it."""

    how: str
    caveat: str = ""


@dataclass(eq=False, slots=True)
class Case:
    """One entry on its way out.

    Attributes:
        entry: as it was shown.
        url: the registry's, for messages.
        clock: for the instant of a proof.
        attempts: rounds that it took part in.
        sent: the last removal that was sent and may have been carried out; None before.
        companions: what goes with it.
        result: what became of it; None while unsettled.
        is_told: whether the result was handed on.
    """

    entry: RegistryEntry
    url: str
    clock: Clock
    attempts: int = 0
    sent: Sent | None = None
    companions: tuple[Companion, ...] = ()
    result: RemovalResult | None = None
    is_told: bool = False

    def conclude(self, outcome: RemovalOutcome, detail: str, *, is_proven: bool = False) -> None:
        """Settle it by an outcome."""
        at = self.clock.now() if is_proven else None
        self.result = Removal(str(self.entry), self.url, outcome, detail, self.attempts, confirmed_at=at)

    def fail(self, error: RegistryDrainError) -> None:
        """Settle it by an error; which is an outcome if something was sent."""
        if self.sent is None:
            self.result = error
            return
        refused = isinstance(error, PermissionRefusedError)
        outcome = RemovalOutcome.REFUSED if refused else RemovalOutcome.UNCONFIRMED
        self.conclude(outcome, f"{self.sent.how}, and then: {error}")


@dataclass(frozen=True, slots=True)
class Target:
    """What a round has found for a case, and is to remove.

    Attributes:
        case: whose it is.
        listed: as a consistent read of this round lists it.
        is_ambiguous: another node lists the same Consul id.
    """

    case: Case
    listed: Listed
    is_ambiguous: bool

    def caveat(self, owner: Owner) -> str:
        """Say what undoes a removal from the catalog alone, and what to do about it; empty if nothing does."""
        node = self.listed.node
        if owner.has_dropped_it or self.listed.is_node_alive is None:
            return ""  # its agent does not know it, or it is an external node, which has no agent
        if owner.has_another:
            return f"; the agent of {node} has registered the same id with other content meanwhile, and puts that there"
        ids = [self.listed.consul_id, *(each.id for each in self.case.companions if each.listed is not None)]
        command = " && ".join(f"consul services deregister -id={shlex.quote(each)}" for each in ids)
        if self.listed.is_node_alive:
            return (
                f"; the agent of {node} could not be asked and lives: unless it has dropped the entry, it puts it back "
                f"within about 2 minutes: on that host, run: {command}"
            )
        return (
            f"; the agent of {node} is down: if it starts again with its data, it puts the entry back: then, on that "
            f"host, run: {command}; if the host is gone for good: consul force-leave {shlex.quote(node)}"
        )
