"""The stop itself: one thread passes through the phases, on one screen: see :meth:`StopRoutine._run`.

Theory of operation: everything that the routine calls (registrations, the server, observers) runs in bounded threads
(:mod:`registry_drain.shutdown.bounded`), so that each step ends by its deadline whatever it calls does. ``_nudge``
wakes the routine when such a call ends or somebody hurries it. State is written by the stop's thread alone, under
``_lock`` where others read it.

Rules: phases come in order, each once. Whatever becomes of one, the next begins. What failed, hung or was late is said
in the report, by name. After the stop has begun the instance is never registered again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TypeVar

from registry_drain.clock import SYSTEM_CLOCK, Clock, Deadline
from registry_drain.errors import ConfigurationError
from registry_drain.phases import STOP_ORDER, Outcome, Phase
from registry_drain.registries.base import Removal, RemovalOutcome
from registry_drain.servers.base import DrainableServer
from registry_drain.servers.in_flight import InFlightRequest
from registry_drain.shutdown import events
from registry_drain.shutdown.bounded import BoundedCall, StopThread
from registry_drain.shutdown.budget import Ledger, StopBudget
from registry_drain.shutdown.observers import ObserverResult, ShutdownNotifier, SoftDrainResult, When, result_of
from registry_drain.shutdown.report import CutOffRequest, LateArrivals, PhaseReport, ShutdownReport
from registry_drain.shutdown.watchdog import Watchdog

T = TypeVar("T")
_Step = Callable[[Deadline], tuple[Outcome, str]]

_CUT_OFF_RESERVE = 0.5
"""Seconds kept for closing what is left. They are the drain's last, and a twentieth of it if that is less: a drain
that takes all of its time must not reach into the observers' reserve. All that a hurried stop gives it, too."""
_CUT_OFF_LIMIT = 2.5
"""Seconds at most for it where the drain has left more: thousands of threads that end need up to 2 s."""


class StopRoutine:
    """Stops one server, once. Every method may be called from any thread; none but ``stop`` and ``wait`` blocks.

    Args:
        server: what is drained.
        budget: how long everything may take.
        notifier: who is told; made from the budget if None.
        clock: measures and passes all time.
        sinks: are told each event; default: the log.
        watchdog: ends the process if the stop does not end, None (default) if the process is not ours to end.
        soft_drain: seconds for which instances stay listed, out of rotation, before they are removed. They are part of
            the budget's ``deregister``, of which half is left for the removal. 0 (default): no soft drain.

    Raises:
        ConfigurationError: ``soft_drain`` is more than half of ``deregister``.
    """

    def __init__(
        self,
        server: DrainableServer,
        *,
        budget: StopBudget | None = None,
        notifier: ShutdownNotifier | None = None,
        clock: Clock = SYSTEM_CLOCK,
        sinks: Iterable[events.EventSink] = (events.log_event,),
        watchdog: Watchdog | None = None,
        soft_drain: float = 0.0,
    ) -> None:
        """Serve until told to stop; nothing starts yet."""
        self._server = server
        self._budget = budget or StopBudget()
        self._soft_drain = check_soft_drain(soft_drain, self._budget)
        self.notifier = notifier or ShutdownNotifier(reserved=self._budget.part("notify"))
        self._clock = clock
        self._sinks = tuple(sinks)
        self._watchdog = watchdog

        self._lock = threading.Lock()
        self._phase = Phase.SERVING
        self._reason = ""
        self._started_at = 0.0
        self._phases: list[PhaseReport] = []
        self._final: ShutdownReport | None = None

        self._phase_started_at = 0.0
        self._hurried_at: float | None = None
        self._requested = threading.Event()
        self._hurried = threading.Event()
        self._nudge = threading.Event()
        self._finished = threading.Event()

        self._soft_drains: list[BoundedCall[object]] = []
        self._leaving: list[BoundedCall[Removal]] = []
        self._leaving_again: dict[int, BoundedCall[Removal]] = {}
        self._gone_at: float | None = None
        self._arrivals_when_gone = 0
        self._listener = ""
        self._draining: list[BoundedCall[object]] = []
        self._left_to_tell: list[BoundedCall[object]] = []
        self._drained: list[ObserverResult] = []
        self._cut_off: tuple[CutOffRequest, ...] = ()
        self._handed_over_to: int | None = None

    # --- what others see and say ------------------------------------------------------------------------------------

    @property
    def phase(self) -> Phase:
        """Where the stop is."""
        return self._phase

    @property
    def is_stopping(self) -> bool:
        """Whether the stop has begun: readiness checks should answer no. Requests are still served for a while."""
        return self._requested.is_set()

    @property
    def requested(self) -> threading.Event:
        """Set when the stop begins. Wait for it; do not set it."""
        return self._requested

    @property
    def report(self) -> ShutdownReport:
        """The report so far; complete, and the same for everybody, once the phase is STOPPED."""
        with self._lock:
            final, phase = self._final, self._phase
        return final or self._report_in(phase)

    def _report_in(self, phase: Phase) -> ShutdownReport:
        with self._lock:
            phases = tuple(self._phases)
        return ShutdownReport(
            reason=self._reason,
            phase=phase,
            grace_period=self._budget.grace_period,
            elapsed=self._clock.now() - self._started_at if phase.is_stopping else 0.0,
            is_hurried=self._hurried.is_set(),
            phases=phases,
            removals=tuple(self._removals()),
            listener=self._listener,
            late_arrivals=self._late_arrivals(),
            cut_off=self._cut_off,
            observers=(*(result_of(call, When.DRAINING_STARTS) for call in self._draining), *self._drained),
            handed_over_to=self._handed_over_to,
            soft_drains=tuple(_soft_drain_of(call) for call in self._soft_drains),
        )

    def request_stop(self, reason: str) -> None:
        """Begin the stop, if it has not begun; returns at once. Not for signal handlers: it starts a thread."""
        with self._lock:
            if self._requested.is_set():
                return
            self._reason = reason
            self._started_at = self._clock.now()
            self._requested.set()
        # Not a daemon: a main thread that returns early must not cut the stop short.
        thread = StopThread(self._run, name="registry-drain-stop", daemon=False, stop=self)
        try:
            thread.start()
        except RuntimeError:
            # The process may have no more threads. A stop that keeps its caller waiting is better than none.
            self._run()

    @property
    def handed_over_to(self) -> int | None:
        """The process that serves in our place; None unless a hand-over has succeeded."""
        return self._handed_over_to

    def hand_over_to(self, pid: int) -> None:
        """Begin the stop, if it has not begun: process ``pid`` listens on our sockets and is registered in our place.

        The caller has seen to both. Callers need not notice anything, so that nothing is waited for.
        """
        self._handed_over_to = pid
        self._emit(events.HandedOver(pid))
        self.request_stop(f"handed over to pid {pid}")

    def stop(self, reason: str = "stop() was called") -> ShutdownReport:
        """Stop, or join the stop under way, and return its report when it has ended.

        Called from inside a request handler or an observer it returns at once, with the report so far: the stop waits
        for that caller, so the caller cannot wait for the stop.
        """
        self.request_stop(reason)
        me = threading.current_thread()
        is_waited_for = isinstance(me, StopThread) and self in me.waited_for_by
        if not (is_waited_for or self._server.in_flight.holds_current_thread()):
            self.wait()
        return self.report

    def hurry(self, reason: str) -> None:
        """Skip every wait: deregister and notify within short bounds, cut off what is in flight; stop if need be."""
        with self._lock:
            if self._hurried.is_set() or self._finished.is_set():
                return
            self._hurried_at = self._clock.now()
            self._hurried.set()
        # Only now: a stop that begins with this is hurried from its first step on.
        self.request_stop(reason)
        # What is in flight learns it now; the phase stays the stop's thread's to tell.
        self._server.in_flight.stop_state.hurry(self._hurried_at)
        self._nudge.set()
        self._emit(events.StopHurried(reason))

    def wait(self, timeout: float | None = None) -> ShutdownReport | None:
        """Wait until the stop has ended, at most ``timeout`` seconds; return its report, or None if it has not."""
        return self.report if self._clock.wait(self._finished, timeout) else None

    def tell(self, event: events.Event) -> None:
        """Tell the sinks of something that happened around the stop."""
        self._emit(event)

    def report_displaced(self, signal_name: str, handler: str) -> None:
        """Tell the sinks that somebody displaced our signal handler."""
        self._emit(events.SignalHandlerDisplaced(signal_name, handler))

    def __repr__(self) -> str:
        """Show the phase, and once stopping what is left of requests and time."""
        phase = self._phase
        text = f"<StopRoutine {phase.name} in_flight={self._server.in_flight.count}"
        if phase.is_stopping and phase is not Phase.STOPPED:
            text += f" remaining={self._started_at + self._budget.grace_period - self._clock.now():.1f}s"
        return f"{text}>"

    # --- the stop ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        self._arm_watchdog()
        self._emit(events.StopRequested(self._reason, self._budget.grace_period))
        self.notifier.close()
        ledger = Ledger(self._budget, self._started_at, self._clock)
        steps: dict[Phase, _Step] = {
            Phase.DEREGISTERING: self._deregister,
            Phase.PROPAGATING: self._propagate,
            Phase.CLOSING: self._close_listener,
            Phase.DRAINING: self._drain,
            Phase.NOTIFYING: self._notify,
        }
        for phase in STOP_ORDER:
            self._pass_through(phase, steps[phase], ledger)
        # What ends later, in a thread that was left behind, changes neither the report nor the exit code any more.
        final = self._report_in(Phase.STOPPED)
        self._server.in_flight.stop_state.enter(Phase.STOPPED)
        with self._lock:
            self._phase, self._final = Phase.STOPPED, final
        self._finished.set()

    def _arm_watchdog(self) -> None:
        if self._watchdog is None:
            return
        deadline = Deadline(self._started_at + self._budget.watchdog, self._clock)
        room = self._budget.grace_period - self._budget.watchdog
        try:
            self._watchdog.arm(deadline, lambda: f"{self!r} overdue", room=room)
        except Exception:  # noqa: BLE001 - e.g. no more threads to be had; the stop matters more than its watchdog
            events.logger.exception("the watchdog cannot be armed; stopping without")

    def _pass_through(self, phase: Phase, step: _Step, ledger: Ledger) -> None:
        started_at = self._clock.now()
        with self._lock:
            self._phase = phase
            self._phase_started_at = started_at
        # A registry that elects a leader takes longer than deregistering may. Callers keep coming as long as it lists
        # us, so that we try on, and serve them meanwhile for as long as the drain can spare.
        is_in_doubt = phase is Phase.PROPAGATING and any(map(_is_in_doubt, self._removals()))
        deadline = ledger.deadline_in_doubt() if is_in_doubt else ledger.deadline(phase)
        planned = self._until(deadline).remaining()
        if phase is Phase.DRAINING:
            planned = min(planned + _CUT_OFF_RESERVE, deadline.remaining())  # what a hurry leaves
        self._server.in_flight.stop_state.enter(phase, self._cut_off_at(ledger))
        self._emit(events.PhaseStarted(phase, planned))
        try:
            outcome, detail = step(deadline)
        except Exception as error:  # noqa: BLE001 - an error of ours must not keep the later phases from running
            outcome, detail = Outcome.FAILED, f"{type(error).__name__}: {error}"
        report = PhaseReport(phase, planned, self._clock.now() - started_at, outcome, detail)
        with self._lock:
            self._phases.append(report)
        self._emit(events.PhaseEnded(phase, outcome, report.actual, detail))

    def _cut_off_at(self, ledger: Ledger) -> float:
        """Return when what is in flight will be cut off, as far as is known now; for those who serve it."""
        now = self._clock.now()
        return now if self._hurried.is_set() else max(ledger.deadline(Phase.DRAINING).at, now)

    def _leave_rotation(self, deadline: Deadline) -> None:
        """Take instances out of rotation, and give callers time to notice, if asked for; whatever fails, go on.

        What was handed over is somebody else's entry, and in a hurry the removal is all there is time for.
        """
        if not self._soft_drain or self._handed_over_to is not None or self._hurried.is_set():
            return
        until = deadline.capped(min(self._soft_drain, deadline.remaining() / 2))
        self._soft_drains = self.notifier.begin_soft_drain(until, self._nudge.set)
        self._await(self._soft_drains)
        # One that finds, when it looks, that its entry is to stay as it is has left nothing.
        self._soft_drains = [call for call in self._soft_drains if call.value is not False]
        for call in self._soft_drains:
            self._emit(events.LeftRotation(_soft_drain_of(call)))
        if any(call.outcome.is_fine for call in self._soft_drains):
            until.wait(self._hurried)

    def _deregister(self, deadline: Deadline) -> tuple[Outcome, str]:
        try:
            self._leave_rotation(deadline)
        except Exception:  # noqa: BLE001 - a registration of somebody's; its removal matters more
            events.logger.exception("the soft drain failed; removing at once")
        self._leaving = self.notifier.begin_first(self._until(deadline), self._nudge.set)
        self._await(self._leaving)
        removals = self._removals()
        for removal in removals:
            self._emit(events.InstanceRemoved(removal))
        if not removals:
            return Outcome.SKIPPED, "nothing is registered"
        # The instant of proof is the backend's; arrivals are counted a moment later, so at worst one too few is late.
        # An entry that another process keeps leads callers to the same address: nobody comes late there.
        ours = [removal for removal in removals if removal.outcome is not RemovalOutcome.HANDED_OVER]
        if not ours:
            return Outcome.COMPLETED, "handed over"
        now = self._clock.now()
        proofs = [now if removal.confirmed_at is None else removal.confirmed_at for removal in ours]
        self._arrivals_when_gone = self._server.in_flight.total
        self._gone_at = min(max(proofs), now)  # a backend that read another clock must not prolong the wait
        left = [removal.subject for removal in removals if not removal.is_gone]
        if not left:
            return Outcome.COMPLETED, ""
        is_late = any(not call.is_done for call in self._leaving)
        return Outcome.TIMED_OUT if is_late else Outcome.FAILED, f"not proven gone: {', '.join(left)}"

    def _removals(self) -> list[Removal]:
        """Return what is known by now of each registration."""
        again = {position: call.value for position, call in self._leaving_again.items()}
        return [again.get(position) or _removal_of(call) for position, call in enumerate(self._leaving)]

    def _propagate(self, deadline: Deadline) -> tuple[Outcome, str]:
        outcomes = {removal.outcome for removal in self._removals()}
        if outcomes <= {RemovalOutcome.NOT_REGISTERED}:
            return Outcome.SKIPPED, "nothing was registered"
        if outcomes <= {RemovalOutcome.NOT_REGISTERED, RemovalOutcome.HANDED_OVER}:
            return Outcome.SKIPPED, "handed over: callers find the same address"
        self._leaving_again = self.notifier.begin_again(self._leaving, deadline, self._nudge.set)
        awaited = set(self._leaving_again)
        gone_at = self._clock.now() if self._gone_at is None else self._gone_at
        while True:
            self._nudge.clear()
            if self._hurried.is_set():
                return Outcome.SKIPPED, "hurried"
            for position in [each for each in awaited if self._leaving_again[each].is_done]:
                awaited.discard(position)
                gone_at = self._note_late_removal(self._leaving_again[position].value, gone_at)
                deadline = deadline if awaited else deadline.capped(self._budget.part("ceiling"))
            last_arrival_at = self._server.in_flight.last_arrival_at
            due_at = gone_at + self._budget.floor
            if last_arrival_at is not None:
                due_at = max(due_at, last_arrival_at + self._budget.quiet_period)
            now = self._clock.now()
            if due_at <= now:
                return Outcome.COMPLETED, ""
            if deadline.is_past:
                return Outcome.TIMED_OUT, f"requests still arrived {now - (last_arrival_at or now):.3f} s ago"
            Deadline(min(due_at, deadline.at), self._clock).wait(self._nudge)

    def _note_late_removal(self, removal: Removal | None, gone_at: float) -> float:
        """Tell of a removal that was proven only now; return when all that is gone was."""
        if removal is None or not removal.is_gone:
            return gone_at
        self._emit(events.InstanceRemoved(removal))
        self._arrivals_when_gone = self._server.in_flight.total
        self._gone_at = max(gone_at, min(removal.confirmed_at or gone_at, self._clock.now()))
        if all(each.is_gone for each in self._removals()):
            # Callers were served until now, so that nothing is lost by it.
            deregistering = replace(self._phases[0], outcome=Outcome.COMPLETED, detail="proven while propagating")
            with self._lock:
                self._phases[0] = deregistering
        return self._gone_at

    def _close_listener(self, deadline: Deadline) -> tuple[Outcome, str]:
        closing = self._begin("close_listener", self._server.close_listener, deadline)
        self._await([closing])
        if closing.value is None:
            return closing.outcome, closing.detail
        closure = closing.value
        self._listener = closure.method
        if closure.is_clean:
            return Outcome.COMPLETED, ""
        return Outcome.TIMED_OUT, "connections still came in when the listener was closed"

    def _drain(self, deadline: Deadline) -> tuple[Outcome, str]:
        cutting_limit = min(_CUT_OFF_RESERVE, deadline.remaining() / 20)
        drained_by = Deadline(deadline.at - cutting_limit, self._clock)
        self._draining = self.notifier.begin_draining_starts(drained_by, self._nudge.set)
        drain = self._begin("drain", self._server.drain, drained_by)
        is_drained = self._let_finish(drain, drained_by)
        self._await(self._draining)
        # A hurried drain does not wait for these; that is made good in what is left of ``hurried_notify``.
        self._left_to_tell = [call for call in self._draining if not call.is_over]
        self._say_told([call for call in self._draining if call not in self._left_to_tell])
        failure = drain.detail  # before what hangs is freed by the cut-off
        most = _CUT_OFF_RESERVE if self._hurried.is_set() else _CUT_OFF_LIMIT
        cutting = self._cut_off_rest(max(cutting_limit, min(most, deadline.remaining())))
        if drain.outcome is Outcome.FAILED or not cutting.outcome.is_fine:
            return Outcome.FAILED, failure or cutting.detail
        if not self._cut_off and is_drained:
            return Outcome.COMPLETED, ""
        if not self._cut_off and self._hurried.is_set():
            return Outcome.SKIPPED, "hurried, and nothing was in flight"
        why = "hurried: " if self._hurried.is_set() else f"{failure}: " if failure else ""
        return Outcome.TIMED_OUT, f"{why}{len(self._cut_off)} cut off"

    def _let_finish(self, drain: BoundedCall[bool], deadline: Deadline) -> bool:
        self._await([drain])
        if not drain.is_done or not self._server.in_flight.count:
            return bool(drain.value)
        # The adapter failed, or ended before its requests. They may finish all the same, as the tracker sees it.
        wait_until_idle = self._server.in_flight.wait_until_idle
        idle = BoundedCall("drain", lambda: wait_until_idle(deadline), deadline, on_end=self._nudge.set)
        self._await([idle])
        return bool(idle.value)

    def _cut_off_rest(self, limit: float) -> BoundedCall[tuple[InFlightRequest, ...]]:
        cutting = BoundedCall("cut_off", self._server.cut_off, Deadline.after(limit, self._clock))
        cutting.wait()
        # An adapter that hangs here has told us nothing, so its tracker has the last word.
        requests = self._server.in_flight.snapshot() if cutting.value is None else cutting.value
        now = self._clock.now()
        self._cut_off = tuple(CutOffRequest(each.name, each.peer, now - each.started_at) for each in requests)
        if requests:
            self._emit(events.RequestsCutOff(requests))
        return cutting

    def _notify(self, deadline: Deadline) -> tuple[Outcome, str]:
        results = self.notifier.tell_drained(
            lambda: self._until(deadline), lambda call: self._await([call]), self._nudge.set
        )
        for result in results:
            self._drained.append(result)
            self._emit(events.ObserverTold(result))
        self._await(self._left_to_tell)
        self._say_told(self._left_to_tell)
        bad = [result.name for result in self._drained if not result.outcome.is_fine]
        return (Outcome.FAILED, f"not well: {', '.join(bad)}") if bad else (Outcome.COMPLETED, "")

    def _say_told(self, calls: Iterable[BoundedCall[object]]) -> None:
        for call in calls:
            self._emit(events.ObserverTold(result_of(call, When.DRAINING_STARTS)))

    # --- the steps' tools -------------------------------------------------------------------------------------------

    def _begin(self, name: str, call: Callable[[Deadline], T], deadline: Deadline) -> BoundedCall[T]:
        return BoundedCall(name, lambda: call(deadline.with_headroom()), deadline, on_end=self._nudge.set)

    def _until(self, deadline: Deadline) -> Deadline:
        """Return ``deadline``, or once the stop is hurried what this phase may then take, if that is earlier."""
        if self._hurried_at is None:
            return deadline
        hurried_at = max(self._hurried_at, self._phase_started_at) + self._budget.when_hurried(self._phase)
        return Deadline(min(deadline.at, hurried_at), self._clock)

    def _await(self, calls: Iterable[BoundedCall[object]]) -> None:
        """Wait until each of ``calls`` has ended or is past its deadline, or a hurry ends the phase."""
        calls = tuple(calls)
        while True:
            self._nudge.clear()
            pending = [self._until(call.deadline) for call in calls if not call.is_over]
            if not pending or all(deadline.is_past for deadline in pending):
                return
            min(pending, key=lambda deadline: deadline.at).wait(self._nudge)

    def _late_arrivals(self) -> LateArrivals:
        in_flight = self._server.in_flight
        gone_at, last_at = self._gone_at, in_flight.last_arrival_at
        count = in_flight.total - self._arrivals_when_gone
        if gone_at is None or last_at is None or count <= 0:
            return LateArrivals()
        return LateArrivals(count, max(last_at - gone_at, 0.0))

    def _emit(self, event: events.Event) -> None:
        for sink in self._sinks:
            try:
                sink(event)
            except (Exception, SystemExit):  # noqa: BLE001, PERF203 - somebody else's code; the stop goes on
                events.logger.exception("event sink %r failed", sink)


def check_soft_drain(seconds: float, budget: StopBudget) -> float:
    """Return ``seconds``.

    Raises:
        ConfigurationError: they are more than half of the budget's ``deregister``, or negative.
    """
    most = budget.part("deregister") / 2
    if not 0 <= seconds <= most:
        raise ConfigurationError(
            f"soft_drain={seconds:g} s: must be between 0 and {most:g} s, half of the budget's deregister, so that the"
            " removal has time: lower it, or raise StopBudget(deregister=…)"
        )
    return seconds


def _is_in_doubt(removal: Removal) -> bool:
    return removal.outcome is RemovalOutcome.UNCONFIRMED


def _soft_drain_of(call: BoundedCall[object]) -> SoftDrainResult:
    return SoftDrainResult(call.name, call.outcome, call.elapsed, call.detail)


def _removal_of(call: BoundedCall[Removal]) -> Removal:
    if isinstance(call.value, Removal):
        return call.value
    detail = call.detail or f"its answer was {call.value!r}"
    return Removal(call.name, "", RemovalOutcome.UNCONFIRMED, f"{detail}; what is left behind expires by itself")
