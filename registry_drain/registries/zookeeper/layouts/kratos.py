"""Kratos: ``/microservices/{name}/{id}`` holding JSON: ``id``, ``name``, ``version``, ``metadata``, ``endpoints``.

``endpoints`` are URLs, ``grpc://10.0.0.7:9000?isSecure=false`` (kratos, contrib/registry/zookeeper and
registry/registry.go). The first one is shown as the instance's address, all of them as the metadata ``endpoints``.
"""

from __future__ import annotations

import json
from typing import ClassVar

from registry_drain.instance import ServiceInstance
from registry_drain.registries.zookeeper.layouts.base import NodeContent, Recognition
from registry_drain.registries.zookeeper.layouts.reading import (
    merged_endpoints,
    printable,
    read_object,
    read_url_endpoint,
    text_of,
)

_DEFAULT_SCHEME = "grpc"


class KratosLayout:
    """See the module. The metadata ``scheme`` (default ``grpc``) and ``version`` have places of their own."""

    name: ClassVar[str] = "kratos"
    is_sequential: ClassVar[bool] = False

    def folder(self, service: str) -> str:
        """Return the service's own name."""
        return service

    def node_name(self, instance: ServiceInstance) -> str:
        """Return the instance's id."""
        return instance.id

    def encode(self, instance: ServiceInstance, registered_at: float) -> bytes:
        """Return the JSON; tags and the time have no place in it."""
        del registered_at
        metadata = dict(instance.metadata)
        scheme = metadata.pop("scheme", _DEFAULT_SCHEME)
        document = {
            "id": instance.id,
            "name": instance.service,
            "version": metadata.pop("version", ""),
            "metadata": metadata,
            "endpoints": [f"{scheme}://{instance.endpoint}?isSecure=false"],
        }
        return json.dumps(document, separators=(",", ":")).encode()

    def decode(self, node_name: str, data: bytes) -> NodeContent:
        """Read an instance."""
        document = read_object(data)
        if isinstance(document, str):
            return NodeContent(node_name, problem=document)
        given, listed = document.get("metadata"), document.get("endpoints")
        metadata: dict[str, str] = {}
        if isinstance(given, dict):
            metadata.update({printable(key): text_of(value) for key, value in given.items() if key})
        if document.get("version"):
            metadata["version"] = text_of(document["version"])
        endpoints = [text_of(each) for each in listed] if isinstance(listed, list) else []
        if endpoints:
            metadata["endpoints"] = " ".join(endpoints)
        reached = [found for found in map(read_url_endpoint, endpoints) if all(found)]
        address, port = reached[0] if reached else ("", 0)
        return NodeContent(
            id=node_name,
            address=address,
            port=port,
            metadata=metadata,
            problem="" if port else "no endpoint with host and port",
            endpoints=merged_endpoints((address, port), reached),
        )

    def recognises(self, node_name: str, data: bytes) -> Recognition:
        """By its id, its name, and endpoints of which at least one is a URL with host and port."""
        document = read_object(data)
        if isinstance(document, str):
            return Recognition.NONE
        has_texts = all(isinstance(document.get(key), str) and document[key] for key in ("id", "name"))
        is_ours = has_texts and "version" in document and not self.decode(node_name, data).problem
        return Recognition.SURE if is_ours else Recognition.NONE
