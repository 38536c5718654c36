"""Who is told of a stop: the first observers (registrations), those told when draining starts, those told when it has
ended.

An observer is anything with ``on_shutdown(deadline)``, or simply a function without arguments. Each runs in a thread of
its own, or (coroutines) in the application's event loop, with its own time limit, and its failure is a line of the
report, never the end of the stop.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Protocol, cast, runtime_checkable

from registry_drain.clock import Deadline
from registry_drain.errors import ConfigurationError
from registry_drain.phases import Outcome
from registry_drain.registries.base import Removal
from registry_drain.shutdown.bounded import BoundedCall

if TYPE_CHECKING:  # asyncio is a good part of the time that importing this package takes
    from registry_drain.shutdown.async_observers import AsyncShutdownObserver, CoroutineRunner

_BeginAwaitable = Callable[[Deadline], Awaitable[object]]


class ShutdownObserver(Protocol):
    """Somebody who must be told that the server stops."""

    def on_shutdown(self, deadline: Deadline) -> object:
        """Do what must be done, by ``deadline``. Called once, in a thread of its own; what it returns is ignored.

        It may raise: the report says so. It may call ``stop()``: that returns at once.
        """
        ...


class FirstObserver(Protocol):
    """Somebody who takes the instance out of a cluster, before anything else happens. Every Registration is one."""

    def fence(self, deadline: Deadline) -> None:
        """Make sure that nothing of ours registers or renews any more; stopped and joined when this returns."""
        ...

    def on_shutdown(self, deadline: Deadline) -> Removal:
        """Remove our own instance, read the registry back, and say what was found."""
        ...


@runtime_checkable
class RotatingObserver(FirstObserver, Protocol):
    """One that can take the instance out of rotation before it removes it."""

    @property
    def can_leave_rotation(self) -> bool:
        """Whether there is anything to leave, now."""
        ...

    def leave_rotation(self, deadline: Deadline) -> bool | None:
        """Let callers leave it out, while it stays listed. May raise: the removal follows all the same.

        False: there was nothing to leave, after all, and nothing is said about it.
        """
        ...


class TimeLimitError(Exception):
    """A coroutine was cancelled at its time limit. The message says where it was."""


class When(Enum):
    """When an observer is told."""

    DRAINING_STARTS = "draining starts"
    """The listener is closed and requests are finishing: stop taking work. All are told at once, beside the drain."""
    DRAINED = "drained"
    """Nothing is in flight any more: flush, close, release. One after the other, in the order they were added."""


@dataclass(frozen=True, slots=True)
class ObserverResult:
    """What became of telling one observer.

    Attributes:
        name: the observer's.
        when: at which point it was told.
        outcome: TIMED_OUT means that it was left behind, still running, or (a coroutine) cancelled.
        elapsed: seconds.
        detail: the exception, or where it hangs.
    """

    name: str
    when: When
    outcome: Outcome
    elapsed: float
    detail: str = ""


@dataclass(frozen=True, slots=True)
class SoftDrainResult:
    """What became of taking one instance out of rotation, before its removal.

    Attributes:
        subject: the instance.
        outcome: FAILED and TIMED_OUT cost nothing but the notice: the removal follows.
        elapsed: seconds.
        detail: what went wrong.
    """

    subject: str
    outcome: Outcome
    elapsed: float
    detail: str = ""


@dataclass(frozen=True, slots=True)
class _Told:
    name: str
    tell: Callable[[Deadline], object]
    when: When
    time_limit: float | None


class ShutdownNotifier:
    """Keeps the observers of one process and tells them. ``add`` may be called from any thread until the stop begins.

    Args:
        reserved: seconds kept for the observers told when drained (``StopBudget.notify``).
    """

    def __init__(self, *, reserved: float) -> None:
        """Begin with nobody to tell."""
        self._reserved = reserved
        self._lock = threading.Lock()
        self._first: list[tuple[str, FirstObserver]] = []
        self._observers: list[_Told] = []
        self._is_closed = False
        self._coroutines: CoroutineRunner | None = None

    def accept_coroutines(self, runner: CoroutineRunner) -> None:
        """Take observers that are coroutines from now on; ``runner`` runs them."""
        self._coroutines = runner

    def add(
        self,
        observer: ShutdownObserver | AsyncShutdownObserver | Callable[[], object],
        *,
        name: str = "",
        when: When = When.DRAINED,
        time_limit: float | None = None,
    ) -> None:
        """Tell ``observer`` too.

        Args:
            observer: an object with ``on_shutdown(deadline)``, or a function without arguments; in an asyncio
                application (:func:`registry_drain.serve_async`) that may be a coroutine function.
            name: for the report; default: the function's or the class's name.
            when: see :class:`When`.
            time_limit: seconds. None: an equal share of what the limits of the others leave of the reserved time.

        Raises:
            ConfigurationError: not an observer, a limit that cannot be kept, or the stop has begun.
        """
        tell = self._as_call(observer)
        told = _Told(name or _name_of(observer), tell, when, time_limit)
        if time_limit is not None and not 0 < time_limit < float("inf"):
            raise ConfigurationError(
                f"observer {told.name}: time_limit={time_limit!r}: must be a positive number of seconds"
            )
        with self._lock:
            if self._is_closed:
                raise ConfigurationError(f"observer {told.name}: too late, the stop has begun")
            if when is When.DRAINED:
                self._check_time_for(told, [*(each for each in self._observers if each.when is when), told])
            self._observers.append(told)

    def _check_time_for(self, told: _Told, drained: list[_Told]) -> None:
        limits = sum(each.time_limit or 0 for each in drained)
        if limits > self._reserved:
            why = f"the time limits add up to {limits:g} s, but only {self._reserved:g} s are reserved for observers"
        elif limits == self._reserved and any(each.time_limit is None for each in drained):
            why = f"the other time limits take all of the {limits:g} s reserved for observers, so one would get nothing"
        else:
            return
        raise ConfigurationError(f"observer {told.name}: {why}: raise StopBudget(notify=…), or lower a time_limit")

    def add_first(self, observer: FirstObserver, *, name: str = "") -> None:
        """Let ``observer`` take the instance out of a cluster before anything else; several do so at once.

        Raises:
            ConfigurationError: the stop has begun.
        """
        name = name or str(getattr(observer, "instance", "")) or _name_of(observer)
        with self._lock:
            if self._is_closed:
                raise ConfigurationError(f"registration {name}: too late, the stop has begun")
            self._first.append((name, observer))

    @property
    def first(self) -> tuple[tuple[str, FirstObserver], ...]:
        """Those that take the instance out of its clusters, with their names."""
        with self._lock:
            return tuple(self._first)

    def close(self) -> None:
        """Refuse further observers: the stop has begun."""
        with self._lock:
            self._is_closed = True

    def begin_draining_starts(self, deadline: Deadline, on_end: Callable[[], None]) -> list[BoundedCall[object]]:
        """Start telling everybody who wants to know that draining starts; each inside its limit, all at once."""
        return [
            self._begin(told, deadline if told.time_limit is None else deadline.capped(told.time_limit), on_end)
            for told in self._of(When.DRAINING_STARTS)
        ]

    def tell_drained(
        self,
        until: Callable[[], Deadline],
        wait: Callable[[BoundedCall[object]], None],
        on_end: Callable[[], None],
    ) -> Iterator[ObserverResult]:
        """Tell everybody who wants to know that the drain has ended, in order; yield what became of each.

        An observer that needs longer than its limit is left behind, so that the later ones keep theirs. ``until`` is
        asked before each for the end of all; ``wait`` waits for one, which calls ``on_end`` when it ends.
        """
        waiting = self._of(When.DRAINED)
        while waiting:
            told = waiting.pop(0)
            deadline = until()
            later_limits = sum(other.time_limit or 0 for other in waiting)
            sharing = sum(other.time_limit is None for other in [told, *waiting])
            left = max(deadline.remaining() - later_limits, 0.0)
            limit = left / sharing if told.time_limit is None else told.time_limit
            call = self._begin(told, deadline.capped(limit), on_end)
            wait(call)
            yield result_of(call, When.DRAINED)

    def _as_call(self, observer: object) -> Callable[[Deadline], object]:
        call: Callable[[Deadline], object]
        method = getattr(observer, "on_shutdown", None)
        if callable(method):
            _check_call(observer, method, "on_shutdown(deadline)", 1)
            function, call = method, method
        elif callable(observer):
            _check_call(observer, observer, "a function without arguments", 0)
            function, call = observer, partial(_without_deadline, observer)
        else:
            raise ConfigurationError(
                f"{observer!r} is no observer: it has no on_shutdown(deadline) and cannot be called"
            )
        if _is_coroutine_function(function):
            if self._coroutines is None:
                raise ConfigurationError(
                    f"observer {_name_of(observer)} is a coroutine function, and there is no event loop to run it in:"
                    " use serve_async(), or make it a plain function"
                )
            return partial(self._coroutines.run, cast("_BeginAwaitable", call))
        return partial(self._tell, call)

    def _tell(self, call: Callable[[Deadline], object], deadline: Deadline) -> object:
        result = call(deadline)
        if not isinstance(result, Awaitable):
            return result
        # E.g. a lambda that calls a coroutine function: nobody would ever run it.
        if self._coroutines is not None:
            return self._coroutines.run(lambda _deadline: result, deadline)
        if isinstance(result, Coroutine):
            result.close()
        raise TypeError("it returned an awaitable, and there is no event loop to await it in: use serve_async()")

    def _of(self, when: When) -> list[_Told]:
        with self._lock:
            return [told for told in self._observers if told.when is when]

    def _begin(self, told: _Told, deadline: Deadline, on_end: Callable[[], None]) -> BoundedCall[object]:
        return BoundedCall(told.name, lambda: told.tell(deadline.with_headroom()), deadline, on_end=on_end)

    def __repr__(self) -> str:
        """Show whom it tells."""
        with self._lock:
            first = [name for name, _ in self._first]
            return f"<ShutdownNotifier first={first} observers={[told.name for told in self._observers]}>"


def result_of(call: BoundedCall[object], when: When) -> ObserverResult:
    """Return what became of ``call`` so far."""
    if isinstance(call.error, TimeLimitError):
        return ObserverResult(call.name, when, Outcome.TIMED_OUT, call.elapsed, str(call.error))
    return ObserverResult(call.name, when, call.outcome, call.elapsed, call.detail)


def _check_call(observer: object, call: Callable[..., object], promised: str, arguments: int) -> None:
    """Refuse now what could only fail, or silently do nothing, when it is called at the end."""
    import inspect  # in here: it would be a good part of the time that importing this package takes

    try:
        inspect.signature(call).bind(*[None] * arguments)
    except ValueError:
        return  # written in C, without a signature: it is taken at its word
    except TypeError as error:
        raise ConfigurationError(f"observer {_name_of(observer)} cannot be called as {promised}: {error}") from error


def _is_coroutine_function(call: Callable[..., object]) -> bool:
    import inspect

    return inspect.iscoroutinefunction(call) or inspect.iscoroutinefunction(getattr(call, "__call__", None))  # noqa: B004


def _without_deadline(function: Callable[[], object], _deadline: Deadline) -> object:
    return function()


def _name_of(observer: object) -> str:
    name = getattr(observer, "__qualname__", None) or type(observer).__qualname__
    return str(name)
