"""One instance's own znode: on which session it is written, and who may hold the path.

Theory of operation. The node belongs to a session that nothing else uses, so that ending the session removes exactly
our node and can never remove a successor's: a version guard cannot promise that, because a re-created node starts
again at version 0. :meth:`OwnNode.settle` looks at the path, does one thing about what it sees, and looks again, until
it sees our own node. It runs in one thread only, the registration's worker. Rules:

1. *A write without an answer ends its session.* That drops kazoo's queue and lets the server undo what it has done. The
   next attempt has a new session, and knows the old one's node by its owner.
2. *The newest wins*: :mod:`registry_drain.registries.zookeeper.registration.take_over` says who that is.
3. *Take-over is guarded by the version*: see there.
4. *Persistent nodes are left alone*: no owner's death will ever explain them.
5. *A node that is gone before its session was taken out on purpose*, and is not made again before :meth:`rejoin`.
   ZooKeeper by itself removes an ephemeral node only with its session. So if the very session under which we saw our
   node still answers *after* the node was seen missing, somebody deleted it (or replaced it, and has left since). The
   second answer matters: a follower could give the first one between the end of the session and that of the connection;
   but the leader, whom the ``sync`` before the second one asks, refuses a session that is over. Under a new session an
   absent node says nothing, and is made anew: it may have gone with the old one.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from kazoo.exceptions import NoNodeError
from kazoo.security import ACL

from registry_drain.clock import Clock, Deadline
from registry_drain.errors import (
    ConfigurationError,
    LiveOwnerError,
    PermissionRefusedError,
    RegistryUnavailableError,
    RemovedByOperatorError,
)
from registry_drain.instance import ServiceInstance
from registry_drain.registries.zookeeper.layouts import NodeTree
from registry_drain.registries.zookeeper.layouts.base import parents
from registry_drain.registries.zookeeper.registration.leaving_rotation import switch_out
from registry_drain.registries.zookeeper.registration.take_over import (
    is_applied,
    may_take_over,
    refused_need,
    taking_over,
)
from registry_drain.registries.zookeeper.session import (
    RefusedRequestError,
    Request,
    ZooKeeperSession,
    session_text,
)
from registry_drain.registries.zookeeper.settings import Cancellation, CancelledSessionCallError, SessionSettings

log = logging.getLogger(__name__)

_MOST_STEPS = 12
"""Looks per attempt. Few are ever needed: missing parents, a predecessor, a race lost, and the look that finds us."""
_LARGEST_NODE = 1_000_000
"""Bytes. ZooKeeper's jute.maxbuffer is 1 MiB by default; beyond it the server just drops the connection, each time."""


class OwnNode:
    """See the module. :meth:`settle` belongs to one thread; the properties may be read from any.

    Args:
        instance: what the node says.
        tree: where it stands.
        settings: of its sessions.
        clock: measures the waits, and tells when the instance started.
        cancellation: ends every wait.
        wake: called from kazoo's threads when the node or a session may have changed; must only set an event.
    """

    def __init__(
        self,
        instance: ServiceInstance,
        tree: NodeTree,
        settings: SessionSettings,
        clock: Clock,
        cancellation: Cancellation,
        wake: Callable[[], None],
    ) -> None:
        self._instance = instance
        self._layout = tree.layout
        self._settings = settings
        self._clock = clock
        self._cancellation = cancellation
        self._wake = wake
        # The layouts write milliseconds: compare what others will read.
        self._started_at = round(clock.unix_time() * 1000) / 1000
        self._data = tree.layout.encode(instance, self._started_at)
        if len(self._data) > _LARGEST_NODE:
            raise ConfigurationError(f"{instance} has {len(self._data)} bytes of data: ZooKeeper takes about 1 MB")
        self._prefix = tree.node(instance)
        self._lock = threading.Lock()
        self._sessions: list[ZooKeeperSession] = []
        self._past_ids: set[int] = set()
        self.path: str | None = None if tree.layout.is_sequential else self._prefix
        """Where it stands; of a sequential layout known only once it was created."""
        self.was_written = False
        """Whether anything was ever sent that could have created it."""
        self.is_in_place = False
        """Whether it stood in its place when last looked at."""
        self.was_held = False
        """Whether it ever did."""
        self.is_removed = False
        """Whether somebody took it out on purpose; see rule 5."""
        self._seen_under: ZooKeeperSession | None = None  # the session under which it is known to have stood there

    def rejoin(self) -> None:
        """Let the next :meth:`settle` make the node again although somebody removed it. In the thread that settles.

        Whoever stands there by then came later, and is left alone: rule 2.
        """
        self.is_removed = False
        self._seen_under = None

    def leave_rotation(self, session: ZooKeeperSession, deadline: Deadline) -> None:
        """Take the node out of rotation, if it still is the one that ``session`` holds. From any thread.

        Raises:
            RegistryDataError, LiveOwnerError, RegistryUnavailableError: see :func:`switch_out`.
        """
        switch_out(session, self._layout, self.path or self._prefix, self._settings, deadline)

    def claim_anew(self) -> None:
        """Be a later instance than any: the next :meth:`settle` takes the path back from whoever took it over.

        For the end of a hand-over that failed. In the thread that settles.
        """
        self._started_at = round(self._clock.unix_time() * 1000) / 1000
        self._data = self._layout.encode(self._instance, self._started_at)
        self.was_held = False
        self._seen_under = None

    @property
    def sessions(self) -> list[ZooKeeperSession]:
        """The sessions that may hold it, oldest first."""
        with self._lock:
            return list(self._sessions)

    @property
    def session_ids(self) -> set[int]:
        """The ids of every session it was ever written with."""
        with self._lock:
            return self._past_ids | {session.id for session in self._sessions if session.id is not None}

    def settle(self, deadline: Deadline) -> ZooKeeperSession:
        """Put the node in its place, or find it there; return the session that holds it. One attempt.

        Raises:
            RegistryUnavailableError: retryable.
            PermissionRefusedError: the access lists of base or service do not let us create.
            LiveOwnerError: a newer instance, or a persistent node, stands there.
            RemovedByOperatorError: see rule 5.
            CancelledSessionCallError: cancelled.
        """
        if self.is_removed:
            raise self._removed_error()
        session = self._usable_session()
        for _ in range(_MOST_STEPS):
            if self._cancellation.event.is_set():
                raise CancelledSessionCallError("fenced")
            stat = self._look(session, self.path, deadline) if self.path is not None else None
            self.is_in_place = stat is not None and stat.ephemeralOwner == session.id
            if stat is None:
                if self._seen_under is session:
                    self._refuse_if_removed(session, deadline)
                else:
                    self._create(session, deadline)
            elif self.is_in_place:
                self.was_held = True
                self._seen_under = session
                return session
            else:
                self._replace(session, stat.ephemeralOwner, deadline)
        raise RegistryUnavailableError(f"{self._settings.url}: {self.path} changes faster than it can be read")

    def _usable_session(self) -> ZooKeeperSession:
        with self._lock:
            current = self._sessions[-1] if self._sessions else None
        if current is not None and not current.is_over:
            return current
        if current is not None:
            # It expired: stop kazoo from going on under a session that nobody uses.
            current.begin_end()
        session = ZooKeeperSession(self._settings, self._clock, on_change=self._wake)
        with self._lock:
            # What is dead needs no ending. Its id still tells our own leftovers from somebody else's.
            self._past_ids.update(each.id for each in self._sessions if each.id is not None)
            self._sessions = [each for each in self._sessions if not each.is_dead]
            self._sessions.append(session)
        if self._layout.is_sequential:
            self.path = None
        return session

    def _look(self, session: ZooKeeperSession, path: str, deadline: Deadline) -> Any:
        # The sync is what makes rule 2 true: a server that lags behind could show a new session of ours the
        # predecessor that we replaced long ago, and we would yield to it.
        _, stat = session.call(
            lambda client: client.sync_async(path),
            lambda client: client.exists_async(path, self._notice),
            deadline=deadline,
            cancellation=self._cancellation,
        )
        return stat

    def _refuse_if_removed(self, session: ZooKeeperSession, deadline: Deadline) -> None:
        """Look once more; see rule 5. Returns if somebody stands there meanwhile: the next look sees who."""
        if self.path is not None and self._look(session, self.path, deadline) is None:
            self.is_removed = True
            raise self._removed_error()

    def _removed_error(self) -> RemovedByOperatorError:
        message = f"{self._settings.url}: somebody removed {self.path}; it stays out until it is told to rejoin"
        return RemovedByOperatorError(message)

    def _notice(self, _event: object) -> None:
        # A method and no closure: kazoo keeps watchers in a set, so that looking again adds nothing to it.
        self._wake()

    def _create(self, session: ZooKeeperSession, deadline: Deadline) -> None:
        is_sequential = self._layout.is_sequential

        def create(client: Any) -> Any:
            return client.create_async(self._prefix, self._data, ephemeral=True, sequence=is_sequential)

        [answer] = self._write(session, [create], deadline)
        if isinstance(answer, NoNodeError):
            self._create_folders(session, deadline)
        elif not isinstance(answer, Exception):
            # It stood there, even if it is gone by the time of our look.
            self._seen_under = session
            if is_sequential:
                self.path = answer
        # NodeExists: the next look sees whose it is.

    def _create_folders(self, session: ZooKeeperSession, deadline: Deadline) -> None:
        """Create what is missing above us, all at once: the next look, and the next create, tell how it went."""
        above = parents(self._prefix)
        lists = self._settings.access.of_parents(len(above))
        requests = [_creating(each, acl) for each, acl in zip(above, lists, strict=True)]
        answers = self._write(session, requests, deadline, may_be_refused=True)
        # Whoever may not create in a folder is refused even what exists there: only the innermost one tells.
        if isinstance(answers[-1], (NoNodeError, RefusedRequestError)):
            for answer in reversed(answers):
                if isinstance(answer, RefusedRequestError):
                    raise session.refused(answer.need, deadline)

    def _replace(self, session: ZooKeeperSession, owner: int, deadline: Deadline) -> None:
        """Take the node over, or yield; see rules 2 to 4."""
        path = self.path or self._prefix
        holder = f"session {session_text(owner)}"
        if not owner:
            raise LiveOwnerError(f"{path} is a persistent node, which goes with no owner: remove it first")
        [answer] = session.call_each(
            [lambda client: client.get_async(path)], deadline=deadline, cancellation=self._cancellation
        )
        if isinstance(answer, NoNodeError):
            return
        if isinstance(answer, Exception):
            raise answer
        data, stat = answer
        if stat.ephemeralOwner != owner:
            return
        content = self._layout.decode(path.rpartition("/")[2], data or b"")
        now = self._clock.unix_time()
        is_own = owner in self.session_ids
        if not may_take_over(content.registered_at, self._started_at, now, held_before=self.was_held, is_own=is_own):
            raise LiveOwnerError(f"{path} belongs to {holder}, a newer instance than this one")
        log.info("%s takes over the node that %s left behind", self._instance, holder)

        [results] = self._write(session, [taking_over(path, stat.version, self._data)], deadline)
        # What one of ``ANSWERS`` means is explained by the next look.
        if (need := refused_need(path, results, self._settings.url)) is not None:
            raise session.refused(need, deadline)
        if is_applied(results):
            self._seen_under = session

    def _write(
        self, session: ZooKeeperSession, requests: list[Request], deadline: Deadline, *, may_be_refused: bool = False
    ) -> list[Any]:
        """Return the answers, which may be exceptions among ``ANSWERS``; see rule 1."""
        session.wait_connected(deadline, self._cancellation)
        self.was_written = True
        try:
            answers = session.call_each(requests, deadline=deadline, cancellation=self._cancellation)
        except RegistryUnavailableError:
            session.begin_end()
            raise
        for answer in answers:
            if isinstance(answer, PermissionRefusedError) and not may_be_refused:
                raise answer
        return answers


def _creating(path: str, acl: list[ACL] | None) -> Request:
    return lambda client: client.create_async(path, acl=acl)
