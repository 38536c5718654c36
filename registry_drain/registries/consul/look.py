"""What a consistent read shows of the services that are concerned: one request each, however many entries they have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from registry_drain.clock import Deadline
from registry_drain.errors import PermissionRefusedError
from registry_drain.registries.base import RegistryEntry
from registry_drain.registries.consul.catalog import Listed, is_askable, read_service
from registry_drain.registries.consul.http import ConsulClient


class Look:
    """One look.

    Attributes:
        token: that it was made with.
    """

    def __init__(self, client: ConsulClient, entries: Iterable[RegistryEntry], deadline: Deadline) -> None:
        """Read the services of ``entries``.

        Raises:
            RegistryUnavailableError, RegistryDataError: see :meth:`ConsulClient.call`. A service that may not be read
                is kept as ``refused``, and spoils the look at no other one.
        """
        self.token = client.address.tokens.current()
        self._by_locator: dict[tuple[str, str], Listed] = {}
        self._instances: set[tuple[str, str, str]] = set()
        self._nodes_of_id: Counter[tuple[str, str]] = Counter()
        self._refused: dict[str, PermissionRefusedError] = {}
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

    def has_namesake(self, entry: RegistryEntry) -> bool:
        """Whether the instance is listed on the same node again, under another Consul id, as ours are."""
        return (entry.service, entry.node or entry.owner, entry.id) in self._instances

    def is_ambiguous(self, listed: Listed, service: str) -> bool:
        """Whether several nodes list the Consul id of ``listed``."""
        return self._nodes_of_id[service, listed.consul_id] > 1
