"""One instance's registration: a worker thread that keeps its node, the fence, and the proven removal.

Theory of operation. All registering is done by one thread, the worker, which :meth:`ZooKeeperRegistration.register`
starts and asks, and which kazoo's listeners and watches wake: they set an event and do nothing else. What the worker
does about the node stands in :mod:`registry_drain.registries.zookeeper.node`. Rules:

1. *The fence* is a cancellation, which the worker reads before each step and which ends its waits, and a join. If the
   worker was inside a write then, it ends that session at once: the goodbye stands behind the write in the same queue.
2. *Removal is the end of our sessions*, known from the server, and then a consistent read over another session.
3. Whoever finds the node taken over by a newer instance stops keeping it, says so once, and never tries again.
4. A result that leaves the node in doubt is not kept: a further ``on_shutdown`` tries again.
5. What an operator removed stays out (rule 5 of the node): the worker rests, and keeps its session for the end.
6. A hand-over is a take-over that is expected: the next process replaces the node in one transaction, which no reader
   can look into, and this one's worker rests meanwhile. Taking back is taking over the other way round.

``_lock`` guards the fields; requests, waits and joins happen outside it.
"""

from __future__ import annotations

import logging
import os
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from registry_drain.clock import Clock, Deadline
from registry_drain.errors import (
    LiveOwnerError,
    PermissionRefusedError,
    RegistryDrainError,
    RegistryTimeoutError,
    RegistryUnavailableError,
    RemovedByOperatorError,
)
from registry_drain.instance import ServiceInstance
from registry_drain.registries.abilities import (
    HandoverRegistration,
    RejoinableRegistration,
    RotationRegistration,
    removal_line,
)
from registry_drain.registries.base import Removal, RemovalOutcome
from registry_drain.registries.retry import retrying
from registry_drain.registries.zookeeper.layouts import NodeTree
from registry_drain.registries.zookeeper.node import OwnNode
from registry_drain.registries.zookeeper.session import ZooKeeperSession, read_stat, session_text
from registry_drain.registries.zookeeper.settings import Cancellation, CancelledSessionCallError, SessionSettings
from registry_drain.registries.zookeeper.shared import SharedSession

log = logging.getLogger(__name__)

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


class ZooKeeperRegistration:
    """See the module, and :class:`registry_drain.registries.base.Registration` for what each method promises."""

    def __init__(
        self,
        instance: ServiceInstance,
        tree: NodeTree,
        settings: SessionSettings,
        shared: SharedSession,
        clock: Clock,
    ) -> None:
        self._instance = instance
        self._is_sequential = tree.layout.is_sequential
        self._settings = settings
        self._shared = shared
        self._clock = clock
        self._wake = threading.Event()
        self._cancellation = Cancellation()
        self._node = OwnNode(instance, tree, settings, clock, self._cancellation, self._wake.set)
        self._lock = threading.Lock()
        self._worker: threading.Thread | None = None
        self._worker_ended = threading.Event()
        self._process_id = os.getpid()
        self._request: _Request | None = None
        self._holder: ZooKeeperSession | None = None
        self._is_kept = False
        self._removed = ""
        self._on_removed: Callable[[str], None] | None = None
        self._is_offered = False
        self._is_busy = False
        self._is_fenced = False
        self._remover: threading.Event | None = None
        self._removal: Removal | None = None

    def __repr__(self) -> str:
        """Show the instance and what became of it."""
        state = "registered" if self.is_registered else "fenced" if self._is_fenced else "not registered"
        return f"<ZooKeeperRegistration {self._instance} {state}>"

    @property
    def instance(self) -> ServiceInstance:
        """What is, or will be, registered."""
        return self._instance

    @property
    def is_registered(self) -> bool:
        """Whether our node stood there when last seen, and its session is not known to be over."""
        with self._lock:
            holder = self._holder
        return holder is not None and not holder.is_over

    # --- registering, as its callers see it ---------------------------------------------------------------------------

    def register(self, deadline: Deadline) -> None:
        """Put the node in place and keep it there; see the protocol.

        Raises:
            RegistryUnavailableError: retryable.
            PermissionRefusedError: the access lists of base or service do not let us create.
            LiveOwnerError: fenced; or a newer instance, or a persistent node, stands at the path.
            RemovedByOperatorError: somebody took it out on purpose.
        """
        with self._lock:
            self._check_may_register()
            if self._holder is not None and not self._holder.is_over:
                return
            if self._worker is None:
                self._process_id = os.getpid()
                name = f"registry-drain-zookeeper-{self._instance.id}"
                self._worker = threading.Thread(target=self._work, name=name, daemon=True)
                self._worker.start()
            # Callers at the same time share one attempt.
            request = self._request = self._request or _Request(deadline)
        self._await(request)

    @property
    def removed_by_operator(self) -> str:
        """See :class:`RejoinableRegistration`."""
        return self._removed

    def on_removed(self, call: Callable[[str], None]) -> None:
        """See :class:`RejoinableRegistration`: called in the worker."""
        self._on_removed = call

    def rejoin(self, deadline: Deadline) -> None:
        """See :class:`RejoinableRegistration`; of a sequential layout the node gets another number."""
        with self._lock:
            self._check_may_register()
            is_removed = bool(self._removed)
            if is_removed:
                request = self._request = self._request or _Request(deadline, self._node.rejoin)
        if not is_removed:
            self.register(deadline)
            return
        self._await(request)

    def _await(self, request: _Request) -> None:
        """Wake the worker, wait for its answer, and raise what it found."""
        deadline = request.deadline
        self._wake.set()
        is_answered = deadline.wait(request.done)
        if self._is_fenced:
            raise self._fenced_error()
        if not is_answered:
            raise RegistryTimeoutError(f"{self._settings.url}: {self._instance} was not registered in time")
        if request.error is not None:
            raise request.error

    def _check_may_register(self) -> None:
        if self._is_fenced:
            raise self._fenced_error()
        if self._worker is not None and self._process_id != os.getpid():
            raise LiveOwnerError(f"{self._instance} is registered by process {self._process_id}, which forked this one")

    def _fenced_error(self) -> LiveOwnerError:
        return LiveOwnerError(f"{self._instance} is being stopped and does not register with {self._settings.url}")

    def fence(self, deadline: Deadline) -> None:
        """Stop the worker and join it; the node stays. See rule 1."""
        worker, _ = self._raise_fence()
        if worker is not None and deadline.wait(self._worker_ended):
            worker.join()  # it has nothing left to do but return

    def _raise_fence(self) -> tuple[threading.Thread | None, bool]:
        """Forbid every further write; return the worker, and whether it is inside an attempt."""
        with self._lock:
            self._is_fenced = True
            worker = self._worker if self._process_id == os.getpid() else None
            is_busy = self._is_busy
        self._cancellation.cancel()
        self._wake.set()
        return worker, is_busy

    # --- handing over -------------------------------------------------------------------------------------------------

    def offer(self, deadline: Deadline) -> str:  # noqa: ARG002 -- the protocol's; this takes no time
        """See :meth:`HandoverRegistration.offer`. A node whose name ZooKeeper numbers cannot be taken over."""
        with self._lock:
            self._check_may_register()
            if self._is_sequential or self._node.path is None or self._removed:
                return ""
            self._is_offered = True
            return self._node.path

    def adopt(self, offer: str) -> None:
        """See :meth:`HandoverRegistration.adopt`: the newest wins, so there is nothing to prepare."""

    def confirm(self) -> None:
        """See :meth:`HandoverRegistration.confirm`: the end of our session can only remove our own node."""

    def hand_over(self, deadline: Deadline) -> Removal:
        """See :meth:`HandoverRegistration.hand_over`: our session ends, which no longer holds the node."""
        removal = self.on_shutdown(deadline)
        is_theirs = removal.outcome is RemovalOutcome.SUCCESSOR
        return replace(removal, outcome=RemovalOutcome.HANDED_OVER) if is_theirs else removal

    def take_back(self, deadline: Deadline) -> None:
        """See :meth:`HandoverRegistration.take_back`: replace their node by ours, if it is not ours."""
        with self._lock:
            self._check_may_register()
            self._is_offered = False
            if self._worker is None or self._removed:
                return
            request = self._request = _Request(deadline, self._node.claim_anew)
        self._await(request)

    # --- the worker ---------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            self._serve()
        except CancelledSessionCallError:
            pass  # the fence
        finally:
            with self._lock:
                request, self._request = self._request, None
            if request is not None:
                request.done.set()
            self._worker_ended.set()

    def _serve(self) -> None:
        failures = 0
        while True:
            self._wake.clear()
            with self._lock:
                if self._is_fenced:
                    return
                request, is_kept = self._request, self._is_kept and not self._is_offered
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
                    self._request = None
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
        if error is None:
            if failures:
                log.info("%s is registered with %s, as before", self._instance, self._settings.url)
        elif isinstance(error, RemovedByOperatorError):
            self._tell_removal()
        elif not self._is_kept:
            log.warning("%s yields: %s", self._instance, error)
        else:
            level = logging.WARNING if failures == 0 else logging.DEBUG
            log.log(level, "%s may have lost its registration; trying on: %s", self._instance, error)

    def _attempt(self, deadline: Deadline) -> RegistryDrainError | None:
        """Make one attempt; return its error. Only the fence's cancellation is raised."""
        try:
            holder = self._node.settle(deadline)
        except CancelledSessionCallError:
            raise
        except RegistryDrainError as error:
            self._missed(error)
            return error
        except Exception as error:
            # Nobody would see a worker die; an instance that silently stays unlisted is the worse fault.
            log.exception("registering %s failed in an unforeseen way", self._instance)
            return RegistryUnavailableError(f"{self._settings.url}: unforeseen {type(error).__name__}: {error}")
        self._hold(holder)
        return None

    def _hold(self, holder: ZooKeeperSession) -> None:
        with self._lock:
            is_news = self._holder is not holder
            self._holder = holder
            self._is_kept = True
            self._removed = ""
        if is_news:
            log.info("%s is registered with %s at %s", self._instance, self._settings.url, self._node.path)
            try:
                # The proof of the stop will be read with it: connected by then, it costs one round trip.
                self._shared.get()
            except RegistryDrainError as error:
                log.debug("no second session for %s yet: %s", self._instance, error)

    def _missed(self, error: RegistryDrainError) -> None:
        with self._lock:
            if not self._node.is_in_place:
                self._holder = None
            if isinstance(error, LiveOwnerError | RemovedByOperatorError):
                self._is_kept = False  # rules 3 and 5

    def _tell_removal(self) -> None:
        """Note it, log it, and tell whoever asked to be told: once for each removal."""
        with self._lock:
            if self._removed:
                return
            how = f"{self._node.path} was deleted while its session lived"
            line = self._removed = removal_line(self._clock.unix_time(), how)
            call = self._on_removed
        log.warning("%s stays out of %s until it is told to rejoin: %s", self._instance, self._settings.url, line)
        if call is not None:
            call(line)

    # --- removing -----------------------------------------------------------------------------------------------------

    def leave_rotation(self, deadline: Deadline) -> None:
        """See :class:`RotationRegistration`: the node says so, until it goes with its session."""
        with self._lock:
            self._check_may_register()
            holder = self._holder
        if holder is not None:
            self._node.leave_rotation(holder, deadline)

    def on_shutdown(self, deadline: Deadline) -> Removal:
        """Fence, end our sessions, and prove by another one that our node is gone. See rules 2 and 4."""
        _, is_busy = self._raise_fence()
        if not is_busy and self._process_id == os.getpid():
            # Nothing can write any more. The goodbye is on its way while the worker is being joined.
            for session in self._node.sessions:
                session.say_goodbye()
        self.fence(deadline)
        while True:
            with self._lock:
                if self._removal is not None and self._removal.is_gone:
                    return self._removal
                other = self._remover
                if other is None:
                    self._holder = None
                    mine = self._remover = threading.Event()
                    break
            if not deadline.wait(other):
                return self._result(RemovalOutcome.UNCONFIRMED, "another thread is still removing it")
        removal = None
        try:
            removal = self._remove(deadline)
        finally:
            with self._lock:
                self._removal, self._remover = removal, None
            mine.set()
            for session in self._node.sessions:
                session.begin_end()
        return removal

    def _remove(self, deadline: Deadline) -> Removal:
        if self._process_id != os.getpid():
            # Ending a session takes nothing but its id, which a forked child has: never let it do so by accident.
            detail = f"process {self._process_id}, which forked this one, registered it and must remove it"
            return self._result(RemovalOutcome.NOT_REGISTERED, detail)
        sessions = self._node.sessions
        if not self._node.was_written:
            return self._result(RemovalOutcome.NOT_REGISTERED)
        attempts, is_ended = 0, False
        try:
            for attempt in retrying(deadline):
                with attempt:
                    attempts += 1
                    for session in reversed(sessions):  # the newest holds the node
                        session.end(deadline)
                    is_ended = True
                    return self._prove(deadline, attempts)
        except PermissionRefusedError as error:
            if not is_ended:
                # The session was lost, and the credentials are no longer good enough to resume it.
                detail = (
                    f"{error}; ZooKeeper removes it {self._settings.session_timeout:g} s after it last heard from us"
                )
                return self._result(RemovalOutcome.REFUSED, detail, attempts)
            return self._result(RemovalOutcome.UNVERIFIABLE, f"its session is closed, but: {error}", attempts)
        except RegistryDrainError as error:
            detail = f"{error}; ZooKeeper removes it after {self._settings.session_timeout:g} s without us"
            return self._result(RemovalOutcome.UNCONFIRMED, detail, attempts)
        raise AssertionError("retrying() returns or raises")

    def _prove(self, deadline: Deadline, attempts: int) -> Removal:
        """Say what a consistent read shows, now that no session of ours lives. Raises as long as ours is shown."""
        path = self._node.path
        if path is None:
            # A sequential create whose answer never came: its session is dead, and nobody else has such a name.
            return self._result(RemovalOutcome.CONFIRMED, "its session is closed", attempts, self._clock.now())
        with self._shared.borrow() as session:
            stat = read_stat(session, path, deadline)
        now = self._clock.now()
        if stat is None:
            detail = f"{path} is gone"
            detail = f"{detail}; {self._removed}" if self._removed else detail
            return self._result(RemovalOutcome.CONFIRMED, detail, attempts, now)
        owner = session_text(stat.ephemeralOwner)
        if stat.ephemeralOwner in self._node.session_ids:
            raise RegistryUnavailableError(f"{self._settings.url}: {path} still belongs to our session {owner}")
        holder = f"session {owner}" if stat.ephemeralOwner else "a persistent node"
        return self._result(RemovalOutcome.SUCCESSOR, f"{path} is held by {holder} now", attempts, now)

    def _result(
        self, outcome: RemovalOutcome, detail: str = "", attempts: int = 0, confirmed_at: float | None = None
    ) -> Removal:
        return Removal(str(self._instance), self._settings.url, outcome, detail, attempts, confirmed_at)


# A type checker compares it with the protocol here.
_handover: type[HandoverRegistration] = ZooKeeperRegistration
_rejoinable: type[RejoinableRegistration] = ZooKeeperRegistration
_rotation: type[RotationRegistration] = ZooKeeperRegistration
