"""The fake registry keeps every promise, and breaks each one on request."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from registry_drain.clock import Clock, Deadline
from registry_drain.errors import (
    LiveOwnerError,
    PermissionRefusedError,
    RegistryTimeoutError,
    RegistryUnavailableError,
)
from registry_drain.instance import ServiceInstance
from registry_drain.registries.base import RemovalOutcome
from registry_drain.testing.bench import Call, until
from registry_drain.testing.clock import FakeClock
from registry_drain.testing.faults import (
    HANG,
    HANG_FOREVER,
    LIE,
    REFUSED,
    REPLY_LOST,
    TIMEOUT,
    UNAVAILABLE,
    Fault,
    Step,
    late,
    slow,
)
from registry_drain.testing.faulty_registration import FaultyRegistration
from registry_drain.testing.faulty_registry import FaultyRegistry
from registry_drain.testing.memory_cluster import MemoryCluster
from registry_drain.testing.registry_contract import RegistryContract


class TestFaultyRegistry(RegistryContract):
    """Without faults it passes the contract, on the real clock."""

    @pytest.fixture(autouse=True)
    def _one_cluster_per_test(self) -> None:
        self.cluster = MemoryCluster()

    def new_registry(self) -> FaultyRegistry:
        """Return one more object on this test's cluster."""
        return FaultyRegistry(self.clock, cluster=self.cluster)

    def start_doomed_owner(self, instance: ServiceInstance) -> Callable[[], None]:
        """Register, and let the cluster forget the owner on demand."""
        self.new_registry().registration(instance).register(self.bench().deadline())
        return lambda: self.cluster.kill_owner(instance.service, instance.id)


class TestFaultyRegistryOnAFakeClock(TestFaultyRegistry):
    """Without faults it passes the contract, on the fake clock."""

    clock: Clock = FakeClock()


ONE = ServiceInstance("calculator", "192.0.2.7", 9090, "one")


@pytest.fixture
def clock() -> FakeClock:
    """Return a clock that costs no time."""
    return FakeClock()


@pytest.fixture
def registry(clock: FakeClock) -> Iterator[FaultyRegistry]:
    """Return a registry without faults."""
    registry = FaultyRegistry(clock)
    yield registry
    registry.close()


def registered(registry: FaultyRegistry) -> FaultyRegistration:
    """Return a registered instance."""
    registration = registry.registration(ONE)
    registration.register(Deadline.after(5, registry.clock))
    return registration


@pytest.mark.parametrize(
    ("fault", "error", "is_listed"),
    [
        (UNAVAILABLE, RegistryUnavailableError, False),
        (TIMEOUT, RegistryTimeoutError, False),
        (REPLY_LOST, RegistryTimeoutError, True),
        (REFUSED, PermissionRefusedError, False),
        (HANG, RegistryTimeoutError, False),
        (slow(9), RegistryTimeoutError, False),
        (slow(1), None, True),
        (late(9), None, True),
        (LIE, None, False),
    ],
    ids=repr,
)
def test_faults_of_a_write(
    registry: FaultyRegistry, fault: Fault, error: type[Exception] | None, is_listed: bool
) -> None:
    """Each fault raises what it says, has the effect it says, and passes the time it says."""
    registry.faults.add(Step.WRITE, fault)
    registration = registry.registration(ONE)
    began_at = registry.clock.now()
    call = Call(lambda: registration.register(Deadline.after(5, registry.clock))).ended(10, "register()")
    took = registry.clock.now() - began_at
    assert type(call.error) is (error or type(None))
    assert registration.is_registered is (error is None)
    assert bool(registry.cluster.entries()) is is_listed
    assert took == pytest.approx(min(fault.delay, 9 if fault.ignores_deadline else 5))
    if error is not None:
        assert "one (192.0.2.7:9090)" in str(call.error)


@pytest.mark.parametrize("step", [Step.DELETE, Step.READ])
@pytest.mark.parametrize("fault", [UNAVAILABLE, TIMEOUT, REPLY_LOST, HANG, LIE], ids=repr)
def test_a_removal_that_keeps_failing_is_unconfirmed(registry: FaultyRegistry, step: Step, fault: Fault) -> None:
    """A removal or a proof that fails for the whole deadline never ends CONFIRMED, unless the read lies too."""
    registration = registered(registry)
    registry.faults.add(step, fault)
    began_at = registry.clock.now()
    removal = registration.on_shutdown(Deadline.after(5, registry.clock))
    assert registry.clock.now() - began_at <= 5.001
    if (step, fault) == (Step.READ, LIE):
        assert removal.outcome is RemovalOutcome.CONFIRMED
    else:
        assert removal.outcome is RemovalOutcome.UNCONFIRMED
        assert removal.detail
        assert removal.confirmed_at is None
    assert bool(registry.cluster.entries()) is (step is Step.DELETE and fault is not REPLY_LOST)


@pytest.mark.parametrize("skip", range(4))
def test_a_fault_at_every_step_is_survived(registry: FaultyRegistry, skip: int) -> None:
    """One failing request, whichever it is, is retried: the removal is confirmed all the same."""
    registration = registered(registry)
    for step in (Step.DELETE, Step.READ):
        registry.faults.add(step, UNAVAILABLE, skip=skip, times=1)
    removal = registration.on_shutdown(Deadline.after(5, registry.clock))
    assert removal.outcome is RemovalOutcome.CONFIRMED
    assert removal.attempts == {0: 3, 1: 1}.get(skip, 1)


def test_refused_removal(registry: FaultyRegistry) -> None:
    """A refusal is not retried and is named as one."""
    registration = registered(registry)
    registry.faults.add(Step.DELETE, REFUSED)
    removal = registration.on_shutdown(Deadline.after(5, registry.clock))
    assert (removal.outcome, removal.attempts) == (RemovalOutcome.REFUSED, 1)


@pytest.mark.parametrize("step", list(Step))
def test_hang_forever_ends_with_release(registry: FaultyRegistry, step: Step) -> None:
    """A request that knows no deadline hangs until the test releases it, and never resurrects."""
    registration = registry.registration(ONE)
    if step is not Step.WRITE:
        registration.register(Deadline.after(5, registry.clock))
    registry.faults.add(step, HANG_FOREVER, times=1)
    call: Call[object]
    if step is Step.WRITE:
        call = Call(lambda: registration.register(Deadline.after(5, registry.clock)))
        until(lambda: bool(registry._hanging), 10, "register() hangs")
        registration.on_shutdown(Deadline.after(1, registry.clock))
    else:
        call = Call(lambda: registration.on_shutdown(Deadline.after(5, registry.clock)))
        until(lambda: bool(registry._hanging), 10, "on_shutdown() hangs")
    call.join(0.05)
    assert call.is_alive()
    registry.release()
    call.ended(10, "the call that was released")
    assert not registry.cluster.entries()


def test_a_hanging_register_is_cancelled_by_the_fence(registry: FaultyRegistry, clock: FakeClock) -> None:
    """HANG keeps to deadlines and to the fence: it is cancelled, not waited for."""
    clock_without_jumps = FakeClock(autojump=False)
    registry = FaultyRegistry(clock_without_jumps)
    registry.faults.add(Step.WRITE, HANG)
    registration = registry.registration(ONE)
    call = Call(lambda: registration.register(Deadline.after(5, clock_without_jumps)))
    until(lambda: bool(registry._hanging), 10, "register() hangs")
    registration.fence(Deadline.after(5, clock_without_jumps))
    assert isinstance(call.ended(10, "register()").error, LiveOwnerError)
    assert clock_without_jumps.now() == clock.now()


def test_errors_of_the_calls_themselves(registry: FaultyRegistry) -> None:
    """A backend that breaks the protocol: fence and on_shutdown raise what the test asks for."""
    registration = registered(registry)
    registry.faults.add(Step.ON_SHUTDOWN, UNAVAILABLE, times=1)
    with pytest.raises(RegistryUnavailableError):
        registration.on_shutdown(Deadline.after(5, registry.clock))
    registry.faults.add(Step.FENCE, UNAVAILABLE)
    with pytest.raises(RegistryUnavailableError):
        registration.fence(Deadline.after(5, registry.clock))
    registry.faults.clear()
    assert registration.on_shutdown(Deadline.after(5, registry.clock)).outcome is RemovalOutcome.CONFIRMED


def test_any_step_can_be_counted(registry: FaultyRegistry) -> None:
    """A rule for any step counts requests of all kinds, and of two rules the later one counts."""
    registry.faults.add(None, UNAVAILABLE, skip=1)
    registry.faults.add(Step.READ, REFUSED, times=1)
    registration = registered(registry)
    assert [request.step for request in registry.requests] == [Step.WRITE]
    with pytest.raises(PermissionRefusedError):
        registry.entries(None, Deadline.after(5, registry.clock))
    with pytest.raises(RegistryUnavailableError):
        registry.entries(None, Deadline.after(5, registry.clock))
    assert [request.fault for request in registry.requests] == [None, REFUSED, UNAVAILABLE]
    registry.faults.clear()
    registration.on_shutdown(Deadline.after(5, registry.clock))


def test_operator_removal_under_faults(registry: FaultyRegistry) -> None:
    """Before anything was sent an outage is an error; afterwards it is an unconfirmed removal; a lost reply is none."""
    registered(registry)
    registry.cluster.kill_owner("calculator", "one")
    (entry,) = registry.cluster.entries()
    registry.faults.add(Step.READ, UNAVAILABLE)
    with pytest.raises(RegistryUnavailableError):
        registry.remove(entry, Deadline.after(1, registry.clock))
    registry.faults.clear()
    registry.faults.add(Step.READ, UNAVAILABLE, skip=1)
    assert registry.remove(entry, Deadline.after(1, registry.clock)).outcome is RemovalOutcome.UNCONFIRMED
    registry.faults.clear()
    entry = registry.cluster.put(replace(entry, is_live=False))
    registry.faults.add(Step.DELETE, REPLY_LOST, times=1)
    removal = registry.remove(entry, Deadline.after(5, registry.clock))
    assert (removal.outcome, removal.attempts) == (RemovalOutcome.CONFIRMED, 2)


def test_repr_shows_the_state(registry: FaultyRegistry) -> None:
    """A failing test's output says what is listed and asked."""
    registration = registered(registry)
    assert repr(registry) == "<FaultyRegistry listed=1 requests=1>"
    assert repr(registration) == "<FaultyRegistration one (192.0.2.7:9090) registered>"
    assert repr(HANG) == "<Fault hang>"
    watch = registry.watch("calculator", Deadline.after(5, registry.clock))
    assert repr(watch) == "<MemoryWatch calculator instances=1>"
