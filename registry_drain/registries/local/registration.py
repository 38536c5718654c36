"""One's own instance in a directory: an open, locked file.

Theory of operation: no thread renews it, so the fence has only a ``register`` under way to wait for. Releasing the lock
takes the instance out of every list at once, needs nobody's permission and cannot fail; the file that is left is
unlinked afterwards, by us or by the next one who registers.

Nothing here is ever lost: a locked file that lost its name was unlinked or renamed by somebody, and one whose name is
another file's was taken over. We look when we are asked, since nothing would tell us; and nothing but ``rejoin`` lists
the instance again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import uuid
from collections.abc import Callable
from dataclasses import replace

from registry_drain.clock import Clock, Deadline
from registry_drain.errors import (
    LiveOwnerError,
    PermissionRefusedError,
    RegistryError,
    RegistryUnavailableError,
)
from registry_drain.instance import ServiceInstance
from registry_drain.registries.abilities import HandoverRegistration, RejoinableRegistration
from registry_drain.registries.base import Removal, RemovalOutcome
from registry_drain.registries.local.directory import InstanceDirectory
from registry_drain.registries.local.file import file_name
from registry_drain.registries.local.lock import HeldFile
from registry_drain.registries.membership import Membership, OperatorsRemoval, WriteFence, handed_over
from registry_drain.registries.retry import persistently

logger = logging.getLogger(__name__)

TIDY_TIMEOUT = 0.5
"""Seconds a stop gives to unlinking a file that is out of every list already."""


class LocalRegistration:
    """One locked file. See :class:`registry_drain.registries.base.Registration`.

    In a forked child it is inert: the parent's membership is the parent's to end.
    """

    def __init__(self, directory: InstanceDirectory, url: str, instance: ServiceInstance, clock: Clock) -> None:
        """Not registered."""
        self._directory = directory
        self._membership = Membership(instance, url)
        self._fence = WriteFence(self._membership)
        self._removed = OperatorsRemoval(self._membership, clock, logger)
        self._clock = clock
        self._name = file_name(instance.service, instance.id)
        self._lock = threading.Lock()  # guards what follows
        self._held: HeldFile | None = None
        self._incarnation = ""
        self._is_listed = False
        self._predecessor = ""  # the incarnation that we were told to take over from

    @property
    def instance(self) -> ServiceInstance:
        """What is, or will be, registered."""
        return self._membership.instance

    @property
    def is_registered(self) -> bool:
        """Whether our file was listed, its lock is still held, and nobody has removed it."""
        held = self._held
        return self._is_listed and held is not None and held.is_held and not self.removed_by_operator

    def __repr__(self) -> str:
        """Show the state."""
        state = "fenced" if self._fence.is_raised else "registered" if self.is_registered else "not registered"
        return f"<LocalRegistration {self.instance} {state}>"

    # --- registering --------------------------------------------------------------------------------------------------

    def register(self, deadline: Deadline) -> None:
        """List the instance. Whoever had the id, dead or alive, is replaced: the newest process has it.

        Raises:
            RegistryTimeoutError: another process held the directory's lock for too long. Retryable.
            RegistryUnavailableError: the disk is full, too many files are open. Retryable.
            PermissionRefusedError: the directory cannot be written to.
            ConfigurationError: it is no directory.
            LiveOwnerError: fenced.
            RemovedByOperatorError: somebody removed the file.
        """
        with self._fence.writing():
            self._look_for_removal()
            self._removed.check()
            if self._is_listed:
                return
            with self._directory.locked(deadline, self._fence.raised):
                if not self._is_listed:  # another thread may have been first
                    self._directory.sweep()
                    self._list()

    def _list(self) -> None:
        incarnation = uuid.uuid4().hex
        owner = f"process {os.getpid()} on {socket.gethostname()}"
        held = self._directory.create(self.instance, incarnation, owner, self._clock.unix_time())
        with self._lock:
            before = self._held, self._incarnation
        try:
            predecessor = self._directory.read(self._name)
            # Ours to release from here on. A stop that does so before the rename leaves a file that is born dead.
            with self._lock:
                self._fence.check()
                self._held, self._incarnation = held, incarnation
                self._is_listed = False  # it has its public name in a moment
            self._directory.publish(self._name, incarnation)
        except BaseException:
            with self._lock:
                self._held, self._incarnation = before
            held.release()
            self._directory.discard(incarnation)
            raise
        with self._lock:
            self._is_listed = not self._fence.is_raised
            self._removed.lift()
        is_expected = predecessor is not None and predecessor.entry.version == self._predecessor
        if predecessor is not None and predecessor.is_live and not is_expected:
            logger.warning(
                "%s was taken over from %s, which is alive: give each process an id of its own, unless it is a "
                "predecessor that is about to stop",
                self._membership,
                predecessor.entry.owner,
            )

    # --- removed by an operator ---------------------------------------------------------------------------------------

    @property
    def removed_by_operator(self) -> str:
        """See :class:`RejoinableRegistration`. Looks at the file; so does :attr:`is_registered`."""
        if not self._fence.is_inherited:
            self._look_for_removal()
        return self._removed.line

    def _look_for_removal(self) -> None:
        with self._lock:
            how = self._lost_name()
            news = self._removed.mark(how) if how else ""
        if news:
            self._removed.tell(news)

    def _lost_name(self) -> str:
        """Return how it is known that somebody took our file's name away; empty if nobody did. Under the lock."""
        if not self._is_listed or self._held is None or not self._held.is_held:
            return ""
        # Under the lock, lest the descriptor be closed meanwhile. Two calls of the kernel, which never wait.
        ours, path = os.fstat(self._held.fd), self._directory.path / self._name
        try:
            path.stat(follow_symlinks=False)
        except OSError:
            how = f"{path} is gone, whose lock this process holds"
            return f"{how}; the file has another name now" if ours.st_nlink else how
        return ""

    def on_removed(self, call: Callable[[str], None]) -> None:
        """See :class:`RejoinableRegistration`: called in the thread that asks."""
        self._removed.on_removed(call)

    def rejoin(self, deadline: Deadline) -> None:
        """See :class:`RejoinableRegistration`."""
        if not self.removed_by_operator:
            self.register(deadline)
            return
        with self._fence.writing(), self._directory.locked(deadline, self._fence.raised):
            found = self._directory.read(self._name)
            if found is not None and found.is_live is not False:
                raise LiveOwnerError(f"{self._membership}: {found.entry.owner or 'a file'} has the id now")
            self._list_anew()

    def _list_anew(self) -> None:
        """List a new file of ours, and let go of the one before."""
        with self._lock:
            mine = self._held
        self._list()
        if mine is not None:
            mine.release()

    # --- handing over -------------------------------------------------------------------------------------------------

    def offer(self, deadline: Deadline) -> str:  # noqa: ARG002 -- the protocol's; nothing here takes long
        """See :meth:`HandoverRegistration.offer`: nothing is renewed here, so nothing can overwrite."""
        self._fence.check()
        return "" if self._removed.is_noted else self._incarnation

    def adopt(self, offer: str) -> None:
        """See :meth:`HandoverRegistration.adopt`: its file is replaced by ours in one rename, as any file is."""
        self._predecessor = offer

    def confirm(self) -> None:
        """See :meth:`HandoverRegistration.confirm`: what is removed is only ever our own file."""

    def hand_over(self, deadline: Deadline) -> Removal:
        """See :meth:`HandoverRegistration.hand_over`: our own file has no name any more; its lock is released."""
        return handed_over(self.on_shutdown(deadline))

    def take_back(self, deadline: Deadline) -> None:
        """See :meth:`HandoverRegistration.take_back`: rename a new file of ours over theirs."""
        if self._removed.is_noted:
            return
        with self._fence.writing(), self._directory.locked(deadline, self._fence.raised):
            found = self._directory.read(self._name)
            if found is not None and found.entry.version == self._incarnation:
                return
            self._predecessor = "" if found is None else found.entry.version
            self._list_anew()

    # --- stopping -----------------------------------------------------------------------------------------------------

    def fence(self, deadline: Deadline) -> None:
        """Refuse to register from now on; a ``register`` that waits for the directory's lock is cancelled."""
        if not self._fence.is_inherited:
            self._fence.put_up()
            self._fence.wait_quiet(deadline)

    def on_shutdown(self, deadline: Deadline) -> Removal:
        """Release the lock, read back, and unlink the file."""
        if self._fence.is_inherited:
            return self._membership.left_to_parent(self._fence.owner_pid)
        removed = self.removed_by_operator
        self.fence(deadline)
        with self._lock:
            self._is_listed = False
            held, self._held, incarnation = self._held, None, self._incarnation
            if held is not None:
                held.release()
        if not incarnation:
            return self._membership.removal(RemovalOutcome.NOT_REGISTERED, "it was never registered")
        attempts = 0

        def once() -> Removal:
            nonlocal attempts
            attempts += 1
            return self._proof(incarnation, attempts)

        try:
            removal = persistently(once, deadline)
        except PermissionRefusedError as error:
            detail = f"the lock is released, but {error}"
            return self._membership.removal(RemovalOutcome.UNVERIFIABLE, detail, attempts)
        except RegistryUnavailableError as error:
            detail = f"the lock is released, but {error}"
            return self._membership.removal(RemovalOutcome.UNCONFIRMED, detail, attempts)
        if removed and removal.outcome is RemovalOutcome.CONFIRMED:
            removal = replace(removal, detail=removed)
        # In no list any more, whatever becomes of the file.
        with contextlib.suppress(RegistryError), self._directory.locked(deadline.capped(TIDY_TIMEOUT)):
            self._directory.unlink_if_dead(self._name)
        return removal

    def _proof(self, incarnation: str, attempts: int) -> Removal:
        removal = self._membership.removal
        found = self._directory.read(self._name)
        read_at = self._clock.now()
        if found is None or found.is_live is False:
            return removal(RemovalOutcome.CONFIRMED, "", attempts, read_at)
        if found.entry.version == incarnation:
            raise RegistryUnavailableError(f"{found.entry.locator} is locked still")
        if found.is_live:
            detail = f"{found.entry.owner} has the id and was left alone"
            return removal(RemovalOutcome.SUCCESSOR, detail, attempts, read_at)
        detail = f"the lock is released, but {found.entry.locator} cannot be judged: {found.entry.problem}"
        return removal(RemovalOutcome.UNVERIFIABLE, detail, attempts)


# A type checker compares it with the protocols here.
_handover: type[HandoverRegistration] = LocalRegistration
_rejoinable: type[RejoinableRegistration] = LocalRegistration
