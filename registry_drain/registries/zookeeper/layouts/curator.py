"""Apache Curator's x-discovery: ``{base}/{service}/{id}`` holding JSON.

The fields, their order and their types are those that Curator's JsonInstanceSerializer writes in its compatible mode
(curator-x-discovery, ServiceInstance.java and OldServiceInstance.java). ``enabled`` is understood and not written:
clients before CURATOR-275 refuse to read a node that has it.

``payload`` is null unless the instance has metadata or tags. That matters: a Curator client declares a payload class,
and *one* node whose payload is not of that class makes its whole query fail. Null suits every class; a JSON object
suits ``Object`` and ``Map``. Whoever registers for clients with another payload class leaves metadata and tags empty.
"""

from __future__ import annotations

import json
from typing import ClassVar

from registry_drain.instance import ServiceInstance
from registry_drain.registries.zookeeper.layouts.base import NodeContent
from registry_drain.registries.zookeeper.layouts.reading import printable, read_object, read_port, read_time, text_of


class CuratorLayout:
    """See the module."""

    name: ClassVar[str] = "curator"
    is_sequential: ClassVar[bool] = False

    def folder(self, service: str) -> str:
        """Return the service's own name."""
        return service

    def node_name(self, instance: ServiceInstance) -> str:
        """Return the instance's id."""
        return instance.id

    def encode(self, instance: ServiceInstance, registered_at: float) -> bytes:
        """Return the JSON, in ASCII."""
        payload = {"metadata": dict(instance.metadata), "tags": list(instance.tags)}
        document = {
            "name": instance.service,
            "id": instance.id,
            "address": instance.address,
            "port": instance.port,
            "sslPort": None,
            "payload": payload if instance.metadata or instance.tags else None,
            "registrationTimeUTC": round(registered_at * 1000),
            "serviceType": "DYNAMIC",
            "uriSpec": None,
        }
        return json.dumps(document, separators=(",", ":")).encode()

    def decode(self, node_name: str, data: bytes) -> NodeContent:
        """Read what this layout, Curator, or Spring Cloud wrote."""
        document = read_object(data)
        if isinstance(document, str):
            return NodeContent(node_name, problem=document)
        problems = []
        address = document.get("address")
        if not isinstance(address, str) or not address:
            address = ""
            problems.append("no address")
        # A client of an instance that has only an SSL port calls that one.
        port = read_port(document.get("port")) or read_port(document.get("sslPort"))
        if not port:
            problems.append("no port")
        metadata, tags = _payload(document.get("payload"))
        return NodeContent(
            id=node_name,
            address=printable(address),
            port=port,
            tags=tags,
            metadata=metadata,
            health="maintenance" if _is_out_of_service(document, metadata) else "",
            registered_at=read_time(document.get("registrationTimeUTC")),
            problem="; ".join(problems),
        )


def _is_out_of_service(document: dict[str, object], metadata: dict[str, str]) -> bool:
    # Curator's switch, and Spring Cloud's (ZookeeperServiceRegistry.setStatus), which lives in its payload.
    return document.get("enabled") is False or metadata.get("instance_status") == "OUT_OF_SERVICE"


def _payload(payload: object) -> tuple[dict[str, str], tuple[str, ...]]:
    if payload is None:
        return {}, ()
    if not isinstance(payload, dict):
        return {"payload": text_of(payload)}, ()
    metadata, tags = payload.get("metadata"), payload.get("tags")
    if not isinstance(metadata, dict):
        # Somebody's own payload class: its fields are the metadata.
        metadata = {key: value for key, value in payload.items() if key not in {"tags", "metadata"}}
    return (
        {printable(key): text_of(value) for key, value in metadata.items() if key},
        tuple(text for text in map(text_of, tags) if text) if isinstance(tags, list) else (),
    )
