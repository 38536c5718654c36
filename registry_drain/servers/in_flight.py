"""Which requests are in flight, and when the last one arrived.

Theory of operation: a request is a key in one dict. ``begin`` and ``end`` are on the path of every request, so they
take no lock: each is one atomic operation of the interpreter on a dict, a counter or an attribute. Only a waiting drain
makes ``end`` look further, at one attribute.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from registry_drain.clock import SYSTEM_CLOCK, Clock, Deadline


@dataclass(frozen=True, slots=True)
class InFlightRequest:
    """One request that is being served.

    Attributes:
        name: the method or path, for the report.
        peer: the caller, as ``host:port``; empty if unknown.
        started_at: instant of the tracker's clock.
        thread_id: the serving thread (:func:`threading.get_ident`).
    """

    name: str
    peer: str
    started_at: float
    thread_id: int


class InFlight:
    """Counts and names the requests of one server. Thread-safe; one per server."""

    def __init__(self, *, clock: Clock = SYSTEM_CLOCK) -> None:
        """Start empty."""
        self._clock = clock
        self._active: dict[int, InFlightRequest] = {}
        self._keys = itertools.count(1)
        self._arrivals = itertools.count(1)
        self._total = 0
        self._last_arrival_at: float | None = None
        self._idle = threading.Event()
        self._is_awaited = False

    @property
    def count(self) -> int:
        """How many requests are in flight now."""
        return len(self._active)

    @property
    def total(self) -> int:
        """How many requests have arrived so far, health checks not counted."""
        return self._total

    @property
    def last_arrival_at(self) -> float | None:
        """When the last request arrived, health checks not counted; None before the first."""
        return self._last_arrival_at

    def begin(self, name: str = "", *, peer: str = "", is_health_check: bool = False) -> int:
        """Note a request's arrival; return the key for :meth:`end`.

        A health check is in flight like any other, but is no sign that callers still know us: it is left out of
        ``total`` and ``last_arrival_at``.
        """
        now = self._clock.now()
        key = next(self._keys)
        self._active[key] = InFlightRequest(name, peer, now, threading.get_ident())
        if not is_health_check:
            self._total = next(self._arrivals)
            self._last_arrival_at = now
        return key

    def end(self, key: int) -> None:
        """Note that the request's answer has been handed to the kernel, or given up."""
        self._active.pop(key, None)
        if self._is_awaited and not self._active:
            self._idle.set()

    @contextmanager
    def track(self, name: str = "", *, peer: str = "", is_health_check: bool = False) -> Iterator[None]:
        """Count the block's duration as one request."""
        key = self.begin(name, peer=peer, is_health_check=is_health_check)
        try:
            yield
        finally:
            self.end(key)

    def snapshot(self) -> tuple[InFlightRequest, ...]:
        """Return the requests in flight, oldest first."""
        return tuple(sorted(self._active.copy().values(), key=lambda request: request.started_at))

    def holds_current_thread(self) -> bool:
        """Whether the calling thread is serving one of the requests: such a caller must not wait for the drain."""
        me = threading.get_ident()
        return any(request.thread_id == me for request in self._active.copy().values())

    def wait_until_idle(self, deadline: Deadline) -> bool:
        """Wait until nothing is in flight; return False at the deadline. For one waiter at a time."""
        self._is_awaited = True
        while self._active:
            self._idle.clear()
            # A request that ended between the test above and the clear would be missed: look again before waiting.
            if self._active and not deadline.wait(self._idle):
                return not self._active
        return True

    def __repr__(self) -> str:
        """Show the counts."""
        return f"<InFlight count={self.count} total={self.total}>"
