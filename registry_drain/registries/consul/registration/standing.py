"""What the threads of one registration share: its entry, its two clients, its fence, and where it stands.

Two clients: ``writer`` for what the fence must be able to cut off, ``reader`` for reads and the removal. The lock
guards state only; requests are made outside.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import replace

from registry_drain.clock import Clock
from registry_drain.instance import ServiceInstance
from registry_drain.registries.consul.http import ConsulAddress, ConsulClient
from registry_drain.registries.consul.registration.own import Lifetimes, OwnEntry
from registry_drain.registries.membership import Membership, OperatorsRemoval, WriteFence

log = logging.getLogger(__name__.rpartition(".")[0])
"""Of everything in this folder: one registration is one subject."""


class Standing:
    """See the module. Thread-safe."""

    def __init__(self, address: ConsulAddress, instance: ServiceInstance, lifetimes: Lifetimes, clock: Clock) -> None:
        self.address = address
        self.lifetimes = lifetimes
        self.clock = clock
        self.membership = Membership(instance, address.url)
        self.fence = WriteFence(self.membership)
        self.removed = OperatorsRemoval(self.membership, clock, log)
        self.writer = ConsulClient(address)
        self.reader = ConsulClient(address)

        self._lock = threading.Lock()  # guards what follows
        self._own = OwnEntry(instance, lifetimes, clock.unix_time())
        self._may_be_listed = False
        self._was_cut_off = False
        self._is_registered = False
        self._is_offered = False
        self._is_adopted = False

    @property
    def own(self) -> OwnEntry:
        """What is, or will be, written. Another one after :meth:`adopt`."""
        return self._own

    @property
    def may_be_listed(self) -> bool:
        """Whether a registration was ever sent."""
        return self._may_be_listed

    def be_youngest(self) -> None:
        """It is about to be registered for the first time, or anew: whoever has the id came before."""
        with self._lock:
            self._own = replace(self._own, registered_at=self.clock.unix_time())

    def note_sending(self) -> None:
        """A registration is about to be sent."""
        self._may_be_listed = True

    @property
    def was_cut_off(self) -> bool:
        """Whether a write of ours was cut off, and may still lie in the agent's socket."""
        return self._was_cut_off

    def note_cut_off(self) -> None:
        """A write is about to be cut off, for the stop."""
        self._was_cut_off = True

    @property
    def is_registered(self) -> bool:
        """Whether Consul lists it, as far as we were told."""
        return self._is_registered

    def note_listed(self) -> None:
        """Consul lists it; what an operator did is undone."""
        with self._lock:
            # A thread that comes late must not say so of what the stop has removed.
            self._is_registered = not self.fence.is_raised
        self.removed.lift()

    def note_missing(self) -> None:
        """Consul does not list it, or lists it as another process'."""
        with self._lock:
            self._is_registered = False

    # --- whose entry it is --------------------------------------------------------------------------------------------

    @property
    def is_offered(self) -> bool:
        """Whether the next process may have written our entry: do not overwrite it."""
        return self._is_offered

    @property
    def is_adopted(self) -> bool:
        """Whether the entry is our predecessor's until it says otherwise: do not remove it."""
        return self._is_adopted

    @property
    def is_between(self) -> bool:
        """Whether two processes may write it."""
        with self._lock:
            return self._is_offered or self._is_adopted

    def offer(self) -> None:
        """From now on the next process may write our entry."""
        with self._lock:
            self._is_offered = True

    def take_back(self) -> None:
        """It is ours again, whoever has written it meanwhile."""
        with self._lock:
            self._is_offered = False

    def adopt(self, lineage: str) -> None:
        """Write, from now on, the entry that is named after ``lineage``: our predecessor's."""
        with self._lock:
            self._own = replace(self._own, lineage=lineage)
            self._is_adopted = True

    def confirm(self) -> None:
        """What was adopted is ours for good."""
        with self._lock:
            self._is_adopted = False
