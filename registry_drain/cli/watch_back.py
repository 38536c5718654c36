"""Looking whether a removed instance comes back: a live owner often registers again what somebody else took away.

Theory of operation: the registry is read again and again, because an entry, unlike a watch's list, says who owns it,
and unhealthy ones are shown too. What stood in the list beside the removed instance does not count; what is new and
has its id or its address does, since many systems make up a new id for each registration.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass

from registry_drain.cli.selection import same_host
from registry_drain.clock import Clock, Deadline
from registry_drain.errors import RegistryUnavailableError
from registry_drain.registries.base import Registry, RegistryEntry

LOOK_EVERY = 0.25
"""Seconds between two reads. Who registers again does so for good, so nothing shorter is missed that matters."""


@dataclass(frozen=True, slots=True)
class WatchedBack:
    """What was seen.

    Attributes:
        looked_for: seconds.
        returned: what came back, as it was first seen; None if nothing.
        failure: why the last look failed; None if it did not.
    """

    looked_for: float
    returned: RegistryEntry | None = None
    failure: RegistryUnavailableError | None = None


def watch_back(
    registry: Registry,
    removed: RegistryEntry,
    others: Iterable[RegistryEntry],
    *,
    seconds: float,
    read_timeout: float,
    clock: Clock,
) -> WatchedBack:
    """Look for ``seconds`` whether ``removed`` comes back beside ``others``, which were listed with it.

    An unreachable registry is looked at again until the time is up; each read may take ``read_timeout`` seconds.

    Raises:
        RegistryError: looking again cannot help (credentials that were revoked meanwhile).
    """
    started_at = clock.now()
    over = Deadline.after(seconds, clock)
    beside = {_place(entry) for entry in others} - {_place(removed)}
    never = threading.Event()
    while True:
        is_last = over.is_past  # so that the last look is at the end, not some time before it
        failure = None
        try:
            for entry in registry.entries(removed.service, Deadline.after(read_timeout, clock)):
                if _place(entry) not in beside and _is_same(entry, removed):
                    return WatchedBack(clock.now() - started_at, entry)
        except RegistryUnavailableError as error:
            failure = error
        if is_last:
            return WatchedBack(clock.now() - started_at, failure=failure)
        over.capped(LOOK_EVERY).wait(never)


def _place(entry: RegistryEntry) -> tuple[str, str]:
    return entry.id, entry.locator


def _is_same(entry: RegistryEntry, removed: RegistryEntry) -> bool:
    has_address = bool(removed.address and removed.port)
    return entry.id == removed.id or (
        has_address and entry.port == removed.port and same_host(entry.address, removed.address)
    )
