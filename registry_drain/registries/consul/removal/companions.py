"""What belongs to an instance beside its own entry, and goes when it goes.

- its sidecar proxy: a ``connect-proxy`` whose ``Proxy.DestinationServiceID`` is the instance's Consul id;
- the management endpoint of a Spring application: the service ``<name>-management``, id ``<id>-management``, at the
  same address (ConsulAutoRegistration of Spring Cloud Consul);
- checks that are named for it and registered for its whole node: by the same id, or ``service:<id>``, the name that
  Consul gives to checks by itself. Registered so, a check outlives its service, and makes every service of the node
  look ill. Checks that are registered *for* the service need nobody's help: Consul removes them with it.

All of it on the same node only. Nothing of it is removed unless the instance itself is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from registry_drain.clock import Deadline
from registry_drain.registries.consul.catalog import Listed, parse_listed, read_service
from registry_drain.registries.consul.http import ConsulClient

_PROXY = "connect-proxy"
_PROXY_SUFFIX = "-sidecar-proxy"
_MANAGEMENT_SUFFIX = "-management"


@dataclass(frozen=True, slots=True)
class Companion:
    """One thing that goes with an instance.

    Attributes:
        what: for a person, as ``sidecar proxy web-1-sidecar-proxy``.
        node: where it is registered, which is where the instance is.
        id: of the service, or of the check.
        modify_index: what it must still have to be removed.
        listed: the service; None for a check.
    """

    what: str
    node: str
    id: str
    modify_index: int
    listed: Listed | None = None

    def operation(self) -> Mapping[str, Any]:
        """Return its removal from the catalog as one operation of a transaction."""
        if self.listed is not None:
            return service_removal(self.listed)
        check = {"Node": self.node, "CheckID": self.id, "ModifyIndex": self.modify_index}
        return {"Check": {"Verb": "delete-cas", "Check": check}}


class Companions:
    """What may belong to the instances of one service, read once for all of them."""

    def __init__(self, proxies: Iterable[Listed], managements: Iterable[Listed]) -> None:
        """Take what was listed."""
        self._by_node: dict[str, list[tuple[str, Listed]]] = {}
        for what, services in (("sidecar proxy", proxies), ("management endpoint", managements)):
            for each in services:
                self._by_node.setdefault(each.node, []).append((what, each))

    @classmethod
    def read(cls, client: ConsulClient, service: str, deadline: Deadline) -> Companions:
        """Read them: two requests.

        What the token may not see is not found.

        Raises:
            RegistryUnavailableError, PermissionRefusedError, RegistryDataError: see :meth:`ConsulClient.call`.
        """
        params = {"consistent": ""}
        raw = client.call("GET", "health", "connect", service, deadline=deadline, params=params).data
        proxies = [parse_listed(service, each) for each in raw] if isinstance(raw, list) else []
        return cls(proxies, read_service(client, f"{service}{_MANAGEMENT_SUFFIX}", deadline))

    def of(self, main: Listed) -> tuple[Companion, ...]:
        """Return what goes with ``main``."""
        found = [
            Companion(f"{what} {each.consul_id}", each.node, each.consul_id, each.modify_index, each)
            for what, each in self._by_node.get(main.node, ())
            if _is_proxy_of(each, main) or _is_management_of(each, main)
        ]
        ids = [main.consul_id, *(each.id for each in found)]
        checks = [
            Companion(f"check {check.id}", main.node, check.id, check.modify_index)
            for check in main.checks
            if not check.is_of_service
            and not check.is_maintenance
            and any(_is_named_for(check.id, each) for each in ids)
        ]
        return (*checks, *found)


def service_removal(listed: Listed) -> Mapping[str, Any]:
    """Return the operation of a transaction that removes a service if it is still as listed."""
    service = {"ID": listed.consul_id, "Service": listed.service, "ModifyIndex": listed.modify_index}
    return {"Service": {"Verb": "delete-cas", "Node": listed.node, "Service": service}}


def _is_proxy_of(each: Listed, main: Listed) -> bool:
    if each.kind != _PROXY:
        return False
    return each.serves == main.consul_id or (not each.serves and each.consul_id == f"{main.consul_id}{_PROXY_SUFFIX}")


def _is_management_of(each: Listed, main: Listed) -> bool:
    return each.consul_id == f"{main.consul_id}{_MANAGEMENT_SUFFIX}" and each.address == main.address


def _is_named_for(check_id: str, consul_id: str) -> bool:
    # "service:<id>", or "service:<id>:<number>" where a service has several.
    return check_id == consul_id or re.fullmatch(rf"service:{re.escape(consul_id)}(:\d+)?", check_id) is not None
