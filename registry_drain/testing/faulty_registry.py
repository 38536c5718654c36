"""A registry in memory that keeps every promise of the contract suite, until it is told not to.

::

    registry = FaultyRegistry(clock)
    registry.faults.add(Step.DELETE, UNAVAILABLE, times=2)   # the first two removals fail, the third works
    registry.faults.add(None, HANG, skip=k)                  # request k and all later ones hang until their deadline
    registry.faults.clear()
    registry.requests                                        # what was asked, in order, with the clock's instants

Theory of operation: a :class:`MemoryCluster` is the registry's own state, one dict under one lock; several registry
objects on one cluster stand for several processes. Whatever would be a request to a server goes through
``FaultyRegistry._request``, which asks the script for a fault first. A removal compares the owner under the cluster's
lock, and a write looks at the fence under the same lock: so a write that hangs, and wakes after the fence went up,
writes nothing.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from registry_drain.clock import SYSTEM_CLOCK, Clock, Deadline
from registry_drain.errors import (
    InstanceNotFoundError,
    LiveOwnerError,
    PermissionRefusedError,
    RegistryTimeoutError,
    RegistryUnavailableError,
)
from registry_drain.instance import ServiceInstance
from registry_drain.registries.base import (
    Registry,
    RegistryEntry,
    Removal,
    RemovalOutcome,
    WatchCallback,
)
from registry_drain.registries.retry import retrying
from registry_drain.testing.faults import Fault, FaultScript, Step
from registry_drain.testing.faulty_registration import FaultyRegistration
from registry_drain.testing.memory_cluster import Key, MemoryCluster, MemoryWatch

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Request:
    """One request that was made, whatever became of it.

    Attributes:
        step: its kind.
        subject: the instance's or service's name.
        at: the clock's instant at which it was made.
        fault: what it met, if anything.
    """

    step: Step
    subject: str
    at: float
    fault: Fault | None


class FaultyRegistry:
    """A :class:`~registry_drain.registries.base.Registry` in memory, with faults on demand. Thread-safe.

    Args:
        clock: what measures deadlines and delays; a FakeClock makes them take no time.
        cluster: shared with other registry objects; a new one by default.

    Attributes:
        faults: the script, empty at first.
        cluster: what is listed, for tests to look at and to change.
    """

    def __init__(self, clock: Clock = SYSTEM_CLOCK, *, cluster: MemoryCluster | None = None) -> None:
        """Start without faults."""
        self.clock = clock
        self.cluster = cluster or MemoryCluster()
        self.faults = FaultScript()
        self._lock = threading.Lock()
        self._requests: list[Request] = []
        self._hanging: dict[threading.Event, FaultyRegistration | None] = {}
        self._watches: list[MemoryWatch] = []

    @property
    def url(self) -> str:
        """Always ``faulty://``."""
        return "faulty://"

    @property
    def requests(self) -> tuple[Request, ...]:
        """What was asked so far, oldest first."""
        with self._lock:
            return tuple(self._requests)

    def release(self) -> None:
        """Wake every request that hangs or is delayed, now; it goes on as if its delay were over."""
        with self._lock:
            hanging = list(self._hanging)
        for wake in hanging:
            wake.set()

    def registration(self, instance: ServiceInstance) -> FaultyRegistration:
        """Return a membership. Sends nothing."""
        return FaultyRegistration(self, instance)

    def entries(self, service: str | None, deadline: Deadline) -> Sequence[RegistryEntry]:
        """Return what is listed, after a READ."""
        subject = service or "every service"
        return self.request(Step.READ, subject, deadline, lambda: self.cluster.entries(service), lie=())

    def remove(self, entry: RegistryEntry, deadline: Deadline, *, force: bool = False) -> Removal:
        """Remove what was shown: a READ, a DELETE, and a READ that proves it."""
        key, subject = (entry.service, entry.id), str(entry)
        attempts = 0
        try:
            for attempt in retrying(deadline):
                with attempt:
                    listed = self.read(key, subject, deadline)
                    if attempts == 0:
                        self._check_removable(entry, listed, force=force)
                    attempts += 1
                    self.request(
                        Step.DELETE,
                        subject,
                        deadline,
                        lambda: self.cluster.delete(key, entry.version, is_owner=False),
                        lie=None,
                    )
                    return self.proof(key, subject, entry.version, attempts, deadline)
        except (RegistryUnavailableError, PermissionRefusedError) as error:
            if attempts == 0:
                raise
            return self.unproven(subject, attempts, error)
        raise AssertionError  # pragma: no cover -- the loop returns or raises

    @staticmethod
    def _check_removable(shown: RegistryEntry, listed: RegistryEntry | None, *, force: bool) -> None:
        if listed is None:
            raise InstanceNotFoundError(f"{shown} is not listed in faulty:// any more")
        if listed.version != shown.version:
            raise LiveOwnerError(f"{shown} was registered anew since it was shown: list it again")
        if listed.is_live and not force:
            raise LiveOwnerError(
                f"{shown} is kept by a live owner, {listed.owner}: stop that one", yields_to_force=True
            )

    def watch(self, service: str, deadline: Deadline, on_change: WatchCallback | None = None) -> MemoryWatch:
        """Follow a service: a READ, and what the cluster pushes from then on, which meets no faults."""
        self.request(Step.READ, service, deadline, lambda: None, lie=None)
        watch = MemoryWatch(self.cluster, service, on_change)
        with self._lock:
            self._watches.append(watch)
        return watch

    def close(self) -> None:
        """Close the watches and wake what hangs."""
        self.release()
        with self._lock:
            watches, self._watches = self._watches, []
        for watch in watches:
            watch.close()

    # What registrations use.

    def request(
        self,
        step: Step,
        subject: str,
        deadline: Deadline,
        effect: Callable[[], T],
        lie: T,
        registration: FaultyRegistration | None = None,
    ) -> T:
        """Make one request: its fault's delay, its effect or the ``lie``, its fault's error."""
        fault = self.faults.next_fault(step)
        with self._lock:
            self._requests.append(Request(step, subject, self.clock.now(), fault))
        if fault is None:
            return effect()
        if fault.delay > 0:
            self._pass(fault, f"{step.value} of {subject}", deadline, registration)
        answer = effect() if fault.takes_effect else lie
        if fault.error is not None:
            raise fault.error(f"{step.value} of {subject} at faulty://: {fault.name}, as the test asked")
        return answer

    def _pass(self, fault: Fault, what: str, deadline: Deadline, registration: FaultyRegistration | None) -> None:
        wake = threading.Event()
        with self._lock:
            self._hanging[wake] = registration if not fault.ignores_deadline else None
        try:
            if fault.ignores_deadline:
                self.clock.wait(wake, None if math.isinf(fault.delay) else fault.delay)
                return
            if registration is not None and registration.is_fenced:  # fenced before we could be woken
                wake.set()
            limit = deadline.remaining()
            is_woken = self.clock.wait(wake, min(fault.delay, limit))
            if not is_woken and fault.delay >= limit:
                raise RegistryTimeoutError(f"{what} at faulty://: no answer by the deadline; try again")
        finally:
            with self._lock:
                del self._hanging[wake]

    def cancel(self, registration: FaultyRegistration) -> None:
        """Wake the requests of ``registration`` that keep to a deadline."""
        with self._lock:
            hanging = [wake for wake, owner in self._hanging.items() if owner is registration]
        for wake in hanging:
            wake.set()

    def read(self, key: Key, subject: str, deadline: Deadline) -> RegistryEntry | None:
        """Return the entry of one key, after a READ."""
        return self.request(Step.READ, subject, deadline, lambda: self.cluster.records.get(key), lie=None)

    def proof(self, key: Key, subject: str, version: str, attempts: int, deadline: Deadline) -> Removal:
        """Read back and say what is found; raise if the entry of this version is still listed."""
        listed = self.read(key, subject, deadline)
        if listed is not None and listed.version == version:
            raise RegistryUnavailableError(f"faulty:// acknowledged the removal of {subject} and still lists it")
        outcome = RemovalOutcome.CONFIRMED if listed is None else RemovalOutcome.SUCCESSOR
        detail = "" if listed is None else f"{listed} of {listed.owner} holds the id and was left alone"
        return Removal(subject, self.url, outcome, detail, attempts, self.clock.now())

    def unproven(self, subject: str, attempts: int, error: Exception) -> Removal:
        """Return the removal that ended in ``error``."""
        is_refused = isinstance(error, PermissionRefusedError)
        outcome = RemovalOutcome.REFUSED if is_refused else RemovalOutcome.UNCONFIRMED
        return Removal(subject, self.url, outcome, str(error), attempts)

    def __repr__(self) -> str:
        """Show how much is listed and asked."""
        return f"<FaultyRegistry listed={len(self.cluster.entries())} requests={len(self.requests)}>"


# A type checker compares the fake with the protocol here, for everybody who uses it.
_registry: type[Registry] = FaultyRegistry
