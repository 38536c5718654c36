"""What :func:`registry_drain.hosted.drained` was told, checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from registry_drain.clock import SYSTEM_CLOCK, Clock
from registry_drain.errors import ConfigurationError
from registry_drain.instance import ServiceInstance, check_name, check_port
from registry_drain.registries.base import Registry
from registry_drain.shutdown.budget import StopBudget
from registry_drain.shutdown.events import EventSink, log_event
from registry_drain.shutdown.leaving import check_soft_drain
from registry_drain.shutdown.observers import ShutdownObserver

RegistryLike = str | Registry
LEAST_SOFT_DRAIN = 1.0
"""Seconds: what workers need to say whether they leave, too, and what is left of it for callers."""


@dataclass(frozen=True)
class Settings:
    """The parameters of :func:`registry_drain.hosted.drained`; see there.

    Raises:
        ConfigurationError: something given cannot work.
    """

    registries: Sequence[RegistryLike]
    service: str
    port: int
    address: str
    listen_port: int
    instance_id: str
    metadata: dict[str, str]
    tags: tuple[str, ...]
    budget: StopBudget = field(default_factory=StopBudget)
    observers: tuple[ShutdownObserver | Callable[[], object], ...] = ()
    sinks: tuple[EventSink, ...] = (log_event,)
    clock: Clock = SYSTEM_CLOCK
    soft_drain: float = 0.0

    def __post_init__(self) -> None:
        """Check what can be checked before anything is started."""
        check_port(self.port)
        check_port(self.listen_port)
        if 0 < self.soft_drain < LEAST_SOFT_DRAIN:
            raise ConfigurationError(
                f"soft_drain={self.soft_drain:g} s: must be 0 or at least {LEAST_SOFT_DRAIN:g} s under a server's own"
                " command line, where workers first find out whether all of them leave"
            )
        check_soft_drain(self.soft_drain, self.budget)
        if not self.registries:
            return
        if not self.service:
            raise ConfigurationError("a registry is given, but no service= name to register under")
        check_name("service name", self.service)
        self.instance(self.address or "localhost")

    def instance(self, address: str) -> ServiceInstance:
        """Return what is listed, at ``address`` if none was given.

        Raises:
            ConfigurationError: see ServiceInstance.
        """
        return ServiceInstance(
            self.service,
            self.address or address,
            self.port,
            id=self.instance_id,
            metadata=self.metadata,
            tags=self.tags,
        )
