"""The registry object: opens, lists, watches and removes, and makes registrations.

Works with python-consul and with py-consul, from Consul 1.8 on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from registry_drain.clock import SYSTEM_CLOCK, Clock, Deadline
from registry_drain.errors import ConfigurationError, PermissionRefusedError, RegistryDrainError
from registry_drain.instance import ServiceInstance, check_name
from registry_drain.registries.abilities import (
    BulkRegistry,
    CompanionRegistry,
    RemovalResult,
    Rotation,
    RotationRegistry,
)
from registry_drain.registries.base import Registration, Registry, RegistryEntry, Removal, Watch, WatchCallback
from registry_drain.registries.consul.catalog import is_askable, read_service, read_service_names, require_sight
from registry_drain.registries.consul.http import ConsulClient
from registry_drain.registries.consul.removal import ConsulRemovals
from registry_drain.registries.consul.settings import address_of, check_metadata, lifetimes_of, named_agent
from registry_drain.registries.retry import persistently
from registry_drain.registries.url import RegistryURL

if TYPE_CHECKING:
    from registry_drain.registries.consul.rotation import ConsulRotation
    from registry_drain.registries.consul.watch import ConsulWatch


def open_consul(url: RegistryURL, clock: Clock = SYSTEM_CLOCK) -> ConsulRegistry:
    """Return the registry of a ``consul://`` or ``consul+https://`` URL. Sends nothing.

    Raises:
        ConfigurationError: an unknown option, a file that is not there, a token that cannot be one.
    """
    return ConsulRegistry(url, clock)


class ConsulRegistry:
    """One Consul cluster, through one agent. See :class:`registry_drain.registries.base.Registry`. Thread-safe.

    Args:
        url: of one agent; registrations belong to that agent, and go with it.
        clock: for every wait and deadline.
        token: instead of ``token_file`` and the environment.
        agent: ``HOST:PORT`` of the agent that owns what is removed, drained or undrained, instead of the option of the
            same name; without either it is found in the gossip.
    """

    def __init__(
        self, url: RegistryURL, clock: Clock = SYSTEM_CLOCK, *, token: str | None = None, agent: str | None = None
    ) -> None:
        """Check every option; sends nothing."""
        self._url = str(url)
        self._clock = clock
        self._address = address_of(url, token)
        self._agent = named_agent(url, agent, self._address)
        self._lifetimes = lifetimes_of(url)
        self._client = ConsulClient(self._address)
        self._lock = threading.Lock()
        self._watches: set[ConsulWatch] = set()

    @property
    def url(self) -> str:
        """The URL; it never holds a secret."""
        return self._url

    def __repr__(self) -> str:
        """Show the URL and how many watches follow."""
        return f"<ConsulRegistry {self._url} watches={len(self._watches)}>"

    def registration(self, instance: ServiceInstance) -> Registration:
        """Return the membership of ``instance``, with an incarnation of its own.

        Raises:
            ConfigurationError: metadata that Consul would refuse.
        """
        check_metadata(instance)
        # Here, as below: a command that only removes something is done before this would be loaded.
        from registry_drain.registries.consul.registration import ConsulRegistration

        return ConsulRegistration(self._address, instance, self._lifetimes, self._clock)

    def entries(self, service: str | None, deadline: Deadline) -> list[RegistryEntry]:
        """Return what a consistent read lists.

        One request per service. With a policy that shows some nodes and hides others, what is hidden is missing here.

        Raises:
            RegistryUnavailableError: retryable; was retried until the deadline.
            PermissionRefusedError: the token could not have seen an instance.
            ConfigurationError: a name that Consul's API would read as another one.
        """
        if service is not None and not is_askable(service):
            raise ConfigurationError(f"service name {service!r}: Consul's API would redirect it to another name")
        return persistently(lambda: self._entries(service, deadline), deadline)

    def _entries(self, service: str | None, deadline: Deadline) -> list[RegistryEntry]:
        if service is not None:
            listed = read_service(self._client, service, deadline)
            if not listed:
                require_sight(self._client, service, deadline)
            found = [each.entry() for each in listed]
        else:
            found = []
            for name in read_service_names(self._client, deadline):
                if is_askable(name):
                    found += [each.entry() for each in read_service(self._client, name, deadline)]
                else:
                    found.append(RegistryEntry(name, "", problem="Consul's API cannot be asked for this name"))
            if not found:
                message = f"{self._url}: the token may see services and no instances: it needs node:read"
                raise PermissionRefusedError(message)
        return sorted(found, key=lambda entry: (entry.service, entry.id, entry.locator))

    def remove(self, entry: RegistryEntry, deadline: Deadline, *, force: bool = False) -> Removal:
        """Remove somebody else's instance, and what belongs to it; see :mod:`..consul.removal` for the ways.

        Raises:
            LiveOwnerError: its checks pass or another system manages it (without ``force``), or it was registered anew
                since it was shown.
            InstanceNotFoundError: it is gone already.
            RegistryUnavailableError: before anything was sent.
            PermissionRefusedError: the token may not read or write it, and nothing was sent.
            ConfigurationError: ``agent`` is another node's.
        """
        results: list[RemovalResult] = []
        self._removals(force=force).run([entry], deadline, lambda _, result: results.append(result))
        (result,) = results
        if isinstance(result, RegistryDrainError):
            raise result
        return result

    def remove_many(
        self,
        entries: Sequence[RegistryEntry],
        deadline: Deadline,
        on_result: Callable[[RegistryEntry, RemovalResult], None],
        *,
        force: bool = False,
    ) -> None:
        """Remove each of ``entries`` as :meth:`remove` does, in rounds of up to 512.

        Those that only the catalog knows go in transactions of up to 64 operations; those of an agent one by one, over
        a connection that is kept. One consistent read per service proves them all.

        Raises:
            RegistryUnavailableError: nothing was sent for those without a result.
        """
        self._removals(force=force).run(entries, deadline, on_result)

    def companions(self, entries: Sequence[RegistryEntry], deadline: Deadline) -> Sequence[Sequence[str]]:
        """Return what else goes when each of ``entries`` is removed; see :mod:`..consul.removal.companions`.

        Raises:
            RegistryUnavailableError, PermissionRefusedError: as for :meth:`entries`.
        """
        return self._removals(force=False).companions(entries, deadline)

    def _removals(self, *, force: bool) -> ConsulRemovals:
        return ConsulRemovals(self._client, self._clock, agent=self._agent, force=force)

    def drain(self, entry: RegistryEntry, deadline: Deadline, *, reason: str = "") -> Rotation:
        """Put ``entry`` into maintenance mode, through its agent, and look that it is; see :class:`ConsulRotation`.

        Raises:
            LiveOwnerError: it was registered anew since it was shown.
            InstanceNotFoundError: it is gone.
            RegistryDataError: there is no agent that could keep the state.
            RegistryUnavailableError, PermissionRefusedError, ConfigurationError: as for :meth:`remove`.
        """
        return self._rotation(entry).switch(deadline, out=True, reason=reason)

    def undrain(self, entry: RegistryEntry, deadline: Deadline) -> Rotation:
        """End the maintenance mode of ``entry``; see :meth:`drain`."""
        return self._rotation(entry).switch(deadline, out=False)

    def _rotation(self, entry: RegistryEntry) -> ConsulRotation:
        from registry_drain.registries.consul.rotation import ConsulRotation

        return ConsulRotation(self._client, entry, self._agent)

    def watch(self, service: str, deadline: Deadline, on_change: WatchCallback | None = None) -> Watch:
        """Follow the passing instances by blocking queries; see :class:`ConsulWatch`.

        Raises:
            RegistryUnavailableError: no first list by the deadline.
            PermissionRefusedError: the token could not have seen an instance.
        """
        from registry_drain.registries.consul.watch import ConsulWatch

        check_name("service name", service)
        watch = ConsulWatch(ConsulClient(self._address), service, self._clock, on_change, self._forget)
        with self._lock:
            self._watches.add(watch)
        try:
            watch.start(deadline)
        except BaseException:
            watch.close()
            raise
        return watch

    def _forget(self, watch: ConsulWatch) -> None:
        with self._lock:
            self._watches.discard(watch)

    def close(self) -> None:
        """Close watches and idle connections. Idempotent; registrations are left alone."""
        with self._lock:
            watches = list(self._watches)
        for watch in watches:
            watch.close()
        self._client.close()


# mypy checks here that the protocols are kept
_registry: type[Registry] = ConsulRegistry
_bulk: type[BulkRegistry] = ConsulRegistry
_companions: type[CompanionRegistry] = ConsulRegistry
_rotation: type[RotationRegistry] = ConsulRegistry
