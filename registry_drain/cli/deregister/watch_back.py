"""Looking whether removed instances come back: a live owner often registers again what somebody else took away.

Theory of operation: the registry is read again and again, because an entry, unlike a watch's list, says who owns it,
and unhealthy ones are shown too. What stood in the list beside the removed instances does not count; what is new and
has the id or the address of a removed one does, since many systems make up a new id for each registration.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from registry_drain.cli.choosing.selection import key_of, same_host
from registry_drain.clock import Clock, Deadline
from registry_drain.errors import RegistryUnavailableError
from registry_drain.registries.base import Registry, RegistryEntry

LOOK_EVERY = 0.25
"""Seconds between two reads. Who registers again does so for good, so nothing shorter is missed that matters."""


@dataclass(frozen=True, slots=True)
class Return:
    """One that came back.

    Attributes:
        entry: as it was first seen again.
        after: seconds after the first look, at the most.
    """

    entry: RegistryEntry
    after: float


@dataclass(slots=True)
class BackWatch:
    """What is looked for, and what was seen so far; also after an interruption.

    Attributes:
        removed: what was removed.
        listed: what was listed before, the removed ones included or not.
        looked_for: seconds, up to the last look.
        returned: what came back, by the position in ``removed``.
        failure: why the last look failed; None if it did not.
    """

    removed: Sequence[RegistryEntry]
    listed: Iterable[RegistryEntry]
    looked_for: float = 0.0
    returned: dict[int, Return] = field(default_factory=dict)
    failure: RegistryUnavailableError | None = None

    def run(self, registry: Registry, *, seconds: float, read_timeout: float, clock: Clock) -> None:
        """Look for ``seconds``, or until all of them have come back.

        An unreachable registry is looked at again until the time is up; each read may take ``read_timeout`` seconds.

        Raises:
            RegistryError: looking again cannot help (credentials that were revoked meanwhile).
        """
        started_at = clock.now()
        over = Deadline.after(seconds, clock)
        beside = {key_of(entry) for entry in self.listed} - {key_of(entry) for entry in self.removed}
        services = sorted({entry.service for entry in self.removed})
        seen: set[tuple[str, str, str]] = set()
        never = threading.Event()
        while True:
            is_last = over.is_past  # so that the last look is at the end, not some time before it
            self.failure = None
            try:
                for service in services:
                    for entry in registry.entries(service, Deadline.after(read_timeout, clock)):
                        if (place := key_of(entry)) not in beside and place not in seen:
                            seen.add(place)
                            self._see(entry, clock.now() - started_at)
            except RegistryUnavailableError as error:
                self.failure = error
            self.looked_for = clock.now() - started_at
            if is_last or len(self.returned) == len(self.removed):
                return
            over.capped(LOOK_EVERY).wait(never)

    def _see(self, entry: RegistryEntry, after: float) -> None:
        missing = [each for each in enumerate(self.removed) if each[0] not in self.returned]
        same_id = [position for position, removed in missing if _has_id(entry, removed)]
        same_address = [position for position, removed in missing if _has_address(entry, removed)]
        # One entry is one return: whoever has the id of one has not brought back its neighbour at the same address.
        for position in (same_id or same_address)[:1]:
            self.returned[position] = Return(entry, after)


def _has_id(entry: RegistryEntry, removed: RegistryEntry) -> bool:
    return (entry.service, entry.id) == (removed.service, removed.id)


def _has_address(entry: RegistryEntry, removed: RegistryEntry) -> bool:
    return bool(
        entry.service == removed.service
        and removed.address
        and removed.port
        and entry.port == removed.port
        and same_host(entry.address, removed.address)
    )
