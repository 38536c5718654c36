"""What the middleware says itself: ``Connection: close`` in an application's answer, and answers in its place."""

from __future__ import annotations

from collections.abc import Awaitable

from registry_drain.servers.http.asgi_types import Message, Receive, Scope, Send
from registry_drain.servers.http.policy import UNREAD_LIMIT
from registry_drain.servers.http.served_request import Farewell

CLOSE = (b"connection", b"close")


def send_with_close(scope: Scope, send: Send, message: Message) -> Awaitable[None]:
    """Say it to every HTTP/1 client: the farewell of servers that are not known from inside."""
    if message["type"] == "http.response.start" and is_http_1(scope):
        message = with_close(message)
    return send(message)


def is_http_1(scope: Scope) -> bool:
    """Whether the connection is the client's alone, so that a header can close it; HTTP/2 has GOAWAY."""
    return str(scope.get("http_version", "1.1")).startswith("1")


def with_close(message: Message) -> Message:
    """Return ``http.response.start`` with ``Connection: close``; an upgrade is left as it is."""
    headers = list(message.get("headers", ()))
    if any(name.lower() == b"connection" and b"upgrade" in value.lower() for name, value in headers):
        return message
    kept = [(name, value) for name, value in headers if name.lower() != b"connection"]
    return {**message, "headers": [*kept, CLOSE]}


def without_close(message: Message) -> Message:
    """Return ``http.response.start`` without ``Connection: close``: more requests wait behind this one."""
    return {**message, "headers": [each for each in message.get("headers", ()) if tuple(each) != CLOSE]}


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
        headers = [(b"content-length", b"0"), (b"retry-after", retry_after.encode()), CLOSE]
        await send({"type": "websocket.http.response.start", "status": 503, "headers": headers})
        await send({"type": "websocket.http.response.body", "body": b""})
    else:
        await send({"type": "websocket.close", "code": 1001})
