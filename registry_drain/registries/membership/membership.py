"""Which instance, in which registry: what its removals, its errors and its log lines say."""

from __future__ import annotations

from dataclasses import dataclass, replace

from registry_drain.errors import LiveOwnerError, RegistryUnavailableError
from registry_drain.instance import ServiceInstance
from registry_drain.registries.base import Removal, RemovalOutcome


@dataclass(frozen=True, slots=True)
class Membership:
    """One instance in one registry. Immutable.

    Attributes:
        instance: what is, or will be, registered.
        url: the registry's, without secrets.
    """

    instance: ServiceInstance
    url: str

    def __str__(self) -> str:
        """Name both, as log lines do."""
        return f"{self.instance} at {self.url}"

    def removal(
        self, outcome: RemovalOutcome, detail: str = "", attempts: int = 0, confirmed_at: float | None = None
    ) -> Removal:
        """Return what became of a removal of this instance from this registry."""
        return Removal(str(self.instance), self.url, outcome, detail, attempts, confirmed_at)

    def fenced(self) -> LiveOwnerError:
        """Return the error for whoever would register although the stop has begun."""
        return LiveOwnerError(f"{self.instance} is being stopped: it is not registered with {self.url} any more")

    def inherited(self, pid: int) -> LiveOwnerError:
        """Return the error for a forked child that would use the registration of process ``pid``."""
        return LiveOwnerError(
            f"{self.instance} is registered with {self.url} by process {pid}, which forked this one: "
            "make a registration of its own here"
        )

    def no_thread(self, error: RuntimeError) -> RegistryUnavailableError:
        """Return the error for a process that can start no thread to keep the instance registered."""
        return RegistryUnavailableError(
            f"{self.instance} cannot be kept registered with {self.url}: {error}: raise the limit of threads "
            "(ulimit -u, pids.max), or start fewer"
        )

    def left_to_parent(self, pid: int) -> Removal:
        """Return what becomes of a removal in a forked child: nothing."""
        detail = f"process {pid}, which forked this one, registered it and must remove it"
        return self.removal(RemovalOutcome.NOT_REGISTERED, detail)


def handed_over(removal: Removal) -> Removal:
    """Return what ``removal`` is in a hand-over: the successor that stands there was to take over."""
    is_theirs = removal.outcome is RemovalOutcome.SUCCESSOR
    return replace(removal, outcome=RemovalOutcome.HANDED_OVER) if is_theirs else removal
