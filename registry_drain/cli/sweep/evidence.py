"""What counts as dead, and what is left alone all the same.

Rules: each ghost has evidence that is named. No evidence is stronger than a live owner: such an entry is never swept,
only named. What another system manages is that system's to remove.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from registry_drain.cli.choosing.critical_since import CriticalSince
from registry_drain.cli.command.entries import age
from registry_drain.cli.sweep.probes import Answer, Endpoint, Probe
from registry_drain.instance import format_endpoint
from registry_drain.registries.base import RegistryEntry

AGENT_CHECK = "serfHealth"
"""Consul's check of the agent itself, which its servers set to critical when the gossip says that it failed or left:
developer.hashicorp.com/consul/docs/services/usage/checks. No other check of a node says that nobody is there.
"""

_SERVERS = "consul"
"""The service under which Consul's leader lists the servers themselves, for as long as they are members."""


class Kind(Enum):
    """What speaks for an entry being a ghost."""

    CRITICAL = "critical"
    """Proven to have been critical for as long as was asked."""
    DEAD_AGENT = "dead_agent"
    """The agent that keeps it is gone."""
    DEAD_OWNER = "dead_owner"
    """The process that kept it is gone."""
    REFUSED = "refused"
    """Its address refused every connection from this host."""
    NO_ANSWER = "no_answer"
    """Its address did not answer this host, which the network may be the reason of: weaker than the others."""


OPTIONS = {
    Kind.CRITICAL: "--critical-for",
    Kind.DEAD_AGENT: "--dead-agents",
    Kind.DEAD_OWNER: "--dead-agents",
    Kind.REFUSED: "--unreachable",
    Kind.NO_ANSWER: "--no-answer",
}
"""Which option makes which evidence enough."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """One reason to take an entry for a ghost.

    Attributes:
        kind: see :class:`Kind`.
        detail: the reason in words.
        seconds: how long it has been so, where that is known.
        tries: connections that were tried, where any were.
    """

    kind: Kind
    detail: str
    seconds: float | None = None
    tries: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finders:
    """What is looked for.

    Attributes:
        critical_for: seconds; None looks at no health.
        dead_agents: entries whose agent, or whose owner, is dead.
        refused: entries without a known live owner whose address refuses connections.
        no_answer: such entries whose address does not answer.
    """

    critical_for: float | None = None
    dead_agents: bool = False
    refused: bool = False
    no_answer: bool = False

    @property
    def needs_probes(self) -> bool:
        """Whether addresses are to be tried."""
        return self.refused or self.no_answer

    def wants(self, kind: Kind) -> bool:
        """Whether evidence of this kind is enough to remove an entry."""
        return {
            Kind.CRITICAL: self.critical_for is not None,
            Kind.DEAD_AGENT: self.dead_agents,
            Kind.DEAD_OWNER: self.dead_agents,
            Kind.REFUSED: self.refused,
            Kind.NO_ANSWER: self.no_answer,
        }[kind]


def can_be_probed(entry: RegistryEntry) -> bool:
    """Whether its address may say anything: somebody who is known to keep it alive is proof enough."""
    return entry.is_live is not True and entry.is_ephemeral is not True and bool(endpoints_of(entry))


def endpoints_of(entry: RegistryEntry) -> tuple[Endpoint, ...]:
    """Return every address and port of the process."""
    first = ((entry.address, entry.port),)
    return tuple(dict.fromkeys((host, port) for host, port in first + entry.endpoints if host and 0 < port < 65_536))


def evidence_against(
    entry: RegistryEntry, finders: Finders, since: CriticalSince, probes: Mapping[Endpoint, Probe]
) -> list[Evidence]:
    """Return everything that speaks for ``entry`` being a ghost, whether it is enough or not."""
    found = []
    if finders.critical_for is not None and since.is_critical_for(entry, finders.critical_for):
        seconds = since.age(entry) or 0.0
        found.append(Evidence(Kind.CRITICAL, f"critical for {age(seconds)}{_by(entry)}", seconds=round(seconds, 3)))
    if _is_agent_dead(entry):
        found.append(Evidence(Kind.DEAD_AGENT, f"the agent of {entry.node or entry.owner} is dead"))
    elif entry.is_live is False and not entry.checks:
        found.append(Evidence(Kind.DEAD_OWNER, f"its owner {entry.owner or '(unknown)'} is dead"))
    if (probed := _probed(entry, probes)) is not None:
        found.append(probed)
    return found


def reason_to_spare(entry: RegistryEntry) -> str:
    """Return why ``entry`` is left alone whatever speaks against it; empty if nothing does."""
    if entry.service == _SERVERS and _is_agent_dead(entry):
        return f"it is Consul's own server, which the others would list again: `consul force-leave {entry.node}`"
    if entry.managed_by:
        return f"{entry.managed_by} manages it, and puts it back: stop it there"
    if entry.is_live:
        return f"its owner {entry.owner or '(not named)'} is alive: stop it, or `deregister --id … --force`"
    return ""


def _is_agent_dead(entry: RegistryEntry) -> bool:
    return any(check.id == AGENT_CHECK and not check.is_own and check.status == "critical" for check in entry.checks)


def _by(entry: RegistryEntry) -> str:
    checks = [check.id for check in entry.checks if check.status == "critical"]
    return f" by {', '.join(checks[:3])}" if checks else ""


def _probed(entry: RegistryEntry, probes: Mapping[Endpoint, Probe]) -> Evidence | None:
    """Return what all its addresses say together: any that accepts, or was not tried, clears it."""
    if not can_be_probed(entry):
        return None
    found = [(endpoint, probes.get(endpoint)) for endpoint in endpoints_of(entry)]
    answers = {Answer.NOT_TRIED if probe is None else probe.answer for _, probe in found}
    if not answers <= {Answer.REFUSED, Answer.NO_ANSWER}:
        return None
    kind = Kind.REFUSED if answers == {Answer.REFUSED} else Kind.NO_ANSWER
    details = [f"{format_endpoint(*endpoint)} {probe.detail}" for endpoint, probe in found if probe is not None]
    return Evidence(kind, "; ".join(details), tries=sum(probe.tries for _, probe in found if probe is not None))
