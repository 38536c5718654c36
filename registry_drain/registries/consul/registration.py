"""One instance's membership of a Consul cluster: registered, renewed, and removed with proof.

Theory of operation
-------------------
**An id of its own.** The id of the Consul service is the instance id, ``~`` and this registration's *incarnation*.
Consul's agent API has no compare-and-delete: whoever deregisters an id removes whatever stands there when the request
*arrives*, be it a successor that registered a millisecond ago. With an id that nobody else will ever use, a removal
that comes late, twice, or after a restart hits only what it was meant for. The rejected alternative, the bare instance
id with a look before each removal, leaves a window as long as an agent can be frozen. The instance id itself stands in
Meta, and everything in this package shows that one.

**Taking over.** A new incarnation therefore removes its predecessors on the same agent by itself, right after it is
listed: those with its instance id and another incarnation, dead or alive. A predecessor that still lives notices with
its next heartbeat, and gives way. If an agent has lost both, each registers again, and the younger removes the elder.

**Heartbeats.** A daemon thread passes the TTL check. When the agent does not know the check any more, and no successor
stands there, it either lost us, and the thread registers again, or an operator removed us, and we stay out until we are
told to rejoin: see :mod:`registry_drain.registries.consul.disappearance`. When the token was rotated the thread
registers again with the new one: the agent keeps the token of a registration, and needs a valid one to remove it.

**The fence.** Every write of a registration or a heartbeat passes ``_writing``, which looks at the fence and counts
under one lock. ``fence`` raises the flag, waits for the count to reach zero, and cuts off what does not end in time.
All these writes use a client of their own, which ``fence`` closes for good: behind the fence no byte of them can leave.

**Handing over.** The process that replaces this one, and shares its listening socket, registers under the *same* Consul
id and check id, with an incarnation of its own: one PUT replaces the entry, so that callers see it at every moment and
once. Both may pass the check. From the offer on the old one registers no more (a late PUT would overwrite), until it
takes the entry back; the new one does not remove it before the old one's word. Whose it is, the incarnation tells.

**Proof.** Removed means that a consistent read does not list the incarnation, asked with a token that has seen it (or
whose sight was tested). The agent's own 200 proves nothing.

Locks guard state only; requests are made outside. Two clients: ``_writer`` (fenced), ``_reader`` (reads and removal).
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

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
from registry_drain.registries.consul.agent_identity import AgentIdentity, read_identity
from registry_drain.registries.consul.catalog import Listed, require_sight
from registry_drain.registries.consul.disappearance import Disappearance
from registry_drain.registries.consul.heartbeat import Heartbeat
from registry_drain.registries.consul.http import ConsulAddress, ConsulClient
from registry_drain.registries.consul.own import Lifetimes, OwnEntry
from registry_drain.registries.consul.retry import persistently

_log = logging.getLogger(__name__)

_FIRST_LOOK, _LONGEST_LOOK = 0.01, 0.25


class _StillListedError(RegistryUnavailableError):
    """The removal was accepted, and a consistent read lists the instance all the same. Retryable."""


class ConsulRegistration:
    """See the module's theory, and :class:`registry_drain.registries.base.Registration` for the contract.

    A forked child holds a copy of this object and no right to the instance: in another process than the one that made
    it, ``on_shutdown`` removes nothing.
    """

    def __init__(self, address: ConsulAddress, instance: ServiceInstance, lifetimes: Lifetimes, clock: Clock) -> None:
        """Make it; sends nothing."""
        self._address = address
        self._instance = instance
        self._lifetimes = lifetimes
        self._clock = clock
        self._own = OwnEntry(instance, lifetimes, clock.unix_time())
        self._pid = os.getpid()
        self._writer = ConsulClient(address)
        self._reader = ConsulClient(address)

        self._lock = threading.Lock()  # guards what follows
        self._is_fenced = False
        self._writes = 0
        self._may_be_listed = False
        self._is_registered = False
        self._registered_with: str | None = None  # the token the agent keeps for us
        self._seen_with: str | None = None  # a token that could see us in a consistent read
        self._heartbeat: Heartbeat | None = None
        self._removal: Removal | None = None
        self._is_offered = False  # the next process may have written our entry: do not overwrite it
        self._taken_at = 0.0  # when the last registration or heartbeat that the agent took was sent
        self._opened = 0  # how many connections the writer had opened when that was answered
        self._agent: AgentIdentity | None = None  # which agent that was
        self._is_agent_asked = False
        self._has_yielded = False  # to a successor that stands on our agent
        self._is_unsettled = False  # registered again, and not looked since who else has
        self._removed = ""
        self._on_removed: Callable[[str], None] | None = None
        self._is_adopted = False  # the entry is our predecessor's until it says otherwise: do not remove it

        self._stop = threading.Event()
        self._quiet = threading.Event()  # no write is under way
        self._quiet.set()

    @property
    def instance(self) -> ServiceInstance:
        """What is, or will be, registered."""
        return self._instance

    @property
    def is_registered(self) -> bool:
        """Whether Consul lists it, as far as we were told."""
        with self._lock:
            return self._is_registered

    @property
    def consul_id(self) -> str:
        """The id of the Consul service: what Consul's own tools call the instance."""
        return self._own.consul_id

    def __repr__(self) -> str:
        """Show instance, registry and state."""
        with self._lock:
            state = "registered" if self._is_registered else "not registered"
            fenced = " fenced" if self._is_fenced else ""
        return f"<ConsulRegistration {self._instance} at {self._address.url} {state}{fenced}>"

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
        with self._lock:
            if self._is_registered and not self._is_fenced:
                return
            if self._removed and not self._is_fenced:
                raise RemovedByOperatorError(f"{self._instance} at {self._address.url}: it was {self._removed}")
        self._register(deadline)

    def _register(self, deadline: Deadline, *, takes_over: bool = True) -> None:
        began_at = self._clock.now()
        try:
            with self._writing():
                with self._lock:
                    self._may_be_listed = True
                self._put(deadline)
            self._await_listed(deadline, takes_over=takes_over)
        except RegistryDrainError as error:
            if self._stop.is_set() and not isinstance(error, LiveOwnerError):
                raise self._fenced_error() from error
            raise
        # Now, and not in the stop: the first use imports the library, which takes a second on a busy machine.
        self._reader.native(deadline)
        with self._lock:
            if self._is_fenced:
                raise self._fenced_error()
            self._is_registered, self._removed = True, ""
            if self._heartbeat is None:
                pause = self._lifetimes.heartbeat_pause
                subject = f"{self._instance} at {self._address.url}"
                self._heartbeat = Heartbeat(subject, self._renew, pause, self._stop, self._clock)
                # The TTL runs since the request, however long the servers took to list us.
                self._heartbeat.start(max(pause - (self._clock.now() - began_at), 0.0))

    def _put(self, deadline: Deadline, *, keeps_checks: bool = False) -> None:
        token = self._address.tokens.current()
        # The parameter also ends maintenance mode, which would outlive the process that was put into it.
        params = None if keeps_checks else {"replace-existing-checks": "true"}
        body = self._own.payload()
        sent_at = self._clock.now()
        self._writer.call("PUT", "agent", "service", "register", deadline=deadline, params=params, body=body)
        with self._lock:
            self._registered_with = token
            self._taken_at, self._opened = sent_at, self._writer.opened
            # It may be another agent than before.
            self._agent, self._is_agent_asked = None, False

    def _await_listed(self, deadline: Deadline, *, takes_over: bool = True) -> None:
        """Wait until a consistent read lists us, and until it lists no predecessor on our agent any more."""
        look = _FIRST_LOOK
        taken_over: set[str] = set()
        while not self._stop.is_set():
            listed = self._read(deadline)
            mine = self._own.find(listed)
            if mine is not None:
                old = {each.consul_id for each in listed if each.node == mine.node and each is not mine} - taken_over
                if not old or not takes_over:
                    return
                for consul_id in sorted(old):
                    self._take_over(consul_id, deadline)
                taken_over |= old
                continue
            try:
                require_sight(self._reader, self._instance.service, deadline)
            except PermissionRefusedError as error:
                _log.warning("%s: registered, but nothing can prove it, nor its removal: %s", self._instance, error)
                return
            if deadline.is_past:
                message = f"{self._address.url}: {self._instance}: its agent took it, and the servers do not list it"
                raise RegistryTimeoutError(message)
            self._clock.wait(self._stop, min(look, deadline.remaining()))
            look = min(look * 2, _LONGEST_LOOK)
        raise self._fenced_error()

    def _take_over(self, consul_id: str, deadline: Deadline) -> None:
        try:
            with self._writing():
                self._writer.native(deadline).agent.service.deregister(consul_id)
        except LiveOwnerError:
            raise
        except RegistryDrainError as error:
            # We are listed, which is what counts; a dead predecessor expires by itself.
            _log.warning("%s: could not take over from its predecessor %s: %s", self._instance, consul_id, error)
        else:
            _log.info("%s: took over from its predecessor %s", self._instance, consul_id)

    # --- renewing -----------------------------------------------------------------------------------------------------

    def _renew(self) -> str:
        """Beat once. See :class:`Heartbeat` for what is returned and raised."""
        deadline = Deadline.after(self._address.timeout, self._clock)
        sent_at = self._clock.now()
        with self._writing():
            is_known = self._writer.native(deadline).agent.check.ttl_pass(self._own.check_id)
            with self._lock:
                is_rotated = self._registered_with != self._address.tokens.current()
                is_between = self._is_offered or self._is_adopted
            if is_known and is_rotated and not is_between:
                # It is this very process that may be in maintenance mode: only the token is new.
                self._put(deadline, keeps_checks=True)
        if is_known:
            self._note_taken(sent_at, deadline)
            return self._settle(deadline) if self._is_unsettled else ""
        if is_between:
            return "lost, or deregistered, during a hand-over: whoever wins it registers again"
        with self._lock:
            self._is_registered = False
            if self._removed:
                return ""
        return self._missed(deadline)

    def _note_taken(self, sent_at: float, deadline: Deadline) -> None:
        """Note that the agent took a heartbeat, and once which agent it is."""
        with self._lock:
            self._taken_at, self._opened = sent_at, self._writer.opened
            self._has_yielded = False
            if self._removed:  # somebody has put the very entry back
                self._is_registered, self._removed = not self._is_fenced, ""
            if self._is_agent_asked:
                return
        try:
            agent = read_identity(self._writer, deadline)
        except RegistryDrainError as error:
            # The heartbeat was taken, that is what counts; the next one asks again.
            _log.debug("%s: its agent did not say who it is: %s", self._instance, error)
            return
        with self._lock:
            self._agent, self._is_agent_asked = agent, True

    def _missed(self, deadline: Deadline) -> str:
        """Our check is unknown: register again, give way to a successor, or stay out."""
        with self._lock:
            is_same_connection = self._writer.opened == self._opened
        found = self._own.on_agent(self._writer, deadline)
        if found.successor:
            with self._lock:
                self._has_yielded = True
            return f"its successor {found.successor} is registered: this one gives way"
        gone = Disappearance(
            silence=self._clock.now() - self._taken_at,
            reaped_after=self._lifetimes.reaped_after,
            is_same_connection=is_same_connection,
            before=self._agent,
            now=read_identity(self._writer, deadline) if self._agent is not None else None,
        )
        # Where only the check is missing nobody took the instance out; and what a successor removed no operator did.
        if gone.is_removal and not found.has_ours and not self._has_yielded:
            self._stay_out(str(gone))
            return ""
        with self._writing():
            with self._lock:
                if self._is_offered:
                    return "offered to the next process, which registers it"
            with self._lock:
                self._is_unsettled = True
            self._put(deadline)
            with self._lock:
                self._is_registered = not self._is_fenced
        why = "its successor has left" if self._has_yielded else str(gone)
        why = "only its check was gone" if found.has_ours else why
        _log.warning("%s: %s had lost it, registered again: %s", self._instance, self._address.url, why)
        return self._settle(deadline)

    def _settle(self, deadline: Deadline) -> str:
        """Look who else has registered meanwhile, since nobody can look and register at once: the youngest stays.

        Returns:
            That we gave way; else empty.
        """
        found = self._own.on_agent(self._writer, deadline)
        if found.successor:
            with self._writing():
                self._writer.native(deadline).agent.service.deregister(self._own.consul_id)
        for elder in found.elders:
            self._take_over(elder, deadline)
        with self._lock:
            self._is_unsettled = False
            if not found.successor:
                return ""
            self._has_yielded, self._is_registered = True, False
        return f"its successor {found.successor} is registered: this one gives way"

    # --- removed by an operator ---------------------------------------------------------------------------------------

    def _stay_out(self, how: str) -> None:
        with self._lock:
            line = self._removed = removal_line(self._clock.unix_time(), how)
            call = self._on_removed
        _log.warning("%s: stays out of %s until it is told to rejoin: %s", self._instance, self._address.url, line)
        if call is not None:
            call(line)

    @property
    def removed_by_operator(self) -> str:
        """See :class:`RejoinableRegistration`. Found out by the next heartbeat."""
        with self._lock:
            return self._removed

    def on_removed(self, call: Callable[[str], None]) -> None:
        """See :class:`RejoinableRegistration`: called in the heartbeat's thread."""
        with self._lock:
            self._on_removed = call

    def rejoin(self, deadline: Deadline) -> None:
        """See :class:`RejoinableRegistration`. Takes over from elders only."""
        with self._lock:
            is_removed = bool(self._removed) and not self._is_fenced
        if not is_removed:
            self.register(deadline)
            return
        found = self._own.on_agent(self._writer, deadline)
        if found.successor:
            raise LiveOwnerError(f"{self._address.url}: {self._instance}: its successor {found.successor} has the id")
        self._register(deadline, takes_over=False)
        if trouble := self._settle(deadline):
            raise LiveOwnerError(f"{self._address.url}: {self._instance}: {trouble}")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with self._lock:
            if self._is_fenced or os.getpid() != self._pid:
                raise self._fenced_error()
            self._writes += 1
            self._quiet.clear()
        try:
            yield
        finally:
            with self._lock:
                self._writes -= 1
                if not self._writes:
                    self._quiet.set()

    def _fenced_error(self) -> LiveOwnerError:
        return LiveOwnerError(
            f"{self._instance} at {self._address.url}: its stop has begun, it is not registered any more"
        )

    # --- stopping -----------------------------------------------------------------------------------------------------

    def leave_rotation(self, deadline: Deadline) -> None:
        """See :class:`RotationRegistration`: maintenance mode, which ends with the entry.

        An entry that is shared with the next process, in a hand-over, is left alone.
        """
        params = {"enable": "true", "reason": "registry-drain: its stop has begun"}
        with self._writing():
            with self._lock:
                if not self._is_registered or self._is_offered or self._is_adopted:
                    return
            answer = self._writer.call(
                "PUT", "agent", "service", "maintenance", self._own.consul_id, deadline=deadline, params=params
            )
        if answer.status == 404:
            raise RegistryUnavailableError(f"{self._address.url}: its agent does not know {self._instance} any more")

    def fence(self, deadline: Deadline) -> None:
        """Stop and join the heartbeat; await a write under way, and cut it off when half the time is gone.

        A write that was cut off may have reached the agent. What it wrote expires: see :class:`Lifetimes`.
        """
        with self._lock:
            self._is_fenced = True
            heartbeat = self._heartbeat
        self._stop.set()
        if os.getpid() != self._pid:
            return  # the threads are the parent's
        # Awaiting is better than cutting: a request that the agent has read takes effect, and maybe after our removal.
        deadline.capped(deadline.remaining() / 2).wait(self._quiet)
        self._writer.abort()
        deadline.wait(self._quiet)
        if heartbeat is not None:
            heartbeat.join(deadline)

    def on_shutdown(self, deadline: Deadline) -> Removal:
        """Fence, remove this incarnation, and read the catalog back. See the module's theory.

        The outcome is REFUSED when the token is refused, and UNCONFIRMED when time runs out; ``detail`` then says what
        is left and until when.
        """
        if os.getpid() != self._pid:
            return self._result(RemovalOutcome.NOT_REGISTERED, f"registered by process {self._pid}, not by this one")
        self.fence(deadline.capped(deadline.remaining() / 2))
        with self._lock:
            done, may_be_listed, is_adopted = self._removal, self._may_be_listed, self._is_adopted
        if done is not None:
            return done
        if is_adopted:
            self._reader.close()
            return self._result(RemovalOutcome.HANDED_OVER, "left to its predecessor, which goes on serving")
        if not may_be_listed:
            self._reader.close()
            return self._result(RemovalOutcome.NOT_REGISTERED)
        removal = self._remove(deadline)
        if removal.is_gone:
            with self._lock:
                self._removal, self._is_registered = removal, False
        self._reader.close()
        return removal

    def _remove(self, deadline: Deadline) -> Removal:
        attempts = 0

        def once() -> Removal:
            nonlocal attempts
            attempts += 1
            return self._remove_once(attempts, deadline)

        try:
            return persistently(once, deadline)
        except PermissionRefusedError as error:
            # The agent syncs an instance with the token it was registered with: without it, it can neither remove it
            # nor tell the servers that its check is critical (measured on 1.8.7). Nothing expires then.
            detail = f"{error}; it may stay in the callers' lists: remove it with a token that has service:write"
            return self._result(RemovalOutcome.REFUSED, detail, attempts)
        except RegistryDrainError as error:
            return self._result(RemovalOutcome.UNCONFIRMED, f"{error}; {self._lifetimes}", attempts)

    def _remove_once(self, attempts: int, deadline: Deadline) -> Removal:
        token = self._address.tokens.current()
        if token or self._seen_with is None:
            # A policy may have changed since: what this token sees now is what makes the later absence a proof.
            self._seen_with = None
            self._read(deadline)
        # False is an id that the agent does not know (any more): what the catalog says is what counts.
        self._reader.native(deadline).agent.service.deregister(self._own.consul_id)
        listed = self._read(deadline)
        if self._own.find(listed):
            listed = self._remove_from_catalog(listed, deadline)
        return self._verdict(listed, token, attempts, deadline)

    def _remove_from_catalog(self, listed: list[Listed], deadline: Deadline) -> list[Listed]:
        """Remove what the agent could not: it does not own it, or syncs it with a token that was revoked since."""
        for each in listed:
            if each.incarnation == self._own.incarnation:
                body = {"Node": each.node, "ServiceID": each.consul_id}
                if self._address.dc:
                    body["Datacenter"] = self._address.dc
                self._reader.call("PUT", "catalog", "deregister", deadline=deadline, body=body)
        listed = self._read(deadline)
        if self._own.find(listed):
            message = f"{self._address.url}: {self._instance} was deregistered and is still listed"
            raise _StillListedError(message)
        return listed

    def _verdict(self, listed: list[Listed], token: str, attempts: int, deadline: Deadline) -> Removal:
        """Say what a consistent read proves that does not list this incarnation."""
        confirmed_at = self._clock.now()
        # The dead entry of a predecessor on another agent is nobody who took over.
        successors = [each.locator for each in listed if each.is_live is not False]
        if successors:
            detail = f"left alone: {', '.join(successors)}"
            return self._result(RemovalOutcome.SUCCESSOR, detail, attempts, confirmed_at)
        if self._seen_with != token:
            try:
                require_sight(self._reader, self._instance.service, deadline)
            except PermissionRefusedError as error:
                return self._result(RemovalOutcome.UNVERIFIABLE, str(error), attempts)
            confirmed_at = self._clock.now()
        detail = f"not listed by a consistent read ({self._own.consul_id})"
        with self._lock:
            detail = f"{detail}; {self._removed}" if self._removed else detail
        return self._result(RemovalOutcome.CONFIRMED, detail, attempts, confirmed_at)

    # --- handing over -------------------------------------------------------------------------------------------------

    def offer(self, deadline: Deadline) -> str:
        """See :meth:`HandoverRegistration.offer`: from now on only the check is passed."""
        with self._lock:
            if self._is_fenced:
                raise self._fenced_error()
            if self._removed:
                return ""
            self._is_offered = True
        if not deadline.wait(self._quiet):
            raise RegistryTimeoutError(f"{self._address.url}: a registration of {self._instance} does not end")
        return self._own.named_after

    def adopt(self, offer: str) -> None:
        """See :meth:`HandoverRegistration.adopt`."""
        with self._lock:
            self._own = replace(self._own, lineage=offer)
            self._is_adopted = True

    def confirm(self) -> None:
        """See :meth:`HandoverRegistration.confirm`."""
        with self._lock:
            self._is_adopted = False

    def hand_over(self, deadline: Deadline) -> Removal:
        """See :meth:`HandoverRegistration.hand_over`: behind the fence nothing of ours can overwrite theirs."""
        self.fence(deadline.capped(deadline.remaining() / 2))
        with self._lock:
            self._is_registered = False

        def look() -> None:
            if self._own.find(self._read(deadline)) is not None:
                raise _StillListedError(f"{self._address.url}: {self._instance} is still listed as this process'")

        try:
            persistently(look, deadline)
        except RegistryDrainError as error:
            removal = self._result(RemovalOutcome.UNCONFIRMED, f"handed over, but {error}; {self._lifetimes}")
        else:
            removal = self._result(RemovalOutcome.HANDED_OVER, self._own.consul_id, 1, self._clock.now())
        with self._lock:
            self._removal = removal
        self._reader.close()
        return removal

    def take_back(self, deadline: Deadline) -> None:
        """See :meth:`HandoverRegistration.take_back`: register again if the entry is not ours any more."""
        with self._lock:
            if self._is_fenced:
                raise self._fenced_error()
            self._is_offered = False
            if self._removed:
                return

        def restore() -> None:
            if self._own.find(self._read(deadline)) is None:
                with self._writing():
                    self._put(deadline)
                self._await_listed(deadline)

        persistently(restore, deadline)

    # --- reading ------------------------------------------------------------------------------------------------------

    def _read(self, deadline: Deadline) -> list[Listed]:
        """Return what a consistent read lists of this instance id; remember whether our token could see us."""
        token = self._address.tokens.current()
        listed = self._own.read(self._reader, deadline)
        if self._own.find(listed) is not None:
            self._seen_with = token
        return listed

    def _result(
        self, outcome: RemovalOutcome, detail: str = "", attempts: int = 0, confirmed_at: float | None = None
    ) -> Removal:
        return Removal(str(self._instance), self._address.url, outcome, detail, attempts, confirmed_at)


# A type checker compares it with the protocol here.
_handover: type[HandoverRegistration] = ConsulRegistration
_rejoinable: type[RejoinableRegistration] = ConsulRegistration
_rotation: type[RotationRegistration] = ConsulRegistration
