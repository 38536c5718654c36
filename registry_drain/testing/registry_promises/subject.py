"""What a contract suite must know about the registry it tests."""

from __future__ import annotations

import unittest
import uuid
from collections.abc import Callable
from typing import ClassVar

from registry_drain.clock import SYSTEM_CLOCK, Clock, Deadline
from registry_drain.instance import ServiceInstance
from registry_drain.registries.base import Registration, Registry
from registry_drain.testing.bench import RegistryBench


class RegistrySubject:
    """The registry under test: one factory to override, and attributes for what differs between registries.

    Attributes:
        clock: what the registries were made with.
        timeout: seconds that each call is given; also how long the suite waits before it calls a call hung.
        settle: real seconds that a watch may take to show a change.
        prompt: real seconds in which a call whose deadline is past must return.
        look_again: real seconds for which the suite looks for a resurrection; longer than your renewal interval.
        expiry_seconds: real seconds after which a killed owner's instance is out of every watch; see
            :meth:`start_doomed_owner`.
        races: how often a race is run.
        odd_ids: ids that are legal in :class:`~registry_drain.instance.ServiceInstance` and easy to get wrong.
        takes_over_live_owner: whether ``register`` replaces a live owner of the same id; if not, it must raise
            LiveOwnerError and leave the owner alone.
    """

    clock: Clock = SYSTEM_CLOCK
    timeout: float = 10.0
    settle: float = 10.0
    prompt: float = 6.0
    look_again: float = 0.3
    expiry_seconds: float = 10.0
    races: int = 30
    odd_ids: ClassVar[tuple[str, ...]] = (
        "1",
        "-dash",
        "~tilde_",
        "UPPER.and.lower",
        "host:9090@zone",
        "a,b;c=d&e+f!",
        'it\'s-("quoted")-{<|>}-[$^`*]',
        "grüße-你好-🚀",
        "x" * 200,
    )
    takes_over_live_owner: bool = True

    def new_registry(self) -> Registry:
        """Return a new registry object. All objects of one test reach the same cluster, as other processes would."""
        raise NotImplementedError

    def start_doomed_owner(self, instance: ServiceInstance) -> Callable[[], None]:  # noqa: ARG002 -- a hook
        """Register ``instance`` from somewhere that can be killed; return what kills it, without a goodbye.

        Usually a subprocess and its SIGKILL. By default the promises about dead owners are skipped.
        """
        reason = f"{type(self).__name__} has no start_doomed_owner(): promises about dead owners are not tested"
        raise unittest.SkipTest(reason)

    def lose(self, registration: Registration) -> None:  # noqa: ARG002 -- a hook
        """Let the registry lose what is registered, as a fault of its own would: expire the session, wipe the agent.

        By default the promise about losses is skipped.
        """
        reason = f"{type(self).__name__} has no lose(): that losses are restored is not tested"
        raise unittest.SkipTest(reason)

    # What the promises use.

    def bench(self) -> RegistryBench:
        """Return a bench for one test."""
        return RegistryBench(self.new_registry, self.clock, self.timeout)

    def past(self) -> Deadline:
        """Return a deadline that is past already."""
        return Deadline(self.clock.now() - 1.0, self.clock)

    @staticmethod
    def unique_service() -> str:
        """Return a service name that no other test uses, so that tests may share one server."""
        return f"contract-{uuid.uuid4().hex[:12]}"

    def instance(self, service: str = "", instance_id: str = "one", port: int = 9090) -> ServiceInstance:
        """Return an instance with something in every field."""
        return ServiceInstance(
            service or self.unique_service(),
            "192.0.2.7",
            port,
            id=instance_id,
            metadata={"version": "1.2.3", "empty": "", "note": 'grüße "你好" 🚀 \\ / %41'},
            tags=("canary", "zone=eu-west-1", "z", "a"),
        )
