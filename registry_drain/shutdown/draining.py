"""Emptying the server and telling the observers: the phases CLOSING, DRAINING and NOTIFYING.

Theory of operation: the adapter closes, drains and cuts off, each step in a bounded thread. The in-flight tracker has
the last word on what is left, whatever the adapter says or fails to say. Observers of the drain's start are told beside
it; they have until the drain's own end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from registry_drain.clock import Deadline
from registry_drain.phases import Outcome
from registry_drain.servers.base import DrainableServer
from registry_drain.servers.in_flight import InFlightRequest
from registry_drain.shutdown import events
from registry_drain.shutdown.bounded import BoundedCall
from registry_drain.shutdown.observers import ObserverResult, ShutdownNotifier, When, result_of
from registry_drain.shutdown.pace import Pace
from registry_drain.shutdown.report import CutOffRequest

T = TypeVar("T")

CUT_OFF_RESERVE = 0.5
"""Seconds kept for closing what is left. They are the drain's last, and a twentieth of it if that is less: a drain
that takes all of its time must not reach into the observers' reserve. All that a hurried stop gives it, too."""
_CUT_OFF_LIMIT = 2.5
"""Seconds at most for it where the drain has left more: thousands of threads that end need up to 2 s."""


class Draining:
    """How one stop empties its server. Its steps are called by the stop's thread, the attributes read by any.

    Attributes:
        listener: how the listener was closed.
        cut_off: what was not finished.
    """

    def __init__(
        self, server: DrainableServer, notifier: ShutdownNotifier, *, pace: Pace, emit: Callable[[events.Event], None]
    ) -> None:
        """Begin with nothing done; ``emit`` is told each event."""
        self.listener = ""
        self.cut_off: tuple[CutOffRequest, ...] = ()
        self._server = server
        self._notifier = notifier
        self._pace = pace
        self._emit = emit
        self._told_of_start: list[BoundedCall[object]] = []
        self._left_to_tell: list[BoundedCall[object]] = []
        self._told_of_end: list[ObserverResult] = []

    @property
    def observers(self) -> tuple[ObserverResult, ...]:
        """What became of telling each observer, so far."""
        return (*(result_of(call, When.DRAINING_STARTS) for call in self._told_of_start), *self._told_of_end)

    # --- the steps --------------------------------------------------------------------------------------------------

    def close_listener(self, deadline: Deadline) -> tuple[Outcome, str]:
        """Stop accepting."""
        closing = self._begin("close_listener", self._server.close_listener, deadline)
        self._pace.wait_for([closing])
        if closing.value is None:
            return closing.outcome, closing.detail
        closure = closing.value
        self.listener = closure.method
        if closure.is_clean:
            return Outcome.COMPLETED, ""
        return Outcome.TIMED_OUT, "connections still came in when the listener was closed"

    def drain(self, deadline: Deadline) -> tuple[Outcome, str]:
        """Let what is in flight finish, tell who wants to know that this starts, and cut off what is left."""
        cutting_limit = min(CUT_OFF_RESERVE, deadline.remaining() / 20)
        drained_by = Deadline(deadline.at - cutting_limit, self._pace.clock)
        self._told_of_start = self._notifier.begin_draining_starts(drained_by, self._pace.nudge)
        drain = self._begin("drain", self._server.drain, drained_by)
        is_drained = self._let_finish(drain, drained_by)
        self._pace.wait_for(self._told_of_start)
        # A hurried drain does not wait for these; that is made good in what is left of ``hurried_notify``.
        self._left_to_tell = [call for call in self._told_of_start if not call.is_over]
        self._say_told([call for call in self._told_of_start if call not in self._left_to_tell])
        failure = drain.detail  # before what hangs is freed by the cut-off
        most = CUT_OFF_RESERVE if self._pace.is_hurried else _CUT_OFF_LIMIT
        cutting = self._cut_off_rest(max(cutting_limit, min(most, deadline.remaining())))
        if drain.outcome is Outcome.FAILED or not cutting.outcome.is_fine:
            return Outcome.FAILED, failure or cutting.detail
        if not self.cut_off and is_drained:
            return Outcome.COMPLETED, ""
        if not self.cut_off and self._pace.is_hurried:
            return Outcome.SKIPPED, "hurried, and nothing was in flight"
        why = "hurried: " if self._pace.is_hurried else f"{failure}: " if failure else ""
        return Outcome.TIMED_OUT, f"{why}{len(self.cut_off)} cut off"

    def notify(self, deadline: Deadline) -> tuple[Outcome, str]:
        """Tell everybody else, one after the other."""
        results = self._notifier.tell_drained(
            lambda: self._pace.until(deadline), lambda call: self._pace.wait_for([call]), self._pace.nudge
        )
        for result in results:
            self._told_of_end.append(result)
            self._emit(events.ObserverTold(result))
        self._pace.wait_for(self._left_to_tell)
        self._say_told(self._left_to_tell)
        bad = [result.name for result in self._told_of_end if not result.outcome.is_fine]
        return (Outcome.FAILED, f"not well: {', '.join(bad)}") if bad else (Outcome.COMPLETED, "")

    # --- their parts ------------------------------------------------------------------------------------------------

    def _begin(self, name: str, call: Callable[[Deadline], T], deadline: Deadline) -> BoundedCall[T]:
        return BoundedCall(name, lambda: call(deadline.with_headroom()), deadline, on_end=self._pace.nudge)

    def _let_finish(self, drain: BoundedCall[bool], deadline: Deadline) -> bool:
        self._pace.wait_for([drain])
        if not drain.is_done or not self._server.in_flight.count:
            return bool(drain.value)
        # The adapter failed, or ended before its requests. They may finish all the same, as the tracker sees it.
        wait_until_idle = self._server.in_flight.wait_until_idle
        idle = BoundedCall("drain", lambda: wait_until_idle(deadline), deadline, on_end=self._pace.nudge)
        self._pace.wait_for([idle])
        return bool(idle.value)

    def _cut_off_rest(self, limit: float) -> BoundedCall[tuple[InFlightRequest, ...]]:
        clock = self._pace.clock
        cutting = BoundedCall("cut_off", self._server.cut_off, Deadline.after(limit, clock))
        cutting.wait()
        # An adapter that hangs here has told us nothing, so its tracker has the last word.
        requests = self._server.in_flight.snapshot() if cutting.value is None else cutting.value
        now = clock.now()
        self.cut_off = tuple(CutOffRequest(each.name, each.peer, now - each.started_at) for each in requests)
        if requests:
            self._emit(events.RequestsCutOff(requests))
        return cutting

    def _say_told(self, calls: Iterable[BoundedCall[object]]) -> None:
        for call in calls:
            self._emit(events.ObserverTold(result_of(call, When.DRAINING_STARTS)))
