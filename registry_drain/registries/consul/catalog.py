"""Reading Consul's catalog: consistent reads, what their entries mean, and whether an empty answer proves anything.

An empty list is no proof. Consul filters silently what the token may not see: without ``service:read`` or ``node:read``
every list is ``200 []`` (measured on 1.8.7). Two other reads tell the difference, on every version:

- ``/v1/agent/health/service/name/<service>`` answers 403 when ``service:read`` is missing, and 404 when this agent has
  no such service;
- ``/v1/catalog/services`` names every service that has an instance, and needs ``service:read`` only. A service that it
  names, and whose list is empty, is hidden by a missing ``node:read``.

What stays invisible is a policy that shows some nodes and hides others.
"""

from __future__ import annotations

from collections.abc import Mapping

from registry_drain.clock import Deadline
from registry_drain.errors import PermissionRefusedError, RegistryDataError
from registry_drain.registries.consul.http import ConsulClient
from registry_drain.registries.consul.listed import (
    ID_KEY,
    INCARNATION_KEY,
    META_PREFIX,
    REGISTERED_AT_KEY,
    Listed,
    parse_listed,
)

__all__ = [
    "ID_KEY",
    "INCARNATION_KEY",
    "META_PREFIX",
    "REGISTERED_AT_KEY",
    "Listed",
    "is_askable",
    "parse_listed",
    "read_service",
    "read_service_names",
    "require_sight",
]


def is_askable(name: str) -> bool:
    """Whether a service name or id can stand in a path of Consul's API without being redirected to another one."""
    return bool(name) and not name.startswith("/") and "//" not in name and ".." not in name and name != "."


def read_service(
    client: ConsulClient, service: str, deadline: Deadline, params: Mapping[str, str] | None = None
) -> list[Listed]:
    """Return what a consistent read lists, healthy or not, narrowed by what else is in ``params``.

    An empty list proves nothing yet: see :func:`require_sight`.

    Raises:
        RegistryUnavailableError, PermissionRefusedError, RegistryDataError: see :meth:`ConsulClient.call`.
    """
    query = {"consistent": "", **(params or {})}
    answer = client.call("GET", "health", "service", service, deadline=deadline, params=query)
    if not isinstance(answer.data, list):
        # Not even a 404 has a meaning here; and what is no list must never be taken for an empty one.
        message = f"{client.address.url}: the list of {service!r} is no list: is this a Consul agent?"
        raise RegistryDataError(message)
    return [parse_listed(service, raw) for raw in answer.data]


def read_service_names(client: ConsulClient, deadline: Deadline) -> list[str]:
    """Return the names of all services that have an instance and that the token may see, by a consistent read.

    Raises:
        PermissionRefusedError: none is visible, not even Consul's own, which every data centre has.
        RegistryUnavailableError, RegistryDataError: see :meth:`ConsulClient.call`.
    """
    answer = client.call("GET", "catalog", "services", deadline=deadline, params={"consistent": ""})
    if not isinstance(answer.data, dict):
        message = f"{client.address.url}: the list of services is no object: is this a Consul agent?"
        raise RegistryDataError(message)
    if not answer.data:
        message = f"{client.address.url}: the token may not see any service: it needs service:read and node:read"
        raise PermissionRefusedError(message)
    return sorted(answer.data)


def require_sight(client: ConsulClient, service: str, deadline: Deadline) -> None:
    """Return if an empty list of ``service`` was the truth.

    Raises:
        PermissionRefusedError: the token could not have seen an instance.
        RegistryUnavailableError, RegistryDataError: see :meth:`ConsulClient.call`.
    """
    # 503 is this endpoint's way of saying that the instances on this agent are critical.
    client.call("GET", "agent", "health", "service", "name", service, deadline=deadline, accept=frozenset({429, 503}))
    answer = client.call("GET", "catalog", "services", deadline=deadline, params={"consistent": ""})
    is_named = isinstance(answer.data, dict) and service in answer.data
    if is_named and not read_service(client, service, deadline):
        message = (
            f"{client.address.url}: the token may not see the instances of {service!r}: it needs "
            'service:read on it and node_prefix "" { policy = "read" }'
        )
        raise PermissionRefusedError(message)
