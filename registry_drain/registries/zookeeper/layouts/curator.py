"""Apache Curator's x-discovery: ``{base}/{service}/{id}`` holding JSON.

The fields, their order and their types are those that Curator's JsonInstanceSerializer writes in its compatible mode
(curator-x-discovery, ServiceInstance.java and OldServiceInstance.java). ``enabled`` is understood, and written only if
asked for: clients before CURATOR-275 refuse to read a node that has it.

What Curator's builder takes beside address and port is asked for by metadata, which then is not written as such:
``curator-enabled`` (true or false), ``curator-ssl-port``, and ``curator-service-type``. Of the types only DYNAMIC, the
default, is a node that goes when its process does. STATIC and PERMANENT ones would be ghosts from the crash on, and a
DYNAMIC_SEQUENTIAL one has a number in its name, so that a restart never meets, and replaces, its predecessor's node.

``payload`` is null unless the instance has metadata or tags. That matters: a Curator client declares a payload class,
and *one* node whose payload is not of that class makes its whole query fail. Null suits every class; a JSON object
suits ``Object`` and ``Map``. Whoever registers for clients with another payload class leaves metadata and tags empty.
"""

from __future__ import annotations

import json
from typing import ClassVar

from registry_drain.errors import ConfigurationError, RegistryDataError
from registry_drain.instance import ServiceInstance
from registry_drain.registries.zookeeper.layouts.base import NodeContent, Recognition, Switched
from registry_drain.registries.zookeeper.layouts.json_edit import with_member
from registry_drain.registries.zookeeper.layouts.reading import (
    merged_endpoints,
    printable,
    read_object,
    read_port,
    read_time,
    read_url_endpoint,
    text_of,
)

_EPHEMERAL_TYPES = {"DYNAMIC", "DYNAMIC_SEQUENTIAL"}
"""STATIC and PERMANENT instances are persistent nodes: they stay when their process is gone. Shown as metadata."""
_ENABLED, _SSL_PORT, _SERVICE_TYPE = "curator-enabled", "curator-ssl-port", "curator-service-type"
_TRUTHS = {"true": True, "false": False}


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
        """Return the JSON, in ASCII.

        Raises:
            ConfigurationError: metadata of the module's that cannot be written.
        """
        asked = {
            key: instance.metadata[key] for key in (_ENABLED, _SSL_PORT, _SERVICE_TYPE) if key in instance.metadata
        }
        metadata = {key: value for key, value in instance.metadata.items() if key not in asked}
        payload = {"metadata": metadata, "tags": list(instance.tags)}
        document: dict[str, object] = {
            "name": instance.service,
            "id": instance.id,
            "address": instance.address,
            "port": instance.port,
            "sslPort": _asked_port(instance, asked),
            "payload": payload if metadata or instance.tags else None,
            "registrationTimeUTC": round(registered_at * 1000),
            "serviceType": _asked_type(instance, asked),
            "uriSpec": None,
        }
        if _ENABLED in asked:
            if asked[_ENABLED] not in _TRUTHS:
                raise _refused(instance, _ENABLED, asked[_ENABLED], "write true or false")
            document["enabled"] = _TRUTHS[asked[_ENABLED]]
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
        service_type = document.get("serviceType")
        if isinstance(service_type, str) and service_type not in _EPHEMERAL_TYPES:
            metadata["serviceType"] = printable(service_type)
        return NodeContent(
            id=node_name,
            address=printable(address),
            port=port,
            tags=tags,
            metadata=metadata,
            health="maintenance" if _is_out_of_service(document, metadata) else "",
            registered_at=read_time(document.get("registrationTimeUTC")),
            problem="; ".join(problems),
            endpoints=merged_endpoints((printable(address), port), _further_endpoints(document, address, metadata)),
        )

    def switched(self, node_name: str, data: bytes, *, is_out: bool) -> Switched:
        """Set Spring Cloud's ``instance_status`` or, in what is not Spring's, Curator's ``enabled``."""
        del node_name
        document = read_object(data)
        if isinstance(document, str):
            raise RegistryDataError(document)
        switch = _switch_of(document, _payload(document.get("payload"))[0])
        if switch == "instance_status":
            status = "OUT_OF_SERVICE" if is_out else "UP"
            return Switched(with_member(data, ("payload", "metadata", "instance_status"), status), switch)
        if "enabled" not in document and not is_out:
            return Switched(data, switch)
        return Switched(
            with_member(data, ("enabled",), not is_out),
            switch,
            "callers see it who ask isEnabled(); clients older than CURATOR-275 cannot read such a node",
        )

    def recognises(self, node_name: str, data: bytes) -> Recognition:
        """By the fields that every version of Curator writes."""
        del node_name
        document = read_object(data)
        if isinstance(document, str):
            return Recognition.NONE
        has_texts = all(isinstance(document.get(key), str) for key in ("name", "id", "address", "serviceType"))
        is_ours = has_texts and {"port", "payload", "registrationTimeUTC"} <= document.keys()
        return Recognition.SURE if is_ours else Recognition.NONE


def _asked_port(instance: ServiceInstance, asked: dict[str, str]) -> int | None:
    if _SSL_PORT not in asked:
        return None
    port = read_port(asked[_SSL_PORT])
    if not port:
        raise _refused(instance, _SSL_PORT, asked[_SSL_PORT], "write a port, 1 to 65535")
    return port


def _asked_type(instance: ServiceInstance, asked: dict[str, str]) -> str:
    service_type = asked.get(_SERVICE_TYPE, "DYNAMIC")
    if service_type == "DYNAMIC":
        return service_type
    why = {
        "STATIC": "its node would stay when the process is gone, and nobody would remove it",
        "PERMANENT": "its node would stay when the process is gone, and nobody would remove it",
        "DYNAMIC_SEQUENTIAL": "a restart would never replace the node that its predecessor has left behind",
    }.get(service_type, "Curator has no such type")
    raise _refused(instance, _SERVICE_TYPE, service_type, f"{why}: leave it out, or write DYNAMIC")


def _refused(instance: ServiceInstance, key: str, value: str, why: str) -> ConfigurationError:
    return ConfigurationError(f"metadata {key!r}: {value!r} of {instance} in layout curator: {why}")


def _switch_of(document: dict[str, object], metadata: dict[str, str]) -> str:
    """Return the name of the switch that the callers of an instance look at: Spring Cloud's, or Curator's.

    Raises:
        RegistryDataError: its system has none.
    """
    payload = document.get("payload")
    payload_class = str(payload.get("@class", "")) if isinstance(payload, dict) else ""
    if payload_class.startswith("org.apache.dubbo."):
        raise RegistryDataError(
            "it is of Dubbo, per application, whose consumers look at no state here: disable it in Dubbo's own rules"
        )
    is_spring = payload_class.startswith("org.springframework.cloud.") or "instance_status" in metadata
    return "instance_status" if is_spring else "enabled"


def _further_endpoints(document: dict[str, object], address: str, metadata: dict[str, str]) -> list[tuple[str, int]]:
    """Return where else the same process is reached: by TLS, by its URI, and Dubbo's protocols."""
    found = [(printable(address), read_port(document.get("sslPort"))), _uri_endpoint(document)]
    # Dubbo, per application: each protocol has a port (dubbo, ServiceInstanceMetadataUtils.java).
    try:
        protocols = json.loads(metadata.get("dubbo.endpoints", "[]"))
    except (ValueError, RecursionError):
        protocols = []
    ports = [each.get("port") for each in protocols if isinstance(each, dict)] if isinstance(protocols, list) else []
    return found + [(printable(address), read_port(port)) for port in ports]


def _uri_endpoint(document: dict[str, object]) -> tuple[str, int]:
    """Return what the ``uriSpec`` builds, if that has host and port: texts, and fields of the instance."""
    spec = document.get("uriSpec")
    parts = spec.get("parts") if isinstance(spec, dict) else None
    if not isinstance(parts, list):
        return "", 0
    values = {
        "scheme": "http",
        "name": document.get("name"),
        "id": document.get("id"),
        "address": document.get("address"),
        "port": document.get("port"),
        "ssl-port": document.get("sslPort"),
    }
    uri = ""
    for part in parts:
        if not isinstance(part, dict):
            return "", 0
        value = part.get("value")
        uri += text_of(values.get(str(value), "") if part.get("variable") is True else value)
    address, port = read_url_endpoint(uri)
    return printable(address), port


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
