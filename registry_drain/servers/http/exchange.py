"""One HTTP request of an ASGI application: what the middleware adds to its messages, and the answers that it gives.

Theory of operation: once the body has been read to its end, an application that asks for another message waits for its
client to leave (``http.disconnect``). Only then there is something to race against, the end of the drain; before, the
server's own messages pass. A GET's body (hardly one has any: RFC 9110, 9.3.1) is taken to end with its first message,
so that nobody needs to look into that.

While the instance is listed a message is only handed on. What a *farewell* does to it afterwards is the server's
adapter's to say; it costs nothing before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from registry_drain.instance import format_endpoint
from registry_drain.servers.http.asgi_types import Message, Receive, Scope, Send
from registry_drain.servers.http.policy import UNREAD_LIMIT
from registry_drain.servers.in_flight import InFlight
from registry_drain.servers.loop_requests import LoopRequest, LoopRequests

CUT_OFF = b"cut off: this instance is stopping\n"
_WITHOUT_BODY = frozenset({"GET", "HEAD"})
"""Methods whose requests have none, or nearly so."""


Farewell = Callable[[Scope, Send, Message], Awaitable[None]]
"""Sends a message of an answer, once the instance is delisted: the answer's head with ``Connection: close``."""


def send_with_close(scope: Scope, send: Send, message: Message) -> Awaitable[None]:
    """Say it to every HTTP/1 client: the farewell of servers that are not known from inside."""
    if message["type"] == "http.response.start" and is_http_1(scope):
        message = with_close(message)
    return send(message)


class Exchanges(LoopRequests):
    """The exchanges of one middleware.

    Attributes:
        farewell: how its server's clients are sent away.
    """

    __slots__ = ("farewell",)

    def __init__(self, in_flight: InFlight, farewell: Farewell) -> None:
        """Begin with none."""
        super().__init__(in_flight)
        self.farewell = farewell

    def all(self) -> list[Exchange]:
        """Return those in flight."""
        return [each for each in self.active.copy().values() if isinstance(each, Exchange) and each.tracker is self]


class Exchange(LoopRequest):
    """Stands between an application and its server for one request, and is what its handler knows of it.

    For one event loop, whose tasks may share it.

    Attributes:
        tracker: the exchanges of its middleware.
        task: serves it; None where the loop is not asyncio's.
        is_cut: the middleware has cancelled it.
    """

    tracker: Exchanges
    is_cut = False
    _is_over = False
    _disconnected: asyncio.Event | None = None

    def __init__(self, scope: Scope, receive: Receive, send: Send, exchanges: Exchanges) -> None:
        """Take the server's two ends, and be in flight."""
        self._scope = scope
        self._receive = receive
        self._send = send
        self.task: asyncio.Task[object] | None = None
        self._has_started = self._is_body_read = False
        # As in the base class.
        self.tracker = exchanges
        self.arrived_before = exchanges.last_arrival_at
        self.started_at = exchanges.last_arrival_at = exchanges.now()
        exchanges.total += 1
        exchanges.active[self] = self

    @property
    def name(self) -> str:
        """The method and the path."""
        return f"{self._scope['method']} {self._scope['path']}"

    @property
    def peer(self) -> str:
        """The caller, as ``host:port``; empty if unknown."""
        return peer_of(self._scope)

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

    def disconnect(self) -> None:
        """Tell an application that waits for its client to leave, or will do so, that it has."""
        self._is_over = True
        if self._disconnected is not None:
            self._disconnected.set()

    async def cut(self) -> None:
        """Answer what was cancelled, if its answer has not begun."""
        if self._has_started:
            return
        self._has_started = True
        message: Message = {
            "type": "http.response.start",
            "status": 503,
            "headers": [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(CUT_OFF))],
        }
        with suppress(OSError):
            await self.tracker.farewell(self._scope, self._send, message)
            await self.tracker.farewell(self._scope, self._send, {"type": "http.response.body", "body": CUT_OFF})

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


def peer_of(scope: Scope) -> str:
    """Return the client as ``host:port``, or what the server says in its place."""
    client = scope.get("client")
    if not client:
        return ""
    host, port = client
    return format_endpoint(host, port) if port else str(host)


def is_http_1(scope: Scope) -> bool:
    """Whether the connection is the client's alone, so that a header can close it; HTTP/2 has GOAWAY."""
    return str(scope.get("http_version", "1.1")).startswith("1")


def with_close(message: Message) -> Message:
    """Return ``http.response.start`` with ``Connection: close``; an upgrade is left as it is."""
    headers = list(message.get("headers", ()))
    if any(name.lower() == b"connection" and b"upgrade" in value.lower() for name, value in headers):
        return message
    kept = [(name, value) for name, value in headers if name.lower() != b"connection"]
    return {**message, "headers": [*kept, (b"connection", b"close")]}


def without_close(message: Message) -> Message:
    """Return ``http.response.start`` without ``Connection: close``: more requests wait behind this one."""
    headers = [
        (name, value) for name, value in message.get("headers", ()) if (name, value) != (b"connection", b"close")
    ]
    return {**message, "headers": headers}


async def answer(
    scope: Scope, receive: Receive, send: Send, status: int, body: bytes, *, retry_after: str, farewell: Farewell
) -> None:
    """Answer a request that the application does not see: a readiness check, or 503 with ``Retry-After``."""
    received = 0
    while received <= UNREAD_LIMIT:
        message = await receive()
        received += len(message.get("body", b""))
        if not message.get("more_body", False):
            break
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(body))]
    if status == 503:
        headers.append((b"retry-after", retry_after.encode()))
    start: Message = {"type": "http.response.start", "status": status, "headers": headers}
    end: Message = {"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body}
    for each in (start, end):
        await (farewell(scope, send, each) if status == 503 else send(each))


async def refuse_websocket(scope: Scope, receive: Receive, send: Send, *, retry_after: str) -> None:
    """Refuse a handshake: 503 where the server can say that, else what it says for a close (403)."""
    await receive()
    if "websocket.http.response" in scope.get("extensions", {}):
        headers = [(b"content-length", b"0"), (b"retry-after", retry_after.encode()), (b"connection", b"close")]
        await send({"type": "websocket.http.response.start", "status": 503, "headers": headers})
        await send({"type": "websocket.http.response.body", "body": b""})
    else:
        await send({"type": "websocket.close", "code": 1001})
