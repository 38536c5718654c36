"""The files of the local registry: their names, and the JSON in them."""

from __future__ import annotations

import hashlib
import json
import re
import urllib.parse
from dataclasses import dataclass
from typing import Any

from registry_drain.errors import ConfigurationError
from registry_drain.instance import ServiceInstance
from registry_drain.registries.base import RegistryEntry

_PUBLIC_NAME = re.compile(r"([^~]*)~([^~]*)~[0-9a-f]{16}\.json")


@dataclass(frozen=True, slots=True)
class InstanceFile:
    """What was found under one name.

    Attributes:
        entry: what it says.
        is_live: whether its owner lives; None for what is not ours to judge.
        instance: None where the entry has a problem.
    """

    entry: RegistryEntry
    is_live: bool | None
    instance: ServiceInstance | None = None


def file_name(service: str, instance_id: str) -> str:
    """Return the public name of an instance's file.

    It is readable, short enough for every file system, and differs between instances even where case does not count.
    """
    digest = hashlib.sha256(f"{service}\0{instance_id}".encode()).hexdigest()[:16]
    return f"{service_prefix(service)}{_readable(instance_id)}~{digest}.json"


def service_prefix(service: str) -> str:
    """Return what the names of a service's files begin with (as may those of another one with a very long name)."""
    return _readable(service) + "~"


def is_public_name(name: str) -> bool:
    """Return whether this registry gives such names, so that it may remove what bears one and is dead."""
    return _PUBLIC_NAME.fullmatch(name) is not None


def _readable(name: str) -> str:
    # The tilde separates the parts.
    return urllib.parse.quote(name, safe="@:+,=").replace("~", "%7E")[:80]


def to_json(instance: ServiceInstance, *, incarnation: str, owner: str, registered_at: float) -> bytes:
    """Return the content of an instance's file."""
    document = {
        "service": instance.service,
        "id": instance.id,
        "address": instance.address,
        "port": instance.port,
        "tags": instance.tags,
        "metadata": dict(instance.metadata),
        "owner": owner,
        "incarnation": incarnation,
        "registered_at": registered_at,
    }
    return json.dumps(document, indent=1).encode()


def parse(name: str, data: bytes, *, is_live: bool, locator: str, version: str) -> InstanceFile:
    """Return what the content of an instance's file says; never raises. ``version`` counts where it cannot be read."""
    try:
        return _parse(name, json.loads(data), is_live=is_live, locator=locator)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, ConfigurationError) as error:
        service, instance_id, _ = (urllib.parse.unquote(part) for part in name.split("~"))
        problem = f"it holds no instance in JSON: {type(error).__name__}: {error}".replace("\n", " ")
        entry = RegistryEntry(
            service, instance_id, is_live=is_live, is_ephemeral=True, problem=problem, locator=locator, version=version
        )
        return InstanceFile(entry, is_live)


def _parse(name: str, document: Any, *, is_live: bool, locator: str) -> InstanceFile:
    tags = document["tags"]
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise ValueError("tags is not a list of strings")
    instance = ServiceInstance(
        document["service"], document["address"], document["port"], document["id"], document["metadata"], tuple(tags)
    )
    if file_name(instance.service, instance.id) != name:
        raise ValueError("it is a copy of another instance's file")
    entry = RegistryEntry(
        instance.service,
        instance.id,
        instance.address,
        instance.port,
        instance.tags,
        instance.metadata,
        owner=str(document["owner"]),
        is_live=is_live,
        health="passing" if is_live else "critical",
        registered_at=float(document["registered_at"]),
        is_ephemeral=True,
        locator=locator,
        version=str(document["incarnation"]),
    )
    return InstanceFile(entry, is_live, instance)


def foreign(name: str, problem: str, *, locator: str, version: str = "") -> InstanceFile:
    """Return what stands in the directory and was not put there by this registry."""
    return InstanceFile(RegistryEntry("", name, problem=problem, locator=locator, version=version), None)
