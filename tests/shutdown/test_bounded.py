"""Calls that may hang, raise, or take too long."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

import pytest

from registry_drain.clock import Deadline
from registry_drain.phases import Outcome
from registry_drain.shutdown.bounded import BoundedCall, StopThread
from tests.shutdown.stage import Stage
from tests.support.processes import eventually


def call_of(stage: Stage, call: Callable[[], object], *, limit: float = 1.0) -> BoundedCall[object]:
    """Return a bounded call, waited for."""
    bounded: BoundedCall[object] = BoundedCall("it", call, Deadline.after(limit, stage.clock))
    bounded.wait()
    return bounded


def test_a_call_that_returns_is_completed(stage: Stage) -> None:
    """Value, time and outcome are kept."""

    def work() -> int:
        stage.clock.sleep(0.25)
        return 42

    call = call_of(stage, work)
    assert (call.outcome, call.value, call.detail) == (Outcome.COMPLETED, 42, "")
    assert call.elapsed == pytest.approx(0.25)
    assert call.is_done


def test_a_call_that_raises_has_failed_with_one_line(stage: Stage) -> None:
    """An exception of several lines becomes one."""

    def fail() -> None:
        raise ValueError("one\ntwo")

    call = call_of(stage, fail)
    assert (call.outcome, call.value, call.detail) == (Outcome.FAILED, None, "ValueError: one two")


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_even_what_ends_a_process_is_only_kept(stage: Stage, error: BaseException) -> None:
    """sys.exit() in an observer must neither end the stop nor vanish."""

    def leave() -> None:
        raise error

    call = call_of(stage, leave)
    assert call.outcome is Outcome.FAILED
    assert type(error).__name__ in call.detail


def test_a_call_that_hangs_is_left_behind_at_its_deadline(stage: Stage) -> None:
    """The caller stops waiting; the call goes on, and its result can still be seen."""
    go_on = threading.Event()
    call = call_of(stage, lambda: stage.clock.wait(go_on), limit=2.0)
    assert stage.elapsed == pytest.approx(2.0)
    assert (call.outcome, call.is_done, call.is_over) == (Outcome.TIMED_OUT, False, True)
    go_on.set()
    eventually(lambda: call.is_done)
    assert (call.outcome, call.value, call.detail) == (Outcome.COMPLETED, True, "")


def test_the_end_is_told_after_the_result_is_there() -> None:
    """Whoever is woken by on_end sees a call that is done."""
    seen: queue.SimpleQueue[bool] = queue.SimpleQueue()
    ready = threading.Event()

    def look() -> None:
        ready.wait()
        seen.put(call.is_done)

    call: BoundedCall[object] = BoundedCall("it", lambda: None, Deadline.after(10.0), on_end=look)
    ready.set()
    assert seen.get(timeout=10)


def _hang_in_a_lock(lock: threading.Lock) -> None:
    lock.acquire()


def _hang_in_an_event(event: threading.Event) -> None:
    event.wait()


def test_a_hang_is_named_by_the_function_and_line_of_the_caller(stage: Stage) -> None:
    """Not by threading.py's wait(), which every hang would be."""
    event = threading.Event()
    hang = BoundedCall("it", lambda: _hang_in_an_event(event), Deadline.after(0.0, stage.clock))
    try:
        eventually(lambda: f"still in _hang_in_an_event() at {__file__}:" in hang.detail, because=hang.detail)
    finally:
        event.set()
    eventually(lambda: hang.is_done)


def test_a_hang_in_c_is_named_by_the_line_that_called_it(stage: Stage) -> None:
    """A lock's acquire() has no frame of its own."""
    lock = threading.Lock()
    lock.acquire()
    hang = BoundedCall("it", lambda: _hang_in_a_lock(lock), Deadline.after(0.0, stage.clock))
    try:
        eventually(lambda: f"still in _hang_in_a_lock() at {__file__}:" in hang.detail, because=hang.detail)
    finally:
        lock.release()
    eventually(lambda: hang.is_done)


def test_a_hang_in_a_library_function_that_was_itself_added_is_named_by_it() -> None:
    """With nobody's code in between, the library's outermost function says most."""
    jobs: queue.Queue[int] = queue.Queue()
    jobs.put(1)
    hang = BoundedCall("it", jobs.join, Deadline.after(0.0))
    try:
        eventually(lambda: "still in join() at " in hang.detail and "queue.py:" in hang.detail, because=hang.detail)
    finally:
        jobs.task_done()
    eventually(lambda: hang.is_done)


def test_a_process_without_threads_to_spare_fails_the_call_and_says_so(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the limit of threads one call fails; whoever makes several goes on to the next."""
    ended = threading.Event()

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(StopThread, "start", refuse)
    call: BoundedCall[object] = BoundedCall("it", lambda: None, Deadline.after(1.0, stage.clock), on_end=ended.set)
    assert (call.outcome, call.detail) == (Outcome.FAILED, "RuntimeError: can't start new thread")
    assert ended.is_set()


def test_threads_of_a_stop_know_all_stops_that_wait_for_them() -> None:
    """A thread started by a thread of stop A, for stop B, is waited for by both."""
    known: list[frozenset[object]] = []

    def in_a() -> None:
        for stop in (None, "B"):
            thread = StopThread(lambda: None, name="inner", daemon=True, stop=stop)
            known.append(thread.waited_for_by)

    outer = StopThread(in_a, name="outer", daemon=True, stop="A")
    outer.start()
    outer.join()
    assert known == [{"A"}, {"A", "B"}]


def test_repr_shows_name_outcome_and_time(stage: Stage) -> None:
    """For a debugger, and for the watchdog's dump."""
    assert repr(call_of(stage, lambda: None)) == "<BoundedCall it completed elapsed=0.000s>"
