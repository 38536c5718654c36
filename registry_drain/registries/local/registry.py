"""The embedded registry: ``local:///directory``, for one machine. Nothing to install, nothing to start.

Theory of operation: see :mod:`registry_drain.registries.local.directory`, and ``registration`` for one's own instance.

Options: ``poll_s`` (default 0.05), the seconds between two looks of a watch: the time in which callers notice a change.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from registry_drain.clock import Clock, Deadline
from registry_drain.errors import ConfigurationError, InstanceNotFoundError, LiveOwnerError
from registry_drain.instance import ServiceInstance
from registry_drain.registries.base import Registry, RegistryEntry, Removal, RemovalOutcome, Watch, WatchCallback
from registry_drain.registries.local.directory import InstanceDirectory
from registry_drain.registries.local.registration import LocalRegistration
from registry_drain.registries.local.watch import LocalWatch, healthy
from registry_drain.registries.retry import retrying
from registry_drain.registries.url import RegistryURL, seconds

DEFAULT_POLL_S = 0.05
"""Quick enough that a restart in a test is noticed at once; 100 instances cost a watch about 5 % of one core."""


def open_local(url: RegistryURL, clock: Clock) -> LocalRegistry:
    """Return the registry of a directory. Touches no file.

    Raises:
        ConfigurationError: no directory, a host, or an option that cannot work.
    """
    url.check_options(frozenset({"poll_s"}))
    if url.hosts:
        raise ConfigurationError(f"{url} names a host: a directory has three slashes, local:///directory")
    if not url.path.strip("/"):
        raise ConfigurationError(f"{url} names no directory: write local:///directory")
    return LocalRegistry(url, clock, poll_s=url.option("poll_s", seconds, DEFAULT_POLL_S))


class LocalRegistry:
    """The instances in one directory. See :class:`registry_drain.registries.base.Registry`."""

    def __init__(self, url: RegistryURL, clock: Clock, *, poll_s: float = DEFAULT_POLL_S) -> None:
        """Touch no file yet."""
        self._url = str(url)
        self._clock = clock
        self._poll_s = poll_s
        self._directory = InstanceDirectory(url.path.rstrip("/"))
        self._lock = threading.Lock()
        self._watches: set[LocalWatch] = set()

    @property
    def url(self) -> str:
        """The URL it was opened with."""
        return self._url

    def registration(self, instance: ServiceInstance) -> LocalRegistration:
        """Return the membership of ``instance``. Touches no file."""
        return LocalRegistration(self._directory, self._url, instance, self._clock)

    def entries(self, service: str | None, deadline: Deadline) -> Sequence[RegistryEntry]:  # noqa: ARG002
        """Return what is alive, and the files that are no instances. Local reads take no deadline.

        Raises:
            RegistryUnavailableError, PermissionRefusedError: the directory could not be read in full.
        """
        return [file.entry for file in self._directory.scan(service)]

    def remove(self, entry: RegistryEntry, deadline: Deadline, *, force: bool = False) -> Removal:
        """Remove a live owner's file (with ``force``), or one that is no instance (with ``force`` too).

        What is dead is in no list and needs no removal. The owner goes on holding the lock of a file that has no name.
        """
        path = Path(entry.locator)
        name = path.name
        if path.parent != self._directory.path:
            raise InstanceNotFoundError(f"{entry} is not in {self._url}: it stands in {entry.locator!r}")
        with self._directory.locked(deadline):
            self._directory.unlink_if_dead(name)
            found = self._directory.read(name)
            if found is None:
                raise InstanceNotFoundError(f"{entry} is not in {self._url} any more")
            if found.entry.version != entry.version:
                raise LiveOwnerError(f"{entry} was registered anew in {self._url} since it was shown: list it again")
            if not force:
                keeper = f"is kept by {found.entry.owner}: stop that one" if found.is_live else "is no file of ours"
                raise LiveOwnerError(f"{entry} in {self._url} {keeper}", yields_to_force=True)
            self._directory.unlink(name)
            is_gone = self._directory.read(name) is None
            confirmed_at = self._clock.now()
        if not is_gone:
            detail = f"{entry.locator} is there again: somebody writes it without the directory's lock"
            return Removal(str(entry), self._url, RemovalOutcome.UNCONFIRMED, detail, 1)
        return Removal(str(entry), self._url, RemovalOutcome.CONFIRMED, "", 1, confirmed_at)

    def watch(self, service: str, deadline: Deadline, on_change: WatchCallback | None = None) -> LocalWatch:
        """Follow a service by looking every ``poll_s`` seconds."""
        for attempt in retrying(deadline):
            with attempt:
                first = healthy(self._directory, service)
        watch = LocalWatch(self._directory, service, first, on_change, poll_s=self._poll_s, clock=self._clock)
        with self._lock:
            self._watches.add(watch)
        return watch

    def close(self) -> None:
        """Close the watches."""
        with self._lock:
            watches = list(self._watches)
            self._watches.clear()
        for watch in watches:
            watch.close()

    def __repr__(self) -> str:
        """Show where it is."""
        return f"<LocalRegistry {self._url} watches={len(self._watches)}>"


# A type checker compares the backend with the protocols here.
_registry: type[Registry] = LocalRegistry
_watch: type[Watch] = LocalWatch
