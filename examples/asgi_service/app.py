"""The application: plain ASGI, to need nothing; a FastAPI or Starlette object goes in the same place."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import tempfile

from registry_drain.servers.current_request import is_draining, time_left
from registry_drain.servers.http.asgi_types import Receive, Scope, Send

REGISTRY = os.environ.get("REGISTRY", f"local://{tempfile.gettempdir()}/registry-drain-example")
PORT = int(os.environ.get("PORT", "8000"))

logging.basicConfig(level=logging.INFO, format="%(process)d %(name)s: %(message)s")


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """``/`` answers; ``/slow`` takes three seconds; ``/stream`` ends by itself when the server drains."""
    if scope["type"] == "lifespan":
        for _ in range(2):
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
        return
    if scope["type"] != "http":
        return
    if scope["path"] == "/stream":
        await _stream(send)
        return
    if scope["path"] == "/slow":
        await asyncio.sleep(3)
    body = json.dumps({"served by": os.getpid(), "time left": time_left()}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _stream(send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    while not is_draining():
        await send({"type": "http.response.body", "body": b"tick\n", "more_body": True})
        await asyncio.sleep(0.2)
    await send({"type": "http.response.body", "body": b"this instance is stopping\n"})
