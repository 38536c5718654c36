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
3. Only the keeper's own thread writes what an operator removed, and rejoins: so neither overtakes the other.
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
from registry_drain.hosted.workers import Workers, WorkerState
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


class SharedMembership:
    """This worker's part in the registrations that all have. Thread-safe.

    Args:
        workers: the processes.
        registries: where the instance is listed.
        clock: measures and passes time.
        has_stop_signal: whether this worker was told to stop; it may also be about to end by itself.
        on_removed: told when this worker, being the keeper, finds out that an operator removed the instance.
    """

    def __init__(
        self,
        workers: Workers,
        registries: Sequence[Registry],
        clock: Clock,
        *,
        has_stop_signal: Callable[[], bool] = lambda: True,
        on_removed: RemovalListener = lambda _event: None,
    ) -> None:
        self._workers = workers
        self._registries = list(registries)
        self._clock = clock
        self._instance: ServiceInstance | None = None
        self._kept: KeptRegistrations | None = None
        self._on_removed = on_removed
        self._leaving = threading.Event()
        self._lock = threading.Lock()
        self._departure: Departure | None = None
        self._thread = threading.Thread(target=self._keep, name="registry-drain-workers", daemon=True)
        self._has_stop_signal = has_stop_signal

    def start(self, instance: ServiceInstance) -> None:
        """Join the workers, and keep the registration if nobody does; nothing if this worker leaves already."""
        self._instance = instance
        with self._lock:
            if self._leaving.is_set():
                return
            self._workers.join()
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
        return None if self._kept is None else self._kept.by_url[url]

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
        out_of: dict[str, str] = {}
        to_rejoin: list[str] = []
        must_register = False
        with self._workers.agreement() as agreed:
            if self._leaving.is_set():
                return
            # One that has removed the instance keeps nothing any more: whoever serves now is a new generation.
            if agreed.keeper is None or (agreed.keeper != self._workers.pid and agreed.removals):
                agreed.keeper, agreed.is_kept, agreed.removals = self._workers.pid, False, {}
                must_register, out_of = True, {url: each.how for url, each in agreed.removed.items()}
            elif agreed.keeper == self._workers.pid and kept is not None:
                note_removed(agreed, removed)
                agreed.is_kept = agreed.is_kept or kept.is_settled(agreed.removed)
                to_rejoin = [url for url, each in agreed.removed.items() if each.is_rejoin_asked]
        if must_register and self._instance is not None:
            for url, how in out_of.items():
                logger.warning(
                    "worker %d keeps %s, which stays out of %s: %s", self._workers.pid, self._instance, url, how
                )
            self._kept = kept = KeptRegistrations(self._registries, self._instance, self._clock, self._on_removed)
            kept.start(out_of)
        elif kept is not None:
            rejoin_kept(self._workers, kept, to_rejoin)

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
        if self._decide(deadline) is not Departure.ALL_LEAVE or kept is None:
            return False
        kept.leave_rotation(deadline)
        return True

    def leave(self, url: str, deadline: Deadline) -> Removal:
        """Find out what this worker's leaving means, and do that to the registration at ``url``."""
        departure = self._decide(deadline)
        subject = str(self._instance)
        kept = self._kept_at(url)
        if departure is Departure.FOLLOWS:
            return self._followed(url, subject, deadline)
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

    def _decide(self, deadline: Deadline) -> Departure:
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

    def _followed(self, url: str, subject: str, deadline: Deadline) -> Removal:
        told: Removal | None = None
        while not deadline.is_past:
            with self._workers.agreement() as agreed:
                found, keeper = agreed.removals.get(url), agreed.keeper
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
