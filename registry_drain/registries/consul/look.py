"""What a consistent read shows of the services that are concerned: one request each, however many entries they have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from registry_drain.clock import Deadline
from registry_drain.errors import PermissionRefusedError
from registry_drain.registries.base import RegistryEntry
from registry_drain.registries.consul.catalog import Listed, is_askable, read_service, require_sight
from registry_drain.registries.consul.http import ConsulClient


class Look:
    """One look."""

    def __init__(self, client: ConsulClient, entries: Iterable[RegistryEntry], deadline: Deadline) -> None:
        """Read the services of ``entries``.

        Raises:
            RegistryUnavailableError, RegistryDataError: see :meth:`ConsulClient.call`. A service that may not be read
                is kept as ``refused``, and spoils the look at no other one.
        """
        self._client = client
        self._by_locator: dict[tuple[str, str], Listed] = {}
        self._instances: set[tuple[str, str, str]] = set()
        self._nodes_of_id: Counter[tuple[str, str]] = Counter()
        self._refused: dict[str, PermissionRefusedError] = {}
        self._proven: set[str] = set()
        for service in {entry.service for entry in entries}:
            try:
                listed = read_service(client, service, deadline) if is_askable(service) else []
            except PermissionRefusedError as error:
                self._refused[service] = error
                continue
            for each in listed:
                self._by_locator[service, each.locator] = each
                self._instances.add((service, each.node, each.instance_id))
                self._nodes_of_id[service, each.consul_id] += 1

    def find(self, entry: RegistryEntry) -> Listed | None:
        """Return what stands where ``entry`` stood.

        Raises:
            PermissionRefusedError: its service may not be read.
        """
        if refusal := self._refused.get(entry.service):
            raise refusal
        return self._by_locator.get((entry.service, entry.locator))

    def require_sight(self, service: str, deadline: Deadline) -> None:
        """Return if what the look does not list is not there, as far as the token may see it.

        Raises:
            PermissionRefusedError: the token may not see what is there (any more: a policy changes without notice).
            RegistryUnavailableError, RegistryDataError: see :meth:`ConsulClient.call`.
        """
        if refusal := self._refused.get(service):
            raise refusal
        if service in self._proven:
            return
        if not any(name == service for name, _ in self._by_locator):
            try:
                require_sight(self._client, service, deadline)
            except PermissionRefusedError as error:
                self._refused[service] = error
                raise
        self._proven.add(service)

    def has_namesake(self, entry: RegistryEntry) -> bool:
        """Whether the instance is listed on the same node again, under another Consul id, as ours are."""
        return (entry.service, entry.node or entry.owner, entry.id) in self._instances

    def is_ambiguous(self, listed: Listed, service: str) -> bool:
        """Whether several nodes list the Consul id of ``listed``."""
        return self._nodes_of_id[service, listed.consul_id] > 1
