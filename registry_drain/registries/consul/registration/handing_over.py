"""One entry, two processes: how it passes from this one to the next, or back."""

from __future__ import annotations

from registry_drain.clock import Deadline
from registry_drain.errors import RegistryDrainError, RegistryTimeoutError
from registry_drain.registries.base import Removal, RemovalOutcome
from registry_drain.registries.consul.registration.registering import Registering
from registry_drain.registries.consul.registration.removing import StillListedError
from registry_drain.registries.consul.registration.sight import Sight
from registry_drain.registries.consul.registration.standing import Standing
from registry_drain.registries.retry import persistently


class HandingOver:
    """The old process' side. The new one's is :meth:`Standing.adopt` and ``confirm``. Thread-safe."""

    def __init__(self, standing: Standing, sight: Sight, registering: Registering) -> None:
        self._standing = standing
        self._sight = sight
        self._registering = registering

    def offer(self, deadline: Deadline) -> str:
        """Return what entry and check are named after; from now on only the check is passed.

        Raises:
            RegistryTimeoutError: a registration under way does not end.
            LiveOwnerError: fenced.
        """
        standing = self._standing
        standing.fence.check()
        if standing.removed.is_noted:
            return ""
        standing.offer()
        if not standing.fence.wait_quiet(deadline):
            membership = standing.membership
            raise RegistryTimeoutError(f"{membership.url}: a registration of {membership.instance} does not end")
        return standing.own.named_after

    def take_back(self, deadline: Deadline) -> None:
        """Register again if the entry is not ours any more.

        Raises:
            RegistryError: the last failure.
            LiveOwnerError: fenced.
        """
        self._standing.fence.check()
        self._standing.take_back()
        if not self._standing.removed.is_noted:
            persistently(lambda: self._restore(deadline), deadline)

    def _restore(self, deadline: Deadline) -> None:
        if self._standing.own.find(self._sight.read(deadline)) is None:
            with self._standing.fence.writing():
                self._registering.put(deadline)
            self._registering.await_listed(deadline)

    def look(self, deadline: Deadline) -> Removal:
        """Look, behind the fence, that the entry is not ours any more: nothing of ours can overwrite it now."""
        standing = self._standing
        try:
            persistently(lambda: self._look_once(deadline), deadline)
        except RegistryDrainError as error:
            detail = f"handed over, but {error}; {standing.lifetimes}"
            return standing.membership.removal(RemovalOutcome.UNCONFIRMED, detail)
        now = standing.clock.now()
        return standing.membership.removal(RemovalOutcome.HANDED_OVER, standing.own.consul_id, 1, now)

    def _look_once(self, deadline: Deadline) -> None:
        if self._standing.own.find(self._sight.read(deadline)) is not None:
            membership = self._standing.membership
            raise StillListedError(f"{membership.url}: {membership.instance} is still listed as this process'")
