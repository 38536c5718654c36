"""The stop as a state machine: whatever happens in whatever order, the promises hold.

Hypothesis interleaves requests, health checks, faults of the registry, misbehaving observers and server steps, stops,
hurries and time. The clock counts who is busy (:mod:`tests.shutdown.exact_clock`), so every run is the same run.
"""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from registry_drain.clock import Deadline
from registry_drain.errors import RegistryDrainError
from registry_drain.phases import STOP_ORDER, Phase
from registry_drain.registries.base import Registration, RemovalOutcome
from registry_drain.shutdown import events
from registry_drain.shutdown.budget import StopBudget
from registry_drain.shutdown.observers import When
from registry_drain.shutdown.routine import StopRoutine
from registry_drain.testing.faults import (
    HANG,
    HANG_FOREVER,
    REFUSED,
    REPLY_LOST,
    TIMEOUT,
    UNAVAILABLE,
    Fault,
    Step,
    late,
    slow,
)
from registry_drain.testing.faulty_registry import FaultyRegistry
from tests.shutdown.stage import SERVER_STEPS, Stage, Task

# A registry that lies about its reads cannot be found out, so LIE is left to the tests that say so.
FAULTS = [UNAVAILABLE, TIMEOUT, REPLY_LOST, REFUSED, HANG, HANG_FOREVER, slow(0.7), late(0.7), late(12.0)]
TROUBLES = ["nothing", "raise", "exit", "hang", "slow", "late", "stop", "hurry"]
ROUNDING = 1e-6


class StopMachine(RuleBasedStateMachine):
    """One process from serving to stopped."""

    @initialize(
        grace_period=st.sampled_from([10.0, 30.0]),
        floor=st.sampled_from([0.0, 0.5, 2.0]),
        quiet_period=st.sampled_from([0.0, 1.0]),
        registries=st.integers(0, 2),
    )
    def begin(self, grace_period: float, floor: float, quiet_period: float, registries: int) -> None:
        """Start a server and register it."""
        self.stage = Stage()
        self.budget = StopBudget(grace_period=grace_period, floor=floor, quiet_period=quiet_period)
        self.routine: StopRoutine = self.stage.routine(self.budget)
        self.stage.server.start()
        self.registries = [self.stage.another_registry() for _ in range(registries)]
        self.registrations: list[tuple[FaultyRegistry, Registration]] = []
        for registry in self.registries:
            registration = registry.registration(self.stage.instance())
            registration.register(Deadline.after(1.0, self.stage.clock))
            self.routine.notifier.add_first(registration)
            self.registrations.append((registry, registration))
        self.requests: dict[str, Task[None]] = {}
        self.observers: list[str] = []
        self.stop_at = self.hurry_at = -1.0
        self.stops: list[Task[object]] = []
        self.was_gone: set[int] = set()

    # --- what can happen --------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.0, 0.05, 0.6, 3.1, 20.0, 500.0]), is_health_check=st.booleans())
    def request_arrives(self, seconds: float, is_health_check: bool) -> None:
        """A request begins, as long as anybody can connect. (After the drain nobody can, if cutting off works.)"""
        if self.stage.server.is_listening and self.routine.phase.value <= Phase.DRAINING.value:
            name = f"request {len(self.requests)}"
            self.requests[name] = self.stage.server.request(name, seconds, is_health_check=is_health_check)

    @rule(seconds=st.sampled_from([0.01, 0.3, 1.1, 2.5, 6.0]))
    def time_passes(self, seconds: float) -> None:
        """Whatever is due happens in between, in order."""
        self.stage.clock.sleep(seconds)

    @rule(
        number=st.integers(0, 1),
        step=st.sampled_from(list(Step)),
        fault=st.sampled_from(FAULTS),
        times=st.none() | st.integers(1, 3),
    )
    def registry_gets_worse(self, number: int, step: Step, fault: Fault, times: int | None) -> None:
        """One of them, at one of its steps."""
        if number < len(self.registries):
            self.registries[number].faults.add(step, fault, times=times)

    @rule(number=st.integers(0, 1))
    def registry_gets_well(self, number: int) -> None:
        """What hung goes on."""
        if number < len(self.registries):
            self.registries[number].faults.clear()
            self.registries[number].release()

    @rule(number=st.integers(0, 1))
    def somebody_tries_to_register_again(self, number: int) -> None:
        """A heartbeat, a session that expired, a reconnect hook: in a thread of its own."""
        if number < len(self.registrations):
            registration = self.registrations[number][1]

            def register() -> None:
                try:
                    registration.register(Deadline.after(2.0, self.stage.clock))
                except RegistryDrainError:
                    return

            self.stage.spawn(register)

    @precondition(lambda self: not self.routine.is_stopping)
    @rule(
        trouble=st.sampled_from(TROUBLES),
        when=st.sampled_from(list(When)),
        limit=st.sampled_from([None, None, 0.1, 0.5]),
    )
    def observer_is_added(self, trouble: str, when: When, limit: float | None) -> None:
        """Of any temper."""
        if len(self.observers) < 3:
            name = f"observer {len(self.observers)}"
            self.routine.notifier.add(self._troubled(trouble, name), name=name, when=when, time_limit=limit)
            self.observers.append(name)

    @precondition(lambda self: not self.routine.is_stopping)
    @rule(step=st.sampled_from(SERVER_STEPS), trouble=st.sampled_from(TROUBLES))
    def server_goes_wrong(self, step: str, trouble: str) -> None:
        """At one of its steps."""
        self.stage.server.before[step] = self._troubled(trouble, f"troubled {step}")

    def _troubled(self, trouble: str, name: str) -> Callable[[], object]:
        def fail() -> None:
            raise RuntimeError("broken")

        def leave() -> None:
            raise SystemExit(1)

        acts: dict[str, Callable[[], object]] = {
            "nothing": lambda: None,
            "raise": fail,
            "exit": leave,
            "hang": self.stage.hang,
            "slow": self.stage.lasting(0.3),
            "late": self.stage.lasting(15.0),
            "stop": lambda: self.routine.stop("from inside"),
            "hurry": self._hurry,
        }

        def act() -> None:
            self.stage.note(name)
            acts[trouble]()

        return act

    @rule()
    def somebody_stops(self) -> None:
        """In a thread of its own, that waits for the end."""
        if len(self.stops) < 4:
            if not self.routine.is_stopping:
                self.stop_at = self.stage.clock.now()
            self.stops.append(self.stage.spawn(lambda: self.routine.stop("somebody")))
            self.stage.clock.settle()

    @rule()
    def somebody_hurries(self) -> None:
        """The second signal, or the first thing that happens."""
        self._hurry()
        self.stage.clock.settle()

    def _hurry(self) -> None:
        now = self.stage.clock.now()
        if not self.routine.is_stopping:
            self.stop_at = now
        if self.hurry_at < 0:
            self.hurry_at = now
        self.routine.hurry("hurry")

    # --- what always holds ------------------------------------------------------------------------------------------

    @invariant()
    def phases_come_in_order_each_once(self) -> None:
        """Started and ended in pairs, none left out, none twice."""
        self.stage.clock.settle()
        seen = [
            (type(event), event.phase)
            for event in self.stage.events
            if isinstance(event, events.PhaseStarted | events.PhaseEnded)
        ]
        order = [(kind, phase) for phase in STOP_ORDER for kind in (events.PhaseStarted, events.PhaseEnded)]
        assert seen == order[: len(seen)]
        assert [each.phase for each in self.routine.report.phases] == list(STOP_ORDER[: len(seen) // 2])

    @invariant()
    def every_phase_ends_in_its_time(self) -> None:
        """Those that have ended by what was planned, and the one under way is not late."""
        for each in self.routine.report.phases:
            assert each.actual <= each.planned + ROUNDING, str(self.routine.report)
        if self.routine.is_stopping:
            elapsed = self.routine.report.elapsed
            assert elapsed <= self.budget.grace_period - self.budget.part("margin") + ROUNDING

    @invariant()
    def the_listener_outlives_the_listing(self) -> None:
        """While a registry lists us, and we have not given up on it, callers can connect."""
        if not self.stage.server.is_listening:
            assert self.routine.phase.value >= Phase.CLOSING.value

    @invariant()
    def nothing_comes_back(self) -> None:
        """Once out of a registry after the stop has begun, never in again."""
        for index, (registry, _) in enumerate(self.registrations):
            is_listed = bool(registry.cluster.entries())
            assert not (is_listed and index in self.was_gone)
            if self.routine.is_stopping and not is_listed:
                self.was_gone.add(index)

    @invariant()
    def no_request_is_lost_in_silence(self) -> None:
        """Each is served, still in flight, or named among those cut off."""
        done = {name for name, task in self.requests.items() if task.is_done}
        served = set(self.stage.server.served)
        cut = {each.name for each in self.routine.report.cut_off}
        if self.routine.phase.value > Phase.DRAINING.value:
            assert done - served <= cut
            # What an adapter failed to cut off goes on while the process lasts, but nobody may count on it.
            assert not served & cut or "cut_off" in self.stage.server.before
        elif self.routine.phase is not Phase.DRAINING:
            assert done <= served
            assert not cut

    @invariant()
    def whoever_stopped_waits_for_the_end(self) -> None:
        """And gets the one complete report."""
        for task in self.stops:
            if task.is_done:
                assert self.routine.phase is Phase.STOPPED
                assert task.result() == self.routine.report

    def teardown(self) -> None:
        """Stop, if nobody did, and look at the whole."""
        if not hasattr(self, "stage"):
            return
        try:
            self._end()
        finally:
            self.stage.close()

    def _end(self) -> None:
        stage, routine, budget = self.stage, self.routine, self.budget
        if not routine.is_stopping:
            self.stop_at = stage.clock.now()
        report = routine.stop("teardown")
        for check in (
            self.phases_come_in_order_each_once,
            self.every_phase_ends_in_its_time,
            self.nothing_comes_back,
            self.no_request_is_lost_in_silence,
            self.whoever_stopped_waits_for_the_end,
        ):
            check()
        assert report.is_complete
        assert [each.phase for each in report.phases] == list(STOP_ORDER)
        assert {each.name for each in report.observers} == set(self.observers)
        assert [name for name in self.observers if name not in stage.journal] == []
        assert [step for step in SERVER_STEPS if step not in stage.journal] == []
        assert len(report.removals) == len(self.registrations)
        for removal, (registry, _) in zip(report.removals, self.registrations, strict=True):
            if removal.outcome is RemovalOutcome.CONFIRMED:
                assert not registry.cluster.entries()
        if self.hurry_at >= 0 and self.hurry_at >= self.stop_at:
            # Deregister, close, cut off and notify, each from the hurry or from its own begin on.
            bound = budget.hurried_deregister + budget.part("closing") + 0.5 + budget.hurried_notify
            assert self.stop_at + report.elapsed <= max(self.hurry_at, self.stop_at) + bound + ROUNDING
        assert report.is_clean == (report.exit_code == 0)


TestStop = StopMachine.TestCase
TestStop.settings = settings(
    max_examples=150,
    stateful_step_count=30,
    deadline=None,
    # The same examples everywhere and always: a failure is a change's, not the day's.
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
