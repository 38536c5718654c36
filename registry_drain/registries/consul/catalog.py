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

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from registry_drain.clock import Deadline
from registry_drain.errors import ConfigurationError, PermissionRefusedError, RegistryDataError
from registry_drain.instance import ServiceInstance
from registry_drain.registries.base import RegistryEntry
from registry_drain.registries.consul.http import ConsulClient

META_PREFIX = "registry-drain-"
ID_KEY = f"{META_PREFIX}id"
"""Meta key of the instance id. The id of the Consul service is this one and the incarnation."""
INCARNATION_KEY = f"{META_PREFIX}incarnation"
"""Meta key of what tells this registration from every other one of the same instance id."""
REGISTERED_AT_KEY = f"{META_PREFIX}registered-at"
"""Meta key of the UNIX seconds of the first registration."""

_NODE_CHECK = "serfHealth"
_MAINTENANCE = ("_node_maintenance", "_service_maintenance")
_SEVERITY = ("passing", "warning", "critical")


@dataclass(frozen=True, slots=True)
class Check:
    """One health check of an entry."""

    id: str
    status: str
    is_of_service: bool

    @property
    def is_maintenance(self) -> bool:
        """Whether it stands for maintenance mode, which somebody switched on and off by hand."""
        return self.id.startswith(_MAINTENANCE)


@dataclass(frozen=True, slots=True)
class Listed:
    """One instance as the catalog lists it.

    Attributes:
        node: the name of the agent that keeps it.
        consul_id: the id of the Consul service, unique on the node.
        problem: what could not be read; empty if nothing.
    """

    service: str
    node: str
    consul_id: str
    address: str
    port: int
    tags: tuple[str, ...]
    meta: Mapping[str, str]
    checks: tuple[Check, ...]
    create_index: int
    modify_index: int
    problem: str = ""

    @property
    def instance_id(self) -> str:
        """The id it was given: ours is in Meta, everybody else's is the id of the Consul service."""
        return self.meta.get(ID_KEY) or self.consul_id

    @property
    def incarnation(self) -> str:
        """Which registration of ours it is; empty if somebody else's."""
        return self.meta.get(INCARNATION_KEY, "")

    @property
    def locator(self) -> str:
        """``node/id of the Consul service``: what Consul's own tools call it."""
        return f"{self.node}/{self.consul_id}"

    @property
    def health(self) -> str:
        """Its state as callers are told: that of the worst check, those of the node included."""
        if any(check.is_maintenance for check in self.checks):
            return "maintenance"
        found = [_SEVERITY.index(check.status) for check in self.checks if check.status in _SEVERITY]
        return _SEVERITY[max(found)] if found else ""

    @property
    def is_node_alive(self) -> bool | None:
        """Whether the gossip reaches the agent; None for a node without an agent."""
        found = [check.status for check in self.checks if check.id == _NODE_CHECK]
        return found[0] != "critical" if found else None

    @property
    def is_live(self) -> bool | None:
        """Whether somebody keeps it alive: its own checks pass on an agent that lives. None without checks of its own.

        A heartbeat counts for as long as its TTL: a process that was killed looks alive until then.
        """
        if self.is_node_alive is False:
            return False
        own = [check.status for check in self.checks if check.is_of_service and not check.is_maintenance]
        return "critical" not in own if own else None

    @property
    def public_meta(self) -> dict[str, str]:
        """Meta without our own keys."""
        return {key: value for key, value in self.meta.items() if not key.startswith(META_PREFIX)}

    def entry(self) -> RegistryEntry:
        """Return it as registries show it."""
        return RegistryEntry(
            service=self.service,
            id=self.instance_id,
            address=self.address,
            port=self.port,
            tags=self.tags,
            metadata=self.public_meta,
            owner=self.node,
            is_live=self.is_live,
            health=self.health,
            registered_at=_seconds(self.meta.get(REGISTERED_AT_KEY, "")),
            # Ours goes when its heartbeats stop; of others the catalog does not say it.
            is_ephemeral=True if self.incarnation else None,
            problem=self.problem,
            locator=self.locator,
            # An identical re-registration does not change ModifyIndex (nor do checks); the incarnation does change.
            version=f"{self.create_index}.{self.modify_index}.{self.incarnation}",
        )

    def instance(self) -> ServiceInstance | None:
        """Return what callers connect to; None where there is nothing to connect to."""
        for instance_id in (self.instance_id, ""):
            try:
                return ServiceInstance(
                    self.service, self.address, self.port, id=instance_id, metadata=self.public_meta, tags=self.tags
                )
            except ConfigurationError:  # noqa: PERF203 -- twice at most
                # An id that we would not register must not hide the instance from its callers: the default id will do.
                continue
        return None


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


def parse_listed(service: str, raw: object) -> Listed:
    """Take one element of ``/v1/health/service`` apart; what cannot be read is named in ``problem``."""
    problems: list[str] = []
    node, body = _object(raw, "Node", problems), _object(raw, "Service", problems)
    checks = raw.get("Checks") if isinstance(raw, dict) else None
    tags, meta = body.get("Tags") or [], body.get("Meta") or {}
    port = body.get("Port", 0)
    if not isinstance(port, int) or isinstance(port, bool) or port < 0:
        problems.append(f"port {port!r}")
        port = 0
    return Listed(
        service=_text(body, "Service") or service,
        node=_text(node, "Node"),
        consul_id=_text(body, "ID"),
        # Without an address of its own a service is reached at its node's.
        address=_text(body, "Address") or _text(node, "Address"),
        port=port,
        tags=tuple(str(tag) for tag in tags) if isinstance(tags, list) else (),
        meta={str(key): str(value) for key, value in meta.items()} if isinstance(meta, dict) else {},
        checks=tuple(_parse_check(each) for each in checks if isinstance(each, dict))
        if isinstance(checks, list)
        else (),
        create_index=_number(body.get("CreateIndex")),
        modify_index=_number(body.get("ModifyIndex")),
        problem=f"unreadable: {', '.join(problems)}" if problems else "",
    )


def _parse_check(raw: Mapping[str, Any]) -> Check:
    return Check(_text(raw, "CheckID"), _text(raw, "Status"), is_of_service=bool(_text(raw, "ServiceID")))


def _object(raw: object, key: str, problems: list[str]) -> Mapping[str, Any]:
    value = raw.get(key) if isinstance(raw, dict) else None
    if isinstance(value, dict):
        return value
    problems.append(f"no {key}")
    return {}


def _text(raw: Mapping[str, Any], key: str) -> str:
    value = raw.get(key)
    return value if isinstance(value, str) else ""


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0


def _seconds(text: str) -> float | None:
    return float(text) if re.fullmatch(r"\d{1,12}(\.\d{1,6})?", text) else None
