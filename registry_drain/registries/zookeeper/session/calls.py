"""Requests and their answers: some at a time, each by its deadline. See rules 1 to 3 of the folder."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from typing import Any

from registry_drain.clock import Deadline
from registry_drain.errors import PermissionRefusedError, RegistryUnavailableError
from registry_drain.registries.zookeeper.client import SessionClient
from registry_drain.registries.zookeeper.refusal import Need, need_of
from registry_drain.registries.zookeeper.session.state import MOST_OUTSTANDING, SessionPhase, SessionState
from registry_drain.registries.zookeeper.session_errors import RefusedRequestError, SessionErrors
from registry_drain.registries.zookeeper.settings import Cancellation, CancelledSessionCallError, SessionSettings

Request = Callable[[Any], Any]
"""Given the KazooClient, sends one request and returns its AsyncResult."""


class SessionCalls:
    """See the module. Thread-safe."""

    def __init__(
        self, settings: SessionSettings, state: SessionState, client: SessionClient, errors: SessionErrors
    ) -> None:
        self._settings = settings
        self._state = state
        self._client = client
        self._errors = errors

    def call_each(self, requests: Sequence[Request], deadline: Deadline, cancellation: Cancellation) -> list[Any]:
        """Return an answer for each; see :meth:`ZooKeeperSession.call_each`."""
        answers: list[Any] = []
        size = MOST_OUTSTANDING // 2
        for start in range(0, len(requests), size):
            answers += self._call_batch(requests[start : start + size], deadline, cancellation)
        for index, answer in enumerate(answers):
            if isinstance(answer, RefusedRequestError):
                # One is explained with the list that refuses it, for a round trip; thousands would each say the same.
                answers[index] = self.refused(answer.need, deadline, cancellation)
                break
        return answers

    def refused(self, need: Need | None, deadline: Deadline, cancellation: Cancellation) -> PermissionRefusedError:
        """Return an error that says who lacks ``need``; see :meth:`ZooKeeperSession.refused`."""
        acls = None
        if need is not None and deadline.remaining() > 0:
            with contextlib.suppress(RegistryUnavailableError):
                node = need.node
                [answer] = self._call_batch([lambda client: client.get_acls_async(node)], deadline, cancellation)
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
            self._state.leave(epoch, len(requests) - len(late))
            for result in late:
                result.rawlink(lambda _: self._state.leave(epoch, 1))

    def wait_connected(self, deadline: Deadline, cancellation: Cancellation) -> None:
        """Wait until the session is connected; see :meth:`ZooKeeperSession.wait_connected`."""
        self._state.leave(self._enter(0, deadline, cancellation), 0)

    def _enter(self, count: int, deadline: Deadline, cancellation: Cancellation) -> int:
        """Wait for the connection and for ``count`` places; return the connection's number."""
        if self._state.is_inherited:
            raise RegistryUnavailableError(f"{self._settings.url}: this session belongs to the process that forked us")
        waiter = threading.Event()
        self._state.add_waiter(waiter)
        try:
            with cancellation.hook(waiter.set):
                while True:
                    waiter.clear()
                    if cancellation.event.is_set():
                        raise CancelledSessionCallError(f"{self._settings.url}: cancelled")
                    epoch = self._state.enter(count)
                    if epoch is not None:
                        return epoch
                    self._check_usable()
                    if not deadline.wait(waiter):
                        is_connected = self._state.phase is SessionPhase.CONNECTED
                        raise self._errors.unreachable(self._state.notes.failure, is_connected=is_connected)
        finally:
            self._state.remove_waiter(waiter)

    def _check_usable(self) -> None:
        if self._state.is_refused:
            raise self._errors.credentials_refused()
        if (refusal := self._state.notes.refusal) is not None:
            raise type(refusal)(f"{self._settings.url}: {refusal}")
        if self._state.phase is SessionPhase.OVER:
            raise self._errors.over()
