"""What the ZooKeeper tests share: registries that are put away, an independent look, and the faults."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from registry_drain.clock import SYSTEM_CLOCK, Deadline
from registry_drain.instance import ServiceInstance
from registry_drain.registries.url import parse_registry_url
from registry_drain.registries.zookeeper import ZooKeeperRegistry, open_zookeeper
from registry_drain.registries.zookeeper.registration import ZooKeeperRegistration
from registry_drain.registries.zookeeper.session import ZooKeeperSession
from tests.support.processes import eventually
from tests.support.zookeeper_process import ZooKeeperServer

T = TypeVar("T")
SERVICE = "calculator"
INSTANCE = ServiceInstance(SERVICE, "192.0.2.7", 9090, id="one")


def within(seconds: float = 15.0) -> Deadline:
    """Return a deadline that a healthy call never meets."""
    return Deadline.after(seconds)


class Stage:
    """One server, one base path, and everything that a test opens on it."""

    def __init__(self, server: ZooKeeperServer, base: str) -> None:
        self.server = server
        self.base = base
        self._exits = contextlib.ExitStack()

    def close(self) -> None:
        """Put everything away, newest first."""
        self._exits.close()

    @property
    def path(self) -> str:
        """Where INSTANCE stands."""
        return f"{self.base}/{SERVICE}/{INSTANCE.id}"

    def registry(self, *, hosts: str = "", session_timeout: float = 10.0, options: str = "") -> ZooKeeperRegistry:
        """Return a registry, through ``hosts`` (a proxy) if given.

        Its session outlives a process that stalls for some seconds: whoever wants it to expire calls :meth:`expire`.
        """
        url = f"zookeeper://{hosts or self.server.hosts}{self.base}?session_timeout_s={session_timeout}{options}"
        registry = open_zookeeper(parse_registry_url(url), SYSTEM_CLOCK)
        self._exits.callback(registry.close)
        return registry

    def registration(
        self, registry: ZooKeeperRegistry | None = None, instance: ServiceInstance = INSTANCE
    ) -> ZooKeeperRegistration:
        """Return a membership that is removed at the end."""
        registration = (registry or self.registry()).registration(instance)
        self._exits.callback(lambda: registration.on_shutdown(within(2.0)))
        return registration

    def registered(
        self, registry: ZooKeeperRegistry | None = None, instance: ServiceInstance = INSTANCE
    ) -> ZooKeeperRegistration:
        """Return a membership that is registered."""
        registration = self.registration(registry, instance)
        registration.register(within())
        return registration

    @contextlib.contextmanager
    def eyes(self) -> Iterator[Any]:
        """Give an independent client."""
        with self.server.client() as client:
            yield client

    def stat(self, path: str = "") -> Any:
        """Return the stat of INSTANCE's node, or None, by an independent look."""
        with self.eyes() as client:
            return client.exists(path or self.path)

    def expire(self, registration: ZooKeeperRegistration) -> None:
        """Let the session of a registration time out."""
        self.expire_session(registration._node.sessions[-1])

    def expire_session(self, session: ZooKeeperSession) -> None:
        """Let a session time out."""
        key = session._state.key
        assert key
        self.server.expire_session(key.id, key.password)


class Background(Generic[T]):
    """A call in a thread of its own."""

    def __init__(self, call: Callable[[], T]) -> None:
        self._result: list[T] = []
        self._error: list[BaseException] = []

        def run() -> None:
            try:
                self._result.append(call())
            except BaseException as error:  # noqa: BLE001 -- raised again where it is asked for
                self._error.append(error)

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """Whether the call has not ended."""
        return self._thread.is_alive()

    def result(self, timeout: float = 30.0) -> T:
        """Return or raise what the call did; AssertionError if it has not ended in time."""
        self._thread.join(timeout)
        assert not self._thread.is_alive(), f"still running after {timeout:g} s"
        if self._error:
            raise self._error[0]
        return self._result[0]


def never(probe: Callable[[], object], *, seconds: float, because: str) -> None:
    """Fail as soon as ``probe`` returns something truthy, looked at for ``seconds``."""
    found: list[object] = []

    def looked() -> bool:
        seen = probe()
        if seen:
            found.append(seen)
        return bool(found)

    with contextlib.suppress(AssertionError):
        eventually(looked, timeout=seconds)
    assert not found, f"{because}: {found[0]}"
