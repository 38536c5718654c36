"""What one registration of ours is in Consul: its names, its payload, and how it and its rivals are found.

See :mod:`registry_drain.registries.consul.registration` for why the Consul id is never used twice.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field

from registry_drain.clock import Deadline
from registry_drain.instance import ServiceInstance
from registry_drain.registries.consul.catalog import (
    ID_KEY,
    INCARNATION_KEY,
    REGISTERED_AT_KEY,
    Listed,
    read_service,
)
from registry_drain.registries.consul.http import ConsulClient

LONGEST_HEARTBEAT_PAUSE = 3.0
"""Seconds. A third of the TTL would do for the check; this is how soon a restarted agent is told of us again."""


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """How long an instance outlives its process, in seconds.

    Attributes:
        ttl: without a heartbeat for this long the check is critical, and callers stop seeing the instance.
        deregister_after: critical for this long, and the agent removes it (Consul: 60 at least, looked at every 30).
    """

    ttl: float
    deregister_after: float

    @property
    def reaped_after(self) -> float:
        """Seconds without a heartbeat after which the agent may have removed it by itself."""
        return self.ttl + self.deregister_after

    @property
    def heartbeat_pause(self) -> float:
        """Seconds between heartbeats: two may be lost before the check notices."""
        return min(self.ttl / 3, LONGEST_HEARTBEAT_PAUSE)

    def __str__(self) -> str:
        """Say what becomes of an instance that nobody removes."""
        return (
            f"what is left leaves the callers' lists within {self.ttl:g} s, and its agent removes it about "
            f"{self.deregister_after:g} to {self.deregister_after + 30:g} s later"
        )


@dataclass(frozen=True, slots=True)
class OnAgent:
    """What one agent keeps under an instance id.

    Attributes:
        has_ours: whether our own entry is among it.
        successor: the Consul id of one that came later than ours, or does not say when it came; empty if none.
        elders: the Consul ids of those that came before ours.
    """

    has_ours: bool
    successor: str
    elders: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class OwnEntry:
    """One incarnation of one instance. Immutable.

    Attributes:
        instance: what is registered.
        lifetimes: of its check.
        registered_at: UNIX seconds: when somebody asked for the registration; that it was renewed does not count.
        incarnation: tells it from every other registration of the same instance id.
        lineage: the incarnation whose entry this one has taken over from its predecessor, which names entry and check;
            empty if it has an entry of its own.
    """

    instance: ServiceInstance
    lifetimes: Lifetimes
    registered_at: float
    incarnation: str = field(default_factory=lambda: uuid.uuid4().hex)
    lineage: str = ""

    @property
    def consul_id(self) -> str:
        """The id of the Consul service: what Consul's own tools call the instance."""
        return f"{self.instance.id}~{self.named_after[:16]}"

    @property
    def named_after(self) -> str:
        """The incarnation that entry and check have their names from."""
        return self.lineage or self.incarnation

    @property
    def check_id(self) -> str:
        """The id of its check. Not Consul's default ``service:<id>``: a check by this name can only ever be ours."""
        return f"registry-drain-{self.named_after}"

    def payload(self) -> dict[str, object]:
        """Return the body of its registration."""
        return {
            "ID": self.consul_id,
            "Name": self.instance.service,
            "Address": self.instance.address,
            "Port": self.instance.port,
            "Tags": list(self.instance.tags),
            "Meta": {
                **self.instance.metadata,
                ID_KEY: self.instance.id,
                INCARNATION_KEY: self.incarnation,
                REGISTERED_AT_KEY: f"{self.registered_at:.3f}",
            },
            "Check": {
                "CheckID": self.check_id,
                "Name": "registry-drain heartbeat",
                "TTL": f"{self.lifetimes.ttl:g}s",
                # A check starts critical, and callers would not see the instance until the first heartbeat.
                "Status": "passing",
                "DeregisterCriticalServiceAfter": f"{self.lifetimes.deregister_after:g}s",
            },
        }

    def read(self, client: ConsulClient, deadline: Deadline) -> list[Listed]:
        """Return what a consistent read lists under this instance id: this incarnation, and its rivals."""
        params = self._narrowed(f'Service.ID == "{self.consul_id}" or {self._same_id("Service.ID", "Service.Meta")}')
        found = read_service(client, self.instance.service, deadline, params)
        return [each for each in found if each.instance_id == self.instance.id]

    def on_agent(self, client: ConsulClient, deadline: Deadline) -> OnAgent:
        """Return what stands on this very agent under our instance id. The agent answers without the servers."""
        params = self._narrowed(f'ID == "{self.consul_id}" or {self._same_id("ID", "Meta")}')
        found = client.call("GET", "agent", "services", deadline=deadline, params=params).data
        is_there, successor, elders = False, "", []
        for consul_id, service in found.items() if isinstance(found, dict) else ():
            meta = (service.get("Meta") or {}) if isinstance(service, dict) else {}
            same = service.get("Service") == self.instance.service and meta.get(ID_KEY, consul_id) == self.instance.id
            # What a hand-over that failed has left in our own entry is no rival.
            if consul_id == self.consul_id:
                is_there = True
            elif same and meta.get(INCARNATION_KEY) != self.incarnation:
                if self._is_elder(meta):
                    elders.append(str(consul_id))
                else:
                    successor = str(consul_id)
        return OnAgent(is_there, successor, tuple(elders))

    def _is_elder(self, meta: Mapping[str, object]) -> bool:
        """Whether it is a registration of ours that was made before this one. Whoever says nothing of that is not."""
        made = _made(meta)
        return made is not None and made < (round(self.registered_at, 3), self.incarnation)

    def is_younger(self, meta: Mapping[str, object], now: float) -> bool:
        """Whether it is one that was made after this one, and by ``now``: a later one only tells of a clock set back.

        Whoever says nothing of that is not.
        """
        made = _made(meta)
        return made is not None and (round(self.registered_at, 3), self.incarnation) < made < (now + 0.001, "")

    def find(self, listed: list[Listed]) -> Listed | None:
        """Return this incarnation, if it is listed."""
        return next((each for each in listed if each.incarnation == self.incarnation), None)

    def _narrowed(self, expression: str) -> dict[str, str]:
        # An optimisation, and the callers look again: a service may have thousands of instances. Consul's expressions
        # have no escape for a quote inside a string (1.8 answers 500), so an id that holds one goes without.
        return {} if '"' in self.instance.id else {"filter": expression}

    def _same_id(self, consul_id: str, meta: str) -> str:
        # The bare instance id is what other programs use as the id of the Consul service.
        return f'{consul_id} == "{self.instance.id}" or {meta}["{ID_KEY}"] == "{self.instance.id}"'


def _made(meta: Mapping[str, object]) -> tuple[float, str] | None:
    made_at = _seconds(str(meta.get(REGISTERED_AT_KEY, "")))
    return None if made_at is None else (made_at, str(meta.get(INCARNATION_KEY, "")))


def _seconds(text: str) -> float | None:
    return float(text) if re.fullmatch(r"\d{1,12}(\.\d{1,6})?", text) else None
