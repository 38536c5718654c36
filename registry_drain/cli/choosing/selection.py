"""Which of the listed instances an operator means.

Rules: whatever is given must fit, all of it. Only whole ids and whole parts of a place fit, never a piece of a name. A
service on its own means nothing to a command that changes something: all of its instances are meant by ``--all`` only.
"""

from __future__ import annotations

import argparse
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from registry_drain.errors import ConfigurationError, InstanceNotFoundError
from registry_drain.instance import format_endpoint, parse_endpoint
from registry_drain.registries.base import RegistryEntry

_MOST_SHOWN = 5
"""Instances named in one line: enough to see a typing error, few enough to read."""
CRITICAL = "critical"


@dataclass(frozen=True, slots=True)
class Selection:
    """What was given; all of it must fit.

    Attributes:
        id: an instance id; or where the entry stands, in full or as its last part, as ``list`` shows it. So the id that
            Consul's own tools show is understood, which is not the instance's where one process replaces another.
        endpoint: address and port, which may also be one of the entry's further endpoints.
        service: the service; None means any.
        node: the node, or the host of the address of an entry that has no node.
        tags: all of these.
        metadata: all of these pairs.
        is_unhealthy: critical, or kept by nobody any more.
        critical_for: seconds; see ``critical_since``. :meth:`fits` asks for critical only,
            since a single look cannot tell how long.
        is_all: every instance of the service.
    """

    id: str | None = None
    endpoint: tuple[str, int] | None = None
    service: str | None = None
    node: str | None = None
    tags: tuple[str, ...] = ()
    metadata: tuple[tuple[str, str], ...] = ()
    is_unhealthy: bool = False
    critical_for: float | None = None
    is_all: bool = False

    @classmethod
    def of(cls, options: argparse.Namespace) -> Selection:
        """Take it from the arguments that :func:`~registry_drain.cli.choosing.options.add_selection` added.

        Raises:
            ConfigurationError: an empty value, an address that is none, ``--all`` with anything but a service.
        """
        for option in ("service", "id", "node"):
            if getattr(options, option) == "":
                raise ConfigurationError(f"--{option} is empty")
        if "" in options.tag:
            raise ConfigurationError("--tag is empty")
        selection = cls(
            id=options.id,
            endpoint=None if options.address is None else parse_endpoint(options.address),
            service=options.service,
            node=options.node,
            tags=tuple(options.tag),
            metadata=tuple(_pair(text) for text in options.meta),
            is_unhealthy=options.all_unhealthy,
            critical_for=options.critical_for,
            is_all=getattr(options, "all", False),
        )
        if selection.is_all and selection.is_narrow:
            raise ConfigurationError("--all means every instance of --service: leave it out, or the other selectors")
        if selection.is_all and selection.service is None:
            raise ConfigurationError("--all needs --service NAME: a whole registry is never meant")
        if selection.critical_for is None and getattr(options, "observe", False):
            raise ConfigurationError("--observe is for --critical-for TIME: say how long")
        return selection

    @property
    def is_narrow(self) -> bool:
        """Whether it says more than the service."""
        return bool(
            self.id is not None
            or self.endpoint
            or self.node
            or self.tags
            or self.metadata
            or self.is_unhealthy
            or self.critical_for is not None
        )

    def require(self) -> None:
        """Raise :class:`ConfigurationError` unless it says which instances are meant, be it all of a service."""
        if self.is_narrow or self.is_all:
            return
        every = f", or --all for every instance of {self.service!r}" if self.service is not None else ""
        raise ConfigurationError(
            "say which instance: --id ID, --address HOST:PORT, --node, --tag, --meta, --all-unhealthy or --critical-for"
            f"{every}"
        )

    def fits(self, entry: RegistryEntry) -> bool:
        """Whether ``entry`` may be meant."""
        return (
            self.service in {None, entry.service}
            and self._fits_id(entry)
            and (self.endpoint is None or _is_reached_at(entry, *self.endpoint))
            and (self.node is None or same_host(self.node, entry.node or entry.address))
            and set(self.tags) <= set(entry.tags)
            and all(entry.metadata.get(key) == value for key, value in self.metadata)
            and (not self.is_unhealthy or is_unhealthy(entry))
            and (self.critical_for is None or entry.health == CRITICAL)
        )

    def may_mean(self, entry: RegistryEntry) -> bool:
        """Whether ``entry``, which the credentials may not read, may be meant, or hold what is meant, for all we know.

        What its name tells is believed. False for those that :meth:`fits` finds, and for those that can be read.
        """
        if not entry.refused or self.fits(entry) or self.service not in {None, entry.service}:
            return False
        if entry.refused == "children":
            return True
        is_elsewhere = bool(entry.address) and not (
            (self.endpoint is None or _is_reached_at(entry, *self.endpoint))
            and (self.node is None or same_host(self.node, entry.node or entry.address))
        )
        # A node's name is its id in every layout, and somebody who is alive keeps nothing that is unhealthy.
        asks_for_ill = self.is_unhealthy or self.critical_for is not None
        return self._fits_id(entry) and not is_elsewhere and not (asks_for_ill and entry.is_live is True)

    def unread(self, entries: Sequence[RegistryEntry], chosen: Sequence[RegistryEntry]) -> list[RegistryEntry]:
        """Return those of ``entries`` that may be meant besides ``chosen``; none if one was named, and found."""
        if self.id is not None and chosen:
            return []
        return [entry for entry in entries if self.may_mean(entry)]

    def _fits_id(self, entry: RegistryEntry) -> bool:
        return self.id is None or self.id == entry.id or f"/{entry.locator}".endswith(f"/{self.id}")

    def select(self, entries: Sequence[RegistryEntry]) -> list[RegistryEntry]:
        """Return those of ``entries`` that are meant, in their order."""
        # Who gives a whole place means that one, even if another instance is named like it.
        exact = [entry for entry in entries if self.id is not None and entry.locator == self.id]
        return [entry for entry in exact or entries if self.fits(entry)]

    def not_found(self, entries: Sequence[RegistryEntry], registry_url: str) -> InstanceNotFoundError:
        """Return the error that says that none of ``entries`` is meant, and what there is."""
        of_service = "" if self.service is None else f" of service {self.service!r}"
        if not entries:
            if self.service is not None:
                advice = f"registry-drain list {registry_url} shows all"
            else:
                advice = "is it the right one, with the right path and options?"
            return InstanceNotFoundError(f"{registry_url} lists no instance{of_service}: {advice}")
        unreadable = sum(1 for entry in entries if entry.problem)
        note = f" ({unreadable} cannot be read in full: select by --id)" if unreadable and self.endpoint else ""
        return InstanceNotFoundError(
            f"no instance{of_service} at {registry_url} has {self}; listed: {named(entries)}{note}"
        )

    def __str__(self) -> str:
        """Say what was given, the service left out: ``id 'a' and address 10.0.0.7:9090``."""
        given = [
            f"id {self.id!r}" if self.id is not None else "",
            f"address {format_endpoint(*self.endpoint)}" if self.endpoint else "",
            f"node {self.node!r}" if self.node is not None else "",
            *(f"tag {tag!r}" for tag in self.tags),
            *(f"metadata {key}={value!r}" for key, value in self.metadata),
            "a health that is critical or a dead owner" if self.is_unhealthy else "",
            f"been critical for {self.critical_for:g} s" if self.critical_for is not None else "",
        ]
        return " and ".join(each for each in given if each) or "any id"


def key_of(entry: RegistryEntry) -> tuple[str, str, str]:
    """Return what tells the entries of one list apart, and is the same in the next list."""
    return entry.service, entry.id, entry.locator


def unread_note(unread: Sequence[RegistryEntry], why_it_matters: str = "may be meant, too") -> str:
    """Return in one line which entries nobody can judge, as the end of a message."""
    places = [entry.locator or str(entry) for entry in unread[:_MOST_SHOWN]]
    more = f" and {len(unread) - len(places)} more" if len(unread) > len(places) else ""
    what = "1 entry may not be read" if len(unread) == 1 else f"{len(unread)} entries may not be read"
    return f"{what} with these credentials, and {why_it_matters}: {', '.join(places)}{more}"


def is_unhealthy(entry: RegistryEntry) -> bool:
    """Whether ``entry`` is critical, or is known to be kept by nobody any more."""
    return entry.health == CRITICAL or entry.is_live is False


def named(entries: Sequence[RegistryEntry], *, with_locator: bool = False) -> str:
    """Name some entries in one line."""
    names = [
        f"{entry.locator} ({entry.endpoint}, {entry.health or 'health unknown'})"
        if with_locator and entry.locator
        else str(entry)
        for entry in entries[:_MOST_SHOWN]
    ]
    more = len(entries) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")


def same_host(one: str, other: str) -> bool:
    """Whether two host names or addresses are spelled differently at most. No name is looked up."""
    return _normal(one) == _normal(other)


def _is_reached_at(entry: RegistryEntry, address: str, port: int) -> bool:
    places = [(entry.address, entry.port), *entry.endpoints]
    return any(port == each_port and same_host(address, host) for host, each_port in places)


def _pair(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not key or not separator:
        raise ConfigurationError(f"--meta {text!r}: write KEY=VALUE")
    return key, value


def _normal(host: str) -> str:
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return host.lower().rstrip(".")
