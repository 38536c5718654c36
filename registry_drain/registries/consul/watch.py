"""Following one service by Consul's blocking queries.

Theory of operation: one daemon thread asks ``/v1/health/service/<name>?passing&index=N&wait=10s`` again and again;
Consul holds the answer until something changes or ``wait`` has passed. Each distinct answer becomes the list, and is
told to the callback, by that thread alone, so that calls never overlap.

Rules, from developer.hashicorp.com/consul/api-docs/features/blocking:

- an index that goes backwards (a restored or restarted cluster) is started over from 0;
- an index below 1 would not block: pause instead of asking in a tight loop;
- after an error the index is forgotten: the agent may have restarted, and a stale index would sleep through changes;
- an empty list is believed only if the token may see the service: see :mod:`registry_drain.registries.consul.catalog`.

``close`` cuts the connection, so that nobody waits for a query to end.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from registry_drain.clock import Clock, Deadline
from registry_drain.errors import RegistryDrainError, RegistryTimeoutError
from registry_drain.instance import ServiceInstance
from registry_drain.registries.base import WatchCallback
from registry_drain.registries.consul.catalog import parse_listed, require_sight
from registry_drain.registries.consul.http import ConsulClient

_log = logging.getLogger(__name__)

WAIT = 10.0
"""Seconds that Consul may hold an answer: also how soon a link that died silently is noticed, give or take the timeout
of a request. Consul's default of 5 min would leave a caller with a stale list for as long."""
FIRST_PAUSE = 0.1
LONGEST_PAUSE = 2.0
"""Seconds between attempts while the agent is out of reach: it is on the same host, so asking is cheap."""
JOIN_WITHIN = 1.0
"""Seconds that ``close`` gives a callback to return."""


class ConsulWatch:
    """A live list of the passing instances of one service. See :class:`registry_drain.registries.base.Watch`."""

    def __init__(
        self,
        client: ConsulClient,
        service: str,
        clock: Clock,
        on_change: WatchCallback | None,
        on_closed: Callable[[ConsulWatch], None],
    ) -> None:
        """Make it; :meth:`start` begins."""
        self._client = client
        self._service = service
        self._clock = clock
        self._on_change = on_change
        self._on_closed = on_closed
        self._instances: tuple[ServiceInstance, ...] | None = None
        self._error: RegistryDrainError | None = None
        self._answered = threading.Event()  # the first list, or an error that no retry can help
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"registry-drain-consul-watch-{service}", daemon=True)

    @property
    def instances(self) -> tuple[ServiceInstance, ...]:
        """The last known list, sorted by id."""
        return self._instances or ()

    def start(self, deadline: Deadline) -> None:
        """Begin to follow; return with the first list.

        Raises:
            RegistryUnavailableError: no list by the deadline. Close the watch then.
            PermissionRefusedError: the token may not see the service.
        """
        self._thread.start()
        deadline.wait(self._answered)
        if self._instances is None:
            raise self._error or RegistryTimeoutError(f"{self._client.address.url}: no list of {self._service} in time")

    def close(self) -> None:
        """Stop following; joins the thread unless called from it. Idempotent."""
        self._closed.set()
        self._client.abort()
        self._on_closed(self)
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join(JOIN_WITHIN)
            if self._thread.is_alive():
                _log.warning("%r: its callback has not returned; it will not be called again", self)

    def __repr__(self) -> str:
        """Show service, count and state."""
        state = "closed" if self._closed.is_set() else "following"
        return f"<ConsulWatch {self._service} at {self._client.address.url} {state} instances={len(self.instances)}>"

    def _run(self) -> None:
        index, pause = 0, FIRST_PAUSE
        while not self._closed.is_set():
            try:
                answered, found = self._ask(index)
            except RegistryDrainError as error:
                if self._closed.is_set():
                    return
                self._failed(error)
                index = 0
                self._clock.wait(self._closed, pause)
                pause = min(pause * 2, LONGEST_PAUSE)
                continue
            except Exception:  # noqa: BLE001 -- see below
                # A thread that dies silently would leave its callers with a stale list for ever.
                _log.exception("%r: unexpected; it goes on", self)
                index = 0
                self._clock.wait(self._closed, LONGEST_PAUSE)
                continue
            pause = FIRST_PAUSE
            self._changed(found)
            if answered < 1:
                self._clock.wait(self._closed, LONGEST_PAUSE)
            index = answered if answered >= index else 0

    def _ask(self, index: int) -> tuple[int, tuple[ServiceInstance, ...]]:
        timeout = self._client.address.timeout
        deadline = Deadline.after(2 * WAIT + timeout, self._clock)
        arguments = {"index": str(index), "wait": f"{WAIT:g}s"} if index else {}
        answered, raw = self._client.native(deadline).health.service(self._service, passing=True, **arguments)
        listed = [parse_listed(self._service, each) for each in raw or ()]
        if not listed and self._instances != ():
            # Whoever takes the right to read from a token must not take all instances from its callers.
            require_sight(self._client, self._service, deadline)
        # Two incarnations of one instance may be listed for the moment of a take-over: callers see one.
        found = {(each.id, each.endpoint): each for each in (one.instance() for one in listed) if each is not None}
        new_index = int(answered) if str(answered).isdigit() else 0
        return new_index, tuple(sorted(found.values(), key=lambda each: each.id))

    def _changed(self, found: tuple[ServiceInstance, ...]) -> None:
        if self._error is not None:
            _log.info("%r: the list is current again", self)
            self._error = None
        if found == self._instances or self._closed.is_set():
            return
        self._instances = found
        self._answered.set()
        if self._on_change is not None:
            try:
                self._on_change(found)
            except Exception:  # noqa: BLE001 -- whatever the caller's code raises
                _log.exception("%r: on_change raised; the watch goes on", self)

    def _failed(self, error: RegistryDrainError) -> None:
        if self._error is None:
            _log.warning("%r: out of reach, the list stays as it was: %s", self, error)
        self._error = error
        if not error.retryable and self._instances is None:
            self._answered.set()
