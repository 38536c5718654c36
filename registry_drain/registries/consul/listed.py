"""What Consul lists of one instance, taken apart; and what it means for an operator.

Whatever others have written there is read without an exception: what cannot be read is named in ``problem``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from registry_drain.errors import ConfigurationError
from registry_drain.instance import ServiceInstance
from registry_drain.registries.base import EntryCheck, RegistryEntry
from registry_drain.registries.consul.managed import Manager, manager_of

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
    """One health check of an entry.

    Attributes:
        id: unique on the node.
        is_of_service: whether it is registered for the service; else for its whole node.
        output: what it last said.
        modify_index: changes with status and output, and only with them.
        kind: ``ttl``, ``http``, …; empty for checks of the gossip, and before Consul 1.6.
    """

    id: str
    status: str
    is_of_service: bool
    output: str = ""
    modify_index: int = 0
    kind: str = ""

    @property
    def is_maintenance(self) -> bool:
        """Whether it stands for maintenance mode, which somebody switched on and off by hand."""
        return self.id.startswith(_MAINTENANCE)

    def entry_check(self) -> EntryCheck:
        """Return it as registries show it."""
        return EntryCheck(
            id=self.id,
            status="maintenance" if self.is_maintenance else self.status,
            is_own=self.is_of_service,
            output=self.output,
            version=str(self.modify_index),
            kind=self.kind,
        )


@dataclass(frozen=True, slots=True)
class Listed:
    """One instance as the catalog lists it.

    Attributes:
        node: the name of the agent that keeps it.
        consul_id: the id of the Consul service, unique on the node.
        problem: what could not be read; empty if nothing.
        kind: ``connect-proxy`` and other parts of the mesh; empty for an ordinary service.
        serves: the Consul id of the service, on the same node, that a proxy stands before; else empty.
        node_meta: what is written about the node.
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
    kind: str = ""
    serves: str = ""
    node_meta: Mapping[str, str] = field(default_factory=dict)

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
    def version(self) -> str:
        """Differs after a re-registration with any other content.

        An identical one does not change ModifyIndex, and neither do checks; the incarnation does change.
        """
        return f"{self.create_index}.{self.modify_index}.{self.incarnation}"

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
    def manager(self) -> Manager | None:
        """Who registers it again when it is missing, as far as its marks tell."""
        return manager_of(self.consul_id, self.meta, self.node_meta)

    @property
    def public_meta(self) -> dict[str, str]:
        """Meta without our own keys."""
        return {key: value for key, value in self.meta.items() if not key.startswith(META_PREFIX)}

    def entry(self) -> RegistryEntry:
        """Return it as registries show it."""
        manager = self.manager
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
            version=self.version,
            node=self.node,
            managed_by=manager.name if manager else "",
            checks=tuple(check.entry_check() for check in self.checks),
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


def parse_listed(service: str, raw: object) -> Listed:
    """Take one element of ``/v1/health/service`` apart; what cannot be read is named in ``problem``."""
    problems: list[str] = []
    node, body = _object(raw, "Node", problems), _object(raw, "Service", problems)
    checks = raw.get("Checks") if isinstance(raw, dict) else None
    tags, meta, proxy = body.get("Tags") or [], body.get("Meta"), body.get("Proxy")
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
        meta=_texts(meta),
        checks=tuple(_parse_check(each) for each in checks if isinstance(each, dict))
        if isinstance(checks, list)
        else (),
        create_index=_number(body.get("CreateIndex")),
        modify_index=_number(body.get("ModifyIndex")),
        problem=f"unreadable: {', '.join(problems)}" if problems else "",
        kind=_text(body, "Kind"),
        serves=_text(proxy, "DestinationServiceID") if isinstance(proxy, dict) else "",
        node_meta=_texts(node.get("Meta")),
    )


def _parse_check(raw: Mapping[str, Any]) -> Check:
    return Check(
        id=_text(raw, "CheckID"),
        status=_text(raw, "Status"),
        is_of_service=bool(_text(raw, "ServiceID")),
        # Maintenance mode keeps the reason that it was given in the notes.
        output=_text(raw, "Output") or _text(raw, "Notes"),
        modify_index=_number(raw.get("ModifyIndex")),
        kind=_text(raw, "Type"),
    )


def _object(raw: object, key: str, problems: list[str]) -> Mapping[str, Any]:
    value = raw.get(key) if isinstance(raw, dict) else None
    if isinstance(value, dict):
        return value
    problems.append(f"no {key}")
    return {}


def _text(raw: Mapping[str, Any], key: str) -> str:
    value = raw.get(key)
    return value if isinstance(value, str) else ""


def _texts(raw: object) -> Mapping[str, str]:
    return {str(key): str(value) for key, value in raw.items()} if isinstance(raw, dict) else {}


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0


def _seconds(text: str) -> float | None:
    return float(text) if re.fullmatch(r"\d{1,12}(\.\d{1,6})?", text) else None
