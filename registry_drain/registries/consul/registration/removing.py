"""Out of the agent, out of the catalog if the agent's word has not reached it, and proven by a consistent read.

Theory of operation. While the servers elect a leader an agent holds requests back and answers when there is one, which
is the quickest that anybody learns of it. But an agent that has begun to tell a server which *hangs* (a frozen leader,
a dead link) waits for that server behind the lock of all it knows: every deregistration then hangs, for 30 s and more,
while other requests go to servers that live (measured on 1.8.7 with three servers). So:

1. the agent is told first, whatever else fails: it carries on when we are gone;
2. one that does not answer is passed by: what it was told it does later, and what the catalog lists we remove there;
3. a request waits a little only, and longer with each attempt: the next one may go to another server.

A registration that the fence has cut off may lie unread in the socket of an agent that hangs, which takes it when it
goes on, in any order with our removal. So behind one of those everything is done twice, a second apart.
"""

from __future__ import annotations

import threading

from registry_drain.clock import Deadline
from registry_drain.errors import (
    PermissionRefusedError,
    RegistryDrainError,
    RegistryTimeoutError,
    RegistryUnavailableError,
)
from registry_drain.registries.base import Removal, RemovalOutcome
from registry_drain.registries.consul.catalog import Listed
from registry_drain.registries.consul.registration.sight import Sight
from registry_drain.registries.consul.registration.standing import Standing, log
from registry_drain.registries.retry import persistently

_FIRST_PATIENCE = 2.0
"""Seconds for one request of the first attempt; twice that in the next, and so on up to the address' own limit. An
election on a healthy network is over, and a busy cluster has answered."""


_LATE_WRITE = 1.0
"""Seconds in which an agent that answers has long read what lay in its sockets."""


class StillListedError(RegistryUnavailableError):
    """The removal was accepted, and a consistent read lists the instance all the same. Retryable."""


class OwnRemoval:
    """One removal of our own entry, behind the fence. Not reusable; one thread."""

    def __init__(self, standing: Standing, sight: Sight) -> None:
        self._standing = standing
        self._sight = sight
        self._attempts = 0
        self._may_be_late = standing.was_cut_off

    def run(self, deadline: Deadline) -> Removal:
        """Remove this incarnation and nobody else's; failures are an outcome."""
        membership = self._standing.membership
        try:
            return persistently(lambda: self._once(deadline), deadline)
        except PermissionRefusedError as error:
            # The agent syncs an instance with the token it was registered with: without it, it can neither remove it
            # nor tell the servers that its check is critical (measured on 1.8.7). Nothing expires then.
            detail = f"{error}; it may stay in the callers' lists: remove it with a token that has service:write"
            return membership.removal(RemovalOutcome.REFUSED, detail, self._attempts)
        except RegistryDrainError as error:
            detail = f"{error}; {self._standing.lifetimes}"
            return membership.removal(RemovalOutcome.UNCONFIRMED, detail, self._attempts)

    def _once(self, deadline: Deadline) -> Removal:
        self._attempts += 1
        own = self._standing.own
        token = self._sight.token
        if token or not self._sight.has_seen:
            self._look_ahead(deadline)
        has_answered = self._tell_agent(deadline)
        listed = self._sight.read(self._patient(deadline))
        if own.find(listed):
            listed = self._remove_from_catalog(listed, deadline)
        if self._may_be_late:
            self._standing.clock.wait(threading.Event(), min(_LATE_WRITE, deadline.remaining()))
            self._may_be_late = False
            return self._once(deadline)
        return self._verdict(listed, token, deadline, "" if has_answered else "; its agent was told, and is busy still")

    def _patient(self, deadline: Deadline) -> Deadline:
        """Return until when one request of this attempt may take."""
        return deadline.capped(_FIRST_PATIENCE * 2 ** (self._attempts - 1))

    def _look_ahead(self, deadline: Deadline) -> None:
        """Look whether our token sees us: a policy may have changed, and this makes the later absence a proof."""
        self._sight.forget()
        try:
            self._sight.read(self._patient(deadline))
        except RegistryUnavailableError as error:
            # The agent must be told all the same; then the token's rights are asked for.
            log.debug("%s: no look before the removal: %s", self._standing.membership, error)

    def _tell_agent(self, deadline: Deadline) -> bool:
        """Deregister with the agent; return whether it has answered in time.

        Raises:
            RegistryUnavailableError: it cannot be reached, or has failed.
            PermissionRefusedError: it refused.
        """
        agent = self._standing.reader.native(self._patient(deadline)).agent
        try:
            # False is an id that the agent does not know (any more): what the catalog says is what counts.
            agent.service.deregister(self._standing.own.consul_id)
        except RegistryTimeoutError as error:
            log.debug("%s: its agent is slow to deregister it: %s", self._standing.membership, error)
            return False
        return True

    def _remove_from_catalog(self, listed: list[Listed], deadline: Deadline) -> list[Listed]:
        """Remove what the agent could not: it waits for a server that hangs, or syncs it with a token that was revoked
        since, or is another one by now.
        """
        standing = self._standing
        for each in listed:
            if each.incarnation == standing.own.incarnation:
                body = {"Node": each.node, "ServiceID": each.consul_id}
                if standing.address.dc:
                    body["Datacenter"] = standing.address.dc
                standing.reader.call("PUT", "catalog", "deregister", deadline=self._patient(deadline), body=body)
        listed = self._sight.read(self._patient(deadline))
        if standing.own.find(listed):
            membership = standing.membership
            raise StillListedError(f"{membership.url}: {membership.instance} was deregistered and is still listed")
        return listed

    def _verdict(self, listed: list[Listed], token: str, deadline: Deadline, note: str) -> Removal:
        """Say what a consistent read proves that does not list this incarnation, and add ``note``."""
        standing = self._standing
        membership = standing.membership
        confirmed_at = standing.clock.now()
        # The dead entry of a predecessor on another agent is nobody who took over.
        successors = [each.locator for each in listed if each.is_live is not False]
        if successors:
            detail = f"left alone: {', '.join(successors)}"
            return membership.removal(RemovalOutcome.SUCCESSOR, detail, self._attempts, confirmed_at)
        if not self._sight.has_seen_with(token):
            try:
                self._sight.require(deadline)
            except PermissionRefusedError as error:
                return membership.removal(RemovalOutcome.UNVERIFIABLE, str(error), self._attempts)
            confirmed_at = standing.clock.now()
        detail = standing.removed.added_to(f"not listed by a consistent read ({standing.own.consul_id}){note}")
        return membership.removal(RemovalOutcome.CONFIRMED, detail, self._attempts, confirmed_at)
