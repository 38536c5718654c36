"""The stop itself: one thread passes through the phases, on one screen: see :meth:`StopRoutine._run`.

Theory of operation: everything that the routine calls (registrations, the server, observers) runs in bounded threads
(:mod:`registry_drain.shutdown.bounded`), so that each step ends by its deadline whatever it calls does. The steps are
those of :mod:`~registry_drain.shutdown.leaving` and :mod:`~registry_drain.shutdown.draining`; they wait by
:mod:`~registry_drain.shutdown.pace`. State is written by the stop's thread alone, under ``_lock`` where others read it.

Rules: phases come in order, each once. Whatever becomes of one, the next begins. What failed, hung or was late is said
in the report, by name. After the stop has begun the instance is never registered again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

from registry_drain.clock import SYSTEM_CLOCK, Clock, Deadline
from registry_drain.phases import STOP_ORDER, Outcome, Phase
from registry_drain.servers.base import DrainableServer
from registry_drain.shutdown import events
from registry_drain.shutdown.bounded import StopThread
from registry_drain.shutdown.budget import Ledger, StopBudget
from registry_drain.shutdown.draining import CUT_OFF_RESERVE, Draining
from registry_drain.shutdown.leaving import Leaving, check_soft_drain
from registry_drain.shutdown.observers import ShutdownNotifier
from registry_drain.shutdown.pace import Pace
from registry_drain.shutdown.report import PhaseReport, ShutdownReport
from registry_drain.shutdown.watchdog import Watchdog

_Step = Callable[[Deadline], tuple[Outcome, str]]


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

        self._pace = Pace(self._budget, clock)
        self._leaving = Leaving(self.notifier, server.in_flight, budget=self._budget, pace=self._pace, emit=self._emit)
        self._draining = Draining(server, self.notifier, pace=self._pace, emit=self._emit)

        self._lock = threading.Lock()
        self._phase = Phase.SERVING
        self._reason = ""
        self._started_at = 0.0
        self._phases: list[PhaseReport] = []
        self._final: ShutdownReport | None = None
        self._handed_over_to: int | None = None
        self._requested = threading.Event()
        self._finished = threading.Event()

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
            is_hurried=self._pace.is_hurried,
            phases=phases,
            removals=self._leaving.removals,
            listener=self._draining.listener,
            late_arrivals=self._leaving.late_arrivals,
            cut_off=self._draining.cut_off,
            observers=self._draining.observers,
            handed_over_to=self._handed_over_to,
            soft_drains=self._leaving.soft_drains,
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
            if self._pace.is_hurried or self._finished.is_set():
                return
            hurried_at = self._pace.hurry()
        # Only now: a stop that begins with this is hurried from its first step on.
        self.request_stop(reason)
        # What is in flight learns it now; the phase stays the stop's thread's to tell.
        self._server.in_flight.stop_state.hurry(hurried_at)
        self._pace.nudge()
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
            # What was handed over is somebody else's entry.
            Phase.DEREGISTERING: partial(
                self._leaving.deregister, soft_drain=0.0 if self._handed_over_to is not None else self._soft_drain
            ),
            Phase.PROPAGATING: self._leaving.propagate,
            Phase.CLOSING: self._draining.close_listener,
            Phase.DRAINING: self._draining.drain,
            Phase.NOTIFYING: self._draining.notify,
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
        started_at = self._pace.enter(phase)
        with self._lock:
            self._phase = phase
        is_in_doubt = phase is Phase.PROPAGATING and self._leaving.is_in_doubt
        deadline = ledger.deadline_in_doubt() if is_in_doubt else ledger.deadline(phase)
        planned = self._pace.until(deadline).remaining()
        if phase is Phase.DRAINING:
            planned = min(planned + CUT_OFF_RESERVE, deadline.remaining())  # what a hurry leaves
        self._server.in_flight.stop_state.enter(phase, self._cut_off_at(ledger))
        self._emit(events.PhaseStarted(phase, planned))
        try:
            outcome, detail = step(deadline)
        except Exception as error:  # noqa: BLE001 - an error of ours must not keep the later phases from running
            outcome, detail = Outcome.FAILED, f"{type(error).__name__}: {error}"
        report = PhaseReport(phase, planned, self._clock.now() - started_at, outcome, detail)
        with self._lock:
            if phase is Phase.PROPAGATING and self._leaving.is_proven_late:
                # Callers were served until it was proven, so that nothing is lost by it.
                self._phases[0] = replace(self._phases[0], outcome=Outcome.COMPLETED, detail="proven while propagating")
            self._phases.append(report)
        self._emit(events.PhaseEnded(phase, outcome, report.actual, detail))

    def _cut_off_at(self, ledger: Ledger) -> float:
        """Return when what is in flight will be cut off, as far as is known now; for those who serve it."""
        now = self._clock.now()
        return now if self._pace.is_hurried else max(ledger.deadline(Phase.DRAINING).at, now)

    def _emit(self, event: events.Event) -> None:
        for sink in self._sinks:
            try:
                sink(event)
            except (Exception, SystemExit):  # noqa: BLE001, PERF203 - somebody else's code; the stop goes on
                events.logger.exception("event sink %r failed", sink)
