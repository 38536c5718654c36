"""Removing somebody else's instance from Consul, as an operator does: exactly what was shown, and proven gone.

Theory of operation. Only the agent that owns an entry can remove it for good; what is taken from the catalog alone, its
agent puts back (within about two minutes while it lives, at its next start when it is down). So the ways are, in order:

1. our agent, if it owns the entry;
2. the agent that does: at the address the *gossip* knows, alive, on our port. The catalog's address is not used:
   whoever may write a node into the catalog could otherwise have our token sent to a host of his choice;
3. the catalog, by a transaction that fails if the entry has changed since (``delete-cas``). The outcome says what will
   undo it.

The agent API has no compare-and-delete. Between our last look and the arrival of way 1 or 2 an owner that registers the
same *Consul* id anew would be removed, too. Registrations of this package never use an id twice.
"""

from __future__ import annotations

from dataclasses import dataclass

from registry_drain.clock import Clock, Deadline
from registry_drain.errors import (
    InstanceNotFoundError,
    LiveOwnerError,
    PermissionRefusedError,
    RegistryDrainError,
    RegistryError,
    RegistryUnavailableError,
)
from registry_drain.registries.base import RegistryEntry, Removal, RemovalOutcome
from registry_drain.registries.consul.catalog import Listed, is_askable, read_service, require_sight
from registry_drain.registries.consul.http import ConsulAddress, ConsulClient
from registry_drain.registries.consul.retry import persistently

_OTHER_AGENT_WITHIN = 2.0
"""Seconds for another agent's answer: most listen on loopback only, and a firewall says nothing."""
_ALIVE = 1
"""The Status of an alive member, from hashicorp/serf's member states."""


@dataclass(frozen=True, slots=True)
class _Sent:
    """What has been done about an entry, and what may undo it."""

    how: str
    caveat: str = ""


class ConsulRemoval:
    """One removal. Not reusable."""

    def __init__(self, client: ConsulClient, entry: RegistryEntry, clock: Clock, *, force: bool) -> None:
        """Prepare; sends nothing."""
        self._client = client
        self._entry = entry
        self._clock = clock
        self._force = force
        self._attempts = 0
        self._sent: _Sent | None = None

    def run(self, deadline: Deadline) -> Removal:
        """Remove and prove. See :meth:`registry_drain.registries.base.Registry.remove`."""
        try:
            return persistently(lambda: self._run_once(deadline), deadline)
        except RegistryDrainError as error:
            if self._sent is None:
                raise
            outcome = (
                RemovalOutcome.REFUSED if isinstance(error, PermissionRefusedError) else RemovalOutcome.UNCONFIRMED
            )
            return self._result(outcome, f"{self._sent.how}, and then: {error}")

    def _run_once(self, deadline: Deadline) -> Removal:
        self._attempts += 1
        listed = read_service(self._client, self._entry.service, deadline)
        target = self._find(listed)
        if target is None:
            return self._absent(listed, deadline)
        if target.entry().version != self._entry.version:
            return self._changed()
        if self._sent is None:
            self._check_owner(target)
        others = [each for each in listed if each.consul_id == target.consul_id and each is not target]
        if self._sent is None and (owner := self._owner(target, unsure=bool(others), deadline=deadline)):
            self._sent = _Sent(f"asked the agent that owns it ({owner.address.host}) to deregister it")
            try:
                owner.native(deadline).agent.service.deregister(target.consul_id)
            finally:
                if owner is not self._client:
                    owner.abort()
        else:
            # Either no agent could be asked, or one accepted and the servers list it all the same: the token that it
            # was registered with may have been revoked, and the agent syncs with that one.
            self._delete_cas(target, deadline)
        target = self._find(read_service(self._client, self._entry.service, deadline))
        if target is None:
            return self._gone()
        if target.entry().version != self._entry.version:
            return self._changed()
        raise RegistryUnavailableError(f"{self._client.address.url}: {self._entry} is still listed")

    def _find(self, listed: list[Listed]) -> Listed | None:
        return next((each for each in listed if each.locator == self._entry.locator), None)

    def _check_owner(self, target: Listed) -> None:
        if self._force:
            return
        what = f"{target.locator} ({self._entry.endpoint})"
        if manager := target.manager:
            raise LiveOwnerError(
                f"{what} belongs to {manager.name}, which puts it back: {manager.remedy}", yields_to_force=True
            )
        if target.is_live:
            raise LiveOwnerError(
                f"{what}: its owner is alive, its checks pass on {target.node}: stop its process",
                yields_to_force=True,
            )

    def _absent(self, listed: list[Listed], deadline: Deadline) -> Removal:
        if self._sent is not None:
            return self._gone()
        if any(each.node == self._entry.owner and each.instance_id == self._entry.id for each in listed):
            return self._changed()  # ours have a Consul id per registration: the instance id is what stays
        require_sight(self._client, self._entry.service, deadline)
        raise InstanceNotFoundError(f"{self._client.address.url}: {self._entry.locator} is not listed (any more)")

    def _changed(self) -> Removal:
        if self._sent is None:
            raise LiveOwnerError(
                f"{self._client.address.url}: {self._entry.locator} was registered anew since it was shown: look again"
            )
        return self._result(RemovalOutcome.SUCCESSOR, f"{self._sent.how}; it was registered anew since")

    def _gone(self) -> Removal:
        sent = self._sent or _Sent("")
        return self._result(
            RemovalOutcome.CONFIRMED, f"{sent.how}; not listed by a consistent read{sent.caveat}", self._clock.now()
        )

    def _result(self, outcome: RemovalOutcome, detail: str, confirmed_at: float | None = None) -> Removal:
        if outcome is RemovalOutcome.SUCCESSOR:
            confirmed_at = self._clock.now()
        return Removal(
            str(self._entry), self._client.address.url, outcome, detail, self._attempts, confirmed_at=confirmed_at
        )

    # --- who owns it --------------------------------------------------------------------------------------------------

    def _owner(self, target: Listed, *, unsure: bool, deadline: Deadline) -> ConsulClient | None:
        """Return a client of the agent that owns ``target``; None if there is none to be asked."""
        if not is_askable(target.consul_id):
            return None  # its path would be redirected to another id
        if _owns(self._client, target, unsure=unsure, deadline=deadline):
            return self._client
        address = self._gossip_address(target, deadline)
        if address is None:
            return None
        other = ConsulClient(address)
        try:
            bounded = deadline.capped(min(_OTHER_AGENT_WITHIN, deadline.remaining() / 4))
            if _owns(other, target, unsure=True, deadline=bounded):
                return other
        except RegistryDrainError:
            pass  # out of reach, or it refuses us: the catalog is left
        other.abort()
        return None

    def _gossip_address(self, target: Listed, deadline: Deadline) -> ConsulAddress | None:
        try:
            members = self._client.call("GET", "agent", "members", deadline=deadline).data
        except PermissionRefusedError:
            return None
        for member in members if isinstance(members, list) else ():
            if isinstance(member, dict) and (member.get("Name"), member.get("Status")) == (target.node, _ALIVE):
                host = member.get("Addr")
                if isinstance(host, str) and host and host != self._client.address.host:
                    return self._client.address.at(host)
        return None

    def _delete_cas(self, target: Listed, deadline: Deadline) -> None:
        service = {"ID": target.consul_id, "Service": target.service, "ModifyIndex": target.modify_index}
        body = [{"Service": {"Verb": "delete-cas", "Node": target.node, "Service": service}}]
        if target.is_node_alive is False:
            caveat = f"; the agent of {target.node} is down: if it starts again with its data, it puts the entry back"
        elif target.is_node_alive is None:
            caveat = ""  # an external node, which has no agent
        else:
            caveat = (
                f"; the agent of {target.node} could not be asked and lives: unless it has dropped the entry, it puts "
                "it back within about 2 minutes: remove it on that host"
            )
        how = "removed it from the catalog"
        self._sent = _Sent(f"{self._sent.how}, then {how}" if self._sent else how, caveat)
        answer = self._client.call("PUT", "txn", deadline=deadline, body=body, accept=frozenset({409}))
        if answer.status == 409:
            errors = answer.data.get("Errors") if isinstance(answer.data, dict) else None
            what = "; ".join(str(each.get("What")) for each in errors or () if isinstance(each, dict))
            if "ermission denied" in what or "ACL not found" in what:
                raise PermissionRefusedError(
                    f"{self._client.address.url}: removing {target.locator} from the catalog: {what}: the token needs "
                    "service:write on it"
                )
            if "stale" not in what:
                raise RegistryError(f"{self._client.address.url}: removing {target.locator} from the catalog: {what}")
            # Stale: somebody was faster. The next look says who.


def _owns(client: ConsulClient, target: Listed, *, unsure: bool, deadline: Deadline) -> bool:
    """Whether this agent keeps ``target``. ``unsure``: other agents have an entry of the same id."""
    data = client.call("GET", "agent", "service", target.consul_id, deadline=deadline).data
    if not isinstance(data, dict):
        return False
    # Some versions unescape a path twice: an answer about another id must not be taken for ours.
    same = data.get("ID") == target.consul_id and data.get("Service") == target.service
    if not same or (data.get("Meta") or {}) != target.meta:
        return False
    if not unsure:
        return True
    try:
        itself = client.call("GET", "agent", "self", deadline=deadline).data
    except PermissionRefusedError:
        return False
    config = itself.get("Config") if isinstance(itself, dict) else None
    return isinstance(config, dict) and config.get("NodeName") == target.node
