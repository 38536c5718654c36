"""The registrations that one process holds for its service, and what operators have taken out of them.

Theory of operation: one registration for each registry, each going on by itself. A registry out of which an operator
took the instance is not registered in again, whichever process of the service found that out; :meth:`rejoin` ends it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial

from registry_drain.clock import Clock, Deadline
from registry_drain.errors import LiveOwnerError, RegistryError
from registry_drain.instance import ServiceInstance
from registry_drain.persistent_registration import PersistentRegistration
from registry_drain.registries.base import Registry
from registry_drain.shutdown.events import RemovedByOperator

RemovalListener = Callable[[RemovedByOperator], None]


class KeptRegistrations:
    """The memberships of ``instance`` in ``registries``. Thread-safe.

    Args:
        registries: where it is listed.
        instance: what is listed.
        clock: measures and passes time.
        on_removed: told of each removal by an operator that these registrations find out, in the backend's thread.
    """

    def __init__(
        self, registries: Sequence[Registry], instance: ServiceInstance, clock: Clock, on_removed: RemovalListener
    ) -> None:
        self._registries = {each.url: each for each in registries}
        self.instance = instance
        self.clock = clock
        self._on_removed = on_removed
        self.by_url: Mapping[str, PersistentRegistration] = {
            url: self._membership(url, registry) for url, registry in self._registries.items()
        }
        self._never_started: set[str] = set()

    def _membership(self, url: str, registry: Registry) -> PersistentRegistration:
        registration = PersistentRegistration(registry.registration(self.instance), url, self.clock)
        registration.on_removed(partial(self._tell, url))
        return registration

    def _tell(self, url: str, how: str) -> None:
        self._on_removed(RemovedByOperator(str(self.instance), url, how))

    def start(self, out_of: Collection[str] = ()) -> None:
        """Register, but for the URLs ``out_of`` which an operator took it; returns at once."""
        self._never_started = {url for url in self.by_url if url in out_of}
        for url, registration in self.by_url.items():
            if url not in self._never_started:
                registration.start()

    @property
    def removed(self) -> dict[str, str]:
        """By URL, how it is known that an operator removed it, as far as these registrations have found out."""
        return {url: each.removed_by_operator for url, each in self.by_url.items() if each.removed_by_operator}

    def rejoin_all(self, deadline: Deadline) -> tuple[str, ...]:
        """Register again wherever an operator has removed it; return those URLs.

        Raises:
            RegistryError: of the first registry that could not be rejoined; the others were tried, too.
        """
        rejoined: list[str] = []
        errors: list[RegistryError] = []
        for url in self.by_url:
            try:
                if self.rejoin(url, deadline):
                    rejoined.append(url)
            except RegistryError as error:  # noqa: PERF203 - the others are tried, too
                errors.append(error)
        if errors:
            raise errors[0]
        return tuple(rejoined)

    def is_settled(self, out_of: Collection[str]) -> bool:
        """Whether it is registered everywhere but in ``out_of``."""
        return all(url in out_of or each.is_registered for url, each in self.by_url.items())

    def rejoin(self, url: str, deadline: Deadline) -> bool:
        """Register at ``url`` again if it is out of there; return whether it was.

        Raises:
            LiveOwnerError: the stop has begun, or a successor has the id.
            RegistryError: the last failure; it stays out.
        """
        registration = self.by_url[url]
        if url not in self._never_started:
            return registration.rejoin(deadline)
        # The process that found out is gone, and nothing here was ever registered: a plain registration would take
        # over whoever has the id by now.
        for entry in self._registries[url].entries(self.instance.service, deadline):
            if entry.id == self.instance.id and entry.is_live is not False:
                raise LiveOwnerError(f"{self.instance} in {url}: {entry.owner or 'somebody else'} has the id now")
        registration.register(deadline)
        self._never_started.discard(url)
        return True
