"""Who brought a removed instance back, as far as the registry shows it, and how to stop that.

What is known of each registry (measured, see the pages of the registries): a ZooKeeper session is one process' client,
so that the same session is the same process for certain; Curator's clients create their nodes again after each
reconnect. Consul shows no process: an agent puts back what it has on disk or in memory when the catalog misses it
(anti-entropy, at its start and every minute or two), and that comes back exactly as it was, critical checks included.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from registry_drain.registries.base import RegistryEntry

_ALLOCATION = re.compile(r"_nomad-task-([0-9a-f]{8}-[0-9a-f-]{27})-")
"""Nomad's ids: command/agent/consul/service_client.go of hashicorp/nomad, makeTaskServiceID."""


@dataclass(frozen=True, slots=True)
class Comeback:
    """Who it was.

    Attributes:
        who: as the subject of a sentence.
        is_same_owner: whether the same session or process has it; None if the registry cannot tell.
        advice: what stops it, as an order.
    """

    who: str
    is_same_owner: bool | None
    advice: str

    def document(self) -> dict[str, object]:
        """Return it JSON-ready."""
        return {"who": self.who, "is_same_owner": self.is_same_owner, "advice": self.advice}


def who_brought_back(removed: RegistryEntry, returned: RegistryEntry, registry_url: str) -> Comeback:
    """Compare ``returned`` with what was removed."""
    scheme = registry_url.partition(":")[0]
    if returned.managed_by:
        remedy = _consuls_remedy(returned) if scheme.startswith("consul") else ""
        advice = remedy or _remedy(returned)
        return Comeback(f"{returned.managed_by}, which registers again what it misses,", None, advice)
    if scheme == "zookeeper":
        return _session(removed, returned)
    if scheme.startswith("consul"):
        return _consul(removed, returned)
    if not returned.owner:
        return Comeback("an owner that the registry does not name", None, "find and stop it, then run this again")
    if returned.owner == removed.owner:
        return Comeback(
            f"{returned.owner}, the same owner as before,",
            is_same_owner=True,
            advice="stop that owner, or have it deregister itself",
        )
    was = f" (before: {removed.owner})" if removed.owner else ""
    return Comeback(
        f"{returned.owner}{was}", is_same_owner=False, advice="stop that owner, or have it deregister itself"
    )


def _remedy(returned: RegistryEntry) -> str:
    if returned.managed_by == "Nomad":
        allocation = _ALLOCATION.search(returned.locator) or _ALLOCATION.search(returned.id)
        return f"stop its allocation (nomad alloc stop {allocation[1] if allocation else 'ALLOCATION'}), or its job"
    if returned.managed_by == "Kubernetes":
        return "scale its workload down, delete its pod or its Kubernetes service: what syncs it would go on"
    return f"remove it in {returned.managed_by}"


def _consuls_remedy(returned: RegistryEntry) -> str:
    """Return what the entry's own metadata tells (a pod's name, say); empty if nothing more than its name."""
    from registry_drain.registries.consul.managed import manager_of

    manager = manager_of(returned.locator.partition("/")[2], returned.metadata, {})
    is_known = manager is not None and manager.name == returned.managed_by and manager.name != "Nomad"
    return manager.remedy if manager is not None and is_known else ""


def _session(removed: RegistryEntry, returned: RegistryEntry) -> Comeback:
    find = "the servers' four-letter command `cons` tells the host of a session"
    if not returned.owner:
        return Comeback(
            "somebody who writes persistent nodes, and leaves no name in them,",
            None,
            "look for the deployment tool or service that publishes it (Dubbo's dynamic=false does), and stop it there",
        )
    if returned.owner == removed.owner:
        return Comeback(
            f"the same process (session {returned.owner})",
            is_same_owner=True,
            advice=f"stop that process ({find}): some clients create a missing node at once",
        )
    was = f", before: {removed.owner}" if removed.owner else ""
    return Comeback(
        f"session {returned.owner}{was}",
        is_same_owner=False,
        advice=f"stop its process ({find}), and what restarts it: it is a new process, or a client that"
        " registers again after a reconnect, as Curator's does",
    )


def _consul(removed: RegistryEntry, returned: RegistryEntry) -> Comeback:
    node = returned.node or returned.owner
    before = removed.node or removed.owner
    consul_id = returned.locator.partition("/")[2] or returned.id
    there = f"consul services deregister -id={consul_id}"
    if node != before:
        return Comeback(
            f"a process at Consul's agent on {node} (before: {before})",
            is_same_owner=False,
            advice=f"stop it, or run on {node}: {there}",
        )
    is_copy = returned.is_live is False and removed.is_live is False and returned.locator == removed.locator
    if is_copy:
        return Comeback(
            f"Consul's agent on {node}, from its own copy as it seems: it was down, or not the one that was asked,",
            None,
            f"run on {node}: {there}",
        )
    return Comeback(
        f"a process at Consul's agent on {node}, the same one or another,",
        None,
        f"stop that process, then run this again or, on {node}: {there}",
    )
