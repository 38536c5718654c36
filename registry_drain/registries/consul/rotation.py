"""Taking an instance out of rotation and putting it back: Consul's maintenance mode for one service.

Maintenance mode is a critical check of its own, ``_service_maintenance:<id>``, which its agent keeps, beside the
instance's other checks and across the agent's restarts. It outlives the instance's *process*: another one that
registers the same Consul id is born into it, unless it registers with ``replace-existing-checks``, as this package does
(which never uses an id twice, either). Deregistering removes it with the service.

Only the agent that owns the service can switch it. A dead agent's services are left out by callers anyway, and an
external node's have nobody who would keep the state: both are refused, and the message says what to do instead.
"""

from __future__ import annotations

from registry_drain.clock import Deadline
from registry_drain.errors import (
    InstanceNotFoundError,
    LiveOwnerError,
    RegistryDataError,
    RegistryUnavailableError,
)
from registry_drain.registries.abilities import Rotation
from registry_drain.registries.base import RegistryEntry
from registry_drain.registries.consul.agents import Agents, Owner
from registry_drain.registries.consul.catalog import Listed
from registry_drain.registries.consul.http import ConsulAddress, ConsulClient
from registry_drain.registries.consul.look import Look
from registry_drain.registries.retry import persistently

_HOW = "maintenance mode"
_CHECK = "_service_maintenance:"


class ConsulRotation:
    """Switches one entry. Not reusable."""

    def __init__(self, client: ConsulClient, entry: RegistryEntry, agent: ConsulAddress | None) -> None:
        """Prepare; sends nothing. ``agent``: the one to ask, instead of whichever is found."""
        self._client = client
        self._entry = entry
        self._agents = Agents(client, agent)
        self._has_sent = False

    def switch(self, deadline: Deadline, *, out: bool, reason: str = "") -> Rotation:
        """Take it out, or put it back, and look that it is. See :class:`RotationRegistry`."""
        try:
            return persistently(lambda: self._switch(deadline, out=out, reason=reason), deadline)
        finally:
            self._agents.close()

    def _switch(self, deadline: Deadline, *, out: bool, reason: str) -> Rotation:
        listed, is_ambiguous = self._look(deadline)
        if _is_out(listed) is out:
            return self._rotation(listed, out=out)
        owner = self._agents.owner(listed, deadline, is_ambiguous=is_ambiguous)
        if owner.client is None:
            raise self._no_agent(listed, owner)
        params = {"enable": "true" if out else "false", **({"reason": reason} if out and reason else {})}
        path = ("agent", "service", "maintenance", listed.consul_id)
        if owner.client.call("PUT", *path, deadline=deadline, params=params).status == 404:
            raise self._no_agent(listed, Owner(has_dropped_it=True))
        self._has_sent = True
        listed, _ = self._look(deadline)
        if _is_out(listed) is not out:
            raise RegistryUnavailableError(
                f"{self._client.address.url}: the agent of {listed.node} has switched {_HOW} of {self._entry}, and the "
                "servers do not show it yet"
            )
        return self._rotation(listed, out=out)

    def _look(self, deadline: Deadline) -> tuple[Listed, bool]:
        entry, url = self._entry, self._client.address.url
        look = Look(self._client, [entry], deadline)
        listed = look.find(entry)
        changed = listed is not None and listed.version != entry.version
        if changed or (listed is None and look.has_namesake(entry)):
            raise LiveOwnerError(f"{url}: {entry.locator} was registered anew since it was shown: look again")
        if listed is None:
            look.require_sight(entry.service, deadline)
            raise InstanceNotFoundError(f"{url}: {entry.locator} is not listed (any more)")
        return listed, look.is_ambiguous(listed, entry.service)

    def _rotation(self, listed: Listed, *, out: bool) -> Rotation:
        notes = [check.output for check in listed.checks if check.id == f"{_CHECK}{listed.consul_id}" and check.output]
        if self._has_sent:
            said = f"its agent ({listed.node}) has switched it {'on' if out else 'off'}, and a consistent read shows it"
        else:
            said = f"it was {'on' if out else 'off'} already"
        if notes:
            said += f"; reason: {notes[0]}"
        # Callers may leave it out for another reason: its node is in maintenance, or one of its checks is critical.
        is_out = listed.health in {"maintenance", "critical"}
        if is_out and not out:
            because = ", ".join(check.id for check in listed.checks if check.status == "critical")
            said += f"; but callers leave it out all the same, because of {because}"
        return Rotation(str(self._entry), self._client.address.url, is_out, _HOW, said)

    def _no_agent(self, listed: Listed, owner: Owner) -> RegistryDataError | LiveOwnerError:
        what = f"{self._client.address.url}: {_HOW} of {listed.locator} cannot be switched: "
        if owner.has_dropped_it:
            return RegistryDataError(
                f"{what}the agent of {listed.node} does not know it: remove what the catalog lists"
            )
        if owner.has_another:
            return LiveOwnerError(f"{what}the agent of {listed.node} has registered it anew meanwhile: look again")
        if listed.is_node_alive is None:
            return RegistryDataError(f"{what}{listed.node} is an external node, without an agent to keep it: remove it")
        if not listed.is_node_alive:
            return RegistryDataError(
                f"{what}the agent of {listed.node}, which keeps it, is down, so that callers leave it out already: "
                "remove it"
            )
        return RegistryDataError(
            f"{what}the agent of {listed.node}, which keeps it, could not be asked: name its HTTP address as agent"
        )


def _is_out(listed: Listed) -> bool:
    return any(check.id == f"{_CHECK}{listed.consul_id}" for check in listed.checks)
