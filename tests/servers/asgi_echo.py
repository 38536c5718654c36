"""An ASGI application for the server contract: the body of a POST says how it is served."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from registry_drain.servers.http.asgi_types import ASGIApplication, Receive, Scope, Send

_BLOCKS = b"wait"


def echo_app(serve: Callable[[bytes], bytes]) -> ASGIApplication:
    """Return an application that answers each request with ``serve(body)``; one that blocks is served in a thread."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await serve_lifespan(receive, send)
            return
        assert scope["type"] == "http"
        body = await read_body(receive)
        answer = await asyncio.to_thread(serve, body) if body == _BLOCKS else serve(body)
        await respond(send, answer)

    return app


async def read_body(receive: Receive) -> bytes:
    """Return the whole body of a request."""
    body: bytes = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body", False):
            return body


async def respond(send: Send, body: bytes, status: int = 200) -> None:
    """Answer with ``body``."""
    headers = [(b"content-type", b"application/octet-stream"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def serve_lifespan(receive: Receive, send: Send) -> None:
    """Do nothing at both ends."""
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


async def websocket_echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Send back each message of a WebSocket."""
    if scope["type"] == "lifespan":
        await serve_lifespan(receive, send)
        return
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"]})


async def failing_app(scope: Scope, receive: Receive, send: Send) -> None:
    """Fail to start."""
    assert scope["type"] == "lifespan"
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "no database"})
