"""What the lifecycle machine must know of each registry: how its servers and its processes fail."""

from __future__ import annotations

from typing import ClassVar, Protocol

from registry_drain.clock import Deadline
from registry_drain.registries.abilities import HandoverRegistration, RejoinableRegistration
from registry_drain.registries.base import Registration
from registry_drain.registries.consul.registration import ConsulRegistration
from registry_drain.registries.local import LocalRegistration
from registry_drain.registries.zookeeper.registration import ZooKeeperRegistration
from tests.support.consul_process import ConsulAgent
from tests.support.zookeeper_process import ZooKeeperServer


class FullRegistration(RejoinableRegistration, HandoverRegistration, Protocol):
    """What all of our backends' registrations can do."""


def soon() -> Deadline:
    """Return a deadline that nothing here reaches on a busy machine."""
    return Deadline.after(30)


class Backend(Protocol):
    """One registry's servers.

    Attributes:
        url: of the registry.
        elders_return: whether one that gave way registers again when its successor is gone.
        dies_at_once: whether a process that crashed is out of the list in that instant.
        losses_left: how often the server may lose what is registered in one run; None: always.
    """

    url: str
    elders_return: ClassVar[bool]
    dies_at_once: ClassVar[bool]
    losses_left: int | None

    def crash(self, registration: Registration) -> None:
        """End its process without a goodbye: nothing of it renews any more."""
        ...

    def expire(self, registration: Registration) -> None:
        """Let the server notice that it is dead."""
        ...

    def lose(self, registration: Registration) -> bool:
        """Let the server lose it; return whether it loses all the others, too."""
        ...


class ZooKeeperBackend:
    """A shared server: sessions are expired one by one."""

    elders_return: ClassVar[bool] = False
    dies_at_once: ClassVar[bool] = False

    def __init__(self, server: ZooKeeperServer, base: str) -> None:
        self._server = server
        self.url = f"{server.url}/{base}?session_timeout_s=10"
        self.losses_left: int | None = None

    def crash(self, registration: Registration) -> None:
        """Stop its worker; its session goes on until it is expired."""
        registration.fence(soon())

    def expire(self, registration: Registration) -> None:
        """End its session from elsewhere."""
        assert isinstance(registration, ZooKeeperRegistration)
        for session in registration._node.sessions:
            key = session._state.key
            if key is not None and not session.is_over:
                self._server.expire_session(key.id, key.password)

    def lose(self, registration: Registration) -> bool:
        """Expire its session."""
        self.expire(registration)
        return False


class ConsulBackend:
    """An agent of the machine's own, which forgets everything when it is killed."""

    elders_return: ClassVar[bool] = True
    dies_at_once: ClassVar[bool] = False

    def __init__(self, agent: ConsulAgent) -> None:
        self._agent = agent
        self.url = f"{agent.url}?ttl_s=1.5&timeout_s=5"
        self.losses_left: int | None = 1

    def crash(self, registration: Registration) -> None:
        """Stop its heartbeats."""
        registration.fence(soon())

    def expire(self, registration: Registration) -> None:
        """Do what the agent does 60 to 90 s after the TTL: deregister it."""
        assert isinstance(registration, ConsulRegistration)
        self._agent.put(f"/v1/agent/service/deregister/{registration.consul_id}")

    def lose(self, registration: Registration) -> bool:
        """Kill the agent, and start it without anything."""
        del registration
        self._agent.restart(kill=True)
        return True


class LocalBackend:
    """A directory; nothing is ever lost."""

    elders_return: ClassVar[bool] = False
    dies_at_once: ClassVar[bool] = True

    def __init__(self, directory: str) -> None:
        self.url = f"local://{directory}"
        self.losses_left: int | None = 0

    def crash(self, registration: Registration) -> None:
        """Drop its lock, as the kernel does."""
        assert isinstance(registration, LocalRegistration)
        registration.fence(soon())
        if registration._held is not None:
            registration._held.release()

    def expire(self, registration: Registration) -> None:
        """Do nothing: it is dead already."""

    def lose(self, registration: Registration) -> bool:
        """Nothing is ever lost here."""
        raise AssertionError(f"the local registry does not lose {registration}")


_backends: tuple[type[Backend], ...] = (ZooKeeperBackend, ConsulBackend, LocalBackend)
