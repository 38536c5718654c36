"""One registration that several worker processes have together: made once, removed once, when the last of them stops.

Theory of operation: one worker, the *keeper*, holds the registrations. When it dies (a crash, SIGKILL) another one
takes over, under the same instance id, as a restarted process would. When it is told to stop, it first finds out who
else was:

===================  ===============================================================================================
the other workers    then
===================  ===============================================================================================
are leaving too      the whole service stops: the keeper removes the instance, and tells the others the outcome
go on serving        this worker is recycled, or was stopped alone: another one registers the instance, taking it
                     over, and only then this one lets go of it. No gap, and never two
are not there        as the first; but a worker that ends *without a signal* has a successor coming, and leaves the
                     instance listed for it
===================  ===============================================================================================

A worker that is not the keeper and leaves with all the others waits for what the keeper says. A soft drain is the
keeper's as well, and only if all leave: the others serve on meanwhile, as they wait.

What an operator removes stays out, whichever worker found it out: the keeper writes it into the agreement, and who
takes the keeping over does not register there. Any worker may be told to rejoin; the keeper does it. What was only lost
is in no agreement, and registered again.

Rules:

1. Supervisors signal their workers one right after the other, so who is going to leave has been told within ``SETTLE``.
2. Only a worker that serves takes the keeping over: nothing is registered by those that leave.
3. Who keeps the registration is published, and the registration begun, under the lock under which the leaving begins:
   so whoever leaves either has it to remove, or never registers.
4. A worker joins before it accepts, and so before it knows its registries: one that is told to stop in between leaves
   like any other, and harms no listener that others use.
5. Only the keeper's own thread writes what an operator removed, and rejoins: so neither overtakes the other.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import Enum

from registry_drain.clock import Clock, Deadline
from registry_drain.errors import LiveOwnerError
from registry_drain.hosted.kept import KeptRegistrations, RemovalListener
from registry_drain.hosted.rejoining import ask_to_rejoin, note_removed, rejoin_kept
from registry_drain.hosted.workers import Agreement, Workers, WorkerState
from registry_drain.instance import ServiceInstance
from registry_drain.persistent_registration import PersistentRegistration
from registry_drain.registries.base import Registry, Removal, RemovalOutcome

logger = logging.getLogger(__name__)

SETTLE = 0.75
"""Seconds from this worker's signal to the last one's, if the supervisor signals them all: microseconds lie between two
signals, but a worker whose loop is busy handles its own late."""
_LOOK_EVERY = 0.1
_LOOK_OFTEN = 0.01
_JOIN_LIMIT = 2.0


class Departure(Enum):
    """What this worker's leaving means."""

    ALL_LEAVE = "all workers leave, and this one removes the instance"
    FOLLOWS = "all workers leave, and another one removes the instance"
    ALONE = "this worker leaves, the others keep the instance"
    SUCCEEDED = "this worker leaves, and its supervisor starts another one"


_OTHERS_GO_ON = frozenset({Departure.ALONE, Departure.SUCCEEDED})


class SharedMembership:
    """This worker's part in the registrations that all have. Thread-safe.

    Args:
        workers: the processes.
        clock: measures and passes time.
        has_stop_signal: whether this worker was told to stop; it may also be about to end by itself.
        on_removed: told when this worker, being the keeper, finds out that an operator removed the instance.
    """

    def __init__(
        self,
        workers: Workers,
        clock: Clock,
        *,
        has_stop_signal: Callable[[], bool] = lambda: True,
        on_removed: RemovalListener = lambda _event: None,
    ) -> None:
        self._workers = workers
        self._registries: list[Registry] = []
        self._clock = clock
        self._instance: ServiceInstance | None = None
        self._kept: KeptRegistrations | None = None
        self._on_removed = on_removed
        self._leaving = threading.Event()
        self._has_joined = False
        self._lock = threading.Lock()
        self._departure: Departure | None = None
        self._thread = threading.Thread(target=self._keep, name="registry-drain-workers", daemon=True)
        self._has_stop_signal = has_stop_signal

    def join(self) -> None:
        """Be one of the workers, before it is known what is to be registered, and where."""
        with self._lock:
            if not self._has_joined and not self._leaving.is_set():
                self._workers.join()
                self._has_joined = True

    def start(self, instance: ServiceInstance, registries: Sequence[Registry]) -> None:
        """Join the workers if need be, and keep the registration if nobody does; nothing if this worker leaves already.

        Args:
            instance: what is listed.
            registries: where.
        """
        self._instance, self._registries = instance, list(registries)
        self.join()
        with self._lock:
            if not self._leaving.is_set():
                self._thread.start()

    @property
    def departure(self) -> Departure | None:
        """What this worker's leaving means, once that is known."""
        return self._departure

    @property
    def is_keeper(self) -> bool:
        """Whether this worker has the registrations."""
        return self._kept is not None

    def _kept_at(self, url: str) -> PersistentRegistration | None:
        return None if self._kept is None else self._kept.by_url.get(url)

    def others_listen(self) -> bool:
        """Whether other workers go on accepting when this one does no more, as far as is known."""
        departure = self._departure
        if departure is not None:
            return departure in _OTHERS_GO_ON
        with self._workers.agreement() as agreed:
            return agreed.others_serve(self._workers.pid)

    def closed(self) -> bool:
        """Note that this worker does not accept any more; return whether no other one does."""
        with self._workers.agreement() as agreed:
            agreed.states[self._workers.pid] = WorkerState.CLOSED
            return all(state is WorkerState.CLOSED for state in agreed.states.values())

    def _keep(self) -> None:
        while not self._clock.wait(self._leaving, _LOOK_EVERY):
            try:
                self._look()
            except Exception:  # noqa: PERF203 - the next look may work
                logger.exception("%r: trying again", self._workers)

    def _look(self) -> None:
        kept = self._kept
        removed = kept.removed if kept is not None else {}
        to_rejoin: list[str] = []
        with self._workers.agreement() as agreed:
            if self._leaving.is_set():
                return
            is_vacant = self._is_vacant(agreed)
            if not is_vacant and agreed.keeper == self._workers.pid and kept is not None:
                note_removed(agreed, removed)
                agreed.is_kept = agreed.is_kept or kept.is_settled(agreed.removed)
                to_rejoin = [url for url, each in agreed.removed.items() if each.is_rejoin_asked]
        if is_vacant and self._instance is not None:
            # Made before anybody is told: what fails here fails before the others rely on this worker.
            made = KeptRegistrations(self._registries, self._instance, self._clock, self._on_removed)
            self._take_over(made, self._instance)
        elif kept is not None:
            rejoin_kept(self._workers, kept, to_rejoin)

    def _is_vacant(self, agreed: Agreement) -> bool:
        """Whether nobody keeps the registration."""
        if agreed.keeper == self._workers.pid:
            return self._kept is None  # published, and then it failed; or by a dead worker with this pid
        # One that has removed the instance keeps nothing any more: whoever serves now is a new generation.
        return agreed.keeper is None or bool(agreed.removals)

    def _take_over(self, kept: KeptRegistrations, instance: ServiceInstance) -> None:
        with self._lock:
            with self._workers.agreement() as agreed:
                if self._leaving.is_set() or not self._is_vacant(agreed):
                    return
                agreed.keeper, agreed.is_kept, agreed.removals = self._workers.pid, False, {}
                out_of = {url: each.how for url, each in agreed.removed.items()}
            self._kept = kept
            kept.start(out_of)
        for url, how in out_of.items():
            logger.warning("worker %d keeps %s, which stays out of %s: %s", self._workers.pid, instance, url, how)

    # --- removed by an operator ---------------------------------------------------------------------------------------

    def rejoin(self, deadline: Deadline) -> tuple[str, ...]:
        """Have the keeper register again wherever an operator has removed the instance; return those URLs.

        Raises:
            LiveOwnerError: this worker is leaving, or a successor has the id.
            RegistryError: of the first registry that could not be rejoined; the others were tried, too.
        """
        if self._leaving.is_set():
            raise LiveOwnerError(f"{self._instance} is being stopped, and does not rejoin")
        return ask_to_rejoin(self._workers, str(self._instance), deadline)

    # --- leaving ----------------------------------------------------------------------------------------------------

    def begin_leaving(self, deadline: Deadline) -> None:
        """Take nothing over any more; the others see that this worker leaves."""
        with self._lock:
            self._leaving.set()
        if self._thread.is_alive():
            self._thread.join(min(_JOIN_LIMIT, deadline.remaining()))
        with self._lock, self._workers.agreement() as agreed:
            if agreed.states.get(self._workers.pid) is WorkerState.SERVING:
                agreed.states[self._workers.pid] = WorkerState.LEAVING
                # The last moment in which a registration that is gone was surely not removed by us.
                if agreed.keeper == self._workers.pid and self._kept is not None:
                    note_removed(agreed, self._kept.removed)

    def can_leave_rotation(self, url: str) -> bool:
        """Whether this worker has a registration at ``url`` that can be taken out of rotation."""
        kept = self._kept_at(url)
        return kept is not None and kept.can_leave_rotation

    def leave_rotation(self, url: str, deadline: Deadline) -> bool:
        """Take the instance out of rotation if all workers leave; return whether they do.

        Raises:
            RegistryError: that failed; the removal follows.
        """
        self.begin_leaving(deadline)
        if self._departure is None and deadline.remaining() < SETTLE:
            logger.warning("no soft drain at %s: too late to find out whether all workers leave", url)
            return False
        kept = self._kept_at(url)
        if self.decide(deadline) is not Departure.ALL_LEAVE or kept is None:
            return False
        kept.leave_rotation(deadline)
        return True

    def leave(self, url: str, deadline: Deadline) -> Removal:
        """Find out what this worker's leaving means, and do that to the registration at ``url``."""
        departure = self.decide(deadline)
        subject = str(self._instance)
        kept = self._kept_at(url)
        if departure is Departure.FOLLOWS:
            return self._followed(lambda agreed: agreed.removals.get(url), subject, url, deadline)
        if departure is Departure.SUCCEEDED:
            if kept is not None:
                kept.fence(deadline)
            return Removal(subject, url, RemovalOutcome.SUCCESSOR, departure.value, confirmed_at=self._clock.now())
        if departure is Departure.ALONE:
            if kept is None or self._handed_over(deadline):
                return self._left_to_others(kept, subject, url, deadline)
            if self._departure is not Departure.ALL_LEAVE:
                detail = "no other worker took the registration over in time: it is left to expire"
                return Removal(subject, url, RemovalOutcome.UNCONFIRMED, detail)
        if kept is None:
            return Removal(subject, url, RemovalOutcome.NOT_REGISTERED)
        removal = kept.on_shutdown(deadline)
        if removal.outcome is RemovalOutcome.NOT_REGISTERED:
            with self._workers.agreement() as agreed:
                if url in agreed.removed:  # and it was another worker that had registered it
                    removal = replace(removal, detail=agreed.removed[url].how)
        self._tell(url, removal)
        return removal

    def _left_to_others(
        self, kept: PersistentRegistration | None, subject: str, url: str, deadline: Deadline
    ) -> Removal:
        if kept is not None:
            return kept.on_shutdown(deadline)  # finds the successor, and leaves it alone
        return Removal(subject, url, RemovalOutcome.SUCCESSOR, Departure.ALONE.value, confirmed_at=self._clock.now())

    def leave_unregistered(self, subject: str, registries: int, deadline: Deadline) -> Removal:
        """Leave before :meth:`start`: serve until the one that has the registrations has removed them, if all leave.

        Args:
            subject: what to call it.
            registries: how many registrations the keeper has.
            deadline: until when to wait.
        """
        departure = self.decide(deadline)
        if departure is Departure.FOLLOWS:
            return self._followed(lambda agreed: _said_of_all(agreed, registries), subject, "", deadline)
        if departure is Departure.ALONE:
            return Removal(subject, "", RemovalOutcome.SUCCESSOR, departure.value, confirmed_at=self._clock.now())
        return Removal(subject, "", RemovalOutcome.NOT_REGISTERED)

    def leave_to_others(self) -> bool:
        """Leave, where nothing is registered; return whether other workers go on accepting, or will again."""
        deadline = Deadline.after(2 * SETTLE, self._clock)
        self.begin_leaving(deadline)
        with self._lock:
            self._departure = self._departure or self._wait_for_others(deadline)
            return self._departure in _OTHERS_GO_ON

    def decide(self, deadline: Deadline) -> Departure:
        """Find out what this worker's leaving means, once; see :class:`Departure`."""
        with self._lock:
            if self._departure is None:
                self._departure = self._wait_for_others(deadline)
                logger.info("worker %d: %s", self._workers.pid, self._departure.value)
            return self._departure

    def _wait_for_others(self, deadline: Deadline) -> Departure:
        me = self._workers.pid
        settled = deadline.capped(SETTLE)
        while True:
            with self._workers.agreement() as agreed:
                others_serve, keeper = agreed.others_serve(me), agreed.keeper
            if not others_serve:
                if not self._has_stop_signal():
                    return Departure.SUCCEEDED
                return Departure.ALL_LEAVE if keeper in {me, None} else Departure.FOLLOWS
            if settled.is_past:
                return Departure.ALONE
            self._clock.sleep(_LOOK_OFTEN)

    def _handed_over(self, deadline: Deadline) -> bool:
        """Offer the registration to the others; return whether one of them has it."""
        me = self._workers.pid
        with self._workers.agreement() as agreed:
            if agreed.keeper == me:
                agreed.keeper, agreed.is_kept = None, False
        while not deadline.is_past:
            with self._workers.agreement() as agreed:
                if agreed.keeper not in {None, me} and agreed.is_kept:
                    return True
                if agreed.keeper in {None, me} and not agreed.others_serve(me):
                    agreed.keeper = me
                    self._departure = Departure.ALL_LEAVE  # they were told to stop meanwhile
                    return False
            self._clock.sleep(_LOOK_OFTEN)
        return False

    def _followed(
        self,
        find: Callable[[Agreement], tuple[str, str, float | None] | None],
        subject: str,
        url: str,
        deadline: Deadline,
    ) -> Removal:
        told: Removal | None = None
        while not deadline.is_past:
            with self._workers.agreement() as agreed:
                found, keeper = find(agreed), agreed.keeper
            if found is not None:
                outcome, detail, confirmed_at = found
                told = Removal(subject, url, RemovalOutcome(outcome), detail, 1, confirmed_at)
                if told.outcome is not RemovalOutcome.UNCONFIRMED:
                    return told  # else the keeper tries again, as long as callers still come
            if keeper is None:
                break
            self._clock.sleep(_LOOK_OFTEN)
        if told is not None:
            return told
        detail = "the worker that kept the registration did not say that it was removed; it expires by itself"
        return Removal(subject, url, RemovalOutcome.UNCONFIRMED, detail)

    def _tell(self, url: str, removal: Removal) -> None:
        with self._workers.agreement() as agreed:
            agreed.removals[url] = (removal.outcome.value, removal.detail, removal.confirmed_at)

    def end(self) -> None:
        """Be no worker any more."""
        self._leaving.set()
        self._workers.leave()

    def __repr__(self) -> str:
        """Show who it is."""
        return f"<SharedMembership {self._workers!r} is_keeper={self.is_keeper}>"


def _said_of_all(agreed: Agreement, registries: int) -> tuple[str, str, float | None] | None:
    """Return the worst of what the keeper has said of its registrations, or the last; None if one is missing."""
    if len(agreed.removals) < registries:
        return None
    said = list(agreed.removals.values())
    in_doubt = [each for each in said if each[0] == RemovalOutcome.UNCONFIRMED.value]
    return in_doubt[0] if in_doubt else max(said, key=lambda each: each[2] or 0.0)


class SharedRegistration:
    """The membership in one registry; a first observer of the stop."""

    def __init__(self, membership: SharedMembership, registry: Registry, describe: Callable[[], str]) -> None:
        self._membership = membership
        self._url = registry.url
        self._describe = describe

    @property
    def instance(self) -> str:
        """What it is about, for the report."""
        return self._describe()

    @property
    def can_leave_rotation(self) -> bool:
        """Whether this worker may be the one that takes it out of rotation."""
        return self._membership.can_leave_rotation(self._url)

    def leave_rotation(self, deadline: Deadline) -> bool:
        """Take it out of rotation; False: others go on serving, and it stays."""
        return self._membership.leave_rotation(self._url, deadline)

    def fence(self, deadline: Deadline) -> None:
        """Take nothing over from now on. What is kept is fenced when it is known who else leaves."""
        self._membership.begin_leaving(deadline)

    def on_shutdown(self, deadline: Deadline) -> Removal:
        """Remove the instance, hand it over, or wait for the one that removes it."""
        return self._membership.leave(self._url, deadline)
