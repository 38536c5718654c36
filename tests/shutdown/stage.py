"""What the tests of the stop play on: a clock, a server, a registry, and a journal of what happened when."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar, cast

from registry_drain.clock import Deadline
from registry_drain.instance import ServiceInstance
from registry_drain.phases import Phase
from registry_drain.servers.base import DrainableServer, ListenerClosure
from registry_drain.servers.in_flight import InFlight, InFlightRequest
from registry_drain.shutdown.budget import StopBudget
from registry_drain.shutdown.events import Event
from registry_drain.shutdown.report import PhaseReport, ShutdownReport
from registry_drain.shutdown.routine import StopRoutine
from registry_drain.shutdown.watchdog import Watchdog
from registry_drain.testing.faulty_registry import FaultyRegistry
from tests.shutdown.exact_clock import ExactClock
from tests.support.processes import eventually

T = TypeVar("T")

SERVER_STEPS = ("close_listener", "drain", "cut_off")


class Task(Generic[T]):
    """A call in a thread of the test's; ``result`` waits for it on the clock."""

    def __init__(self, clock: ExactClock, call: Callable[[], T]) -> None:
        """Begin."""
        self._clock = clock
        self._done = threading.Event()
        self._call = call
        self._value: list[T] = []
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, name="task")
        self.thread.start()

    def _run(self) -> None:
        try:
            self._value.append(self._call())
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            self.error = error
        self._done.set()

    @property
    def is_done(self) -> bool:
        """Whether it has ended."""
        return self._done.is_set()

    def result(self) -> T:
        """Wait, and return what the call returned, or raise what it raised."""
        self._clock.wait(self._done)
        if self.error is not None:
            raise self.error
        return self._value[0]


@dataclass
class Stage:
    """One process with one server, on one clock. ``close`` lets go of everything that hangs."""

    clock: ExactClock = field(default_factory=ExactClock)

    def __post_init__(self) -> None:
        """Set up; nothing runs yet."""
        self.released = threading.Event()
        self.started_at = self.clock.now()
        self.journal: list[str] = []
        self.events: list[Event] = []
        self.server = FakeServer(self)
        self.registry = FaultyRegistry(self.clock)
        self.exits: list[int] = []
        self._watchdogs: list[Watchdog] = []
        self.watchdog = self.new_watchdog(self.exits.append)
        self._registries = [self.registry]
        self._routines: list[StopRoutine] = []

    @property
    def elapsed(self) -> float:
        """Virtual seconds since the stage was set."""
        return self.clock.now() - self.started_at

    def note(self, what: str) -> None:
        """Write into the journal."""
        self.journal.append(what)

    def noting(self, what: str) -> Callable[[], None]:
        """Return an observer that writes into the journal."""
        return lambda: self.note(what)

    def hang(self) -> None:
        """Hang until the stage is closed."""
        self.clock.wait(self.released)

    def hanging(self, what: str) -> Callable[[], None]:
        """Return an observer that writes into the journal, and hangs."""

        def hang() -> None:
            self.note(what)
            self.hang()

        return hang

    def lasting(self, seconds: float, what: str = "") -> Callable[[], None]:
        """Return an observer that needs ``seconds``, whatever its deadline, and then writes ``what``, if given."""

        def last() -> None:
            self.clock.wait(self.released, seconds)
            if what:
                self.note(what)

        return last

    def spawn(self, call: Callable[[], T]) -> Task[T]:
        """Call something in another thread."""
        return Task(self.clock, call)

    def after(self, seconds: float, call: Callable[[], object]) -> Task[None]:
        """Call something ``seconds`` from now, in another thread, unless the stage is closed first."""

        def later() -> None:
            if not self.clock.wait(self.released, seconds):
                call()

        return self.spawn(later)

    def another_registry(self) -> FaultyRegistry:
        """Return a second registry, with faults of its own."""
        registry = FaultyRegistry(self.clock)
        self._registries.append(registry)
        return registry

    def routine(self, budget: StopBudget | None = None, *, has_watchdog: bool = False) -> StopRoutine:
        """Return a stop of the server."""
        routine = StopRoutine(
            self.server,
            budget=budget,
            clock=self.clock,
            sinks=[self.events.append],
            watchdog=self.watchdog if has_watchdog else None,
        )
        self._routines.append(routine)
        return routine

    def adopt(self, routine: StopRoutine) -> None:
        """Wait for this one too when the stage is closed."""
        self._routines.append(routine)

    def new_watchdog(self, exit_process: Callable[[int], None]) -> Watchdog:
        """Return a watchdog that is disarmed when the stage is closed."""
        self._watchdogs.append(Watchdog(exit_process))
        return self._watchdogs[-1]

    def instance(self, name: str = "calculator-1") -> ServiceInstance:
        """Return what is listed under this id."""
        return ServiceInstance("calculator", "10.0.0.7", 9090, name)

    def register(
        self, routine: StopRoutine, name: str = "calculator-1", registry: FaultyRegistry | None = None
    ) -> None:
        """List an instance, and let the stop remove it."""
        registration = (registry or self.registry).registration(self.instance(name))
        registration.register(Deadline.after(1.0, self.clock))
        routine.notifier.add_first(registration)

    def listed(self) -> set[str]:
        """Return the ids that any registry lists."""
        return {entry.id for registry in self._registries for entry in registry.cluster.entries()}

    def close(self) -> None:
        """Let go of everything that hangs, and wait until its threads have ended."""
        for watchdog in self._watchdogs:
            watchdog.disarm()
        self.released.set()
        self.server.cut.set()
        for registry in self._registries:
            registry.faults.clear()
            registry.close()
        for routine in self._routines:
            if routine.is_stopping:
                routine.wait()
        self.clock.sleep(60.0)  # who still tries to remove something gives up
        ours = [each for each in threading.enumerate() if each.name.startswith(("registry-drain", "task"))]

        def are_gone() -> bool:
            for registry in self._registries:
                registry.release()  # a hang may be followed by another one, begun before the faults were cleared
            return not any(each.is_alive() for each in ours)

        eventually(are_gone, because="the threads of the stage end")


class FakeServer:
    """A server without sockets, which notes what is asked of it, and can be told to fail at each step.

    Attributes:
        before: called first in the step of that name; may raise, hang or take time.
        address: what ``start`` says it is bound to.
    """

    def __init__(self, stage: Stage) -> None:
        """Not started."""
        self._stage = stage
        self.in_flight = InFlight(clock=stage.clock)
        self.before: dict[str, Callable[[], object]] = {}
        self.answers: dict[str, object] = {}
        self.address = ("127.0.0.1", 9090)
        self.is_listening = False
        self.cut = threading.Event()
        self.served: list[str] = []

    def _enter(self, step: str) -> None:
        self._stage.note(step)
        self.before.get(step, lambda: None)()

    def start(self) -> tuple[str, int]:
        """Listen."""
        self._enter("start")
        self.is_listening = True
        return self.address

    def close_listener(self, deadline: Deadline) -> ListenerClosure:
        """Stop listening."""
        del deadline
        self._enter("close_listener")
        self.is_listening = False
        return cast("ListenerClosure", self.answers.get("close_listener", ListenerClosure("nothing to close")))

    def drain(self, deadline: Deadline) -> bool:
        """Wait for the requests."""
        self._enter("drain")
        return bool(self.answers.get("drain", True)) and self.in_flight.wait_until_idle(deadline)

    def cut_off(self) -> tuple[InFlightRequest, ...]:
        """End every request."""
        self._enter("cut_off")
        self.is_listening = False
        left = self.in_flight.snapshot()
        self.cut.set()
        return left

    def request(self, name: str, seconds: float, *, is_health_check: bool = False) -> Task[None]:
        """Serve a request that takes ``seconds``, in a thread of its own; it is in flight when this returns."""
        begun = threading.Event()

        def serve() -> None:
            with self.in_flight.track(name, peer="10.0.0.9:5000", is_health_check=is_health_check):
                begun.set()
                if not self._stage.clock.wait(self.cut, seconds):
                    self.served.append(name)

        task = self._stage.spawn(serve)
        begun.wait()
        return task


_server: type[DrainableServer] = FakeServer


def phase_report(report: ShutdownReport, phase: Phase) -> PhaseReport:
    """Return what the report says of one phase, which must stand there once."""
    (found,) = (each for each in report.phases if each.phase is phase)
    return found
