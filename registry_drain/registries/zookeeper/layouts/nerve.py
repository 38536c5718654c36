"""Airbnb's SmartStack Nerve: ``{path}/{id}_%010d`` holding JSON, or with the JSON in the node's name.

``{"host", "port", "name", "weight", "labels"}`` (nerve, lib/nerve/reporter). With ``use_path_encoding`` the node is
named ``base64_{length}_{JSON in base64}_%010d``, so that clients need no second request for each; ``length`` counts the
base64 letters. We write the first form and read both.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import ClassVar

from registry_drain.instance import ServiceInstance
from registry_drain.registries.zookeeper.layouts.base import NodeContent, Recognition
from registry_drain.registries.zookeeper.layouts.reading import printable, read_object, read_port, text_of

_NUMBER = re.compile(r"_\d{10}$")
_ENCODED = re.compile(r"base64_(\d{1,6})_(.*)_\d{10}", re.DOTALL)


class NerveLayout:
    """See the module. The metadata ``weight``, if it is a number, becomes the weight, the rest labels."""

    name: ClassVar[str] = "nerve"
    is_sequential: ClassVar[bool] = True

    def folder(self, service: str) -> str:
        """Return the service's own name."""
        return service

    def node_name(self, instance: ServiceInstance) -> str:
        """Return what precedes the number."""
        return f"{instance.id}_"

    def encode(self, instance: ServiceInstance, registered_at: float) -> bytes:
        """Return the JSON; tags and the time have no place in it."""
        del registered_at
        labels = dict(instance.metadata)
        document: dict[str, object] = {"host": instance.address, "port": instance.port, "name": instance.id}
        if labels.get("weight", "").isdecimal():
            document["weight"] = int(labels.pop("weight"))
        if labels:
            document["labels"] = labels
        return json.dumps(document, separators=(",", ":")).encode()

    def decode(self, node_name: str, data: bytes) -> NodeContent:
        """Read either form; an instance has the name of its node."""
        document = read_object(_in_name(node_name) or data)
        if isinstance(document, str):
            return NodeContent(node_name, problem=document)
        host, labels = document.get("host"), document.get("labels")
        metadata: dict[str, str] = {}
        if isinstance(labels, dict):
            metadata.update({printable(key): text_of(value) for key, value in labels.items() if key})
        if "weight" in document:
            metadata["weight"] = text_of(document["weight"])
        if "name" in document and text_of(document["name"]) != _NUMBER.sub("", node_name):
            metadata["name"] = text_of(document["name"])
        address, port = printable(host) if isinstance(host, str) else "", read_port(document.get("port"))
        return NodeContent(
            id=node_name,
            address=address,
            port=port,
            metadata=metadata,
            problem="" if address and port else "no host and port",
        )

    def recognises(self, node_name: str, data: bytes) -> Recognition:
        """By a number at the end of the name, and host, port and name beside each other."""
        in_name = _in_name(node_name)
        document = read_object(in_name or data)
        if isinstance(document, str) or not _NUMBER.search(node_name):
            return Recognition.NONE
        is_ours = isinstance(document.get("name"), str) and not self.decode(node_name, data).problem
        return Recognition.SURE if is_ours else Recognition.NONE


def _in_name(node_name: str) -> bytes:
    """Return the JSON that a node's name carries; nothing if it carries none."""
    match = _ENCODED.fullmatch(node_name)
    if match is None or int(match[1]) != len(match[2]):
        return b""
    try:
        # A slash would be a level of the path: Nerve writes the URL's alphabet.
        return base64.urlsafe_b64decode(match[2])
    except (binascii.Error, ValueError):
        return b""
