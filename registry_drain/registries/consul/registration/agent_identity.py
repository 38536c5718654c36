"""Which agent answers, and whether it has kept what it knew: what ``/v1/agent/self`` tells, to whoever has agent:read.

Measured on 1.8.7: a development agent has another NodeID after each start, and so has one whose data was deleted. One
that kept its data has the same NodeID and the same services. But a NodeID may also be fixed by the configuration
(``node_id``), and then stays although the data is gone; the answer does not show that. What shows it at times is
serf's logical clocks: they are in the data, and a start without it begins them anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from registry_drain.clock import Deadline
from registry_drain.errors import PermissionRefusedError
from registry_drain.registries.consul.http import ConsulClient

_CLOCKS = ("member_time", "event_time", "query_time")


@dataclass(frozen=True, slots=True)
class AgentIdentity:
    """One agent, at one instant.

    Attributes:
        node_id: random at an agent's first start, and kept in its data, unless it is configured.
        keeps_data: whether it has a directory for its data, and takes no NodeID from the host.
        clocks: serf's logical times, in a fixed order; they never go back as long as the data is kept.
    """

    node_id: str
    keeps_data: bool
    clocks: tuple[int, ...]

    def has_lost_since(self, before: AgentIdentity) -> bool:
        """Whether it is another agent than ``before``, or has surely started without its data."""
        is_back = any(now < then for now, then in zip(self.clocks, before.clocks, strict=True))
        return self.node_id != before.node_id or is_back


def read_identity(client: ConsulClient, deadline: Deadline) -> AgentIdentity | None:
    """Return the identity of the agent; None if we may not ask, or do not understand the answer.

    Raises:
        RegistryUnavailableError: retryable.
    """
    try:
        answer = client.call("GET", "agent", "self", deadline=deadline).data
    except PermissionRefusedError:
        return None
    config, debug = _object(answer, "Config"), _object(answer, "DebugConfig")
    serf = _object(_object(answer, "Stats"), "serf_lan")
    node_id = config.get("NodeID")
    if not isinstance(node_id, str) or not node_id:
        return None
    clocks = tuple(int(str(serf.get(name))) if str(serf.get(name)).isdecimal() else 0 for name in _CLOCKS)
    has_directory = bool(debug.get("DataDir")) and debug.get("DevMode") is False
    return AgentIdentity(node_id, has_directory and debug.get("DisableHostNodeID") is True, clocks)


def _object(answer: object, key: str) -> Mapping[str, object]:
    value = answer.get(key) if isinstance(answer, Mapping) else None
    return value if isinstance(value, Mapping) else {}
