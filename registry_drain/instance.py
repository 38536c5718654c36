"""What is listed in a cluster: one address of one service.

An instance is plain data, checked once, where it is made. What a registry adds when it lists one (owner, health, age)
is a :class:`registry_drain.registries.base.RegistryEntry`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from registry_drain.errors import ConfigurationError

MAX_PORT = 65535
MAX_NAME_LENGTH = 255
"""File systems and DNS both stop here; ZooKeeper and Consul would take more."""

_FORBIDDEN = re.compile(r"[\x00-\x20\x7f/\\?#%]")


def check_name(what: str, value: str) -> str:
    """Return ``value`` if it can be a service name or an instance id in every registry, else raise.

    Refused: what would change a URL path or a znode path. Consul answers 301 to ids with ``//`` or ``..``, and an HTTP
    client then normalises them into *another* id; ZooKeeper reads ``/`` as a level.

    Raises:
        ConfigurationError: naming the character or the length.
    """
    if not _is_text(value):
        message = f"{what} {value!r} is no text in UTF-8: give it a name"
    elif not value:
        message = f"{what} is empty: give it a name"
    elif len(value) > MAX_NAME_LENGTH:
        message = f"{what} {value[:32]!r}… has {len(value)} characters: at most {MAX_NAME_LENGTH} fit every registry"
    elif value.startswith("."):
        message = f"{what} {value!r} starts with a dot: registries would read it as a relative path or hide it"
    elif ".." in value:
        message = f"{what} {value!r} holds '..': registries would resolve it to another name"
    elif found := _FORBIDDEN.search(value):
        message = f"{what} {value!r} holds {found.group()!r}: use letters, digits and - _ . : @ instead"
    elif not value.isprintable():
        # Names stand in log lines, where whatever is shown as a line break would forge another line.
        message = f"{what} {value!r} holds an unprintable character: use letters, digits and - _ . : @ instead"
    else:
        return value
    raise ConfigurationError(message)


def format_endpoint(address: str, port: int) -> str:
    """Return ``host:port``, an IPv6 address in brackets (RFC 3986, section 3.2.2)."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def parse_endpoint(text: str) -> tuple[str, int]:
    """Return the address and port of ``host:port`` or ``[v6]:port``.

    Raises:
        ConfigurationError: if it is neither.
    """
    match = re.fullmatch(r"(?:\[(?P<v6>[^\]\s]+)\]|(?P<host>[^:\[\]\s/]+)):(?P<port>\d{1,5})", text, re.ASCII)
    if match is None or not text.isprintable() or (match["v6"] and not _is_ipv6(match["v6"])):
        message = f"{text!r} is not HOST:PORT (an IPv6 address stands in brackets: [::1]:9090)"
        raise ConfigurationError(message)
    return match["v6"] or match["host"], check_port(int(match["port"]))


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def check_port(port: int) -> int:
    """Return ``port`` if callers can connect to it, else raise :class:`ConfigurationError`."""
    if isinstance(port, bool) or not isinstance(port, int) or not 1 <= port <= MAX_PORT:
        message = f"port {port!r} is not between 1 and {MAX_PORT}"
        raise ConfigurationError(message)
    return port


def _check_address(address: str) -> None:
    if not isinstance(address, str) or not address.isprintable() or re.search(r"[\s/\[\]]|^$", address):
        message = f"address {address!r} is not a host name or IP address"
        raise ConfigurationError(message)
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        if ":" in address:
            message = f"address {address!r} holds ':' and is not an IPv6 address: give the port separately"
            raise ConfigurationError(message) from None
        return
    if ip.is_unspecified:
        message = f"address {address!r} means every interface: say address=, the one that callers can reach"
        raise ConfigurationError(message)


def _is_text(value: object) -> bool:
    """Return whether ``value`` is a string that can be sent: a lone surrogate cannot be written as UTF-8."""
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def _checked_metadata(owner: str, metadata: object) -> dict[str, str]:
    if not isinstance(metadata, Mapping):
        raise ConfigurationError(f"metadata of {owner} is {metadata!r}: give a mapping of strings to strings")
    for key, value in metadata.items():
        if not key or not _is_text(key) or not _is_text(value):
            raise ConfigurationError(
                f"metadata {key!r}: {value!r} of {owner}: keys and values must be strings of UTF-8, and no key empty"
            )
    return dict(metadata)


def _checked_tags(owner: str, tags: object) -> tuple[str, ...]:
    # A string is a sequence of strings, too, and never what was meant.
    if isinstance(tags, str) or not isinstance(tags, Iterable):
        raise ConfigurationError(f"tags of {owner} are {tags!r}: give a tuple of strings")
    checked = tuple(tags)
    for tag in checked:
        if not _is_text(tag) or not tag:
            raise ConfigurationError(f"tag {tag!r} of {owner}: tags must be strings of UTF-8, and not empty")
    return checked


@dataclass(frozen=True, slots=True)
class ServiceInstance:
    """One instance of one service, as its callers see it. Immutable, hashable and safe to share between threads.

    Attributes:
        service: the cluster's name.
        address: the host name or IP that callers connect to; never a wildcard such as ``0.0.0.0``.
        port: 1 to 65535.
        id: unique inside the service. Empty means ``service-address-port``, which a restart on the same port takes
            over, so that a crashed process leaves no second entry behind.
        metadata: short strings shown to callers. Read-only.
        tags: labels, in order.

    Raises:
        ConfigurationError: a field that no registry could hold.
    """

    service: str
    address: str
    port: int
    id: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict, hash=False)
    tags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check every field and fill in the default id."""
        check_name("service name", self.service)
        _check_address(self.address)
        check_port(self.port)
        if not self.id:
            # An IPv6 address keeps its colons out of the id: some registries' tools split ids at them.
            object.__setattr__(self, "id", f"{self.service}-{self.address.replace(':', '_')}-{self.port}")
        check_name("instance id", self.id)
        object.__setattr__(self, "metadata", MappingProxyType(_checked_metadata(self.id, self.metadata)))
        object.__setattr__(self, "tags", _checked_tags(self.id, self.tags))

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle and copy: a mapping proxy knows neither."""
        fields = (self.service, self.address, self.port, self.id, dict(self.metadata), self.tags)
        return ServiceInstance, fields

    @property
    def endpoint(self) -> str:
        """``address:port`` as callers write it, an IPv6 address in brackets."""
        return format_endpoint(self.address, self.port)

    def __str__(self) -> str:
        """Name the instance the way log lines and reports do: ``calculator-1 (10.0.0.7:9090)``."""
        return f"{self.id} ({self.endpoint})"
