"""What the processes of one server know of each other, in shared memory.

Theory of operation: one anonymous shared mapping, made before the first fork. A head, which the parent writes and the
children read, says where the stop is. Behind it each child has a slot, which it alone writes and the parent
reads: whether it holds a connection, what it serves, how much it has served. A slot is given to the next child when its
own has gone; what was counted in it stays, so that totals are sums over slots.

A call costs its child two writes, two counts, and does not look at the clock: the kernel knows when it came. A thread
of the child asks it once a second, ten times during the stop, and notes the instant together with the count that it
belongs to. Of what has come since then the parent knows no more than when it first saw the count, which is later, if
anything: doubt lengthens the propagation wait, it never shortens it.

Rules:

1. No locks between processes: one that is held by a child that dies would never be released. Each field has one
   writer at a time, and is aligned, so that reading it gives the old value or the new one. Where two threads of a child
   write the same fields, :meth:`Slot.note`, a lock of that process keeps them apart.
2. A child marks its slot *open* before it stops marking it *accepting*, or counts the connection as *taken*. So a
   parent that sees neither outstanding connections nor accepting children, and then nobody open, has seen all.
3. Instants are those of the system's monotonic clock, which all processes share.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import threading
import time
from collections.abc import Callable

from registry_drain.phases import Phase
from registry_drain.servers.in_flight import InFlightRequest
from registry_drain.servers.stop_state import StopState

NOTED_ALWAYS = -1
"""Of :attr:`Slot.noted`: each call's instant is."""

_noting = threading.Lock()
_NAME_SIZE = 128
_PEER_SIZE = 64


class Head(ctypes.Structure):
    """What the parent says: the phase, when what is left is cut off, whether the listener is closing."""

    _fields_ = (
        ("cut_off_at", ctypes.c_double),
        ("phase", ctypes.c_int64),
        ("is_closing", ctypes.c_int64),
        ("slots_used", ctypes.c_int64),  # by the one process that gives slots out
    )


class Slot(ctypes.Structure):
    """What one child says.

    Attributes:
        pid: of the child; 0 while the slot is free.
        is_accepting: it may hold a connection that it has not made known yet.
        is_open: it holds a connection.
        is_checked: a health check is in flight.
        is_cut: the request described here was cut off.
        taken: how many connections it took that the parent handed over.
        served: how many requests arrived, health checks not counted.
        answered: how many of them are in flight no more.
        arrived_at: when the last of the first ``noted`` of them arrived; 0 before.
        noted: what ``served`` was when ``arrived_at`` was noted, or :data:`NOTED_ALWAYS`.
        started_at: when the last health check began; of other requests ``arrived_at`` says it.
        name: its method.
        peer: the client.
    """

    _fields_ = (
        ("pid", ctypes.c_int64),
        ("is_accepting", ctypes.c_int64),
        ("is_open", ctypes.c_int64),
        ("is_checked", ctypes.c_int64),
        ("is_cut", ctypes.c_int64),
        ("taken", ctypes.c_int64),
        ("served", ctypes.c_int64),
        ("answered", ctypes.c_int64),
        ("noted", ctypes.c_int64),
        ("arrived_at", ctypes.c_double),
        ("started_at", ctypes.c_double),
        ("name", ctypes.c_char * _NAME_SIZE),
        ("peer", ctypes.c_char * _PEER_SIZE),
    )

    noted: int

    @property
    def is_busy(self) -> bool:
        """Whether a request is in flight."""
        return self.served != self.answered or bool(self.is_checked)

    def open(self, peer: str) -> None:
        """Note that this child holds a connection."""
        self.peer = peer.encode()[: _PEER_SIZE - 1]
        self.rest()
        if self.noted == NOTED_ALWAYS:
            self.noted = self.served  # It need not be any more.
        self.is_open = 1

    def rest(self) -> None:
        """Note that no request is in flight."""
        self.answered = self.served
        self.is_checked = 0

    def close(self) -> None:
        """Note that it holds none any more."""
        self.rest()
        self.is_open = 0

    def note(self, arrived_at: float | None, served: int) -> None:
        """Note when the last of so many requests arrived; from any of the child's threads. Never goes back."""
        with _noting:
            if arrived_at is not None and self.noted != NOTED_ALWAYS and self.noted <= served:
                self.arrived_at = arrived_at
                self.noted = served

    def rename(self, name: str) -> None:
        """Say which method is being served."""
        self.name = name.encode()[: _NAME_SIZE - 1]

    def free(self) -> None:
        """Note that the child has gone; what it counted stays."""
        self.close()
        self.is_accepting = 0
        self.pid = 0

    def describe(self, started_at: float) -> InFlightRequest:
        """Return the request in flight."""
        is_here = self.pid == os.getpid()
        return InFlightRequest(
            bytes(self.name).decode(errors="replace") or "(unnamed)",
            bytes(self.peer).decode(errors="replace"),
            started_at,
            # A child serves in its main thread. Elsewhere its thread's number may well be one of ours, too.
            (threading.main_thread().ident or 0) if is_here else 0,
        )


class SharedTable:
    """The mapping: a :class:`~registry_drain.servers.in_flight.RequestSource` for the parent.

    Args:
        size: how many children there may be at a time.
    """

    def __init__(self, size: int) -> None:
        # Pages are made when they are first touched, so a large table costs nothing while few children are there.
        memory = mmap.mmap(-1, ctypes.sizeof(Head) + size * ctypes.sizeof(Slot))
        self.head = Head.from_buffer(memory)
        self.slots = (Slot * size).from_buffer(memory, ctypes.sizeof(Head))
        self.head.cut_off_at = math.nan
        self._first_seen: dict[int, tuple[int, float]] = {}  # by index: a count that was not noted, and when

    def used(self) -> list[Slot]:
        """Return the slots that have been given out at least once."""
        return list(self.slots[: self.head.slots_used])

    @property
    def total(self) -> int:
        """How many requests have arrived, health checks not counted."""
        return sum(slot.served for slot in self.used())

    @property
    def last_arrival_at(self) -> float | None:
        """When the last of them arrived."""
        return max((self._arrived_at(index) for index, slot in enumerate(self.used()) if slot.served), default=None)

    def requests(self) -> list[InFlightRequest]:
        """Return those in flight now."""
        return [self.describe(index) for index, slot in enumerate(self.used()) if slot.is_busy]

    def describe(self, index: int) -> InFlightRequest:
        """Return what is in flight in a slot."""
        slot = self.slots[index]
        return slot.describe(max(slot.started_at, self._arrived_at(index)))

    @property
    def open_count(self) -> int:
        """How many children hold a connection."""
        return sum(slot.is_open for slot in self.used())

    @property
    def taken(self) -> int:
        """How many handed-over connections children have taken."""
        return sum(slot.taken for slot in self.used())

    @property
    def is_anybody_accepting(self) -> bool:
        """Whether a child may hold a connection that is not known yet."""
        return any(slot.is_accepting for slot in self.used())

    def _arrived_at(self, index: int) -> float:
        slot = self.slots[index]
        served, first_seen = slot.served, self._first_seen.get(index, (0, 0.0))
        if slot.noted in {NOTED_ALWAYS, served}:
            return slot.arrived_at
        if first_seen[0] != served:
            first_seen = self._first_seen[index] = served, time.monotonic()
        return first_seen[1]

    def tell(self, state: StopState) -> None:
        """Let the children know where the stop is."""
        left = state.time_left()
        self.head.cut_off_at = math.nan if left is None else time.monotonic() + left
        self.head.phase = state.phase.value


class SharedStopState(StopState):
    """The parent's stop state, as a child reads it. Nobody is told of changes; who wants to know looks."""

    def __init__(self, head: Head, now: Callable[[], float]) -> None:
        """Read from ``head``."""
        self._head = head
        super().__init__(now)

    @property  # an attribute there
    def phase(self) -> Phase:
        """See :class:`StopState`."""
        return Phase(self._head.phase)

    @phase.setter
    def phase(self, phase: Phase) -> None:
        pass  # The parent's to say.

    @property
    def cut_off_at(self) -> float | None:
        """See :class:`StopState`."""
        at: float = self._head.cut_off_at
        return None if math.isnan(at) else at

    @cut_off_at.setter
    def cut_off_at(self, cut_off_at: float | None) -> None:
        pass  # The parent's to say.

    @property
    def is_stopping(self) -> bool:
        """See :class:`StopState`."""
        return self.phase.is_stopping

    @is_stopping.setter
    def is_stopping(self, is_stopping: bool) -> None:
        pass

    @property
    def is_delisted(self) -> bool:
        """See :class:`StopState`."""
        return self.phase.value >= Phase.PROPAGATING.value

    @is_delisted.setter
    def is_delisted(self, is_delisted: bool) -> None:
        pass

    @property
    def is_draining(self) -> bool:
        """See :class:`StopState`."""
        return self.phase.value >= Phase.DRAINING.value

    @is_draining.setter
    def is_draining(self, is_draining: bool) -> None:
        pass
