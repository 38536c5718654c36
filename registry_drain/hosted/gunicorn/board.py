"""What gunicorn's master and its workers tell each other: a few numbers in memory that all of them share.

Theory of operation: the master maps anonymous memory before it forks (:mod:`mmap`, which is shared by default), and
gives each worker a slot. The master writes the phase of its stop, and whom it has told to go; a worker writes whether
it is ready, whether it has stopped accepting, and which requests are in flight. Each number has one writer, is aligned,
and is stored whole, so nobody locks across processes. A text may be read while it is written; it is only ever shown.

Rules:

1. Only the master takes and frees slots; a slot is freed when its worker has been reaped.
2. What a worker that is gone has counted stays counted: ``total`` never goes backwards.
"""

from __future__ import annotations

import math
import mmap
import os
import select
import threading
import weakref
from collections import deque

from registry_drain.errors import ServerError
from registry_drain.phases import Phase
from registry_drain.servers.in_flight import InFlightRequest

SLOTS = 1024
"""Workers at most, those of a reload that overlap included. Pages that nobody touches cost nothing."""
ENTRIES = 64
"""Requests of one worker that are known by name; more are only counted."""

_WORD = 8
_HEADER_WORDS = 8
PHASE, _CUT_OFF_AT, _REJOIN = range(3)
SERVING = Phase.SERVING.value
_DELISTED = Phase.PROPAGATING.value
_SLOT_WORDS = 8
_TOLD, _READY, _LEFT, _TOTAL, _LAST_ARRIVAL, _UNNAMED = range(6)
_ENTRY_WORDS = 16
_TEXT_BYTES = (_ENTRY_WORDS - 1) * _WORD
_STRIDE = _SLOT_WORDS + ENTRIES * _ENTRY_WORDS


class WorkerSlot:
    """One worker's part of the board; the master's and the worker's view are the same."""

    def __init__(self, board: Board, index: int) -> None:
        """See the slot ``index``."""
        self._ints, self._floats, self._bytes = board.ints, board.floats, board.bytes
        self._at = _HEADER_WORDS + index * _STRIDE
        self.index = index

    @property
    def is_told(self) -> bool:
        """Whether the master means this worker to go: a signal that it gets is gunicorn's own, not the group's."""
        return bool(self._ints[self._at + _TOLD])

    def tell(self) -> None:
        """Note, in the master, that this worker is about to be signalled to go."""
        self._ints[self._at + _TOLD] = 1

    @property
    def is_ready(self) -> bool:
        """Whether the worker serves."""
        return bool(self._ints[self._at + _READY])

    def be_ready(self) -> None:
        """Note, in the worker, that it serves."""
        self._ints[self._at + _READY] = 1

    @property
    def has_left(self) -> bool:
        """Whether the worker has stopped accepting."""
        return bool(self._ints[self._at + _LEFT])

    def leave(self) -> None:
        """Note, in the worker, that it accepts no more."""
        self._ints[self._at + _LEFT] = 1

    @property
    def total(self) -> int:
        """How many requests have arrived, health checks not counted."""
        return int(self._ints[self._at + _TOTAL])

    @property
    def last_arrival_at(self) -> float | None:
        """When the last of them arrived, on the system's monotonic clock, which all processes share."""
        return self._floats[self._at + _LAST_ARRIVAL] or None

    def count_arrivals(self, total: int, last_arrival_at: float | None) -> None:
        """Note how many requests have arrived, and when the last."""
        self._ints[self._at + _TOTAL] = total
        self._floats[self._at + _LAST_ARRIVAL] = last_arrival_at or 0.0

    def count_unnamed(self, change: int) -> None:
        """Note that a request for which there is no entry has begun (1) or ended (-1)."""
        self._ints[self._at + _UNNAMED] += change

    def fill(self, entry: int, started_at: float, name: str, peer: str) -> None:
        """Note that a request is in flight."""
        word = self._at + _SLOT_WORDS + entry * _ENTRY_WORDS
        text = f"{peer}\0{name}".encode(errors="replace")[: _TEXT_BYTES - 1] + b"\0"
        start = (word + 1) * _WORD
        self._bytes[start : start + len(text)] = text
        self._floats[word] = started_at

    def clear(self, entry: int) -> None:
        """Note that it has ended."""
        self._floats[self._at + _SLOT_WORDS + entry * _ENTRY_WORDS] = 0.0

    def requests(self) -> list[InFlightRequest]:
        """Return what the worker serves. The thread is another process' and is said to be 0."""
        found = []
        for entry in range(ENTRIES):
            word = self._at + _SLOT_WORDS + entry * _ENTRY_WORDS
            started_at = self._floats[word]
            if started_at:
                start = (word + 1) * _WORD
                peer, name, *_ = bytes(self._bytes[start : start + _TEXT_BYTES]).split(b"\0")
                found.append(
                    InFlightRequest(name.decode(errors="replace"), peer.decode(errors="replace"), started_at, 0)
                )
        unnamed = self._ints[self._at + _UNNAMED]
        return found + [InFlightRequest("", "", self.last_arrival_at or 0.0, 0)] * unnamed

    def reset(self) -> None:
        """Forget the worker."""
        for word in (_TOLD, _READY, _LEFT, _TOTAL, _LAST_ARRIVAL, _UNNAMED):
            self._ints[self._at + word] = 0
        for entry in range(ENTRIES):
            self.clear(entry)


class Board:
    """The shared memory, made in the master before its first fork; a :class:`RequestSource` there. Thread-safe."""

    def __init__(self) -> None:
        """Map it; the phase is SERVING."""
        self._memory = mmap.mmap(-1, (_HEADER_WORDS + SLOTS * _STRIDE) * _WORD)
        self.bytes = memoryview(self._memory)
        self.ints = self.bytes.cast("q")
        self.floats = self.bytes.cast("d")
        self.ints[PHASE] = SERVING
        self.floats[_CUT_OFF_AT] = math.nan
        # What is written into it is read by nobody: from then on every process finds it readable.
        self._bell, self._rope = os.pipe()
        for each in (self._bell, self._rope):
            weakref.finalize(self, os.close, each)
        self._lock = threading.Lock()
        self._free = deque(range(SLOTS))
        self._used: dict[int, WorkerSlot] = {}
        self._departed_total = 0
        self._departed_last: float | None = None

    @property
    def phase(self) -> Phase:
        """Where the master's stop is."""
        return Phase(self.ints[PHASE])

    @property
    def is_delisted(self) -> bool:
        """Whether the instance has left its registries."""
        return bool(self.ints[PHASE] >= _DELISTED)

    @property
    def cut_off_at(self) -> float | None:
        """When what is in flight is cut off, on the monotonic clock; None until the stop begins."""
        value = self.floats[_CUT_OFF_AT]
        return None if math.isnan(value) else value

    def publish(self, phase: Phase, cut_off_at: float | None) -> None:
        """Note, in the master, where its stop is; who waits for the stop is woken."""
        self.floats[_CUT_OFF_AT] = math.nan if cut_off_at is None else cut_off_at
        is_first = self.ints[PHASE] == SERVING
        self.ints[PHASE] = phase.value
        if is_first:
            os.write(self._rope, b"!")

    def wait_for_stop(self, timeout: float) -> None:
        """Return, in any process, when the stop begins, or after ``timeout`` seconds."""
        poller = select.poll()
        poller.register(self._bell, select.POLLIN)
        poller.poll(timeout * 1000)

    def ask_to_rejoin(self) -> None:
        """Note, in any process, that an operator's removal is over. The one word that has several writers."""
        self.ints[_REJOIN] = 1

    def take_rejoin(self) -> bool:
        """Return, in the master, whether that was noted since the last call."""
        is_asked = bool(self.ints[_REJOIN])
        self.ints[_REJOIN] = 0
        return is_asked

    def take(self) -> WorkerSlot:
        """Return a free slot, for a worker that is about to be forked.

        Raises:
            ServerError: there is none.
        """
        with self._lock:
            if not self._free:
                raise ServerError(f"more than {SLOTS} workers: registry_drain keeps no account of more")
            slot = WorkerSlot(self, self._free.popleft())
            slot.reset()
            self._used[slot.index] = slot
            return slot

    def free(self, slot: WorkerSlot) -> None:
        """Forget a worker that has been reaped; what it counted stays. Idempotent."""
        with self._lock:
            if self._used.pop(slot.index, None) is None:
                return
            self._departed_total += slot.total
            self._departed_last = _latest(self._departed_last, slot.last_arrival_at)
            slot.reset()
            self._free.append(slot.index)

    @property
    def slots(self) -> list[WorkerSlot]:
        """The slots of workers that are there, as far as is known."""
        with self._lock:
            return list(self._used.values())

    @property
    def total(self) -> int:
        """How many requests have arrived at all workers, those that are gone included."""
        with self._lock:
            return self._departed_total + sum(slot.total for slot in self._used.values())

    @property
    def last_arrival_at(self) -> float | None:
        """When the last of them arrived."""
        with self._lock:
            return _latest(self._departed_last, *(slot.last_arrival_at for slot in self._used.values()))

    def requests(self) -> list[InFlightRequest]:
        """Return what all workers serve."""
        return [request for slot in self.slots for request in slot.requests()]


def _latest(*instants: float | None) -> float | None:
    return max((instant for instant in instants if instant is not None), default=None)
