"""Applications that echo a request's body, for gunicorn's workers. ``?3.5`` makes them take so many seconds.

``/pid`` is answered by the worker's; ``/rejoin``, by the WSGI one, tells the service to rejoin. By the ASGI one
``/wait`` is answered when the application is told that its client has left, and ``/stream`` begins its answer at once.
There the query may also be a path: ``?/some/file`` makes it wait until that file is there. The WSGI one prints ``SLOW``
when it is asked for ``/slow``.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

from registry_drain.hosted.gunicorn import rejoin

WORK_S = 0.002


def wsgi(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    """Serve one request."""
    body: bytes = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    if environ["PATH_INFO"] == "/pid":
        body = str(os.getpid()).encode()
    if environ["PATH_INFO"] == "/rejoin":
        rejoin()
    if environ["PATH_INFO"] == "/slow":
        print("SLOW", flush=True)  # noqa: T201 - into the log that the test reads
    time.sleep(float(environ.get("QUERY_STRING") or WORK_S))
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


async def asgi(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    """Serve one request, or a lifespan."""
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return
    body, has_more = b"", True
    while has_more:
        message = await receive()
        body += message.get("body", b"")
        has_more = message.get("more_body", False)
    if scope["path"] == "/pid":
        body = str(os.getpid()).encode()
    while scope["path"] == "/wait" and (await receive())["type"] != "http.disconnect":
        pass
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode())]
    start = {"type": "http.response.start", "status": 200, "headers": headers}
    if scope["path"] == "/stream":
        await send(start)
        await send({"type": "http.response.body", "body": body[:1], "more_body": True})
        body = body[1:]
    await _work(scope["query_string"].decode())
    if scope["path"] != "/stream":
        await send(start)
    await send({"type": "http.response.body", "body": body})


async def _work(query: str) -> None:
    if not query.startswith("/"):
        await asyncio.sleep(float(query or WORK_S))
        return
    while not Path(query).exists():  # noqa: ASYNC110, ASYNC240 - the test creates it
        await asyncio.sleep(0.01)
