"""Out of the agent, out of the catalog if the agent's word has not reached it, and proven by a consistent read."""

from __future__ import annotations

from registry_drain.clock import Deadline
from registry_drain.errors import PermissionRefusedError, RegistryDrainError, RegistryUnavailableError
from registry_drain.registries.base import Removal, RemovalOutcome
from registry_drain.registries.consul.catalog import Listed
from registry_drain.registries.consul.registration.sight import Sight
from registry_drain.registries.consul.registration.standing import Standing
from registry_drain.registries.retry import persistently


class StillListedError(RegistryUnavailableError):
    """The removal was accepted, and a consistent read lists the instance all the same. Retryable."""


class OwnRemoval:
    """One removal of our own entry, behind the fence. Not reusable; one thread."""

    def __init__(self, standing: Standing, sight: Sight) -> None:
        self._standing = standing
        self._sight = sight
        self._attempts = 0

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
        own, reader = self._standing.own, self._standing.reader
        token = self._sight.token
        if token or not self._sight.has_seen:
            # A policy may have changed since: what this token sees now is what makes the later absence a proof.
            self._sight.forget()
            self._sight.read(deadline)
        # False is an id that the agent does not know (any more): what the catalog says is what counts.
        reader.native(deadline).agent.service.deregister(own.consul_id)
        listed = self._sight.read(deadline)
        if own.find(listed):
            listed = self._remove_from_catalog(listed, deadline)
        return self._verdict(listed, token, deadline)

    def _remove_from_catalog(self, listed: list[Listed], deadline: Deadline) -> list[Listed]:
        """Remove what the agent could not: it does not own it, or syncs it with a token that was revoked since."""
        standing = self._standing
        for each in listed:
            if each.incarnation == standing.own.incarnation:
                body = {"Node": each.node, "ServiceID": each.consul_id}
                if standing.address.dc:
                    body["Datacenter"] = standing.address.dc
                standing.reader.call("PUT", "catalog", "deregister", deadline=deadline, body=body)
        listed = self._sight.read(deadline)
        if standing.own.find(listed):
            membership = standing.membership
            raise StillListedError(f"{membership.url}: {membership.instance} was deregistered and is still listed")
        return listed

    def _verdict(self, listed: list[Listed], token: str, deadline: Deadline) -> Removal:
        """Say what a consistent read proves that does not list this incarnation."""
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
        detail = standing.removed.added_to(f"not listed by a consistent read ({standing.own.consul_id})")
        return membership.removal(RemovalOutcome.CONFIRMED, detail, self._attempts, confirmed_at)
