"""Sending removals: through the agent that owns an entry, else through the catalog."""

from __future__ import annotations

from collections.abc import Sequence

from registry_drain.clock import Deadline
from registry_drain.errors import PermissionRefusedError, RegistryDrainError, RegistryError
from registry_drain.registries.consul.agents import Agents, Owner, keeps
from registry_drain.registries.consul.http import ConsulClient
from registry_drain.registries.consul.removal.case import Sent, Target
from registry_drain.registries.consul.removal.companions import service_removal
from registry_drain.registries.consul.removal.transaction import Group, batches, submit


class Ways:
    """Sends removals. One that no retry can help is settled; whether the others worked, the next look tells."""

    def __init__(self, client: ConsulClient, agents: Agents) -> None:
        """Take our own agent's client, and the way to the others."""
        self._client = client
        self._agents = agents

    def send(self, targets: Sequence[Target], deadline: Deadline) -> RegistryDrainError | None:
        """Send what removes ``targets``; return the first failure that a retry may help."""
        failure: RegistryDrainError | None = None
        for_catalog: list[tuple[Target, Owner]] = []
        silent: set[ConsulClient] = set()
        for target in targets:
            try:
                if target.case.sent is not None:
                    # An agent accepted, and the servers list it all the same: the token that it was registered with
                    # may have been revoked, and the agent syncs with that one.
                    for_catalog.append((target, Owner()))
                    continue
                owner = self._agents.owner(target.listed, deadline, is_ambiguous=target.is_ambiguous)
                if owner.client is None:
                    for_catalog.append((target, owner))
                elif owner.client not in silent:
                    error = self._through_agent(owner.client, target, deadline)
                    if error is not None:
                        silent.add(owner.client)
                        failure = failure or error
            except RegistryDrainError as error:
                if error.retryable:
                    failure = failure or error
                else:
                    target.case.fail(error)
        return self._through_catalog(for_catalog, deadline) or failure

    def _through_agent(self, client: ConsulClient, target: Target, deadline: Deadline) -> RegistryDrainError | None:
        """Deregister it and what goes with it; return a failure that a retry may help, raise one that none can."""
        case = target.case
        case.sent = Sent(f"asked the agent that owns it ({client.address.host}) to deregister it")
        try:
            # The instance comes last: as long as it is listed, a second run finds what is left.
            for each in case.companions:
                if each.listed is None:
                    _deregister(client, "check", each.id, deadline)
                elif keeps(client, each.listed, deadline):
                    _deregister(client, "service", each.id, deadline)
            _deregister(client, "service", target.listed.consul_id, deadline)
        except RegistryDrainError as error:
            if not error.retryable:
                raise
            return error
        return None

    def _through_catalog(
        self, targets: Sequence[tuple[Target, Owner]], deadline: Deadline
    ) -> RegistryDrainError | None:
        failure: RegistryDrainError | None = None
        groups = [
            Group(target, [*(each.operation() for each in target.case.companions), service_removal(target.listed)])
            for target, _ in targets
        ]
        owners = {id(target): owner for target, owner in targets}
        for batch in batches(groups):
            before = {id(group.owner): group.owner.case.sent for group in batch}
            for group in batch:
                case, how = group.owner.case, "removed it from the catalog"
                earlier = f"{case.sent.how}, then " if case.sent and how not in case.sent.how else ""
                case.sent = Sent(f"{earlier}{how}", group.owner.caveat(owners[id(group.owner)]))

            def refused(target: Target, reason: str, before: dict[int, Sent | None] = before) -> None:
                # A transaction that is refused changes nothing. Stale: somebody was faster; the next look says who.
                target.case.sent = before[id(target)]
                if "stale" not in reason:
                    target.case.fail(self._error(target, reason))

            try:
                submit(self._client, batch, deadline, refused)
            except RegistryDrainError as error:
                if error.retryable:
                    failure = failure or error
                    continue
                for group in batch:
                    if group.owner.case.result is None:
                        group.owner.case.sent = before[id(group.owner)]
                        group.owner.case.fail(error)
        return failure

    def _error(self, target: Target, reason: str) -> RegistryError:
        message = f"{self._client.address.url}: removing {target.listed.locator} from the catalog: {reason}"
        if "ermission denied" not in reason and "ACL not found" not in reason:
            return RegistryError(message)
        services = {target.listed.service, *(each.listed.service for each in target.case.companions if each.listed)}
        needed = [f"service:write on {', '.join(sorted(services))}"]
        if any(each.listed is None for each in target.case.companions):
            needed.append(f"node:write on {target.listed.node}")
        return PermissionRefusedError(f"{message}: the token needs {' and '.join(needed)}")


def _deregister(client: ConsulClient, kind: str, each: str, deadline: Deadline) -> None:
    """Ask the agent to drop one of its own; raw, because loading the library takes longer than the whole command."""
    client.call("PUT", "agent", kind, "deregister", each, deadline=deadline)
