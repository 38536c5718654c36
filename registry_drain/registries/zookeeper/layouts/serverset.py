"""Twitter's ServerSet, which Finagle reads: ``{path}/member_%010d`` holding JSON.

``{"serviceEndpoint": {"host", "port"}, "additionalEndpoints": {name: {…}}, "status": "ALIVE", "shard": 1}``, as
com.twitter.common's JsonCodec writes it; ``metadata`` is Finagle's addition (serverset2). An instance has the name of
its node; the further endpoints of one process are shown as metadata, ``endpoint.NAME``, and are written from there.
"""

from __future__ import annotations

import json
from typing import ClassVar

from registry_drain.errors import ConfigurationError
from registry_drain.instance import ServiceInstance, format_endpoint, parse_endpoint
from registry_drain.registries.zookeeper.layouts.base import NodeContent, Recognition, Switched
from registry_drain.registries.zookeeper.layouts.json_edit import with_member
from registry_drain.registries.zookeeper.layouts.reading import (
    merged_endpoints,
    printable,
    read_object,
    read_port,
    text_of,
)

_ENDPOINT = "endpoint."


class ServerSetLayout:
    """See the module. The metadata ``shard``, if it is a number, becomes the shard; ``endpoint.NAME`` an endpoint."""

    name: ClassVar[str] = "serverset"
    is_sequential: ClassVar[bool] = True

    def folder(self, service: str) -> str:
        """Return the service's own name."""
        return service

    def node_name(self, instance: ServiceInstance) -> str:
        """Return what every member is called, before its number."""
        del instance
        return "member_"

    def encode(self, instance: ServiceInstance, registered_at: float) -> bytes:
        """Return the JSON; tags and the time have no place in it.

        Raises:
            ConfigurationError: an ``endpoint.NAME`` that is not HOST:PORT.
        """
        del registered_at
        metadata = dict(instance.metadata)
        further = {key: metadata.pop(key) for key in instance.metadata if key.startswith(_ENDPOINT)}
        document: dict[str, object] = {
            "serviceEndpoint": {"host": instance.address, "port": instance.port},
            "additionalEndpoints": {
                key.removeprefix(_ENDPOINT): _written_endpoint(instance, key, text) for key, text in further.items()
            },
            "status": "ALIVE",
        }
        if metadata.get("shard", "").isdecimal():
            document["shard"] = int(metadata.pop("shard"))
        if metadata:
            document["metadata"] = metadata
        return json.dumps(document, separators=(",", ":")).encode()

    def decode(self, node_name: str, data: bytes) -> NodeContent:
        """Read a member. Whatever its status is but ALIVE, callers leave it out."""
        document = read_object(data)
        if isinstance(document, str):
            return NodeContent(node_name, problem=document)
        address, port = _endpoint(document.get("serviceEndpoint"))
        metadata: dict[str, str] = {}
        endpoints: list[tuple[str, int]] = []
        given, further = document.get("metadata"), document.get("additionalEndpoints")
        if isinstance(given, dict):
            metadata.update({printable(key): text_of(value) for key, value in given.items() if key})
        if isinstance(further, dict):
            for key, value in further.items():
                host, its_port = _endpoint(value)
                if host and its_port:
                    endpoints.append((host, its_port))
                    metadata[f"{_ENDPOINT}{printable(key)}"] = format_endpoint(host, its_port)
        if "shard" in document:
            metadata["shard"] = text_of(document["shard"])
        return NodeContent(
            id=node_name,
            address=address,
            port=port,
            metadata=metadata,
            health="" if document.get("status", "ALIVE") == "ALIVE" else "maintenance",
            problem="" if address and port else "no serviceEndpoint with host and port",
            endpoints=merged_endpoints((address, port), endpoints),
        )

    def switched(self, node_name: str, data: bytes, *, is_out: bool) -> Switched:
        """Set the member's status."""
        del node_name
        return Switched(with_member(data, ("status",), "DEAD" if is_out else "ALIVE"), "status")

    def recognises(self, node_name: str, data: bytes) -> Recognition:
        """By its main endpoint, beside which there are others or a status."""
        del node_name
        document = read_object(data)
        if isinstance(document, str) or not all(_endpoint(document.get("serviceEndpoint"))):
            return Recognition.NONE
        is_member = isinstance(document.get("additionalEndpoints"), dict) or isinstance(document.get("status"), str)
        return Recognition.SURE if is_member else Recognition.NONE


def _written_endpoint(instance: ServiceInstance, key: str, text: str) -> dict[str, object]:
    try:
        host, port = parse_endpoint(text)
    except ConfigurationError as error:
        message = f"metadata {key!r} of {instance} is a further endpoint in a ServerSet: {error}"
        raise ConfigurationError(message) from error
    if key == _ENDPOINT:
        raise ConfigurationError(f"metadata {key!r} of {instance} names no endpoint: write {_ENDPOINT}NAME")
    return {"host": host, "port": port}


def _endpoint(value: object) -> tuple[str, int]:
    if not isinstance(value, dict):
        return "", 0
    host = value.get("host")
    return printable(host) if isinstance(host, str) else "", read_port(value.get("port"))
