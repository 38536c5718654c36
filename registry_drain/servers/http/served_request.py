"""One HTTP request of an ASGI application: what its handler and its stop may know and do.

Theory of operation: a request stands between the application and the server, and hands messages on. Once the instance
is delisted, what a *farewell* does to an answer is the server's adapter's to say. Of some servers the objects behind
``send`` and ``receive`` are known (:class:`InsideRequest`): there the application is given the server's own ``send``,
and what the stop wants is done to those objects when it wants anything.

Once the body has been read to its end, an application that asks for another message waits for its client to leave
(``http.disconnect``). Only then there is something to race against, the end of the drain; before, the server's own
messages pass. A GET's body (hardly one has any: RFC 9110, 9.3.1) is taken to end with its first message, so that nobody
needs to look into that.
"""

from __future__ import annotations

import asyncio
from asyncio import current_task
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from registry_drain.instance import format_endpoint
from registry_drain.servers.http.asgi_types import Message, Receive, Scope, Send
from registry_drain.servers.in_flight import InFlight
from registry_drain.servers.loop_requests import LoopRequest, LoopRequests

CUT_OFF = b"cut off: this instance is stopping\n"
_WITHOUT_BODY = frozenset({"GET", "HEAD"})
"""Methods whose requests have none, or nearly so."""

Farewell = Callable[[Scope, Send, Message], Awaitable[None]]
"""Sends a message of an answer, once the instance is delisted: the answer's head with ``Connection: close``."""


class ServedRequests(LoopRequests):
    """The requests of one middleware.

    Attributes:
        farewell: how its server's clients are sent away.
        has_tasks: whether the loop is asyncio's.
    """

    __slots__ = ("farewell", "has_tasks")

    def __init__(self, in_flight: InFlight, farewell: Farewell) -> None:
        """Begin with none."""
        super().__init__(in_flight)
        self.farewell = farewell
        self.has_tasks = False

    def all(self) -> list[ServedRequest]:
        """Return those in flight."""
        return [
            each for each in self.active.copy().values() if isinstance(each, ServedRequest) and each.tracker is self
        ]


class ServedRequest(LoopRequest):
    """See the module. For one event loop, whose tasks may share it.

    Attributes:
        tracker: the requests of its middleware.
        task: serves it; None where the loop is not asyncio's.
        is_cut: the middleware has cancelled it.
        stands_before_receive: whether the application is given the ``receive`` of this, and not the server's.
        stands_before_send: the same of ``send``.
    """

    tracker: ServedRequests
    stands_before_receive = True
    stands_before_send = True
    is_cut = False
    task: asyncio.Task[Any] | None
    _is_over = False
    _disconnected: asyncio.Event | None = None

    def __init__(self, scope: Scope, receive: Receive, send: Send, tracker: ServedRequests) -> None:
        """Take the server's two ends, and be in flight."""
        self._scope = scope
        self._receive = receive
        self._send = send
        self._has_started = self._is_body_read = False
        self.task = current_task() if tracker.has_tasks else None
        # As in the base class.
        self.tracker = tracker
        self.arrived_before = tracker.last_arrival_at
        self.started_at = tracker.last_arrival_at = tracker.now()
        tracker.total += 1
        tracker.active[self] = self

    @property
    def name(self) -> str:
        """The method and the path."""
        return f"{self._scope['method']} {self._scope['path']}"

    @property
    def peer(self) -> str:
        """The caller, as ``host:port``; empty if unknown."""
        return peer_of(self._scope)

    @property
    def has_started(self) -> bool:
        """Whether the answer has begun."""
        return self._has_started

    def send(self, message: Message) -> Awaitable[None]:
        """Send for the application; as the farewell has it once the instance is delisted."""
        # No coroutine of its own: what the server returns is awaited.
        self._has_started = True
        tracker = self.tracker
        if tracker.stop_state.is_delisted:
            return tracker.farewell(self._scope, self._send, message)
        return self._send(message)

    def receive(self) -> Awaitable[Message]:
        """Return the next message, for the application."""
        if self._is_body_read or self._scope["method"] not in _WITHOUT_BODY:
            return self._receive_attentively()
        self._is_body_read = True
        return self._receive()

    async def _receive_attentively(self) -> Message:
        if self._is_body_read:
            return await self._until_disconnected()
        message = await self._receive()
        if not message.get("more_body", False):
            self._is_body_read = True
        return message

    async def _until_disconnected(self) -> Message:
        if self._disconnected is None:
            self._disconnected = asyncio.Event()
        if self._is_over:
            return {"type": "http.disconnect"}
        asking = asyncio.ensure_future(self._receive())
        waiting = asyncio.ensure_future(self._disconnected.wait())
        try:
            await asyncio.wait({asking, waiting}, return_when=asyncio.FIRST_COMPLETED)
            return asking.result() if asking.done() else {"type": "http.disconnect"}
        finally:
            for task in (asking, waiting):
                task.cancel()
            await asyncio.wait({asking, waiting})

    def send_away(self) -> None:
        """Do what is to do for a request in flight when the instance is delisted: nothing, :meth:`send` sees to it."""

    def disconnect(self) -> None:
        """Tell an application that waits for its client to leave, or will do so, that it has. Idempotent."""
        self._is_over = True
        if self._disconnected is not None:
            self._disconnected.set()

    async def cut(self) -> None:
        """Answer what was cancelled, if its answer has not begun."""
        if self.has_started:
            return
        message: Message = {
            "type": "http.response.start",
            "status": 503,
            "headers": [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(CUT_OFF))],
        }
        with suppress(OSError):
            await self.tracker.farewell(self._scope, self._send, message)
            await self.tracker.farewell(self._scope, self._send, {"type": "http.response.body", "body": CUT_OFF})


class ForeignRequest(ServedRequest):
    """One in another event loop than asyncio's, whose application cannot be told, or cancelled, by us."""

    stands_before_receive = False


class InsideRequest(ServedRequest):
    """One of a server that is known from inside, which runs in asyncio and serves each request in a task of its own."""

    stands_before_send = False

    @staticmethod
    def knows(receive: Receive, send: Send) -> bool:
        """Whether these are ends of the server that the class is for. Asked of the first request."""
        raise NotImplementedError

    @property
    def has_started(self) -> bool:
        """Whether the answer has begun."""
        raise NotImplementedError

    def send_away(self) -> None:
        """Have the connection closed behind the answer, if that has not begun: the instance has just been delisted."""
        raise NotImplementedError


def peer_of(scope: Scope) -> str:
    """Return the client as ``host:port``, or what the server says in its place."""
    client = scope.get("client")
    if not client:
        return ""
    host, port = client
    return format_endpoint(host, port) if port else str(host)
