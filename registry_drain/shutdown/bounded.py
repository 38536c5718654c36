"""Calling code that may hang, raise, or take too long: in a thread of its own, for a limited time.

Theory of operation: Python cannot interrupt a thread, so a bounded call is one that the *caller* stops waiting for. The
thread goes on as a daemon; where it hangs is said in the result, and its late result can still be looked at. Everything
the stop routine calls goes through here, which is why a server adapter, a registry client or an observer that hangs
cannot stop the stop.
"""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Callable
from types import FrameType
from typing import Generic, TypeVar

from registry_drain.clock import Deadline
from registry_drain.phases import Outcome

T_co = TypeVar("T_co", covariant=True)

_OURS = __name__.rpartition(".")[0]
_CLOCK = "registry_drain.clock"


class StopThread(threading.Thread):
    """A thread of the stop itself. Whoever calls ``stop()`` in one must not wait: the stop waits for *it*.

    Attributes:
        waited_for_by: the stops that wait for it: ``stop``, and those that wait for the thread which made it. Another
            server's stop is not among them, so that an observer of one server can stop a second one and wait.
    """

    def __init__(self, target: Callable[[], object], *, name: str, daemon: bool, stop: object = None) -> None:
        """Prepare; not started yet."""
        # Given, never inherited: the stop is often asked for by the signals' thread, which is a daemon.
        super().__init__(target=target, name=name, daemon=daemon)
        parent = threading.current_thread()
        inherited = parent.waited_for_by if isinstance(parent, StopThread) else frozenset()
        self.waited_for_by: frozenset[object] = inherited if stop is None else inherited | {stop}


class BoundedCall(Generic[T_co]):
    """One call in a daemon thread, begun when made. Thread-safe.

    Args:
        name: what is called, for results and thread names.
        call: takes no arguments. Any exception, SystemExit included, is kept as the result.
        deadline: until when it is waited for; passing it on to ``call`` is the caller's business.
        on_end: called in the call's thread when it has ended; must not raise or block.
    """

    def __init__(
        self, name: str, call: Callable[[], T_co], deadline: Deadline, *, on_end: Callable[[], None] | None = None
    ) -> None:
        """Begin the call."""
        self.name = name
        self._call = call
        self.deadline = deadline
        self._clock = deadline.clock
        self._on_end = on_end
        self._done = threading.Event()
        self._value: list[T_co] = []
        self._error: BaseException | None = None
        self._started_at = self._clock.now()
        self._ended_at: float | None = None
        self._thread = StopThread(self._run, name=f"registry-drain-stop-{name}", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            # The process may have no more threads. Then this call has failed; its neighbours are still to be made.
            self._end(error)

    def _run(self) -> None:
        try:
            self._value.append(self._call())
        except BaseException as error:  # noqa: BLE001 - SystemExit from an observer must not end the stop either
            self._end(error)
        else:
            self._end(None)

    def _end(self, error: BaseException | None) -> None:
        self._error = error
        self._ended_at = self._clock.now()
        self._done.set()
        if self._on_end:
            self._on_end()

    @property
    def is_done(self) -> bool:
        """Whether the call has ended, well or not."""
        return self._done.is_set()

    @property
    def is_over(self) -> bool:
        """Whether nobody waits for it any more: it has ended, or its deadline is past."""
        return self.is_done or self.deadline.is_past

    def wait(self) -> None:
        """Wait until the call is over."""
        self.deadline.wait(self._done)

    @property
    def elapsed(self) -> float:
        """Seconds it took, or has taken so far."""
        ended_at = self._ended_at
        return (self._clock.now() if ended_at is None else ended_at) - self._started_at

    @property
    def outcome(self) -> Outcome:
        """COMPLETED, FAILED, or (not ended yet) TIMED_OUT."""
        if not self.is_done:
            return Outcome.TIMED_OUT
        return Outcome.FAILED if self._error else Outcome.COMPLETED

    @property
    def value(self) -> T_co | None:
        """What the call returned; None if it has not, or failed."""
        return self._value[0] if self._value else None

    @property
    def error(self) -> BaseException | None:
        """What the call raised; None if it has not ended, or well."""
        return self._error

    @property
    def detail(self) -> str:
        """Why it is not COMPLETED, in one line: the exception, or where the thread hangs. Empty if it is."""
        if self._error is not None:
            return " ".join("".join(traceback.format_exception_only(type(self._error), self._error)).split())
        return "" if self.is_done else f"still {where(self._thread)}"

    def __repr__(self) -> str:
        """Show name and outcome."""
        return f"<BoundedCall {self.name} {self.outcome.value} elapsed={self.elapsed:.3f}s>"


def where(thread: threading.Thread) -> str:
    """Say in which function and line ``thread`` is: in somebody's code, not in the library's ``wait()`` it called."""
    frame = sys._current_frames().get(thread.ident or 0)  # noqa: SLF001 - the documented way to look at another thread
    found: FrameType | None = None
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        if module.startswith(_OURS):
            break  # what we called is a library's function itself: the outermost of its frames says which
        found = frame
        if module.partition(".")[0] not in sys.stdlib_module_names and module != _CLOCK:
            break
        frame = frame.f_back
    if found is None:
        return "starting"
    return f"in {found.f_code.co_name}() at {found.f_code.co_filename}:{found.f_lineno}"
