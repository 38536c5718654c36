"""Dubbo and SOFA-RPC: ``{base}/{interface}/providers/{a URL, percent-encoded}``; the node's *name* says everything.

``dubbo://10.0.0.7:20880/com.acme.Users?application=shop&dynamic=true&side=provider&version=1.0`` and
``bolt://10.0.0.7:12200?version=1.0&startTime=…`` (dubbo, ZookeeperRegistry.java; sofa-rpc,
ZookeeperRegistryHelper.java). One process has such a node for each interface that it serves. Within an interface an
instance is told by endpoint, group and version, so that is what we call it: ``group@host:port:version``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar
from urllib.parse import parse_qsl, quote_plus, unquote_plus, urlencode

from registry_drain.instance import ServiceInstance, format_endpoint
from registry_drain.registries.zookeeper.layouts.base import NodeContent, Recognition
from registry_drain.registries.zookeeper.layouts.reading import printable, read_endpoint, read_time

_URL = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?:[^/?@]*@)?(?P<endpoint>[^/?]+)(?P<path>/[^?]*)?(?:\?(?P<query>.*))?",
    re.DOTALL | re.IGNORECASE,
)
_NO_VERSION = {"", "0.0.0"}
_ENCODED_SCHEME = re.compile("[a-z][a-z0-9+.-]*%3A%2F%2F", re.IGNORECASE)
# What else such trees hold: subscribers, routing rules, configuration (dubbo, RegistryConstants.java).
_NO_INSTANCES = frozenset(
    {"consumer", "override", "absent", "route", "routers", "condition", "script", "tag", "empty", "admin", "provider"}
)
_SOFA_PARAMETERS = frozenset({"rpcVer", "startTime", "uniqueId"})


@dataclass(frozen=True, slots=True)
class Provider:
    """Whom a node's name tells of, as far as Dubbo tells providers apart."""

    address: str
    port: int
    interface: str
    group: str
    version: str


def read_provider(node_name: str) -> Provider | None:
    """Return whom a name tells of, or None if it is no URL with host and port."""
    url = _URL.fullmatch(unquote_plus(node_name))
    if url is None:
        return None
    address, port = read_endpoint(url["endpoint"])
    parameters = dict(parse_qsl(url["query"] or ""))
    interface = (url["path"] or "").strip("/") or parameters.get("interface", "")
    if not port:
        return None
    return Provider(address, port, interface, parameters.get("group", ""), parameters.get("version", ""))


class UrlNamedLayout:
    """What the two have in common. The service's name is the interface; metadata become the URL's parameters.

    Args:
        name: in a registry URL.
        scheme: the protocol in what we write.
        has_path: whether the interface stands in the URL's path as well.
        born_at: the parameter with the start's time, in milliseconds.
        fixed: the parameters that every provider has.
    """

    is_sequential: ClassVar[bool] = False

    def __init__(self, name: str, scheme: str, *, has_path: bool, born_at: str, fixed: dict[str, str]) -> None:
        self._name = name
        self._scheme = scheme
        self._has_path = has_path
        self._born_at = born_at
        self._fixed = fixed

    @property
    def name(self) -> str:
        """Its name in a registry URL."""
        return self._name

    def folder(self, service: str) -> str:
        """Return where the providers of an interface are."""
        return f"{service}/providers"

    def node_name(self, instance: ServiceInstance) -> str:
        """Return the URL, encoded as Java does it. A restart has the same one, and takes the node over."""
        parameters = {"interface": instance.service, **self._fixed, **instance.metadata}
        path = f"/{instance.service}" if self._has_path else ""
        url = f"{self._scheme}://{instance.endpoint}{path}?{urlencode(sorted(parameters.items()))}"
        return quote_plus(url, safe="*").replace("~", "%7E")

    def encode(self, instance: ServiceInstance, registered_at: float) -> bytes:
        """Return the address, which is what Curator writes where nothing is given; nobody reads it."""
        del registered_at
        return instance.address.encode()

    def decode(self, node_name: str, data: bytes) -> NodeContent:
        """Read a provider by its name."""
        del data
        url = _URL.fullmatch(unquote_plus(node_name))
        if url is None:
            return NodeContent(printable(node_name), problem="its name is no URL")
        address, port = read_endpoint(url["endpoint"])
        parameters = {printable(key): printable(value) for key, value in parse_qsl(url["query"] or "") if key}
        is_off = parameters.get("disabled") == "true" or parameters.get("enabled") == "false"
        born_at = parameters.get(self._born_at, "")
        return NodeContent(
            id=_id(address, port, parameters) if port else printable(node_name),
            address=address,
            port=port,
            metadata={**parameters, "protocol": url["scheme"]},
            health="maintenance" if is_off else "",
            registered_at=read_time(int(born_at)) if born_at.isdecimal() and len(born_at) < 15 else None,
            problem="" if port else f"{printable(url['endpoint'])!r} in its name is not HOST:PORT",
        )

    def recognises(self, node_name: str, data: bytes) -> Recognition:
        """By an encoded URL as its name, of a provider; with a path it is Dubbo's, without one SOFA's."""
        if not _ENCODED_SCHEME.match(node_name):
            return Recognition.NONE
        url = _URL.fullmatch(unquote_plus(node_name))
        if url is None or url["scheme"].lower() in _NO_INSTANCES or self.decode(node_name, data).problem:
            return Recognition.NONE
        parameters = dict(parse_qsl(url["query"] or ""))
        if parameters.get("category", "providers") != "providers" or parameters.get("side", "provider") != "provider":
            return Recognition.NONE
        if bool((url["path"] or "").strip("/")) != self._has_path:
            return Recognition.NONE
        is_sure = self._has_path or url["scheme"] == self._scheme or bool(_SOFA_PARAMETERS & parameters.keys())
        return Recognition.SURE if is_sure else Recognition.NONE

    def __repr__(self) -> str:
        """Name it."""
        return f"<UrlNamedLayout {self._name}>"


def _id(address: str, port: int, parameters: dict[str, str]) -> str:
    group, version = parameters.get("group", ""), parameters.get("version", "")
    prefix = f"{group}@" if group else ""
    suffix = "" if version in _NO_VERSION else f":{version}"
    return f"{prefix}{format_endpoint(address, port)}{suffix}"


DUBBO = UrlNamedLayout(
    "dubbo", "dubbo", has_path=True, born_at="timestamp", fixed={"dynamic": "true", "side": "provider"}
)
SOFA = UrlNamedLayout("sofa", "bolt", has_path=False, born_at="startTime", fixed={"dynamic": "true"})
