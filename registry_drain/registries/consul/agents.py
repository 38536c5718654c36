"""Finding the agent that owns an entry, and making sure that it does.

Only the owner can remove an entry for good, or put it into maintenance mode. It is looked for in this order:

1. at the address that the operator gave (``agent=HOST:PORT``), and then nowhere else: what was said explicitly is not
   quietly replaced by something else;
2. our own agent;
3. at the address that the *gossip* knows for the entry's node, if the node is alive, on our agent's port. The catalog's
   address is not used: whoever may write a node into the catalog could otherwise have our token sent to a host of his
   choice.

An agent is believed to be the owner when its own view has the same id, name, port and Meta, and it says that its node
is the entry's. Asking that needs ``agent:read``. Without that right our own agent, or the one that was named, is
believed all the same if no other node lists the id; one from the gossip is not.
"""

from __future__ import annotations

from dataclasses import dataclass

from registry_drain.clock import Deadline
from registry_drain.errors import ConfigurationError, PermissionRefusedError, RegistryDrainError
from registry_drain.registries.consul.catalog import Listed, is_askable
from registry_drain.registries.consul.http import ConsulAddress, ConsulClient

_OTHER_AGENT_WITHIN = 2.0
"""Seconds for another agent's answer: most listen on loopback only, and a firewall says nothing."""
_MOST_SILENT = 3
"""Agents that did not answer until no other is tried: where three do not listen to us, the next 500 hardly will."""
_ALIVE = 1
"""The Status of an alive member, from hashicorp/serf's member states."""


@dataclass(frozen=True, slots=True)
class Owner:
    """The agent that an entry belongs to, as far as it can be found.

    Attributes:
        client: of the agent, if it can be asked and has the entry.
        has_dropped_it: the agent was asked, and does not know the entry (any more): it will not put it back.
        has_another: the agent was asked, and has the id with other content, which the servers do not know yet.
    """

    client: ConsulClient | None = None
    has_dropped_it: bool = False
    has_another: bool = False


@dataclass(frozen=True, slots=True)
class _Identity:
    node: str
    datacenter: str


class Agents:
    """The agents of one cluster, for as long as one operation on it lasts. Remembers what it was told."""

    def __init__(self, client: ConsulClient, explicit: ConsulAddress | None = None) -> None:
        """Take the client of our own agent, and the address of the one to ask, if somebody said so."""
        self._client = client
        self._explicit = explicit
        self._identities: dict[ConsulClient, _Identity | None] = {}
        self._others: dict[str, ConsulClient | None] = {}
        self._members: dict[str, str] | None = None
        self._silent = 0

    def close(self) -> None:
        """Cut the connections to other agents than our own. Idempotent."""
        for client in self._others.values():
            if client is not None:
                client.abort()
        self._others.clear()

    def owner(self, target: Listed, deadline: Deadline, *, is_ambiguous: bool) -> Owner:
        """Find the agent that owns ``target``.

        Args:
            target: as the catalog lists it.
            deadline: bounds it.
            is_ambiguous: another node lists the same Consul id.

        Raises:
            ConfigurationError: the agent that was named is another node's.
            RegistryUnavailableError, PermissionRefusedError: our own agent, or the one that was named, does not answer
                or refuses us.
        """
        if not is_askable(target.consul_id):
            return Owner()  # its path would be redirected to another id
        if self._explicit is not None:
            return self._named(self._explicit, target, deadline, is_ambiguous=is_ambiguous)
        identity = self._identity(self._client, deadline)
        if identity is None:
            # Our agent is alive, so that it cannot be a dead node's: 500 ghosts need not be asked for one by one.
            may_be_ours = target.is_node_alive is True and not is_ambiguous and not self._client.address.dc
            if may_be_ours and keeps(self._client, target, deadline):
                return Owner(self._client)
        elif self._is_of(identity, target):
            return self._asked(self._client, target, deadline)
        if target.is_node_alive is not True or self._client.address.dc:
            return Owner()  # nobody to ask; and the gossip is that of our own data centre
        return self._elsewhere(target, deadline)

    def _named(self, address: ConsulAddress, target: Listed, deadline: Deadline, *, is_ambiguous: bool) -> Owner:
        client = self._others.get("")
        if client is None:
            client = self._others[""] = ConsulClient(address)
        identity = self._identity(client, deadline)
        if identity is None:
            if not is_ambiguous and keeps(client, target, deadline):
                return Owner(client)
            raise PermissionRefusedError(
                f"{address.url}: whether {target.locator} is this agent's cannot be told, because the token may not "
                'ask it for its node: it needs agent_prefix "" { policy = "read" }'
            )
        if not self._is_of(identity, target):
            raise ConfigurationError(
                f"{address.url}: this is the agent of {identity.node}, and {target.consul_id} is registered with that "
                f"of {target.node}: name that one"
            )
        return self._asked(client, target, deadline)

    def _is_of(self, identity: _Identity, target: Listed) -> bool:
        dc = self._client.address.dc
        return identity.node == target.node and (not dc or dc == identity.datacenter)

    def _asked(self, client: ConsulClient, target: Listed, deadline: Deadline) -> Owner:
        view = own_view(client, target, deadline)
        return Owner(client) if view.is_same else Owner(has_dropped_it=not view.is_known, has_another=view.is_known)

    def _elsewhere(self, target: Listed, deadline: Deadline) -> Owner:
        if target.node not in self._others:
            if self._silent >= _MOST_SILENT:
                return Owner()
            host = self._gossip(deadline).get(target.node)
            is_other = host is not None and host != self._client.address.host
            self._others[target.node] = ConsulClient(self._client.address.at(host)) if host and is_other else None
        client = self._others[target.node]
        if client is None:
            return Owner()
        bounded = deadline.capped(min(_OTHER_AGENT_WITHIN, deadline.remaining() / 4))
        try:
            identity = self._identity(client, bounded)
            if identity is not None and self._is_of(identity, target):
                return self._asked(client, target, bounded)
        except RegistryDrainError:
            self._silent += 1  # out of reach, or it refuses us: the catalog is left, and the outcome says so
        client.abort()
        self._others[target.node] = None
        return Owner()

    def _gossip(self, deadline: Deadline) -> dict[str, str]:
        """Return the addresses of the members that are alive, by node."""
        if self._members is None:
            try:
                members = self._client.call("GET", "agent", "members", deadline=deadline).data
            except PermissionRefusedError:
                members = None
            self._members = {
                str(member.get("Name")): str(member.get("Addr") or "")
                for member in (members if isinstance(members, list) else ())
                if isinstance(member, dict) and member.get("Status") == _ALIVE
            }
        return self._members

    def _identity(self, client: ConsulClient, deadline: Deadline) -> _Identity | None:
        """Return which agent this is; None if it does not tell us."""
        if client not in self._identities:
            try:
                itself = client.call("GET", "agent", "self", deadline=deadline).data
            except PermissionRefusedError:
                itself = None
            config = itself.get("Config") if isinstance(itself, dict) else None
            self._identities[client] = (
                _Identity(str(config.get("NodeName")), str(config.get("Datacenter")))
                if isinstance(config, dict)
                else None
            )
        return self._identities[client]


@dataclass(frozen=True, slots=True)
class View:
    """What an agent itself has under the id of an entry: nothing, something, or the same that is listed."""

    is_known: bool
    is_same: bool


def own_view(client: ConsulClient, target: Listed, deadline: Deadline) -> View:
    """Ask the agent for what it has under the id of ``target``."""
    data = client.call("GET", "agent", "service", target.consul_id, deadline=deadline).data
    # Some versions unescape a path twice: an answer about another id must not be taken for ours.
    if not isinstance(data, dict) or data.get("ID") != target.consul_id:
        return View(is_known=False, is_same=False)
    same = data.get("Service") == target.service and (data.get("Meta") or {}) == target.meta
    return View(is_known=True, is_same=same and (data.get("Port") or 0) == target.port)


def keeps(client: ConsulClient, target: Listed, deadline: Deadline) -> bool:
    """Whether the agent has ``target``, as it is listed."""
    return own_view(client, target, deadline).is_same
