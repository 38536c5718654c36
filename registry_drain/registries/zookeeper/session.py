"""One ZooKeeper session, with every wait bounded, and ended for certain.

Theory of operation. kazoo gives a client that reconnects by itself and, when its session has expired, goes on under a
*new* session without being asked. Both are wrong here: what is queued must not run later, and an ephemeral node belongs
to exactly one session. So a :class:`ZooKeeperSession` wraps one KazooClient for the life of one session. Once that
session is over the object is never used again; whoever needs a session makes another. Rules:

1. Only asynchronous calls, each ``get`` with a time limit. kazoo's synchronous calls wait without limit while the
   connection is down, and so does its retry helper, whatever its deadline.
2. Nothing is handed to kazoo unless the session is connected, and never more than ``_MOST_OUTSTANDING`` requests at
   once. kazoo wakes its connection thread with one byte per request through a socket pair; while the connection is down
   nobody reads those bytes, they outlive the requests, and after 278 of them (on Linux) the *next caller hangs*.
3. A write that was not answered may still be in kazoo's queue and run after a reconnect. Its caller must
   :meth:`begin_end` the session, which drops the queue, or lets the server undo what it has done.
4. Our listener runs in kazoo's threads: it takes notes and sets events. All work is done in the callers' threads.
5. *Dead* means that the server said so: it answered our goodbye, or told us that the session has expired. kazoo's
   ``stop()`` looks the same whether the goodbye arrived or the connection broke; the listener tells the two apart by
   the state that preceded it. If the goodbye was lost, :meth:`end` resumes the session by its id and password on a new
   connection and says it again. Only after that is an absent node proof that it stays absent: requests of a broken
   connection may still lie unread in the server's socket.
6. A server may hang, and kazoo takes two thirds of the session's time-out to notice. So a goodbye that is not answered
   soon is said again in the same way, to another server where there is one.

kazoo's ``stop()`` can block (a black hole, a resolver), so it runs in a thread of its own which nobody waits for
without a limit. Locks guard the fields only.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any

from kazoo.protocol.states import KazooState, KeeperState

from registry_drain.clock import Clock, Deadline
from registry_drain.errors import (
    PermissionRefusedError,
    RegistryError,
    RegistryTimeoutError,
    RegistryUnavailableError,
)
from registry_drain.registries.zookeeper.client import SessionKey, let_go, new_client, send_goodbye
from registry_drain.registries.zookeeper.handler import ConnectionNotes
from registry_drain.registries.zookeeper.refusal import Need, need_of
from registry_drain.registries.zookeeper.session_errors import ANSWERS, RefusedRequestError, SessionErrors
from registry_drain.registries.zookeeper.settings import Cancellation, CancelledSessionCallError, SessionSettings

__all__ = ["ANSWERS", "RefusedRequestError", "Request", "SessionPhase", "ZooKeeperSession", "read_stat", "session_text"]

log = logging.getLogger(__name__)

_MOST_OUTSTANDING = 64
"""Requests; see rule 2. Two rounds (one lost with a connection, one new) stay below 278, even of two sends each."""

_LONGEST_HOLD = 5.0
"""Seconds until a session that somebody forgot to let go of is let go."""

GOODBYE_PATIENCE = 1.5
"""Seconds until rule 6: an ensemble that elects a leader has hung up by then, and a busy one has answered."""

Request = Callable[[Any], Any]
"""Given the KazooClient, sends one request and returns its AsyncResult."""


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


class ZooKeeperSession:
    """One session; begins to connect when it is made. Thread-safe.

    Args:
        settings: where, and how long.
        clock: measures every wait.
        on_change: called from kazoo's threads when the phase changes; must only set an event.
        resume: continue this session instead of beginning one.
    """

    def __init__(
        self,
        settings: SessionSettings,
        clock: Clock,
        *,
        on_change: Callable[[], None] | None = None,
        resume: SessionKey | None = None,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._on_change = on_change or (lambda: None)
        self._process_id = os.getpid()
        self._lock = threading.Lock()
        self._phase = SessionPhase.CONNECTING
        self._key = resume
        self._is_dead = False
        self._is_refused = False
        self._is_ending = False
        self._is_goodbye_said = False
        self._release = threading.Event()
        self._outstanding = 0
        self._epoch = 0
        self._waiters: set[threading.Event] = set()
        self._over = threading.Event()
        self._stopped = threading.Event()
        self._notes = ConnectionNotes(self._wake_waiters)
        self._client = new_client(settings, resume, self._notes)
        self._errors = SessionErrors(settings, settings.read_credential(), self._client)
        self._client.add_listener(self._listen)
        self._client.start_async()

    def __repr__(self) -> str:
        """Show the phase and the id, never the password."""
        key = self._key
        return f"<ZooKeeperSession {session_text(key.id) if key else 'new'} {self._phase.value}>"

    @property
    def id(self) -> int | None:
        """The session's id, signed as ``ephemeralOwner`` is; None before it was connected."""
        key = self._key
        return key.id if key else None

    @property
    def is_over(self) -> bool:
        """Whether this object is of no more use, or somebody ends it, or it was inherited by a fork."""
        # Before the lock: a thread that held it at the fork does not exist in the child.
        if self._process_id != os.getpid():
            return True
        with self._lock:
            return self._phase is SessionPhase.OVER or self._is_ending

    @property
    def is_dead(self) -> bool:
        """Whether the server is known to have ended the session, and with it every ephemeral node of it."""
        with self._lock:
            # Without an id we were never connected, and sent nothing that could need ending.
            return self._is_dead or (self._key is None and self._over.is_set())

    # --- kazoo's threads ----------------------------------------------------------------------------------------------

    def _listen(self, state: object) -> None:
        """Take notes; see rules 4 and 5. kazoo calls this before it fails what was under way."""
        keeper_state = self._client.client_state
        client_id = self._client.client_id
        with self._lock:
            if self._phase is SessionPhase.OVER:
                return
            if state == KazooState.CONNECTED:
                key = SessionKey(*client_id) if client_id else self._key
                if key and self._key and key.id != self._key.id:
                    # kazoo went on under a new session: the one before has expired. (When a session is resumed that
                    # had expired this is the only sign, because kazoo tells no listener about LOST before CONNECTED.)
                    self._is_dead, self._phase = True, SessionPhase.OVER
                else:
                    self._key, self._phase = key, SessionPhase.CONNECTED
                    self._epoch += 1
                    self._outstanding = 0
                    self._notes.connected()
            elif state == KazooState.SUSPENDED:
                self._phase = SessionPhase.SUSPENDED
            else:
                # kazoo says CONNECTED before it authenticates: a goodbye may still wait when that fails.
                is_unknown = keeper_state == KeeperState.AUTH_FAILED
                was_answered = self._is_ending and self._phase is SessionPhase.CONNECTED and not is_unknown
                self._is_dead = keeper_state == KeeperState.EXPIRED_SESSION or was_answered
                self._is_refused = is_unknown and not self._client.was_hung_up_on
                self._phase = SessionPhase.OVER
            is_over = self._phase is SessionPhase.OVER
            waiters = list(self._waiters)
        if is_over:
            self._over.set()
        for waiter in waiters:
            waiter.set()
        self._on_change()

    def _wake_waiters(self) -> None:
        with self._lock:
            waiters = list(self._waiters)
        for waiter in waiters:
            waiter.set()

    # --- calls --------------------------------------------------------------------------------------------------------

    def call(self, *requests: Request, deadline: Deadline, cancellation: Cancellation | None = None) -> list[Any]:
        """Send ``requests`` back to back, which costs one round trip, and return their answers in order.

        ZooKeeper keeps the order of one session's requests, so that e.g. a ``sync`` counts for the read behind it.

        Raises:
            One of ``ANSWERS``: the first request that was answered so.
            RegistryUnavailableError: not connected by the deadline, or the connection was lost: the requests may or may
                not have taken effect. Retryable.
            RegistryTimeoutError: no answer in time; the requests may take effect later. See rule 3.
            PermissionRefusedError: the credentials do not suffice.
        """
        answers = self.call_each(requests, deadline=deadline, cancellation=cancellation)
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers

    def call_each(
        self, requests: Sequence[Request], *, deadline: Deadline, cancellation: Cancellation | None = None
    ) -> list[Any]:
        """Send many requests, some at a time, and return an answer for each: its value, or the exception.

        The exceptions are those of ``ANSWERS`` and PermissionRefusedError; the others of :meth:`call` are raised.
        """
        answers: list[Any] = []
        size = _MOST_OUTSTANDING // 2
        cancellation = cancellation or Cancellation()
        for start in range(0, len(requests), size):
            answers += self._call_batch(requests[start : start + size], deadline, cancellation)
        for index, answer in enumerate(answers):
            if isinstance(answer, RefusedRequestError):
                # One is explained with the list that refuses it, for a round trip; thousands would each say the same.
                answers[index] = self.refused(answer.need, deadline, cancellation)
                break
        return answers

    def refused(
        self, need: Need | None, deadline: Deadline, cancellation: Cancellation | None = None
    ) -> PermissionRefusedError:
        """Return an error that says who lacks ``need``, and who has it, as far as the access list may be read."""
        acls = None
        if need is not None and deadline.remaining() > 0:
            with contextlib.suppress(RegistryUnavailableError):
                node = need.node
                [answer] = self._call_batch(
                    [lambda client: client.get_acls_async(node)], deadline, cancellation or Cancellation()
                )
                acls = None if isinstance(answer, Exception) else answer[0]
        return self._errors.refused(need, acls)

    def _call_batch(self, requests: Sequence[Request], deadline: Deadline, cancellation: Cancellation) -> list[Any]:
        epoch = self._enter(len(requests), deadline, cancellation)
        results: list[Any] = []
        needs: list[Need | None] = []

        def abort() -> None:
            for result in results:
                if not result.ready():
                    result.set_exception(CancelledSessionCallError(f"{self._settings.url}: cancelled"))

        try:
            for request in requests:
                results.append(request(self._client))
                needs.append(need_of(self._client.take_last_request()))
            with cancellation.hook(abort):
                limit = deadline.capped(self._settings.call_timeout)
                # The last one first: answers come in order, so that it is the only one that is really waited for.
                sent = zip(reversed(results), reversed(needs), strict=True)
                return [self._errors.answer(result, need, limit) for result, need in sent][::-1]
        finally:
            # What was not answered keeps its place until it is, or until the next connection; rule 2.
            late = [result for result in results if not result.ready()]
            self._leave(epoch, len(requests) - len(late))
            for result in late:
                result.rawlink(lambda _: self._leave(epoch, 1))

    def wait_connected(self, deadline: Deadline, cancellation: Cancellation | None = None) -> None:
        """Wait until the session is connected.

        Raises:
            RegistryUnavailableError: it was not by the deadline, or it is over.
            PermissionRefusedError: the server refused the credentials.
        """
        epoch = self._enter(0, deadline, cancellation or Cancellation())
        self._leave(epoch, 0)

    def _enter(self, count: int, deadline: Deadline, cancellation: Cancellation) -> int:
        """Wait for the connection and for ``count`` places; return the connection's number for :meth:`_leave`."""
        waiter = threading.Event()
        with self._lock:
            self._waiters.add(waiter)
        try:
            with cancellation.hook(waiter.set):
                while True:
                    waiter.clear()
                    if cancellation.event.is_set():
                        raise CancelledSessionCallError(f"{self._settings.url}: cancelled")
                    with self._lock:
                        is_connected = self._phase is SessionPhase.CONNECTED
                        if is_connected and not self._outstanding + count > _MOST_OUTSTANDING:
                            self._outstanding += count
                            return self._epoch
                    self._check_usable()
                    if not deadline.wait(waiter):
                        raise self._errors.unreachable(self._notes.failure, is_connected=is_connected)
        finally:
            with self._lock:
                self._waiters.discard(waiter)

    def _leave(self, epoch: int, count: int) -> None:
        with self._lock:
            if epoch == self._epoch:
                self._outstanding -= count
            waiters = list(self._waiters)
        for waiter in waiters:
            waiter.set()

    def _check_usable(self) -> None:
        if self._is_refused:
            raise self._errors.credentials_refused()
        if (refusal := self._notes.refusal) is not None:
            raise type(refusal)(f"{self._settings.url}: {refusal}")
        if self._process_id != os.getpid():
            raise RegistryUnavailableError(f"{self._settings.url}: this session belongs to the process that forked us")
        if self._phase is SessionPhase.OVER:
            raise self._errors.over()

    # --- the end ------------------------------------------------------------------------------------------------------

    def begin_end(self) -> None:
        """Say goodbye, drop whatever is queued, and let go of kazoo's threads and sockets. Returns at once; idempotent.

        Letting go may block for long, and so has a thread of its own.
        """
        self._begin(only_if_connected=False)
        self._release.set()

    def say_goodbye(self) -> None:
        """Send the goodbye if the session is connected, and hold the rest of :meth:`begin_end`, which must follow.

        For whoever counts milliseconds: ending kazoo's three threads, and starting the one that does, takes longer than
        ZooKeeper takes to end the session. It is started while the goodbye travels, and waits.
        """
        self._begin(only_if_connected=True)

    def _begin(self, *, only_if_connected: bool) -> None:
        with self._lock:
            is_late = self._is_ending or self._process_id != os.getpid()
            if is_late or (only_if_connected and self._phase is not SessionPhase.CONNECTED):
                return
            self._is_ending = True
        self._is_goodbye_said = send_goodbye(self._client)
        threading.Thread(target=self._let_go, name="registry-drain-zookeeper-close", daemon=True).start()

    def _let_go(self) -> None:
        try:
            if self._is_goodbye_said:
                self._clock.wait(self._release, _LONGEST_HOLD)
            let_go(self._client, is_goodbye_said=self._is_goodbye_said)
        except Exception:
            # Whatever kazoo trips over, the session's time-out ends what we could not.
            log.debug("closing a connection to %s failed", self._settings.url, exc_info=True)
        finally:
            with self._lock:
                self._phase = SessionPhase.OVER
                waiters = list(self._waiters)
            self._over.set()
            self._stopped.set()
            for waiter in waiters:
                waiter.set()

    def wait_stopped(self, deadline: Deadline) -> bool:
        """Wait until the thread of :meth:`begin_end` has let go of every resource; return whether it has."""
        return deadline.wait(self._stopped)

    def end(self, deadline: Deadline) -> None:
        """End the session and return when the server is known to have ended it, and removed its nodes. Idempotent.

        :meth:`begin_end` must follow, whatever comes of it.

        Raises:
            RegistryUnavailableError: that is not known by the deadline, or not yet. Retryable: a further call resumes
                the session and tries again.
        """
        with self._lock:
            is_begun = self._is_ending or self._phase is SessionPhase.OVER
        if not is_begun:
            # A goodbye needs a connection: while there is none kazoo's stop() leaves without saying it.
            try:
                self.wait_connected(deadline)
            except RegistryError as error:
                log.debug("ending %r without a connection: %s", self, error)
        self.say_goodbye()
        with self._lock:
            is_under_way = self._is_goodbye_said and self._phase in {SessionPhase.CONNECTED, SessionPhase.OVER}
        if not is_under_way:
            self.begin_end()
        # Without an id there is nothing that could be said elsewhere.
        patient = deadline if self._key is None else deadline.capped(GOODBYE_PATIENCE)
        is_over = patient.wait(self._over)
        if self.is_dead:
            return
        self.begin_end()
        if not is_over and deadline.is_past:
            raise RegistryTimeoutError(f"{self._settings.url}: closing the session was not answered in time")
        try:
            self._end_elsewhere(deadline)
        except RegistryError:
            if not self.is_dead:  # it was not answered meanwhile, either
                raise
        with self._lock:
            self._is_dead = True

    def _end_elsewhere(self, deadline: Deadline) -> None:
        """Resume it by a new connection, and say goodbye there; see rule 6."""
        others = self._settings.avoiding(self._notes.server)
        if others is not self._settings:
            # The other half of the time is for the case that only the silent one comes back.
            with contextlib.suppress(RegistryUnavailableError):
                return self._end_resumed(others, deadline.capped(deadline.remaining() / 2))
        return self._end_resumed(self._settings, deadline)

    def _end_resumed(self, settings: SessionSettings, deadline: Deadline) -> None:
        resumed = ZooKeeperSession(settings, self._clock, resume=self._key)
        try:
            if not self._ends(resumed, deadline):
                raise RegistryUnavailableError(f"{self._settings.url}: the connection broke while closing the session")
        finally:
            resumed.begin_end()

    @staticmethod
    def _ends(resumed: ZooKeeperSession, deadline: Deadline) -> bool:
        try:
            resumed.wait_connected(deadline)
        except RegistryError:
            # It may be over because it has expired, which is just as well.
            if resumed.is_dead:
                return True
            raise
        resumed.begin_end()
        deadline.wait(resumed._over)
        if resumed._is_refused:
            raise resumed._errors.credentials_refused()
        return resumed.is_dead

    def elsewhere(self) -> ZooKeeperSession:
        """Return another session, with another server if there is one."""
        return ZooKeeperSession(self._settings.avoiding(self._notes.server), self._clock)


def read_stat(session: ZooKeeperSession, path: str, deadline: Deadline) -> Any:
    """Return a node's stat by a consistent read, or None: one round trip, and every earlier write counts."""

    def synced(client: Any) -> Any:
        # Its answer is not waited for, because kazoo brings it through one more thread. The server answers in order:
        # when the read is answered, the sync was, and what loses one loses both.
        client.sync_async(path)
        return client.exists_async(path)

    [stat] = session.call(synced, deadline=deadline)
    return stat
