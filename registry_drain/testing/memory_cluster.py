"""What is listed in a :class:`~registry_drain.testing.faulty_registry.FaultyRegistry`: a dict, and who waits for it."""

from __future__ import annotations

import itertools
import logging
import threading
from dataclasses import replace

from registry_drain.instance import ServiceInstance
from registry_drain.registries.base import RegistryEntry, Watch, WatchCallback

logger = logging.getLogger(__name__)

Key = tuple[str, str]
"""Service and id."""


class MemoryCluster:
    """What is listed. Thread-safe; every change wakes the watches."""

    def __init__(self) -> None:
        """Start empty."""
        self.changed = threading.Condition()
        self.records: dict[Key, RegistryEntry] = {}
        self.taken_out: set[str] = set()  # the versions that were removed by somebody else than their owner
        self._versions = itertools.count(1)

    def put(self, entry: RegistryEntry) -> RegistryEntry:
        """List ``entry``, as any system might have written it, under a new version; return it as listed."""
        with self.changed:
            listed = replace(entry, version=str(next(self._versions)))
            self.records[entry.service, entry.id] = listed
            self.changed.notify_all()
            return listed

    def delete(self, key: Key, version: str, *, is_owner: bool = True) -> None:
        """Remove the entry of this key, if it still is of this version."""
        with self.changed:
            record = self.records.get(key)
            if record is not None and record.version == version:
                del self.records[key]
                if not is_owner:
                    self.taken_out.add(version)
                self.changed.notify_all()

    def kill_owner(self, service: str, instance_id: str) -> None:
        """Let the owner die without a goodbye: the entry stays, is not live, and is in no watch."""
        with self.changed:
            record = self.records[service, instance_id]
            self.records[service, instance_id] = replace(record, is_live=False, health="critical")
            self.changed.notify_all()

    def entries(self, service: str | None = None) -> tuple[RegistryEntry, ...]:
        """Return what is listed, sorted by service and id."""
        with self.changed:
            found = [entry for key, entry in sorted(self.records.items()) if service in {None, key[0]}]
        return tuple(found)

    def healthy(self, service: str) -> tuple[ServiceInstance, ...]:
        """Return what a watch shows."""
        return tuple(
            ServiceInstance(entry.service, entry.address, entry.port, entry.id, entry.metadata, entry.tags)
            for entry in self.entries(service)
            if entry.is_live and not entry.problem
        )


class MemoryWatch:
    """A watch of a :class:`MemoryCluster`, with a thread that waits for its changes."""

    def __init__(self, cluster: MemoryCluster, service: str, on_change: WatchCallback | None) -> None:
        """Start following."""
        self._cluster = cluster
        self._service = service
        self._on_change = on_change
        self._is_closed = False
        self._instances = cluster.healthy(service)
        self._thread = threading.Thread(target=self._follow, name="registry-drain-faulty-watch", daemon=True)
        self._thread.start()

    @property
    def instances(self) -> tuple[ServiceInstance, ...]:
        """The last known list."""
        return self._instances

    def close(self) -> None:
        """Stop following and join the thread, unless called from it."""
        with self._cluster.changed:
            self._is_closed = True
            self._cluster.changed.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _follow(self) -> None:
        told: tuple[ServiceInstance, ...] | None = None
        while True:
            with self._cluster.changed:
                while not self._is_closed and told is not None and self._cluster.healthy(self._service) == told:
                    self._cluster.changed.wait()
                if self._is_closed:
                    return
                # The first call tells of the list that the constructor found, whatever has changed since.
                told = self._instances if told is None else self._cluster.healthy(self._service)
                self._instances = told
            if self._on_change is None:
                continue
            try:
                self._on_change(told)
            except Exception:
                logger.exception("on_change of the watch of %s at faulty:// failed; the watch goes on", self._service)

    def __repr__(self) -> str:
        """Show the service and how many instances it has."""
        return f"<MemoryWatch {self._service} instances={len(self._instances)}>"


_watch: type[Watch] = MemoryWatch
