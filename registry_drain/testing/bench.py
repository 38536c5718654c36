"""The bench the contract suites work on: makes the subject, puts it away again, and fails on what is left behind.

Plain assertions only: a contract suite runs under any runner that calls ``test_*`` methods and knows
:class:`unittest.SkipTest` (pytest does).
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Generic, TypeVar

from registry_drain.clock import Clock, Deadline
from registry_drain.errors import RegistryDrainError
from registry_drain.instance import ServiceInstance
from registry_drain.registries.base import Registration, Registry, RegistryEntry, Watch, WatchCallback

THREAD_PREFIX = "registry-drain"
"""Every thread of this package, and of a backend that keeps its rules, is named with it."""
POLL = 0.005
"""Real seconds between two looks at a condition."""

T = TypeVar("T")


def promise(is_kept: bool, broken: str) -> None:  # noqa: FBT001 -- reads as a sentence where it stands
    """Fail with ``broken``, the promise in words, unless it is kept.

    Not an ``assert`` statement: pytest explains those only in modules it rewrites, and ``python -O`` drops them.
    """
    __tracebackhide__ = True
    if not is_kept:
        raise AssertionError(broken)


def until(condition: Callable[[], bool], within: float, broken: str, seen: Callable[[], object] | None = None) -> None:
    """Look until ``condition`` holds; after ``within`` real seconds fail with ``broken`` and what was ``seen``."""
    __tracebackhide__ = True
    ends_at = time.monotonic() + within
    while not condition():
        if time.monotonic() >= ends_at:
            what = "" if seen is None else f"; seen: {seen()}"
            promise(is_kept=False, broken=f"{broken} (waited {within:g} s){what}")
        time.sleep(POLL)


def threads_since(before: set[threading.Thread]) -> list[threading.Thread]:
    """Return this package's threads that are alive now and are not in ``before``."""
    return [
        thread
        for thread in threading.enumerate()
        if thread not in before and thread.is_alive() and thread.name.startswith(THREAD_PREFIX)
    ]


class Call(threading.Thread, Generic[T]):
    """One call in a thread of its own, so that a call that hangs fails a test instead of stopping the run."""

    def __init__(self, call: Callable[[], T]) -> None:
        """Start ``call`` at once."""
        super().__init__(name="contract-call", daemon=True)
        self._call = call
        self.value: T | None = None
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        """Make the call and keep what came of it."""
        try:
            self.value = self._call()
        except Exception as error:  # noqa: BLE001 -- handed to the thread that asks
            self.error = error

    def ended(self, within: float, what: str) -> Call[T]:
        """Return this call once it has ended; fail if that takes longer than ``within`` real seconds."""
        __tracebackhide__ = True
        self.join(within)
        promise(not self.is_alive(), f"never hang: {what} has not ended after {within:g} s")
        return self

    def result(self, within: float, what: str) -> T:
        """Return the call's value, or raise its error here."""
        self.ended(within, what)
        if self.error is not None:
            raise self.error
        return self.value  # type: ignore[return-value]  # None only where T allows it


class RegistryBench:
    """The registries, registrations and watches of one test.

    Used as a context: at the end everything is deregistered and closed, newest first, and a thread of ours that is
    still alive fails the test.
    """

    def __init__(self, new_registry: Callable[[], Registry], clock: Clock, timeout: float) -> None:
        """Take a factory of registries of one cluster, and the seconds each call is given."""
        self._new_registry = new_registry
        self._clock = clock
        self._timeout = timeout
        self._before = set(threading.enumerate())
        self._exits = contextlib.ExitStack()

    def deadline(self, seconds: float | None = None) -> Deadline:
        """Return the deadline of one call."""
        return Deadline.after(self._timeout if seconds is None else seconds, self._clock)

    def registry(self) -> Registry:
        """Return one more registry object on the test's cluster."""
        registry = self._new_registry()
        self._put_away(registry.close, "Registry.close()")
        return registry

    def registration(self, registry: Registry, instance: ServiceInstance) -> Registration:
        """Return a membership that is removed at the end whatever became of it."""
        registration = registry.registration(instance)

        def remove() -> None:
            registration.on_shutdown(self.deadline())

        self._put_away(remove, "on_shutdown()")
        return registration

    def registered(self, registry: Registry, instance: ServiceInstance) -> Registration:
        """Return a membership that is registered."""
        registration = self.registration(registry, instance)
        registration.register(self.deadline())
        return registration

    def watch(self, registry: Registry, service: str, on_change: WatchCallback | None = None) -> Watch:
        """Return a watch that is closed at the end."""
        watch = registry.watch(service, self.deadline(), on_change)
        self._put_away(watch.close, "Watch.close()")
        return watch

    def _put_away(self, call: Callable[[], None], what: str) -> None:
        self._exits.callback(lambda: Call(call).result(2 * self._timeout, what))

    def listed(self, registry: Registry, instance: ServiceInstance) -> list[RegistryEntry]:
        """Return the entries with the instance's id; more than one would be a fault."""
        found = registry.entries(instance.service, self.deadline())
        return [entry for entry in found if entry.id == instance.id]

    def new_threads(self) -> list[threading.Thread]:
        """Return our threads that were started since the bench was opened and are alive."""
        return threads_since(self._before)

    def __enter__(self) -> RegistryBench:
        """Open the bench."""
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put everything away. A test that failed already keeps its own error."""
        if error is not None:
            with contextlib.suppress(RegistryDrainError, OSError, AssertionError):
                self._exits.close()
            return
        self._exits.close()
        until(
            lambda: not self.new_threads(),
            self._timeout,
            "no thread outlives Registry.close() and on_shutdown()",
            self.new_threads,
        )
