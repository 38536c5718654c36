"""A live list of one service's nodes, read by a thread of ours and kept through every outage.

Theory of operation. Three kinds of watches, all on one callback that takes a note and sets an event: on the folder's
children, on each node that was read, and, while there is no folder, on its existence. A note says what is *stale*:
single nodes, or everything (the connection was lost, which drops all watches, or the session is another one). The
thread lists the folder anew and reads only the nodes that are new or stale, with watches again. A node that was deleted
and created between two lists is in both, and read anew all the same: its own watch fired. Rules:

1. A failed reading changes nothing: stale beats empty. It is repeated until it works or the watch is closed.
2. What is stale is noted before it is read and struck off only when the read worked.
3. ``on_change`` runs in our thread, without locks, and only for a list that differs from the one told before.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from kazoo.exceptions import NoNodeError
from kazoo.protocol.states import EventType

from registry_drain.clock import Clock, Deadline
from registry_drain.errors import ConfigurationError, RegistryDrainError, RegistryUnavailableError
from registry_drain.instance import ServiceInstance
from registry_drain.registries.base import WatchCallback
from registry_drain.registries.zookeeper.layouts import Layout, NodeContent
from registry_drain.registries.zookeeper.layouts.base import join
from registry_drain.registries.zookeeper.session import Request, ZooKeeperSession
from registry_drain.registries.zookeeper.settings import Cancellation, CancelledSessionCallError, SessionSettings
from registry_drain.registries.zookeeper.shared import SharedSession

log = logging.getLogger(__name__)

_CLOSE_TIMEOUT = 1.0
"""Seconds that close() waits for the thread, which only a callback of the user's can keep busy for longer."""
_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 1.0
"""Seconds between readings that fail; as in :mod:`registry_drain.registries.retry`."""


class ZooKeeperWatch:
    """See the module, and :class:`registry_drain.registries.base.Watch`. Made by :meth:`begin`."""

    def __init__(
        self,
        service: str,
        folder: str,
        layout: Layout,
        settings: SessionSettings,
        shared: SharedSession,
        clock: Clock,
        on_change: WatchCallback | None,
        on_close: Callable[[ZooKeeperWatch], None],
    ) -> None:
        self._service = service
        self._folder = folder
        self._layout = layout
        self._settings = settings
        self._shared = shared
        self._clock = clock
        self._on_change = on_change
        self._on_close = on_close
        self._cancellation = Cancellation()
        self._wake = threading.Event()
        self._known = threading.Event()
        self._first_error: RegistryDrainError | None = None
        self._instances: tuple[ServiceInstance, ...] = ()
        self._told: tuple[ServiceInstance, ...] | None = None
        # The thread's own:
        self._session: ZooKeeperSession | None = None
        self._contents: dict[str, NodeContent] = {}
        # Written by kazoo's threads:
        self._lock = threading.Lock()
        self._stale_nodes: set[str] = set()
        self._is_all_stale = True
        self._thread = threading.Thread(target=self._run, name=f"registry-drain-zookeeper-watch-{service}", daemon=True)

    def __repr__(self) -> str:
        """Show the service and how many instances are known."""
        return f"<ZooKeeperWatch {self._service} instances={len(self._instances)}>"

    @property
    def instances(self) -> tuple[ServiceInstance, ...]:
        """The last known list, sorted by id."""
        return self._instances

    def begin(self, deadline: Deadline) -> None:
        """Start, and wait for the first list.

        Raises:
            RegistryUnavailableError: there was none by the deadline; the thread has ended.
            PermissionRefusedError: the credentials may not list the folder; likewise.
        """
        self._thread.start()
        is_known = deadline.wait(self._known)
        error = self._first_error
        if is_known and error is None:
            return
        self.close()
        if error is not None and not error.retryable:
            raise error
        message = f"{self._settings.url}: no list of {self._service} in the time allowed"
        raise RegistryUnavailableError(message) from error

    def close(self) -> None:
        """End the thread. Returns within about a second even if a callback keeps it busy."""
        self._cancellation.cancel()
        self._wake.set()
        self._on_close(self)
        if self._thread is not threading.current_thread() and self._thread.ident is not None:
            self._thread.join(_CLOSE_TIMEOUT)
            if self._thread.is_alive():
                log.warning("%r is closed, but its callback has not returned yet", self)

    # --- kazoo's threads ----------------------------------------------------------------------------------------------

    def _notice(self, event: Any) -> None:
        with self._lock:
            if event.type == EventType.NONE:
                self._is_all_stale = True
            elif event.path != self._folder:
                self._stale_nodes.add(event.path.rpartition("/")[2])
        self._wake.set()

    # --- our thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        failures = 0
        while not self._cancellation.event.is_set():
            self._wake.clear()
            try:
                self._refresh(Deadline.after(self._settings.call_timeout, self._clock))
            except CancelledSessionCallError:
                return
            except RegistryDrainError as error:
                self._fail(error, failures)
                failures += 1
            except Exception:
                # A watch that dies unseen leaves its callers with an old list for ever.
                log.exception("reading %s failed in an unforeseen way; trying on", self._folder)
                failures += 1
            else:
                if failures:
                    log.info("the list of %s is up to date again", self._service)
                failures = 0
                self._first_error = None
                self._publish()
            pause = min(_FIRST_PAUSE * 2.0 ** min(failures, 10), _LONGEST_PAUSE) if failures else None
            self._clock.wait(self._wake, pause)

    def _fail(self, error: RegistryDrainError, failures: int) -> None:
        if failures == 0:
            log.warning("the list of %s is not being updated; trying on: %s", self._service, error)
        if not self._known.is_set():
            self._first_error = error
            if not error.retryable:
                self._known.set()

    def _refresh(self, deadline: Deadline) -> None:
        """List the folder and read the nodes that are new or stale. Does all of it, or changes nothing and raises."""
        session = self._shared.get()
        with self._lock:
            is_all = self._is_all_stale or session is not self._session
            stale = set(self._stale_nodes)
            self._is_all_stale = False
            self._stale_nodes.clear()
        try:
            names = self._list(session, deadline)
            old = {} if is_all else self._contents
            contents = {name: old[name] for name in names if name in old and name not in stale}
            self._read_nodes(session, [name for name in names if name not in contents], contents, deadline)
        except BaseException:
            with self._lock:
                self._is_all_stale |= is_all
                self._stale_nodes |= stale
            raise
        self._session, self._contents = session, contents

    def _list(self, session: ZooKeeperSession, deadline: Deadline) -> list[str]:
        while True:
            # A server that lags behind must not take us back in time after a reconnect: hence the sync.
            _, names = self._call(
                session,
                [
                    lambda client: client.sync_async(self._folder),
                    lambda client: client.get_children_async(self._folder, self._notice),
                ],
                deadline,
            )
            if not isinstance(names, NoNodeError):
                return list(names)
            [stat] = self._call(session, [lambda client: client.exists_async(self._folder, self._notice)], deadline)
            if stat is None:
                return []

    def _call(self, session: ZooKeeperSession, requests: list[Request], deadline: Deadline) -> list[Any]:
        answers = session.call_each(requests, deadline=deadline, cancellation=self._cancellation)
        for answer in answers:
            if isinstance(answer, RegistryDrainError):
                raise answer
        return answers

    def _read_nodes(
        self, session: ZooKeeperSession, names: list[str], contents: dict[str, NodeContent], deadline: Deadline
    ) -> None:
        def reading(path: str) -> Request:
            return lambda client: client.get_async(path, self._notice)

        answers = session.call_each(
            [reading(join(self._folder, name)) for name in names], deadline=deadline, cancellation=self._cancellation
        )
        for name, answer in zip(names, answers, strict=True):
            if isinstance(answer, NoNodeError):
                contents.pop(name, None)  # the folder's watch tells of it, or has already
            elif isinstance(answer, Exception):
                contents[name] = NodeContent(name, problem=str(answer))
            else:
                data, _ = answer
                contents[name] = self._layout.decode(name, data or b"")

    def _publish(self) -> None:
        found = (self._instance(content) for content in self._contents.values())
        instances = tuple(sorted((each for each in found if each is not None), key=lambda each: each.id))
        self._instances = instances
        self._known.set()
        if instances == self._told or self._cancellation.event.is_set():
            return
        self._told = instances
        if self._on_change is None:
            return
        try:
            self._on_change(instances)
        except Exception:
            log.exception("on_change of %r raised; the watch goes on", self)

    def _instance(self, content: NodeContent) -> ServiceInstance | None:
        if content.health or content.problem:
            return None
        try:
            return ServiceInstance(
                self._service, content.address, content.port, content.id, content.metadata, content.tags
            )
        except ConfigurationError as error:
            log.debug("%s in %s cannot be called: %s", content.id, self._folder, error)
            return None
