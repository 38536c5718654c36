"""What is known of a session: told by kazoo's threads, waited for by others. See rules 2, 4 and 5 of the folder."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from enum import Enum

from kazoo.protocol.states import KazooState, KeeperState

from registry_drain.registries.zookeeper.client import SessionClient, SessionKey
from registry_drain.registries.zookeeper.handler import ConnectionNotes

MOST_OUTSTANDING = 64
"""Requests; see rule 2. Two rounds (one lost with a connection, one new) stay below 278, even of two sends each."""


class SessionPhase(Enum):
    """What a session can do now."""

    CONNECTING = "connecting"
    CONNECTED = "connected"
    SUSPENDED = "suspended"
    """The connection is lost; the session, and its nodes, may live on."""
    OVER = "over"
    """This object is of no more use. Whether the server knows: ``is_dead``."""


def session_text(session_id: int) -> str:
    """Return a session's id as ZooKeeper's own tools print it."""
    return f"0x{session_id & 0xFFFFFFFFFFFFFFFF:x}"


class SessionState:
    """See the module. Thread-safe.

    Args:
        key: of the session that is continued; None for one that begins.
        on_change: called from kazoo's threads when the phase changes; must only set an event.

    Attributes:
        notes: how the attempts to connect ended.
        over: set when the object is of no more use. Wait for it; do not set it.
    """

    def __init__(self, key: SessionKey | None, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self._process_id = os.getpid()
        self.notes = ConnectionNotes(self._wake)
        self.over = threading.Event()
        self._lock = threading.Lock()  # guards what follows
        self._phase = SessionPhase.CONNECTING
        self._key = key
        self._is_dead = False
        self._is_refused = False
        self._is_ending = False
        self._outstanding = 0
        self._epoch = 0
        self._waiters: set[threading.Event] = set()

    @property
    def phase(self) -> SessionPhase:
        """What it can do now."""
        return self._phase

    @property
    def key(self) -> SessionKey | None:
        """What resumes it; None before it was connected."""
        return self._key

    @property
    def is_inherited(self) -> bool:
        """Whether this is a forked child's copy."""
        return self._process_id != os.getpid()

    @property
    def is_refused(self) -> bool:
        """Whether the server has refused our credentials."""
        return self._is_refused

    @property
    def is_ending(self) -> bool:
        """Whether somebody ends it."""
        return self._is_ending

    @property
    def is_over(self) -> bool:
        """Whether this object is of no more use, or somebody ends it, or it was inherited by a fork."""
        # Before the lock: a thread that held it at the fork does not exist in the child.
        if self.is_inherited:
            return True
        with self._lock:
            return self._phase is SessionPhase.OVER or self._is_ending

    @property
    def is_dead(self) -> bool:
        """Whether the server is known to have ended the session, and with it every ephemeral node of it."""
        with self._lock:
            # Without an id we were never connected, and sent nothing that could need ending.
            return self._is_dead or (self._key is None and self.over.is_set())

    # --- told by kazoo's threads --------------------------------------------------------------------------------------

    def listen(self, state: object, client: SessionClient) -> None:
        """Take notes; see rules 4 and 5. kazoo calls this before it fails what was under way."""
        keeper_state = client.client_state
        client_id = client.client_id
        with self._lock:
            if self._phase is SessionPhase.OVER:
                return
            if state == KazooState.CONNECTED:
                self._note_connected(SessionKey(*client_id) if client_id else self._key)
            elif state == KazooState.SUSPENDED:
                self._phase = SessionPhase.SUSPENDED
            else:
                # kazoo says CONNECTED before it authenticates: a goodbye may still wait when that fails.
                is_unknown = keeper_state == KeeperState.AUTH_FAILED
                was_answered = self._is_ending and self._phase is SessionPhase.CONNECTED and not is_unknown
                self._is_dead = keeper_state == KeeperState.EXPIRED_SESSION or was_answered
                self._is_refused = is_unknown and not client.was_hung_up_on
                self._phase = SessionPhase.OVER
            is_over = self._phase is SessionPhase.OVER
        if is_over:
            self.over.set()
        self._wake()
        self._on_change()

    def _note_connected(self, key: SessionKey | None) -> None:
        if key and self._key and key.id != self._key.id:
            # kazoo went on under a new session: the one before has expired. (When a session is resumed that had expired
            # this is the only sign, because kazoo tells no listener about LOST before CONNECTED.)
            self._is_dead, self._phase = True, SessionPhase.OVER
            return
        self._key, self._phase = key, SessionPhase.CONNECTED
        self._epoch += 1
        self._outstanding = 0
        self.notes.connected()

    def _wake(self) -> None:
        with self._lock:
            waiters = list(self._waiters)
        for waiter in waiters:
            waiter.set()

    # --- told by whoever ends it --------------------------------------------------------------------------------------

    def begin_ending(self, *, only_if_connected: bool) -> bool:
        """Note that the caller ends it; return False if that is somebody else's already, or cannot be done now."""
        if self.is_inherited:
            return False
        with self._lock:
            if self._is_ending or (only_if_connected and self._phase is not SessionPhase.CONNECTED):
                return False
            self._is_ending = True
            return True

    def note_over(self) -> None:
        """Its connection was let go of."""
        with self._lock:
            self._phase = SessionPhase.OVER
        self.over.set()
        self._wake()

    def note_dead(self) -> None:
        """The server has ended it, as was found out elsewhere."""
        with self._lock:
            self._is_dead = True

    # --- waiting for a connection, and for a place --------------------------------------------------------------------

    def add_waiter(self, waiter: threading.Event) -> None:
        """Have ``waiter`` set at each change, until :meth:`remove_waiter`."""
        with self._lock:
            self._waiters.add(waiter)

    def remove_waiter(self, waiter: threading.Event) -> None:
        """Undo :meth:`add_waiter`."""
        with self._lock:
            self._waiters.discard(waiter)

    def enter(self, count: int) -> int | None:
        """Take ``count`` places for requests; return the connection's number for :meth:`leave`, or None: wait."""
        with self._lock:
            is_full = self._outstanding + count > MOST_OUTSTANDING
            if self._phase is not SessionPhase.CONNECTED or is_full:
                return None
            self._outstanding += count
            return self._epoch

    def leave(self, epoch: int, count: int) -> None:
        """Give places back; those of an earlier connection went with it."""
        with self._lock:
            if epoch == self._epoch:
                self._outstanding -= count
        self._wake()
