"""What it takes before a command changes something: ``--yes``, ``--max``, ``--force``.

Nobody is asked anything, not even at a terminal: a command that waits for an answer hangs the first script that calls
it, and what is answered in haste is "yes". What is meant is shown instead, and the same words with ``--yes`` behind
them do it.

Rules: nothing is changed, not even in part, while something is missing. What is shown is what would be changed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from registry_drain.cli.choosing.selection import key_of, named
from registry_drain.cli.command.exit_status import ExitStatus
from registry_drain.cli.command.invocation import Verdict
from registry_drain.registries.base import RegistryEntry

_HEALTHY = frozenset({"passing", "warning"})


@dataclass(frozen=True, slots=True)
class Consent:
    """What the operator has agreed to.

    Attributes:
        has_agreed: to change several, as they are.
        most: the largest number that was expected; None means any.
        is_forced: to leave a service without a healthy instance.
    """

    has_agreed: bool = False
    most: int | None = None
    is_forced: bool = False

    @classmethod
    def of(cls, options: argparse.Namespace) -> Consent:
        """Take it from the arguments that :func:`~registry_drain.cli.choosing.options.add_consent` added."""
        return cls(options.yes, options.max, getattr(options, "force", False))

    def missing(
        self,
        chosen: Sequence[RegistryEntry],
        listed: Iterable[RegistryEntry],
        *,
        leaves: Callable[[RegistryEntry], bool] | None = None,
    ) -> Verdict | None:
        """Return why ``chosen`` may not be changed yet, and what it takes; None if they may.

        Args:
            chosen: what would be changed.
            listed: at least all instances of the same services.
            leaves: whether callers lose this one by it; by default all of them. Where a registry refuses an entry by
                itself it is still there afterwards.
        """
        if self.most is not None and len(chosen) > self.most:
            return ExitStatus.BAD_USAGE, f"{len(chosen)} instances fit, and --max allows {self.most}: {_told(chosen)}"
        if len(chosen) > 1 and not self.has_agreed:
            what = f"{len(chosen)} instances fit; add --yes if all of them are meant, or choose one with --id:"
            return ExitStatus.BAD_USAGE, f"{what} {_told(chosen)}"
        leaving = [entry for entry in chosen if leaves is None or leaves(entry)]
        services = [] if self.is_forced else left_without(leaving, listed)
        if services:
            what = " and ".join(repr(service) for service in services[:3])
            more = f" and {len(services) - 3} more services" if len(services) > 3 else ""
            return ExitStatus.REFUSED, f"{what}{more} would be left without a healthy instance; --force does it"
        return None


def is_healthy(entry: RegistryEntry) -> bool:
    """Whether callers can be expected to be served by ``entry``, as far as the registry knows.

    Where nothing checks it, a live owner counts. What nobody can tell of (a persistent node, say) does not count.
    """
    return entry.is_live is not False and (entry.health in _HEALTHY or (not entry.health and entry.is_live is True))


def left_without(leaving: Iterable[RegistryEntry], listed: Iterable[RegistryEntry]) -> list[str]:
    """Return the services that lose their last healthy instance if ``leaving`` go, in order."""
    going = {key_of(entry) for entry in leaving if is_healthy(entry)}
    staying = {entry.service for entry in listed if is_healthy(entry) and key_of(entry) not in going}
    return sorted({service for service, _, _ in going} - staying)


def _told(chosen: Sequence[RegistryEntry]) -> str:
    return named(chosen, with_locator=True)
