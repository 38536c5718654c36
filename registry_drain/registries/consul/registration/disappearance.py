"""An agent does not know our check any more: did it lose us, or did somebody remove us on purpose?

Theory of operation. Nothing in Consul says who removed a service. But there are only so many ways to go by oneself, and
each can be excluded. An agent forgets a service when it starts without its data, and removes it when its check has been
critical for ``DeregisterCriticalServiceAfter``. So a service was removed by somebody if

- our last heartbeat was taken less than the TTL and that time ago, and
- the agent has not started since: the answer came over a connection that is older than our last heartbeat; or it has
  kept its data: it has the NodeID it had, and that one is in its data (:mod:`.agent_identity`).

In doubt we were lost: an operator who removes it once more, or stops the process, can mend that; of a service that
silently stays out because its agent was restarted nobody knows. Rejected alternatives: the NodeID that the *catalog*
shows (needs no agent:read, but is the old one until the agent has synchronised after its start), and an own mark on the
agent (which everybody would see, and an operator would have to remove as well).
"""

from __future__ import annotations

from dataclasses import dataclass

from registry_drain.registries.consul.registration.agent_identity import AgentIdentity


@dataclass(frozen=True, slots=True)
class Disappearance:
    """What is known when a heartbeat finds the check unknown, and no successor.

    Attributes:
        silence: seconds since the last heartbeat that the agent took was sent.
        reaped_after: seconds without one after which the agent may have removed the service by itself.
        is_same_connection: whether this one was answered over a connection that is older than that one's answer.
        before: the agent that took our heartbeats; None if we may not ask, or have not asked yet.
        now: the agent that answers now; None if we may not ask.
    """

    silence: float
    reaped_after: float
    is_same_connection: bool
    before: AgentIdentity | None
    now: AgentIdentity | None

    @property
    def is_removal(self) -> bool:
        """Whether somebody removed the service on purpose."""
        if self.silence >= self.reaped_after or self._is_another_agent:
            return False
        return self.is_same_connection or self._has_kept_data

    @property
    def _is_another_agent(self) -> bool:
        return self.before is not None and self.now is not None and self.now.has_lost_since(self.before)

    @property
    def _has_kept_data(self) -> bool:
        return self.before is not None and self.now is not None and self.now.keeps_data

    def __str__(self) -> str:
        """Say how that is known, in one line."""
        if self.silence >= self.reaped_after:
            return f"no heartbeat was taken for {self.silence:.0f} s, so that its agent removes it by itself"
        if self._is_another_agent:
            return "its agent has started without its data, or is another one"
        if self.is_same_connection:
            return "its agent has not restarted since the last heartbeat, and does not know it any more"
        if self._has_kept_data:
            return "its agent has kept its data, and does not know it any more"
        if self.before is None or self.now is None:
            return "in doubt: its agent may have restarted without its data; with agent:read we would know"
        return "in doubt: its agent may have restarted, and nothing shows whether it keeps its data"
