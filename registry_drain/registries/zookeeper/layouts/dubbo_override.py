"""Dubbo's rule that disables one provider: a node in ``{interface}/configurators``, whose name is a URL.

``override://10.0.0.7:20880/com.acme.Users?category=configurators&disabled=true&dynamic=false&enabled=true`` is what
Dubbo's user guide and its admin console write to take a provider out of rotation. It concerns the provider with that
host and port (dubbo, AbstractConfigurator.java); consumers subscribe by group and version too, so those are in it. A
``dynamic=false`` rule is a persistent node: it holds until somebody deletes it. One with ``dynamic=true`` is an
ephemeral node (dubbo, ZookeeperRegistry.java), and goes with the session of whoever wrote it.

In the data of ours, which Dubbo does not read, stands for whom it was written: a process that is started on the same
address is somebody else.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote_plus, unquote_plus, urlencode

from registry_drain.instance import format_endpoint
from registry_drain.registries.zookeeper.layouts.reading import read_object
from registry_drain.registries.zookeeper.layouts.url_named import Provider, read_provider

_MARK = "registry-drain"
_ANY = {"", "*"}
_ANY_HOST = "0.0.0.0"  # noqa: S104 -- compared, not bound


@dataclass(frozen=True, slots=True)
class Override:
    """One rule that disables providers.

    Attributes:
        node: its name.
        address: whom it concerns; ``0.0.0.0`` is everybody.
        port: 0 is every port.
        group: as consumers subscribe by it.
        version: likewise.
    """

    node: str
    address: str
    port: int
    group: str
    version: str

    def disables(self, provider: Provider) -> bool:
        """Whether consumers leave ``provider`` out because of it."""
        is_host = self.address in {provider.address, _ANY_HOST}
        is_port = self.port in {0, provider.port}
        is_group = self.group in _ANY or self.group == provider.group
        is_version = self.version in _ANY or self.version == provider.version
        return is_host and is_port and is_group and is_version


def read_override(node_name: str) -> Override | None:
    """Return the rule in a node's name, or None if it disables nobody."""
    name = unquote_plus(node_name)
    scheme, separator, rest = name.partition("://")
    if scheme != "override" or not separator:
        return None
    authority, _, _ = rest.partition("/")
    parameters = dict(parse_qsl(rest.partition("?")[2]))
    if parameters.get("disabled") != "true" or parameters.get("enabled") == "false":
        return None
    provider = read_provider(f"any://{authority.partition('?')[0]}")
    address, port = (provider.address, provider.port) if provider else (authority.partition("?")[0], 0)
    return Override(node_name, address, port, parameters.get("group", ""), parameters.get("version", ""))


def override_name(provider: Provider, *, is_dynamic: bool = False) -> str:
    """Return the name of the rule that disables ``provider``, encoded as Java does it."""
    dynamic = "true" if is_dynamic else "false"
    parameters = {"category": "configurators", "disabled": "true", "dynamic": dynamic, "enabled": "true"}
    if provider.group:
        parameters["group"] = provider.group
    if provider.version:
        parameters["version"] = provider.version
    endpoint = format_endpoint(provider.address, provider.port)
    url = f"override://{endpoint}/{provider.interface}?{urlencode(sorted(parameters.items()))}"
    return quote_plus(url, safe="*").replace("~", "%7E")


def override_data(owner: str, reason: str) -> bytes:
    """Return what we write into a rule of ours: the session of whom it is for (empty: a persistent node), and why."""
    return json.dumps({"by": _MARK, "owner": owner, "reason": reason}, separators=(",", ":")).encode()


def owner_in(data: bytes) -> str | None:
    """Return the session for which a rule of ours was written, or None if it is not one of ours."""
    document = read_object(data)
    if isinstance(document, str) or document.get("by") != _MARK:
        return None
    owner = document.get("owner")
    return owner if isinstance(owner, str) else ""
