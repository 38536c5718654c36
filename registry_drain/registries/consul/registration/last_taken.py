"""What the agent took from us last, when, and which agent that was: the evidence when it does not know us any more."""

from __future__ import annotations

import threading

from registry_drain.clock import Deadline
from registry_drain.errors import RegistryDrainError
from registry_drain.registries.consul.registration.agent_identity import AgentIdentity, read_identity
from registry_drain.registries.consul.registration.disappearance import Disappearance
from registry_drain.registries.consul.registration.standing import Standing, log


class LastTaken:
    """See the module. Thread-safe."""

    def __init__(self, standing: Standing) -> None:
        self._standing = standing
        self._lock = threading.Lock()  # guards what follows
        self._token: str | None = None  # the one that the agent keeps for us
        self._sent_at = 0.0
        self._opened = 0  # how many connections the writer had opened when that was answered
        self._agent: AgentIdentity | None = None
        self._is_agent_asked = False

    @property
    def is_token_rotated(self) -> bool:
        """Whether the agent keeps another token for us than the one that counts now."""
        return self._token != self._standing.address.tokens.current()

    def forget_agent(self) -> None:
        """A registration is about to be sent. It may be another agent than before."""
        with self._lock:
            self._agent, self._is_agent_asked = None, False

    def is_newer_than(self, instant: float) -> bool:
        """Whether what was taken last was sent after ``instant``, by the clock."""
        with self._lock:
            return self._sent_at > instant

    def note_registration(self, token: str, sent_at: float) -> None:
        """The agent took a registration."""
        with self._lock:
            self._token = token
            self._sent_at, self._opened = sent_at, self._standing.writer.opened

    def note_beat(self, sent_at: float, deadline: Deadline) -> None:
        """The agent took a heartbeat; ask it, once, who it is."""
        with self._lock:
            self._sent_at, self._opened = sent_at, self._standing.writer.opened
            if self._is_agent_asked:
                return
        try:
            agent = read_identity(self._standing.writer, deadline)
        except RegistryDrainError as error:
            # The heartbeat was taken, that is what counts; the next one asks again.
            log.debug("%s: its agent did not say who it is: %s", self._standing.membership, error)
            return
        with self._lock:
            self._agent, self._is_agent_asked = agent, True

    @property
    def is_same_connection(self) -> bool:
        """Whether no connection was opened since: the agent's process is the same then. Ask before asking it more."""
        with self._lock:
            return self._standing.writer.opened == self._opened

    def disappearance(self, deadline: Deadline, *, is_same_connection: bool) -> Disappearance:
        """Return what is known when the agent does not know us any more.

        Raises:
            RegistryUnavailableError: retryable.
        """
        with self._lock:
            before, sent_at = self._agent, self._sent_at
        return Disappearance(
            silence=self._standing.clock.now() - sent_at,
            reaped_after=self._standing.lifetimes.reaped_after,
            is_same_connection=is_same_connection,
            before=before,
            now=read_identity(self._standing.writer, deadline) if before is not None else None,
        )
