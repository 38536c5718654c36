"""A registry of your own, here a table in an SQLite file: one module that imports nothing but public names.

It is complete: ``tests/registries/test_example_registry.py`` runs the contract suite on it. What makes it safe is
small: each registration has a version of its own, a removal names it, and the fence is looked at inside the transaction
that writes.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field

from registry_drain import Clock, Deadline, ServiceInstance
from registry_drain.errors import InstanceNotFoundError, LiveOwnerError, RegistryUnavailableError
from registry_drain.registries.base import RegistryEntry, Removal, RemovalOutcome
from registry_drain.registries.retry import retrying
from registry_drain.registries.url import RegistryURL

TABLE = "CREATE TABLE IF NOT EXISTS instance (service, id, version, fields, PRIMARY KEY (service, id))"
Instances = tuple[ServiceInstance, ...]


def open_sqlite(url: RegistryURL, clock: Clock) -> SqliteRegistry:
    """Return the registry of ``sqlite:///file``: the object that the entry point names. Connects to nothing."""
    url.check_options(frozenset())
    return SqliteRegistry(url, clock)


@dataclass(slots=True, eq=False)
class SqliteRegistry:
    """All instances in one file."""

    parsed: RegistryURL
    clock: Clock
    watches: list[SqliteWatch] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Where it is."""
        return str(self.parsed)

    @contextmanager
    def transaction(self, deadline: Deadline) -> Iterator[sqlite3.Connection]:
        """Lock the file for one write, or one consistent read, inside the deadline; translate SQLite's errors here."""
        try:
            with closing(sqlite3.connect(self.parsed.path, timeout=deadline.remaining())) as database:
                database.execute(TABLE)
                database.execute("BEGIN IMMEDIATE")
                yield database
                database.commit()
        except sqlite3.OperationalError as error:
            raise RegistryUnavailableError(f"{self.url}: {error}; try again") from error

    def registration(self, instance: ServiceInstance) -> SqliteRegistration:
        """Return a membership; nothing is written yet."""
        return SqliteRegistration(self, instance)

    def entries(self, service: str | None, deadline: Deadline) -> Sequence[RegistryEntry]:
        """Return the rows. Nobody renews them, so nobody can tell whether their owners live: ``is_live`` stays None."""
        with self.transaction(deadline) as database:
            rows = database.execute("SELECT * FROM instance ORDER BY service, id").fetchall()
        return [self.entry(*row) for row in rows if service in {None, row[0]}]

    @staticmethod
    def entry(service: str, instance_id: str, version: str, text: str) -> RegistryEntry:
        """Return one row as an entry."""
        fields = json.loads(text)
        return RegistryEntry(
            service,
            instance_id,
            fields["address"],
            fields["port"],
            tuple(fields["tags"]),
            fields["metadata"],
            locator=f"{service}/{instance_id}",
            version=version,
        )

    def delete(self, service: str, instance_id: str, version: str, deadline: Deadline) -> str | None:
        """Remove this version and no other; return the version that is there in the same transaction."""
        key = (service, instance_id)
        with self.transaction(deadline) as database:
            database.execute("DELETE FROM instance WHERE service = ? AND id = ? AND version = ?", (*key, version))
            row = database.execute("SELECT version FROM instance WHERE service = ? AND id = ?", key).fetchone()
        return None if row is None else row[0]

    def remove(self, entry: RegistryEntry, deadline: Deadline, *, force: bool = False) -> Removal:
        """Remove what was shown."""
        listed = {(found.service, found.id): found for found in self.entries(entry.service, deadline)}
        found = listed.get((entry.service, entry.id))
        if found is None:
            raise InstanceNotFoundError(f"{entry} is not in {self.url} any more")
        if found.version != entry.version or not force:
            raise LiveOwnerError(f"{entry} in {self.url} may be in use: list it again, stop its owner, or use force")
        return self.removal(entry, self.delete(entry.service, entry.id, entry.version, deadline))

    def removal(self, subject: object, left: str | None, attempts: int = 1) -> Removal:
        """Return what a removal came to that left this version behind."""
        outcome = RemovalOutcome.CONFIRMED if left is None else RemovalOutcome.SUCCESSOR
        return Removal(str(subject), self.url, outcome, "", attempts, self.clock.now())

    def watch(
        self, service: str, deadline: Deadline, on_change: Callable[[Instances], None] | None = None
    ) -> SqliteWatch:
        """Follow a service by looking again and again."""
        watch = SqliteWatch(self, service, on_change, self.instances(service, deadline))
        self.watches.append(watch)
        return watch

    def instances(self, service: str, deadline: Deadline) -> Instances:
        """Return what callers may call."""
        entries = self.entries(service, deadline)
        return tuple(ServiceInstance(e.service, e.address, e.port, e.id, e.metadata, e.tags) for e in entries)

    def close(self) -> None:
        """Close the watches."""
        for watch in self.watches:
            watch.close()


class SqliteRegistration:
    """One row."""

    def __init__(self, registry: SqliteRegistry, instance: ServiceInstance) -> None:
        """Not registered."""
        self.registry, self.instance, self.version, self.is_registered = registry, instance, "", False
        self.fenced, self.turn = threading.Event(), threading.Lock()  # one registering thread at a time

    def register(self, deadline: Deadline) -> None:
        """Write the row, whoever had the id."""
        instance, version = self.instance, uuid.uuid4().hex
        fields = {name: getattr(instance, name) for name in ("address", "port", "tags")}
        row = (instance.service, instance.id, version, json.dumps({**fields, "metadata": dict(instance.metadata)}))
        if not self.turn.acquire(timeout=deadline.remaining()):
            raise RegistryUnavailableError(f"{instance}: another thread is registering it; try again")
        try:
            with self.registry.transaction(deadline) as database:
                if self.fenced.is_set():  # a removal has been, or waits for this transaction
                    raise LiveOwnerError(f"{instance} is being stopped: it is not registered any more")
                if not self.is_registered:
                    self.version = version
                    database.execute("INSERT OR REPLACE INTO instance VALUES (?, ?, ?, ?)", row)
            self.is_registered = not self.fenced.is_set()
        finally:
            self.turn.release()

    def fence(self, deadline: Deadline) -> None:
        """Refuse to register, and wait for a register under way."""
        self.fenced.set()
        if self.turn.acquire(timeout=deadline.remaining()):
            self.turn.release()

    def on_shutdown(self, deadline: Deadline) -> Removal:
        """Fence, and remove our own row, proven by what the same transaction reads."""
        self.fence(deadline)
        self.is_registered = False
        subject, url, attempts = str(self.instance), self.registry.url, 0
        if not self.version:
            return Removal(subject, url, RemovalOutcome.NOT_REGISTERED)
        try:
            for attempt in retrying(deadline):
                with attempt:
                    attempts += 1
                    left = self.registry.delete(self.instance.service, self.instance.id, self.version, deadline)
        except RegistryUnavailableError as error:
            return Removal(subject, url, RemovalOutcome.UNCONFIRMED, str(error), attempts)
        return self.registry.removal(subject, left, attempts)


class SqliteWatch:
    """Looks every 50 ms."""

    def __init__(
        self, registry: SqliteRegistry, service: str, on_change: Callable[[Instances], None] | None, first: Instances
    ) -> None:
        """Begin with the first list."""
        self.registry, self.service, self.on_change, self.instances = registry, service, on_change, first
        self.closed = threading.Event()
        self.thread = threading.Thread(target=self.follow, name="registry-drain-sqlite-watch", daemon=True)
        self.thread.start()

    def follow(self) -> None:
        """Look until closed; an outage leaves the list as it was."""
        told: Instances | None = None
        while not self.closed.is_set():
            if told != self.instances:
                told = self.instances
                try:
                    if self.on_change is not None:
                        self.on_change(told)
                except Exception as error:  # noqa: BLE001 -- the watch outlives its callback
                    print(f"on_change of {self.service} failed: {error!r}")
            self.registry.clock.wait(self.closed, 0.05)
            try:
                self.instances = self.registry.instances(self.service, Deadline.after(1, self.registry.clock))
            except RegistryUnavailableError as error:
                print(error)

    def close(self) -> None:
        """Stop looking."""
        self.closed.set()
        if threading.current_thread() is not self.thread:
            self.thread.join()
