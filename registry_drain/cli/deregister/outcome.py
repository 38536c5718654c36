"""What became of one removal, as a status and in words."""

from __future__ import annotations

from dataclasses import dataclass

from registry_drain.cli.command.exit_status import ExitStatus, status_of_error, status_of_removal
from registry_drain.errors import LiveOwnerError, RegistryDrainError
from registry_drain.registries.base import RegistryEntry, Removal

NO_CHANGE = "nothing was removed"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One entry's.

    Attributes:
        message: the line for people, the entry's name in it.
        removal: None if the registry was not asked, or refused before anything was sent.
    """

    entry: RegistryEntry
    status: ExitStatus
    message: str
    removal: Removal | None = None

    def removal_document(self) -> dict[str, object] | None:
        """Return the removal, JSON-ready."""
        if self.removal is None:
            return None
        return {
            "outcome": self.removal.outcome.name.lower(),
            "detail": self.removal.detail or None,
            "attempts": self.removal.attempts,
        }


def outcome_of(entry: RegistryEntry, result: Removal | RegistryDrainError, registry_url: str) -> Outcome:
    """Return what :meth:`Registry.remove` returned, or raised, in words."""
    if isinstance(result, Removal):
        status = status_of_removal(result.outcome)
        return Outcome(entry, status, _told(status, entry, result, registry_url), result)
    return Outcome(entry, status_of_error(result), f"{result}{force_advice(result)}")


def force_advice(error: RegistryDrainError) -> str:
    """Return how a refusal is overruled, as the end of its line; empty where it cannot be."""
    if isinstance(error, LiveOwnerError) and error.yields_to_force:
        return "; or use --force, and --watch-back 30 to see whether its owner puts it back"
    return ""


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
