"""A worker's requests, as its master sees them, and the master's stop, as the worker does.

Theory of operation: while nobody stops, the master needs no names, and counts only now and then:
:meth:`SharedInFlight.publish` writes those on the board, and a request costs nothing beyond what the base class takes.
From the beginning of the stop on each request is written.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from registry_drain.hosted.gunicorn.board import ENTRIES, PHASE, SERVING, Board, WorkerSlot
from registry_drain.servers.in_flight import DescribedRequest, InFlight, InFlightRequest
from registry_drain.servers.stop_state import StopState


class _CopiedStopState(StopState):
    """The master's stop, as a worker knows it. Whoever asks whether it has begun sees what the board says now."""

    def __init__(self, now: Callable[[], float], board: Board) -> None:
        self._board = board
        self._phases = board.ints
        self._seen = SERVING
        self._has_begun = False
        super().__init__(now)

    @property
    def is_stopping(self) -> bool:
        """Whether the stop has begun. Asked for each request of an event loop, and so before its answer."""
        if self._phases[PHASE] != self._seen:
            self.copy()
        return self._has_begun

    @is_stopping.setter
    def is_stopping(self, has_begun: bool) -> None:
        self._has_begun = has_begun

    def copy(self) -> None:
        """Take over what the board says, unless this worker goes alone and is further."""
        phase, cut_off_at = self._board.phase, self._board.cut_off_at
        self._seen = phase.value
        if phase.value > self.phase.value:
            self.enter(phase, cut_off_at)
        elif phase is self.phase and cut_off_at is not None and cut_off_at != self.cut_off_at:
            self.hurry(cut_off_at)


class SharedInFlight(InFlight):
    """The requests of one worker. Made in the worker; thread-safe there."""

    def __init__(self, board: Board, slot: WorkerSlot) -> None:
        """Start empty; ``slot`` is this worker's own."""
        super().__init__()
        self.stop_state = self._stop = _CopiedStopState(self.now, board)
        self._phases = board.ints
        self._slot = slot
        self._lock = threading.Lock()
        self._free_entries = deque(range(ENTRIES))
        self._entries: dict[int | DescribedRequest, int | None] = {}
        self._is_writing = False

    def begin(self, name: str = "", peer: str = "", *, is_health_check: bool = False) -> int:
        """See :meth:`InFlight.begin`."""
        key = super().begin(name, peer, is_health_check=is_health_check)
        if self._phases[PHASE] != SERVING:
            self.publish()
        return key

    def begin_request(self, request: DescribedRequest, *, is_health_check: bool = False) -> None:
        """See :meth:`InFlight.begin_request`."""
        super().begin_request(request, is_health_check=is_health_check)
        if self._phases[PHASE] != SERVING:
            self.publish()

    def identify(self, key: int, name: str, *, is_health_check: bool = False) -> None:
        """See :meth:`InFlight.identify`."""
        super().identify(key, name, is_health_check=is_health_check)
        if self._is_writing:
            with self._lock:
                self._clear(key)
            self.publish()

    def end(self, key: int | DescribedRequest) -> None:
        """See :meth:`InFlight.end`."""
        # Removed first, looked at then: publish() says that it writes, and then looks what there is.
        super().end(key)
        if self._is_writing:
            with self._lock:
                self._clear(key)

    def publish(self) -> None:
        """Write how many have arrived, and once the stop has begun what is in flight; take over what the stop says.

        To be called some ten times a second by one thread, when the stop begins, and more often from then on: the
        requests of an event loop (:mod:`registry_drain.servers.loop_requests`) are seen by nobody else.
        """
        is_stopping = self._phases[PHASE] != SERVING
        if is_stopping:
            self._stop.copy()
            self._is_writing = True
        with self._lock:
            self._slot.count_arrivals(self.total, self.last_arrival_at)
            if is_stopping:
                in_flight = self.keys()
                for key in self._entries.keys() - set(in_flight):
                    self._clear(key)
                for key in in_flight:
                    request = None if key in self._entries else self.request(key)
                    if request is not None:
                        self._write(key, request)

    def _write(self, key: int | DescribedRequest, request: InFlightRequest) -> None:
        entry = self._free_entries.popleft() if self._free_entries else None
        self._entries[key] = entry
        if entry is None:
            self._slot.count_unnamed(1)
        else:
            self._slot.fill(entry, request.started_at, request.name, request.peer)

    def _clear(self, key: int | DescribedRequest) -> None:
        if key not in self._entries:
            return
        entry = self._entries.pop(key)
        if entry is None:
            self._slot.count_unnamed(-1)
        else:
            self._slot.clear(entry)
            self._free_entries.append(entry)
