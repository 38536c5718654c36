"""The registration of the faulty registry: what every backend promises, over one dict."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from registry_drain.clock import Deadline
from registry_drain.errors import (
    LiveOwnerError,
    PermissionRefusedError,
    RegistryUnavailableError,
    RemovedByOperatorError,
)
from registry_drain.instance import ServiceInstance
from registry_drain.registries.abilities import RejoinableRegistration, removal_line
from registry_drain.registries.base import (
    Registration,
    RegistryEntry,
    Removal,
    RemovalOutcome,
)
from registry_drain.registries.retry import retrying
from registry_drain.testing.faults import Step

if TYPE_CHECKING:
    from registry_drain.testing.faulty_registry import FaultyRegistry


class FaultyRegistration:
    """A membership of a :class:`FaultyRegistry`: no threads, so there is nothing that could renew it."""

    _owners = itertools.count(1)

    def __init__(self, registry: FaultyRegistry, instance: ServiceInstance) -> None:
        """Not registered."""
        self._registry = registry
        self._instance = instance
        self._owner = f"owner {next(self._owners)}"
        self._lock = threading.Lock()
        self._version = ""  # of our entry, once written
        self._removed = ""
        self._on_removed: Callable[[str], None] | None = None
        self._is_acknowledged = False
        self._has_asked = False
        self._is_fenced = False
        self._registering = 0
        self._idle = threading.Event()
        self._idle.set()

    @property
    def instance(self) -> ServiceInstance:
        """What is registered."""
        return self._instance

    @property
    def is_registered(self) -> bool:
        """Whether the write was acknowledged, be it a lie, and nothing was removed since."""
        return self._is_acknowledged and not self.removed_by_operator

    @property
    def removed_by_operator(self) -> str:
        """Whether somebody called :meth:`FaultyRegistry.remove` on it; found out when asked."""
        with self._registry.cluster.changed, self._lock:
            if self._removed or self._version not in self._registry.cluster.taken_out:
                return self._removed
            line = self._removed = removal_line(self._registry.clock.unix_time(), "it was removed from faulty://")
            call = self._on_removed
        if call is not None:
            call(line)
        return line

    def on_removed(self, call: Callable[[str], None]) -> None:
        """Have ``call`` called in the thread that finds a removal out by asking."""
        self._on_removed = call

    def rejoin(self, deadline: Deadline) -> None:
        """List the instance again although it was removed: one WRITE, unless somebody alive has the id by now."""
        with self._lock:
            self._refuse_if_fenced()
            if self._removed:
                self._is_acknowledged = False
        self._register(deadline)

    @property
    def is_fenced(self) -> bool:
        """Whether the fence is up."""
        return self._is_fenced

    def register(self, deadline: Deadline) -> None:
        """List the instance: one WRITE. A fence that goes up meanwhile cancels it, unless it ignores deadlines."""
        removed = self.removed_by_operator
        with self._lock:
            self._refuse_if_fenced()
        if removed:
            raise RemovedByOperatorError(f"{self._instance} in faulty://: it was {removed}")
        self._register(deadline)

    def _register(self, deadline: Deadline) -> None:
        with self._lock:
            self._refuse_if_fenced()
            if self._is_acknowledged:
                return
            self._has_asked = True
            self._registering += 1
            self._idle.clear()
        try:
            self._registry.request(Step.WRITE, str(self._instance), deadline, self._write, None, self)
            with self._lock:
                self._refuse_if_fenced()
                self._is_acknowledged = True
        finally:
            with self._lock:
                self._registering -= 1
                if not self._registering:
                    self._idle.set()

    def _refuse_if_fenced(self) -> None:
        if self._is_fenced:
            raise LiveOwnerError(f"{self._instance} is being stopped: it is not registered in faulty:// any more")

    def _write(self) -> None:
        cluster, instance = self._registry.cluster, self._instance
        with cluster.changed:  # the fence and the removal come before this, or see it
            self._refuse_if_fenced()
            listed = cluster.records.get((instance.service, instance.id))
            if listed is not None and listed.version == self._version:
                return
            if listed is not None and listed.is_live and self._removed:
                raise LiveOwnerError(f"{instance} in faulty://: {listed.owner} has the id now")
            entry = RegistryEntry(
                instance.service,
                instance.id,
                instance.address,
                instance.port,
                instance.tags,
                instance.metadata,
                owner=self._owner,
                is_live=True,
                health="passing",
                registered_at=self._registry.clock.unix_time(),
                is_ephemeral=True,
                locator=f"{instance.service}/{instance.id}",
            )
            self._version, self._removed = cluster.put(entry).version, ""

    def fence(self, deadline: Deadline) -> None:
        """Refuse to register from now on; cancel what is under way and wait for it to end."""
        with self._registry.cluster.changed, self._lock:
            self._is_fenced = True
        self._registry.request(Step.FENCE, str(self._instance), deadline, lambda: None, None)
        self._registry.cancel(self)
        deadline.wait(self._idle)

    def on_shutdown(self, deadline: Deadline) -> Removal:
        """Fence, DELETE our own, and READ back, with retries inside the deadline."""
        registry, instance = self._registry, self._instance
        registry.request(Step.ON_SHUTDOWN, str(instance), deadline, lambda: None, None)
        removed = self.removed_by_operator
        self.fence(deadline)
        self._is_acknowledged = False
        subject, key = str(instance), (instance.service, instance.id)
        if not self._has_asked:
            return Removal(subject, registry.url, RemovalOutcome.NOT_REGISTERED, "it was never registered")
        attempts = 0
        try:
            for attempt in retrying(deadline):
                with attempt:
                    attempts += 1
                    registry.request(
                        Step.DELETE, subject, deadline, lambda: registry.cluster.delete(key, self._version), None
                    )
                    removal = registry.proof(key, subject, self._version, attempts, deadline)
                    return replace(removal, detail=removed) if removed and not removal.detail else removal
        except (RegistryUnavailableError, PermissionRefusedError) as error:
            return registry.unproven(subject, attempts, error)
        raise AssertionError  # pragma: no cover -- the loop returns or raises

    def __repr__(self) -> str:
        """Show the state."""
        state = "fenced" if self._is_fenced else "registered" if self._is_acknowledged else "not registered"
        return f"<FaultyRegistration {self._instance} {state}>"


# A type checker compares the fake with the protocols here, for everybody who uses it.
_registration: type[Registration] = FaultyRegistration
_rejoinable: type[RejoinableRegistration] = FaultyRegistration
