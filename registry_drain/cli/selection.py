"""Which of the listed instances an operator means."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from registry_drain.errors import ConfigurationError, InstanceNotFoundError
from registry_drain.instance import format_endpoint
from registry_drain.registries.base import RegistryEntry

_MOST_SHOWN = 5
"""Instances named in one line: enough to see a typing error, few enough to read."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What was given to find one instance; both must fit if both are given.

    Attributes:
        id: an instance id; or where the entry stands, in full or as its last part, as ``list`` shows it. So the id that
            Consul's own tools show is understood, which is not the instance's where one process replaces another.
        endpoint: address and port.
    """

    id: str | None = None
    endpoint: tuple[str, int] | None = None

    def fits(self, entry: RegistryEntry) -> bool:
        """Whether ``entry`` may be meant."""
        return self._fits_id(entry) and self._fits_endpoint(entry)

    def _fits_id(self, entry: RegistryEntry) -> bool:
        return self.id is None or self.id == entry.id or f"/{entry.locator}".endswith(f"/{self.id}")

    def _fits_endpoint(self, entry: RegistryEntry) -> bool:
        if self.endpoint is None:
            return True
        address, port = self.endpoint
        return port == entry.port and same_host(address, entry.address)

    def one_of(self, entries: Sequence[RegistryEntry], service: str, registry_url: str) -> list[RegistryEntry]:
        """Return the entries that are meant; more than one is for the caller to refuse.

        Raises:
            InstanceNotFoundError: none fits; the message names what there is.
        """
        exact = [entry for entry in entries if self.id is not None and entry.locator == self.id]
        found = [entry for entry in exact or entries if self.fits(entry)]
        if found:
            return found
        if not entries:
            raise InstanceNotFoundError(
                f"{registry_url} lists no instance of service {service!r}: registry-drain list {registry_url} shows all"
            )
        unreadable = sum(1 for entry in entries if entry.problem)
        note = f" ({unreadable} cannot be read in full: select by --id)" if unreadable and self.endpoint else ""
        raise InstanceNotFoundError(
            f"no instance of {service!r} at {registry_url} has {self}; listed: {named(entries)}{note}"
        )

    def __str__(self) -> str:
        given = [f"id {self.id!r}"] if self.id is not None else []
        return " and ".join([*given, f"address {format_endpoint(*self.endpoint)}"] if self.endpoint else given)


def refuse_several(found: Sequence[RegistryEntry], selection: Selection) -> None:
    """Raise :class:`ConfigurationError`, naming the places to choose from, unless exactly one was found."""
    if len(found) > 1:
        raise ConfigurationError(
            f"nothing was removed: {len(found)} instances have {selection}; choose one with --id:"
            f" {named(found, with_locator=True)}"
        )


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


def _normal(host: str) -> str:
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return host.lower().rstrip(".")
