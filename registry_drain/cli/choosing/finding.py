"""Finding the instances that an operator means, by a consistent read; and opening the registry as the options say."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from registry_drain.cli.choosing.patience import read_entries
from registry_drain.cli.choosing.selection import Selection, unread_note
from registry_drain.cli.command.exit_status import ExitStatus, worst
from registry_drain.cli.command.invocation import Verdict
from registry_drain.cli.command.output import Output
from registry_drain.clock import Clock, Deadline
from registry_drain.errors import ConfigurationError, InstanceNotFoundError, PermissionRefusedError
from registry_drain.registries.base import Registry, RegistryEntry


@dataclass(frozen=True, slots=True)
class Found:
    """What was found.

    Attributes:
        chosen: what is meant.
        listed: all that was read: at least every instance of their services.
        note: what ``--critical-for`` leaves out because nothing proves it yet; empty if nothing.
        unread: what may be meant, too, and what the credentials may not read, so that nobody can tell.
    """

    chosen: Sequence[RegistryEntry]
    listed: Sequence[RegistryEntry]
    note: str = ""
    unread: Sequence[RegistryEntry] = ()

    def qualified(self, verdict: Verdict) -> Verdict:
        """Return ``verdict`` with what could not be read: named, and in the status."""
        if not self.unread:
            return verdict
        status, message = verdict
        return worst((status, ExitStatus.REFUSED)), f"{message}; but {unread_note(self.unread)}"


@contextlib.contextmanager
def opened(url: str, clock: Clock, agent: str | None = None) -> Iterator[Registry]:
    """Give the registry at ``url``; ``agent`` is the Consul agent to be asked to remove things, as ``HOST:PORT``.

    Raises:
        ConfigurationError: see :func:`~registry_drain.registries.url.open_registry`; or an agent of no Consul.
    """
    from registry_drain.registries.url import open_registry

    registry = open_registry(url if agent is None else _with_agent(url, agent), clock)
    try:
        yield registry
    finally:
        # By now it is known what was done, and that is to be told: one more Ctrl-C only shortens hanging up.
        with contextlib.suppress(KeyboardInterrupt):
            registry.close()


def _with_agent(url: str, agent: str) -> str:
    from registry_drain.registries.url import parse_registry_url

    parsed = parse_registry_url(url)
    if parsed.scheme not in {"consul", "consul+https"}:
        raise ConfigurationError(f"--agent is for Consul: {parsed.scheme}:// has no agents")
    return str(dataclasses.replace(parsed, options={**parsed.options, "agent": agent}))


def find(
    registry: Registry, selection: Selection, deadline: Deadline, output: Output, *, observe: bool = False
) -> Found:
    """Return what is meant, be it nothing, after as many attempts as fit. ``observe``: as ``--observe`` says.

    Raises:
        RegistryUnavailableError: all attempts failed; this is the last failure.
        PermissionRefusedError: see :meth:`Registry.entries`.
        ConfigurationError: ``--critical-for`` cannot be told in this registry.
    """
    if selection.critical_for is None:
        entries = read_entries(registry, selection.service, deadline, output)
        chosen = selection.select(entries)
        return Found(chosen, entries, unread=selection.unread(entries, chosen))
    return _critical_for(registry, selection, selection.critical_for, deadline, output, observe=observe)


def _critical_for(
    registry: Registry, selection: Selection, seconds: float, deadline: Deadline, output: Output, *, observe: bool
) -> Found:
    from registry_drain.cli.choosing.critical_since import CriticalSince
    from registry_drain.cli.choosing.observation import observed, too_young

    timeout = deadline.remaining()

    def read() -> Sequence[RegistryEntry]:
        each = deadline if not observe else Deadline.after(timeout, deadline.clock)
        return read_entries(registry, selection.service, each, output)

    since = CriticalSince.of(registry.url)
    entries = observed(read, since, seconds, waits=observe, output=output, clock=deadline.clock)
    critical = selection.select(entries)
    note = too_young(critical, since, seconds)
    chosen = [entry for entry in critical if since.is_critical_for(entry, seconds)]
    return Found(chosen, entries, note, selection.unread(entries, chosen))


def require_some(found: Found, selection: Selection, registry_url: str) -> None:
    """Raise an error, naming what there is, if nothing was found.

    Raises:
        InstanceNotFoundError: nothing that is listed is meant.
        PermissionRefusedError: nobody can tell, because something that is listed may not be read.
    """
    if found.chosen:
        return
    if found.unread:
        raise PermissionRefusedError(
            f"{registry_url}: nothing that these credentials may read has {selection}, and {unread_note(found.unread)}:"
            " give credentials that may read it, or select it by --id"
        )
    if found.note:
        raise InstanceNotFoundError(f"nothing is proven to have been critical for so long: {found.note}")
    raise selection.not_found(found.listed, registry_url)
