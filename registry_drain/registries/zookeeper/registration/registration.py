"""What callers see of one's own instance in ZooKeeper; see the folder for the theory."""

from __future__ import annotations

import threading
from collections.abc import Callable

from registry_drain.clock import Clock, Deadline
from registry_drain.instance import ServiceInstance
from registry_drain.registries.abilities import HandoverRegistration, RejoinableRegistration, RotationRegistration
from registry_drain.registries.base import Removal, RemovalOutcome
from registry_drain.registries.membership import Membership, handed_over
from registry_drain.registries.zookeeper.layouts import NodeTree
from registry_drain.registries.zookeeper.registration.removing import OwnRemoval
from registry_drain.registries.zookeeper.registration.worker import Worker
from registry_drain.registries.zookeeper.settings import SessionSettings
from registry_drain.registries.zookeeper.shared import SharedSession


class ZooKeeperRegistration:
    """See the folder, and :class:`registry_drain.registries.base.Registration` for what each method promises."""

    def __init__(
        self,
        instance: ServiceInstance,
        tree: NodeTree,
        settings: SessionSettings,
        shared: SharedSession,
        clock: Clock,
    ) -> None:
        self._membership = Membership(instance, settings.url)
        self._is_sequential = tree.layout.is_sequential
        self._settings = settings
        self._shared = shared
        self._clock = clock
        self._worker = Worker(self._membership, tree, settings, shared, clock)
        self._node = self._worker.node
        self._lock = threading.Lock()  # guards what follows
        self._remover: threading.Event | None = None
        self._removal: Removal | None = None

    def __repr__(self) -> str:
        """Show the instance and what became of it."""
        state = "registered" if self.is_registered else "fenced" if self._worker.is_fenced else "not registered"
        return f"<ZooKeeperRegistration {self.instance} {state}>"

    @property
    def instance(self) -> ServiceInstance:
        """What is, or will be, registered."""
        return self._membership.instance

    @property
    def is_registered(self) -> bool:
        """Whether our node stood there when last seen, and its session is not known to be over."""
        holder = self._worker.holder
        return holder is not None and not holder.is_over

    # --- registering --------------------------------------------------------------------------------------------------

    def register(self, deadline: Deadline) -> None:
        """Put the node in place and keep it there; see the protocol.

        Raises:
            RegistryUnavailableError: retryable.
            PermissionRefusedError: the access lists of base or service do not let us create.
            LiveOwnerError: fenced; or a newer instance, or a persistent node, stands at the path.
            RemovedByOperatorError: somebody took it out on purpose.
        """
        self._worker.register(deadline)

    @property
    def removed_by_operator(self) -> str:
        """See :class:`RejoinableRegistration`."""
        return self._worker.removed.line

    def on_removed(self, call: Callable[[str], None]) -> None:
        """See :class:`RejoinableRegistration`: called in the worker."""
        self._worker.removed.on_removed(call)

    def rejoin(self, deadline: Deadline) -> None:
        """See :class:`RejoinableRegistration`; of a sequential layout the node gets another number."""
        self._worker.rejoin(deadline)

    # --- handing over -------------------------------------------------------------------------------------------------

    def offer(self, deadline: Deadline) -> str:  # noqa: ARG002 -- the protocol's; this takes no time
        """See :meth:`HandoverRegistration.offer`. A node whose name ZooKeeper numbers cannot be taken over."""
        self._worker.check()
        path = self._node.path
        if self._is_sequential or path is None or self.removed_by_operator:
            return ""
        self._worker.rest()
        return path

    def adopt(self, offer: str) -> None:
        """See :meth:`HandoverRegistration.adopt`: the newest wins, so there is nothing to prepare."""

    def confirm(self) -> None:
        """See :meth:`HandoverRegistration.confirm`: the end of our session can only remove our own node."""

    def hand_over(self, deadline: Deadline) -> Removal:
        """See :meth:`HandoverRegistration.hand_over`: our session ends, which no longer holds the node."""
        return handed_over(self.on_shutdown(deadline))

    def take_back(self, deadline: Deadline) -> None:
        """See :meth:`HandoverRegistration.take_back`: replace their node by ours, if it is not ours."""
        self._worker.claim_anew(deadline)

    # --- removing -----------------------------------------------------------------------------------------------------

    def leave_rotation(self, deadline: Deadline) -> None:
        """See :class:`RotationRegistration`: the node says so, until it goes with its session."""
        self._worker.check()
        holder = self._worker.holder
        if holder is not None:
            self._node.leave_rotation(holder, deadline)

    def fence(self, deadline: Deadline) -> None:
        """Stop the worker and join it; the node stays. See rule 1."""
        self._worker.put_up_fence()
        self._worker.join(deadline)

    def on_shutdown(self, deadline: Deadline) -> Removal:
        """Fence, end our sessions, and prove by another one that our node is gone. See rules 2 and 4."""
        if self._worker.is_inherited:
            # Ending a session takes nothing but its id, which a forked child has: never let it do so by accident.
            return self._membership.left_to_parent(self._worker.owner_pid)
        is_busy = self._worker.put_up_fence()
        if not is_busy:
            # Nothing can write any more. The goodbye is on its way while the worker is being joined.
            for session in self._node.sessions:
                session.say_goodbye()
        self._worker.join(deadline)
        while True:
            with self._lock:
                if self._removal is not None and self._removal.is_gone:
                    return self._removal
                other = self._remover
                if other is None:
                    mine = self._remover = threading.Event()
                    break
            if not deadline.wait(other):
                return self._membership.removal(RemovalOutcome.UNCONFIRMED, "another thread is still removing it")
        self._worker.forget_holder()
        return self._remove(deadline, mine)

    def _remove(self, deadline: Deadline, done: threading.Event) -> Removal:
        """Remove it, and let others who want to see what became of it."""
        removal = None
        try:
            removal = OwnRemoval(self._membership, self._worker, self._settings, self._shared, self._clock).run(
                deadline
            )
        finally:
            with self._lock:
                self._removal, self._remover = removal, None
            done.set()
            for session in self._node.sessions:
                session.begin_end()
        return removal


# A type checker compares it with the protocol here.
_handover: type[HandoverRegistration] = ZooKeeperRegistration
_rejoinable: type[RejoinableRegistration] = ZooKeeperRegistration
_rotation: type[RotationRegistration] = ZooKeeperRegistration
