"""The one thread that registers an instance and keeps it registered, and how callers ask it and stop it.

``_lock`` guards the fields; requests, waits and joins happen outside it. A forked child has no worker: it is refused
before the lock is touched, which a thread of its parent may have held at the fork.
"""

from __future__ import annotations

import logging
import os
import random
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from registry_drain.clock import Clock, Deadline
from registry_drain.errors import (
    LiveOwnerError,
    RegistryDrainError,
    RegistryTimeoutError,
    RegistryUnavailableError,
    RemovedByOperatorError,
)
from registry_drain.registries.membership import Membership, OperatorsRemoval
from registry_drain.registries.zookeeper.layouts import NodeTree
from registry_drain.registries.zookeeper.registration.node import OwnNode
from registry_drain.registries.zookeeper.session import ZooKeeperSession
from registry_drain.registries.zookeeper.settings import Cancellation, CancelledSessionCallError, SessionSettings
from registry_drain.registries.zookeeper.shared import SharedSession

log = logging.getLogger(__name__.rpartition(".")[0])
"""Of everything in this folder: one registration is one subject."""

_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 1.0
"""Seconds between attempts to get back what was lost; as in :mod:`registry_drain.registries.retry`."""
_PAUSE_WHEN_REFUSED = 10.0
"""Seconds; somebody must change an access list first."""


@dataclass(eq=False)
class _Request:
    """One call of ``register``, as the worker sees it."""

    deadline: Deadline
    prepare: Callable[[], None] | None = None
    done: threading.Event = field(default_factory=threading.Event)
    error: RegistryDrainError | None = None


class Worker:
    """See the module. Thread-safe.

    Attributes:
        node: what it keeps in place.
        removed: whether an operator took that out.
    """

    def __init__(
        self, membership: Membership, tree: NodeTree, settings: SessionSettings, shared: SharedSession, clock: Clock
    ) -> None:
        self._membership = membership
        self._settings = settings
        self._shared = shared
        self._clock = clock
        self._wake = threading.Event()
        self._cancellation = Cancellation()
        self.node = OwnNode(membership.instance, tree, settings, clock, self._cancellation, self._wake.set)
        self.removed = OperatorsRemoval(membership, clock, log)
        self._lock = threading.Lock()  # guards what follows
        self._thread: threading.Thread | None = None
        self._process_id = os.getpid()
        self._requests: deque[_Request] = deque()  # the first is being served, or about to be
        self._holder: ZooKeeperSession | None = None
        self._is_kept = False
        self._is_offered = False
        self._is_busy = False
        self._is_fenced = False
        self._ended = threading.Event()

    # --- as callers see it --------------------------------------------------------------------------------------------

    @property
    def holder(self) -> ZooKeeperSession | None:
        """The session under which the node stood when last seen; None if it did not."""
        return self._holder

    @property
    def is_fenced(self) -> bool:
        """Whether the stop has begun."""
        return self._is_fenced

    @property
    def owner_pid(self) -> int:
        """The process that it belongs to."""
        return self._process_id

    @property
    def is_inherited(self) -> bool:
        """Whether this is a forked child's copy of a worker that its parent has started."""
        return self._thread is not None and self._process_id != os.getpid()

    def check(self) -> None:
        """Return if it may register.

        Raises:
            LiveOwnerError: fenced, or a forked child.
        """
        if self._is_fenced:
            raise self._membership.fenced()
        if self.is_inherited:
            raise self._membership.inherited(self._process_id)

    def register(self, deadline: Deadline) -> None:
        """Have the node put in its place, and kept there; see :meth:`ZooKeeperRegistration.register`."""
        self.check()
        with self._lock:
            self.check()
            if self._holder is not None and not self._holder.is_over:
                return
            if self._thread is None:
                self._process_id = os.getpid()
                name = f"registry-drain-zookeeper-{self._membership.instance.id}"
                thread = threading.Thread(target=self._work, name=name, daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:
                    raise self._membership.no_thread(error) from error
                self._thread = thread  # only now: the process may have threads to spare later
            request = self._share(deadline)
        self._await(request, deadline)

    def rejoin(self, deadline: Deadline) -> None:
        """Have the node made again if an operator removed it; otherwise as :meth:`register`."""
        self.check()
        with self._lock:
            self.check()
            is_removed = self.removed.is_noted
            if is_removed:
                request = self._share(deadline, self.node.rejoin)
        if is_removed:
            self._await(request, deadline)
        else:
            self.register(deadline)

    def rest(self) -> None:
        """Leave the node alone, whatever becomes of it, until :meth:`claim_anew`: it is offered to the next process."""
        with self._lock:
            self._is_offered = True

    def claim_anew(self, deadline: Deadline) -> None:
        """Have the node replaced by ours, if it is not ours; does nothing if there never was one to keep."""
        self.check()
        with self._lock:
            self.check()
            self._is_offered = False
            if self._thread is None or self.removed.is_noted:
                return
            request = _Request(deadline, self.node.claim_anew)
            self._requests.append(request)
        self._await(request, deadline)

    def _share(self, deadline: Deadline, prepare: Callable[[], None] | None = None) -> _Request:
        """Return the request of callers who want the same, or a new one. With the lock held."""
        for request in self._requests:
            if request.prepare == prepare:
                return request
        request = _Request(deadline, prepare)
        self._requests.append(request)
        return request

    def _await(self, request: _Request, deadline: Deadline) -> None:
        """Wake the thread, wait for its answer, and raise what it found."""
        self._wake.set()
        is_answered = deadline.wait(request.done)
        if self._is_fenced:
            raise self._membership.fenced()
        if not is_answered:
            raise RegistryTimeoutError(f"{self._settings.url}: {self._membership.instance} was not registered in time")
        if request.error is not None:
            raise request.error

    def put_up_fence(self) -> bool:
        """Forbid every further write; return whether the thread is inside an attempt. Waits for nothing."""
        if self.is_inherited:
            return False  # the parent's goes on
        with self._lock:
            self._is_fenced = True
            is_busy = self._is_busy
        self._cancellation.cancel()
        self._wake.set()
        return is_busy

    def join(self, deadline: Deadline) -> None:
        """Wait until the thread has ended, at most until ``deadline``. Behind the fence."""
        thread = self._thread
        if thread is not None and not self.is_inherited and deadline.wait(self._ended):
            thread.join()  # it has nothing left to do but return

    def forget_holder(self) -> None:
        """The session that holds the node is about to end. Behind the fence."""
        with self._lock:
            self._holder = None

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            self._serve()
        except CancelledSessionCallError:
            pass  # the fence
        finally:
            with self._lock:
                requests = self._requests.copy()
                self._requests.clear()
            for request in requests:
                request.done.set()
            self._ended.set()

    def _serve(self) -> None:
        failures = 0
        while True:
            self._wake.clear()
            with self._lock:
                if self._is_fenced:
                    return
                request = self._requests[0] if self._requests else None
                is_kept = self._is_kept and not self._is_offered
                self._is_busy = request is not None or is_kept
            error = None
            if request is not None:
                if request.prepare is not None:
                    request.prepare()
                # Our answer must reach whoever waits for it inside the same deadline.
                error = request.error = self._attempt(request.deadline.with_headroom())
                if isinstance(error, RemovedByOperatorError):
                    self._tell(error, 0)
                with self._lock:
                    self._requests.popleft()
                request.done.set()
            elif is_kept:
                error = self._attempt(Deadline.after(self._settings.call_timeout, self._clock))
                self._tell(error, failures)
            with self._lock:
                self._is_busy = False
            failures = failures + 1 if error is not None and self._is_kept else 0
            self._clock.wait(self._wake, None if error is None or not failures else self._pause(error, failures))

    @staticmethod
    def _pause(error: RegistryDrainError, failures: int) -> float:
        if not error.retryable:
            return _PAUSE_WHEN_REFUSED
        # Half of it is chance: a whole fleet may have lost the same server.
        return min(_FIRST_PAUSE * 2.0 ** min(failures, 10), _LONGEST_PAUSE) * random.uniform(0.5, 1.0)  # noqa: S311

    def _tell(self, error: RegistryDrainError | None, failures: int) -> None:
        """Log an outage once when it begins and once when it ends; a take-over once."""
        instance, url = self._membership.instance, self._settings.url
        if error is None:
            if failures:
                log.info("%s is registered with %s, as before", instance, url)
        elif isinstance(error, RemovedByOperatorError):
            self.removed.note(f"{self.node.path} was deleted while its session lived")
        elif not self._is_kept:
            log.warning("%s yields: %s", instance, error)
        else:
            level = logging.WARNING if failures == 0 else logging.DEBUG
            log.log(level, "%s may have lost its registration; trying on: %s", instance, error)

    def _attempt(self, deadline: Deadline) -> RegistryDrainError | None:
        """Make one attempt; return its error. Only the fence's cancellation is raised."""
        try:
            holder = self.node.settle(deadline)
        except CancelledSessionCallError:
            raise
        except RegistryDrainError as error:
            self._missed(error)
            return error
        except Exception as error:
            # Nobody would see a worker die; an instance that silently stays unlisted is the worse fault.
            log.exception("registering %s failed in an unforeseen way", self._membership.instance)
            return RegistryUnavailableError(f"{self._settings.url}: unforeseen {type(error).__name__}: {error}")
        self._hold(holder)
        return None

    def _hold(self, holder: ZooKeeperSession) -> None:
        with self._lock:
            is_news = self._holder is not holder
            self._holder = holder
            self._is_kept = True
        self.removed.lift()
        if is_news:
            log.info("%s is registered with %s at %s", self._membership.instance, self._settings.url, self.node.path)
            try:
                # The proof of the stop will be read with it: connected by then, it costs one round trip.
                self._shared.get()
            except RegistryDrainError as error:
                log.debug("no second session for %s yet: %s", self._membership.instance, error)

    def _missed(self, error: RegistryDrainError) -> None:
        with self._lock:
            if not self.node.is_in_place:
                self._holder = None
            if isinstance(error, LiveOwnerError | RemovedByOperatorError):
                self._is_kept = False  # rules 3 and 5
