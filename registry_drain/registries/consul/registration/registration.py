"""What callers see of one's own instance in Consul; see the folder for the theory."""

from __future__ import annotations

import threading
from collections.abc import Callable

from registry_drain.clock import Clock, Deadline
from registry_drain.errors import LiveOwnerError, RegistryUnavailableError
from registry_drain.instance import ServiceInstance
from registry_drain.registries.abilities import HandoverRegistration, RejoinableRegistration, RotationRegistration
from registry_drain.registries.base import Removal, RemovalOutcome
from registry_drain.registries.consul.http import ConsulAddress
from registry_drain.registries.consul.registration.handing_over import HandingOver
from registry_drain.registries.consul.registration.heartbeat import Heartbeat
from registry_drain.registries.consul.registration.last_taken import LastTaken
from registry_drain.registries.consul.registration.own import Lifetimes
from registry_drain.registries.consul.registration.registering import Registering
from registry_drain.registries.consul.registration.removing import OwnRemoval
from registry_drain.registries.consul.registration.renewing import Renewing
from registry_drain.registries.consul.registration.sight import Sight
from registry_drain.registries.consul.registration.standing import Standing


class ConsulRegistration:
    """See the folder's theory, and :class:`registry_drain.registries.base.Registration` for the contract.

    A forked child holds a copy of this object and no right to what its parent registered with it: there ``register``
    is refused, and ``on_shutdown`` removes nothing.
    """

    def __init__(self, address: ConsulAddress, instance: ServiceInstance, lifetimes: Lifetimes, clock: Clock) -> None:
        """Make it; sends nothing."""
        self._standing = Standing(address, instance, lifetimes, clock)
        self._sight = Sight(self._standing)
        self._taken = LastTaken(self._standing)
        self._registering = Registering(self._standing, self._sight, self._taken)
        self._renewing = Renewing(self._standing, self._registering, self._taken)
        self._handing_over = HandingOver(self._standing, self._sight, self._registering)
        self._clock = clock
        self._lock = threading.Lock()  # guards what follows
        self._heartbeat: Heartbeat | None = None
        self._removal: Removal | None = None

    @property
    def instance(self) -> ServiceInstance:
        """What is, or will be, registered."""
        return self._standing.membership.instance

    @property
    def is_registered(self) -> bool:
        """Whether Consul lists it, as far as we were told."""
        return self._standing.is_registered

    @property
    def consul_id(self) -> str:
        """The id of the Consul service: what Consul's own tools call the instance."""
        return self._standing.own.consul_id

    def __repr__(self) -> str:
        """Show instance, registry and state."""
        state = "registered" if self.is_registered else "not registered"
        fenced = " fenced" if self._standing.fence.is_raised else ""
        return f"<ConsulRegistration {self._standing.membership} {state}{fenced}>"

    # --- registering --------------------------------------------------------------------------------------------------

    def register(self, deadline: Deadline) -> None:
        """Register with the agent, return when a consistent read lists the instance; then keep it listed.

        With a token that cannot see the instance the agent's word has to do; that is logged.

        Raises:
            RegistryUnavailableError: retryable. The instance may be listed; ``on_shutdown`` cleans up.
            PermissionRefusedError: the token lacks ``service:write``.
            LiveOwnerError: fenced already.
            RemovedByOperatorError: somebody took it out on purpose.
        """
        self._standing.fence.check()
        if self._standing.is_registered:
            return
        self._standing.removed.check()
        self._register(deadline)

    def _register(self, deadline: Deadline, *, takes_over: bool = True) -> None:
        began_at = self._clock.now()
        self._registering.register(deadline, takes_over=takes_over)
        # The fence waits for this block: it finds the thread that begins here, or refuses it.
        with self._standing.fence.writing():
            self._keep_alive(began_at)
            self._standing.note_listed()

    def _keep_alive(self, since: float) -> None:
        standing = self._standing
        with self._lock:
            if self._heartbeat is not None:
                return
            pause = standing.lifetimes.heartbeat_pause
            subject, stop = str(standing.membership), standing.fence.raised
            heartbeat = Heartbeat(subject, self._renewing.beat, pause, stop, self._clock)
            # The TTL runs since the request, however long the servers took to list us.
            try:
                heartbeat.start(max(pause - (self._clock.now() - since), 0.0))
            except RuntimeError as error:
                raise standing.membership.no_thread(error) from error
            self._heartbeat = heartbeat  # only now: the process may have threads to spare later

    # --- removed by an operator ---------------------------------------------------------------------------------------

    @property
    def removed_by_operator(self) -> str:
        """See :class:`RejoinableRegistration`. Found out by the next heartbeat."""
        return self._standing.removed.line

    def on_removed(self, call: Callable[[str], None]) -> None:
        """See :class:`RejoinableRegistration`: called in the heartbeat's thread."""
        self._standing.removed.on_removed(call)

    def rejoin(self, deadline: Deadline) -> None:
        """See :class:`RejoinableRegistration`. Takes over from elders only."""
        standing = self._standing
        if standing.fence.is_raised or not standing.removed.is_noted:
            self.register(deadline)
            return
        found = standing.own.on_agent(standing.writer, deadline)
        if found.successor:
            raise LiveOwnerError(f"{standing.membership}: its successor {found.successor} has the id")
        self._register(deadline, takes_over=False)
        if trouble := self._renewing.settle(deadline):
            raise LiveOwnerError(f"{standing.membership}: {trouble}")

    # --- stopping -----------------------------------------------------------------------------------------------------

    def leave_rotation(self, deadline: Deadline) -> None:
        """See :class:`RotationRegistration`: maintenance mode, which ends with the entry.

        An entry that is shared with the next process, in a hand-over, is left alone.
        """
        standing = self._standing
        params = {"enable": "true", "reason": "registry-drain: its stop has begun"}
        with standing.fence.writing():
            if not standing.is_registered or standing.is_between:
                return
            path = ("agent", "service", "maintenance", standing.own.consul_id)
            answer = standing.writer.call("PUT", *path, deadline=deadline, params=params)
        if answer.status == 404:
            url = standing.membership.url
            raise RegistryUnavailableError(f"{url}: its agent does not know {self.instance} any more")

    def fence(self, deadline: Deadline) -> None:
        """Stop and join the heartbeat; await a write under way, and cut it off when half the time is gone.

        A write that was cut off may have reached the agent. What it wrote expires: see :class:`Lifetimes`.
        """
        fence = self._standing.fence
        fence.put_up()
        if fence.is_inherited:
            return  # the threads are the parent's
        # Awaiting is better than cutting: a request that the agent has read takes effect, and maybe after our removal.
        if not fence.wait_quiet(deadline.capped(deadline.remaining() / 2)):
            self._standing.note_cut_off()
        self._standing.writer.abort()
        fence.wait_quiet(deadline)
        with self._lock:
            heartbeat = self._heartbeat
        if heartbeat is not None:
            heartbeat.join(deadline)

    def on_shutdown(self, deadline: Deadline) -> Removal:
        """Fence, remove this incarnation, and read the catalog back. See the folder's theory.

        The outcome is REFUSED when the token is refused, and UNCONFIRMED when time runs out; ``detail`` then says what
        is left and until when. What is not gone is tried again by a further call.
        """
        standing = self._standing
        if standing.fence.is_inherited:
            return standing.membership.left_to_parent(standing.fence.owner_pid)
        self.fence(deadline.capped(deadline.remaining() / 2))
        try:
            return self._remove(deadline)
        finally:
            standing.reader.close()

    def _remove(self, deadline: Deadline) -> Removal:
        standing = self._standing
        with self._lock:
            done = self._removal
        if done is not None:
            return done
        if standing.is_adopted:
            detail = "left to its predecessor, which goes on serving"
            return standing.membership.removal(RemovalOutcome.HANDED_OVER, detail)
        if not standing.may_be_listed:
            return standing.membership.removal(RemovalOutcome.NOT_REGISTERED)
        removal = OwnRemoval(standing, self._sight).run(deadline)
        if removal.is_gone:
            self._end_with(removal)
        return removal

    def _end_with(self, removal: Removal) -> None:
        self._standing.note_missing()
        with self._lock:
            self._removal = removal

    # --- handing over -------------------------------------------------------------------------------------------------

    def offer(self, deadline: Deadline) -> str:
        """See :meth:`HandoverRegistration.offer`: from now on only the check is passed."""
        return self._handing_over.offer(deadline)

    def adopt(self, offer: str) -> None:
        """See :meth:`HandoverRegistration.adopt`."""
        self._standing.adopt(offer)

    def confirm(self) -> None:
        """See :meth:`HandoverRegistration.confirm`."""
        self._standing.confirm()

    def hand_over(self, deadline: Deadline) -> Removal:
        """See :meth:`HandoverRegistration.hand_over`: behind the fence nothing of ours can overwrite theirs."""
        self.fence(deadline.capped(deadline.remaining() / 2))
        self._standing.note_missing()
        removal = self._handing_over.look(deadline)
        self._end_with(removal)
        self._standing.reader.close()
        return removal

    def take_back(self, deadline: Deadline) -> None:
        """See :meth:`HandoverRegistration.take_back`: register again if the entry is not ours any more."""
        self._handing_over.take_back(deadline)


# A type checker compares it with the protocol here.
_handover: type[HandoverRegistration] = ConsulRegistration
_rejoinable: type[RejoinableRegistration] = ConsulRegistration
_rotation: type[RotationRegistration] = ConsulRegistration
