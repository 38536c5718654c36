"""Layouts that are little more than ``host:port``: rpcx, Armeria's legacy one, KingPin's, and nothing else at all.

==========  ====================================  ================================================
layout      node                                  data
==========  ====================================  ================================================
rpcx        ``{base}/{service}/tcp@host:port``    metadata as a query string; ``state=inactive``
                                                  takes it out of service (rpcx, serverplugin)
armeria     ``{path}/{host}_{port}``              ``host:port`` or ``host:port:weight``; the name
                                                  is ignored (armeria, LegacyNodeValueCodec)
kingpin     ``{path}/{hex}-{host:port}``          none; what follows the first dash counts
plain       ``{path}/{host:port}``                none, or ``host:port`` in a node of any name
==========  ====================================  ================================================
"""

from __future__ import annotations

import re
import uuid
from typing import ClassVar
from urllib.parse import parse_qsl, urlencode

from registry_drain.instance import ServiceInstance, format_endpoint
from registry_drain.registries.zookeeper.layouts.base import NodeContent, Recognition, Switched
from registry_drain.registries.zookeeper.layouts.reading import is_sure_endpoint, printable, read_endpoint

_LONGEST_DATA = 65_536
"""Bytes; what is longer is nothing of theirs."""
_NETWORKS = frozenset({"tcp", "http", "ws", "wss", "quic", "kcp", "unix", "reuseport", "iouring", "rdma", "memu"})
"""What rpcx listens on (rpcx, server/listener*.go)."""
_QUERY = re.compile(rb"(?:[^=&\x00-\x1f]+=[^=&\x00-\x1f]*(?:&|\Z))*")
_HEX = re.compile("[0-9a-f]{32}")
"""A UUID without dashes."""


class _EndpointNamed:
    is_sequential: ClassVar[bool] = False

    def folder(self, service: str) -> str:
        """Return the service's own name."""
        return service


class RpcxLayout(_EndpointNamed):
    """See the module. The metadata ``network`` (default ``tcp``) precedes the endpoint."""

    name: ClassVar[str] = "rpcx"

    def node_name(self, instance: ServiceInstance) -> str:
        """Return network and endpoint."""
        return f"{instance.metadata.get('network', 'tcp')}@{instance.endpoint}"

    def encode(self, instance: ServiceInstance, registered_at: float) -> bytes:
        """Return the metadata; tags and the time have no place in it."""
        del registered_at
        return urlencode(sorted((key, value) for key, value in instance.metadata.items() if key != "network")).encode()

    def decode(self, node_name: str, data: bytes) -> NodeContent:
        """Read an instance."""
        network, _, endpoint = node_name.rpartition("@")
        address, port = read_endpoint(endpoint)
        metadata = {printable(key): printable(value) for key, value in parse_qsl(_text(data)) if key}
        if network and network != "tcp":
            metadata["network"] = printable(network)
        return NodeContent(
            id=node_name,
            address=address,
            port=port,
            metadata=metadata,
            health="maintenance" if metadata.get("state") == "inactive" else "",
            problem="" if port else "its name is not NETWORK@HOST:PORT",
        )

    def switched(self, node_name: str, data: bytes, *, is_out: bool) -> Switched:
        """Set the parameter ``state``, as rpcx's own console does."""
        del node_name
        state = b"state=inactive" if is_out else b"state=active"
        parameters = data.split(b"&") if data else []
        if not is_out and not any(each.startswith(b"state=") for each in parameters):
            return Switched(data, "state")
        if not any(each.startswith(b"state=") for each in parameters):
            parameters.append(state)
        parameters = [state if each.startswith(b"state=") else each for each in parameters]
        return Switched(b"&".join(parameters), "state")

    def recognises(self, node_name: str, data: bytes) -> Recognition:
        """By a network that rpcx knows before the endpoint, and a query string."""
        network, _, endpoint = node_name.rpartition("@")
        is_ours = network in _NETWORKS and all(read_endpoint(endpoint)) and _QUERY.fullmatch(data) is not None
        return Recognition.SURE if is_ours else Recognition.NONE


class ArmeriaLayout(_EndpointNamed):
    """See the module. The metadata ``weight``, if it is a number, is the weight."""

    name: ClassVar[str] = "armeria"

    def node_name(self, instance: ServiceInstance) -> str:
        """Return host and port."""
        return f"{instance.address}_{instance.port}"

    def encode(self, instance: ServiceInstance, registered_at: float) -> bytes:
        """Return the endpoint, and its weight if there is one."""
        del registered_at
        weight = instance.metadata.get("weight", "")
        return (f"{instance.endpoint}:{weight}" if weight.isdecimal() else instance.endpoint).encode()

    def decode(self, node_name: str, data: bytes) -> NodeContent:
        """Read an instance by its data."""
        text = _text(data)
        address, port = read_endpoint(text)
        metadata: dict[str, str] = {}
        if not port:
            endpoint, _, weight = text.rpartition(":")
            if weight.isdecimal():
                address, port = read_endpoint(endpoint)
                metadata = {"weight": printable(weight)}
        if not port:
            return NodeContent(node_name, problem="not HOST:PORT or HOST:PORT:WEIGHT")
        return NodeContent(node_name, address, port, metadata=metadata)

    def recognises(self, node_name: str, data: bytes) -> Recognition:
        """By name and data that say the same: data alone could be anybody's setting."""
        content = self.decode(node_name, data)
        is_ours = not content.problem and node_name == f"{content.address}_{content.port}"
        return Recognition.SURE if is_ours else Recognition.NONE


class KingPinLayout(_EndpointNamed):
    """See the module."""

    name: ClassVar[str] = "kingpin"

    def node_name(self, instance: ServiceInstance) -> str:
        """Return a number that follows from the id, and the endpoint."""
        return f"{uuid.uuid5(uuid.NAMESPACE_OID, instance.id).hex}-{instance.endpoint}"

    def encode(self, instance: ServiceInstance, registered_at: float) -> bytes:
        """Return nothing: the name says it."""
        del instance, registered_at
        return b""

    def decode(self, node_name: str, data: bytes) -> NodeContent:
        """Read an instance by its name."""
        del data
        address, port = read_endpoint(node_name.partition("-")[2])
        return NodeContent(node_name, address, port, problem="" if port else "its name does not end in -HOST:PORT")

    def recognises(self, node_name: str, data: bytes) -> Recognition:
        """By a UUID's digits before the endpoint."""
        digits = node_name.partition("-")[0]
        is_ours = _HEX.fullmatch(digits) is not None and not self.decode(node_name, data).problem
        return Recognition.SURE if is_ours else Recognition.NONE


class PlainLayout(_EndpointNamed):
    """See the module."""

    name: ClassVar[str] = "plain"

    def node_name(self, instance: ServiceInstance) -> str:
        """Return the endpoint."""
        return format_endpoint(instance.address, instance.port)

    def encode(self, instance: ServiceInstance, registered_at: float) -> bytes:
        """Return nothing: the name says it."""
        del instance, registered_at
        return b""

    def decode(self, node_name: str, data: bytes) -> NodeContent:
        """Read an instance by its name, or else by its data."""
        address, port = read_endpoint(node_name)
        if not port:
            address, port = read_endpoint(_text(data).strip())
        return NodeContent(
            node_name, address, port, problem="" if port else "neither its name nor its data are HOST:PORT"
        )

    def recognises(self, node_name: str, data: bytes) -> Recognition:
        """By its name, beside which there is nothing. An endpoint in a node of another name may be a setting."""
        text = _text(data).strip()
        is_ours = is_sure_endpoint(node_name) and (not text or all(read_endpoint(text)))
        return Recognition.LIKELY if is_ours else Recognition.NONE


def _text(data: bytes) -> str:
    return data[:_LONGEST_DATA].decode("utf-8", "backslashreplace")
