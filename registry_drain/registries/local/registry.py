"""The embedded registry: ``local:///directory``, for one machine. Nothing to install, nothing to start.

Theory of operation: see :mod:`registry_drain.registries.local.directory`. A registration is an open, locked file; no
thread renews it, so the fence has only a ``register`` under way to wait for. Releasing the lock takes the instance out
of every list at once, needs nobody's permission and cannot fail; the file that is left is unlinked afterwards, by us or
by the next one who registers.

Nothing here is ever lost: a locked file that lost its name was unlinked or renamed by somebody, and one whose name is
another file's was taken over. We look when we are asked, since nothing would tell us; and nothing but ``rejoin`` lists
the instance again.

Options: ``poll_s`` (default 0.05), the seconds between two looks of a watch: the time in which callers notice a change.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from registry_drain.clock import Clock, Deadline
from registry_drain.errors import (
    ConfigurationError,
    InstanceNotFoundError,
    LiveOwnerError,
    PermissionRefusedError,
    RegistryError,
    RegistryUnavailableError,
    RemovedByOperatorError,
)
from registry_drain.instance import ServiceInstance
from registry_drain.registries.abilities import HandoverRegistration, RejoinableRegistration, removal_line
from registry_drain.registries.base import Registry, RegistryEntry, Removal, RemovalOutcome, Watch, WatchCallback
from registry_drain.registries.local.directory import InstanceDirectory
from registry_drain.registries.local.file import file_name
from registry_drain.registries.local.lock import HeldFile
from registry_drain.registries.local.watch import LocalWatch, healthy
from registry_drain.registries.retry import retrying
from registry_drain.registries.url import RegistryURL, seconds

logger = logging.getLogger(__name__)

DEFAULT_POLL_S = 0.05
"""Quick enough that a restart in a test is noticed at once; 100 instances cost a watch about 5 % of one core."""
TIDY_TIMEOUT = 0.5
"""Seconds a stop gives to unlinking a file that is out of every list already."""


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


class LocalRegistration:
    """One locked file. See :class:`registry_drain.registries.base.Registration`.

    In a forked child it is inert: the parent's membership is the parent's to end.
    """

    def __init__(self, directory: InstanceDirectory, url: str, instance: ServiceInstance, clock: Clock) -> None:
        """Not registered."""
        self._directory = directory
        self._url = url
        self._instance = instance
        self._clock = clock
        self._name = file_name(instance.service, instance.id)
        self._lock = threading.Lock()  # guards what follows
        self._held: HeldFile | None = None
        self._incarnation = ""
        self._pid = 0
        self._is_listed = False
        self._removed = ""
        self._on_removed: Callable[[str], None] | None = None
        self._predecessor = ""  # the incarnation that we were told to take over from
        self._registering = 0
        self._fenced = threading.Event()
        self._idle = threading.Event()
        self._idle.set()

    @property
    def instance(self) -> ServiceInstance:
        """What is, or will be, registered."""
        return self._instance

    @property
    def is_registered(self) -> bool:
        """Whether our file was listed, its lock is still held, and nobody has removed it."""
        held = self._held
        return self._is_listed and held is not None and held.is_held and not self.removed_by_operator

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
        with self._registering_one():
            if removed := self.removed_by_operator:
                raise RemovedByOperatorError(f"{self._instance} in {self._url}: it was {removed}")
            if self._is_listed:
                return
            with self._directory.locked(deadline, self._fenced):
                if not self._is_listed:  # another thread may have been first
                    self._directory.sweep()
                    self._list()

    @contextlib.contextmanager
    def _registering_one(self) -> Iterator[None]:
        """Let the fence wait for what is done inside."""
        if self._is_a_parents:
            raise LiveOwnerError(f"{self._instance} in {self._url} is this process' parent's: make a registration here")
        with self._lock:
            self._refuse_if_fenced()
            self._registering += 1
            self._idle.clear()
        try:
            yield
        finally:
            with self._lock:
                self._registering -= 1
                if not self._registering:
                    self._idle.set()

    @property
    def _is_a_parents(self) -> bool:
        # Asked before any lock is taken: a thread that held it at the fork does not exist here.
        return self._incarnation != "" and self._pid != os.getpid()

    def _refuse_if_fenced(self) -> None:
        if self._fenced.is_set():
            raise LiveOwnerError(f"{self._instance} is being stopped: it is not registered in {self._url} any more")

    def _list(self) -> None:
        incarnation = uuid.uuid4().hex
        owner = f"process {os.getpid()} on {socket.gethostname()}"
        held = self._directory.create(self._instance, incarnation, owner, self._clock.unix_time())
        try:
            predecessor = self._directory.read(self._name)
            # Ours to release from here on. A stop that does so before the rename leaves a file that is born dead.
            with self._lock:
                self._refuse_if_fenced()
                self._held, self._incarnation, self._pid = held, incarnation, os.getpid()
                self._is_listed = False  # it has its public name in a moment
            self._directory.publish(self._name, incarnation)
        except BaseException:
            with self._lock:
                self._held, self._incarnation = None, ""
            held.release()
            self._directory.discard(incarnation)
            raise
        with self._lock:
            self._is_listed, self._removed = not self._fenced.is_set(), ""
        is_expected = predecessor is not None and predecessor.entry.version == self._predecessor
        if predecessor is not None and predecessor.is_live and not is_expected:
            logger.warning(
                "%s in %s was taken over from %s, which is alive: give each process an id of its own, unless it is a "
                "predecessor that is about to stop",
                self._instance,
                self._url,
                predecessor.entry.owner,
            )

    # --- removed by an operator ---------------------------------------------------------------------------------------

    @property
    def removed_by_operator(self) -> str:
        """See :class:`RejoinableRegistration`. Looks at the file; so does :attr:`is_registered`."""
        if self._is_a_parents:
            return self._removed
        with self._lock:
            if self._removed or not self._is_listed or self._held is None or not self._held.is_held:
                return self._removed
            # Under the lock, lest the descriptor be closed meanwhile. Two calls of the kernel, which never wait.
            ours, path = os.fstat(self._held.fd), self._directory.path / self._name
            try:
                path.stat(follow_symlinks=False)
            except OSError:
                how = f"{path} is gone, whose lock this process holds"
            else:
                return ""
            if ours.st_nlink:
                how += "; the file has another name now"
            line = self._removed = removal_line(self._clock.unix_time(), how)
            call = self._on_removed
        logger.warning("%s stays out of %s until it is told to rejoin: %s", self._instance, self._url, line)
        if call is not None:
            call(line)
        return line

    def on_removed(self, call: Callable[[str], None]) -> None:
        """See :class:`RejoinableRegistration`: called in the thread that asks."""
        with self._lock:
            self._on_removed = call

    def rejoin(self, deadline: Deadline) -> None:
        """See :class:`RejoinableRegistration`."""
        if not self.removed_by_operator:
            self.register(deadline)
            return
        with self._registering_one(), self._directory.locked(deadline, self._fenced):
            found = self._directory.read(self._name)
            if found is not None and found.is_live is not False:
                raise LiveOwnerError(f"{self._instance} in {self._url}: {found.entry.owner or 'a file'} has the id now")
            with self._lock:
                mine = self._held
            self._list()
            if mine is not None:
                mine.release()

    def fence(self, deadline: Deadline) -> None:
        """Refuse to register from now on; a ``register`` that waits for the directory's lock is cancelled."""
        if not self._is_a_parents:
            self._fenced.set()
            deadline.wait(self._idle)

    def on_shutdown(self, deadline: Deadline) -> Removal:
        """Release the lock, read back, and unlink the file."""
        if self._is_a_parents:
            return self._removal(RemovalOutcome.NOT_REGISTERED, "it is this process' parent's, and was left alone")
        removed = self.removed_by_operator
        self.fence(deadline)
        with self._lock:
            self._is_listed = False
            held, self._held, incarnation = self._held, None, self._incarnation
            if held is not None:
                held.release()
        if not incarnation:
            return self._removal(RemovalOutcome.NOT_REGISTERED, "it was never registered")
        attempts = 0
        try:
            for attempt in retrying(deadline):
                with attempt:
                    attempts += 1
                    removal = self._proof(incarnation, attempts)
                    if removed and removal.outcome is RemovalOutcome.CONFIRMED:
                        removal = replace(removal, detail=removed)
        except PermissionRefusedError as error:
            return self._removal(RemovalOutcome.UNVERIFIABLE, f"the lock is released, but {error}", attempts)
        except RegistryUnavailableError as error:
            return self._removal(RemovalOutcome.UNCONFIRMED, f"the lock is released, but {error}", attempts)
        # In no list any more, whatever becomes of the file.
        with contextlib.suppress(RegistryError), self._directory.locked(deadline.capped(TIDY_TIMEOUT)):
            self._directory.unlink_if_dead(self._name)
        return removal

    def offer(self, deadline: Deadline) -> str:  # noqa: ARG002 -- the protocol's; nothing here takes long
        """See :meth:`HandoverRegistration.offer`: nothing is renewed here, so nothing can overwrite."""
        with self._lock:
            self._refuse_if_fenced()
            return "" if self._removed else self._incarnation

    def adopt(self, offer: str) -> None:
        """See :meth:`HandoverRegistration.adopt`: its file is replaced by ours in one rename, as any file is."""
        self._predecessor = offer

    def confirm(self) -> None:
        """See :meth:`HandoverRegistration.confirm`: what is removed is only ever our own file."""

    def hand_over(self, deadline: Deadline) -> Removal:
        """See :meth:`HandoverRegistration.hand_over`: our own file has no name any more; its lock is released."""
        removal = self.on_shutdown(deadline)
        is_theirs = removal.outcome is RemovalOutcome.SUCCESSOR
        return replace(removal, outcome=RemovalOutcome.HANDED_OVER) if is_theirs else removal

    def take_back(self, deadline: Deadline) -> None:
        """See :meth:`HandoverRegistration.take_back`: rename a new file of ours over theirs."""
        if self._removed:
            return
        with self._directory.locked(deadline, self._fenced):
            found = self._directory.read(self._name)
            if found is not None and found.entry.version == self._incarnation:
                return
            with self._lock:
                self._refuse_if_fenced()
                mine, self._predecessor = self._held, "" if found is None else found.entry.version
            self._list()
            if mine is not None:
                mine.release()

    def _proof(self, incarnation: str, attempts: int) -> Removal:
        found = self._directory.read(self._name)
        read_at = self._clock.now()
        if found is None or found.is_live is False:
            return self._removal(RemovalOutcome.CONFIRMED, "", attempts, read_at)
        if found.entry.version == incarnation:
            raise RegistryUnavailableError(f"{found.entry.locator} is locked still")
        if found.is_live:
            detail = f"{found.entry.owner} has the id and was left alone"
            return self._removal(RemovalOutcome.SUCCESSOR, detail, attempts, read_at)
        detail = f"the lock is released, but {found.entry.locator} cannot be judged: {found.entry.problem}"
        return self._removal(RemovalOutcome.UNVERIFIABLE, detail, attempts)

    def _removal(
        self, outcome: RemovalOutcome, detail: str, attempts: int = 0, confirmed_at: float | None = None
    ) -> Removal:
        return Removal(str(self._instance), self._url, outcome, detail, attempts, confirmed_at)

    def __repr__(self) -> str:
        """Show the state."""
        state = "fenced" if self._fenced.is_set() else "registered" if self.is_registered else "not registered"
        return f"<LocalRegistration {self._instance} {state}>"


# A type checker compares the backend with the protocols here.
_registry: type[Registry] = LocalRegistry
_registration: type[HandoverRegistration] = LocalRegistration
_watch: type[Watch] = LocalWatch
_rejoinable: type[RejoinableRegistration] = LocalRegistration
