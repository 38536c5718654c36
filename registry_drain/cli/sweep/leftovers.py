"""What a sweep does about things of ours that are no entries, and have outlived the instance that they were for.

They are no ghosts: no evidence is needed beyond that their instance is gone, which the registry knows. So they are
shown, and with ``--yes`` deleted, whatever counts as dead otherwise.
"""

from __future__ import annotations

from registry_drain.cli.command.exit_status import ExitStatus, status_of_error, worst
from registry_drain.cli.command.invocation import Document, Verdict
from registry_drain.clock import Deadline
from registry_drain.errors import RegistryError
from registry_drain.registries.abilities import Leftover, LeftoverRegistry
from registry_drain.registries.base import Registry

_MOST_TOLD = 3


def treated(
    verdict: Verdict, registry: Registry, service: str | None, deadline: Deadline, document: Document, *, deletes: bool
) -> Verdict:
    """Show what is left, or delete it; return ``verdict`` with what became of it. Fills in ``document``."""
    documents: list[Document] = []
    document["leftovers"] = documents
    if not isinstance(registry, LeftoverRegistry):
        return verdict
    status, message = verdict
    try:
        found = registry.leftovers(service, deadline)
    except RegistryError as error:
        return worst((status, status_of_error(error))), f"{message}; what else is left cannot be told: {error}"
    if not found:
        return verdict
    told: list[str] = []
    statuses = [status]
    for leftover in found:
        outcome: ExitStatus | None = None
        if deletes:
            outcome, how = _deleted(registry, leftover, deadline)
            statuses.append(outcome)
        else:
            how = "left; --yes deletes it"
        told.append(f"{leftover.subject} ({leftover.locator}): {how}")
        documents.append(
            {
                "subject": leftover.subject,
                "locator": leftover.locator,
                "status": None if outcome is None else int(outcome),
                "message": how,
            }
        )
    more = f"; and {len(told) - _MOST_TOLD} more" if len(told) > _MOST_TOLD else ""
    return worst(statuses), f"{message}; {'; '.join(told[:_MOST_TOLD])}{more}"


def _deleted(registry: LeftoverRegistry, leftover: Leftover, deadline: Deadline) -> tuple[ExitStatus, str]:
    try:
        is_gone = registry.clear(leftover, deadline)
    except RegistryError as error:
        return status_of_error(error), str(error)
    if is_gone:
        return ExitStatus.DONE, "deleted"
    return ExitStatus.REFUSED, "somebody has written there since, and it stays"
