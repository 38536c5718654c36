"""A service of one kind that sends itself SIGTERM, with handlers of its own before and after ours; says who was called.

    python -m tests.servers.signal_program KIND [after]

Prints one line of JSON: how often the stop ran, and how often each handler was called.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socketserver
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from registry_drain import ShutdownReport, StopBudget, serve, serve_async
from registry_drain.servers.base import DrainableServer
from registry_drain.servers.http.asgi_types import Receive, Scope, Send

BUDGET = StopBudget(grace_period=10.0, floor=0.0, quiet_period=0.0, ceiling=0.0)
calls: Counter[str] = Counter()


async def asgi_app(scope: Scope, receive: Receive, send: Send) -> None:
    """Serve nothing; it has a lifespan."""
    assert scope["type"] == "lifespan"
    for _ in range(2):
        message = await receive()
        await send({"type": f"{message['type']}.complete"})


def new_server(kind: str) -> DrainableServer:
    """Return the adapter of one kind of server."""
    if kind == "http_server":
        from registry_drain.servers.http_server import HttpServer

        return HttpServer(ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler))
    if kind == "socketserver":
        from registry_drain.servers.socket_server import SocketServer

        return SocketServer(socketserver.ThreadingTCPServer(("127.0.0.1", 0), socketserver.StreamRequestHandler))
    if kind == "aiohttp":
        from aiohttp import web

        from registry_drain.servers.aiohttp_server import AiohttpServer

        return AiohttpServer(web.Application(), "127.0.0.1", 0)
    if kind == "uvicorn":
        import uvicorn

        from registry_drain.servers.uvicorn_server import UvicornServer

        return UvicornServer(uvicorn.Config(asgi_app, port=0))
    from hypercorn.config import Config

    from registry_drain.servers.hypercorn_server import HypercornServer

    config = Config()
    config.bind = ["127.0.0.1:0"]
    return HypercornServer(asgi_app, config)


def serve_in_threads(kind: str, *, installs_after: bool) -> ShutdownReport:
    """Install a handler, serve, perhaps install one that calls ours, and be signalled."""

    def before(*_: Any) -> None:
        calls["before"] += 1

    signal.signal(signal.SIGTERM, before)

    def later(*_: Any) -> None:
        ours: Any = signal.getsignal(signal.SIGTERM)

        def after(number: int, frame: Any) -> None:
            calls["after"] += 1
            ours(number, frame)

        if installs_after:
            signal.signal(signal.SIGTERM, after)
        os.kill(os.getpid(), signal.SIGTERM)

    # Handlers are installed in the main thread, which serve() blocks: so another signal's handler does that.
    signal.signal(signal.SIGUSR1, later)

    def signal_when_ours_stand() -> None:
        while signal.getsignal(signal.SIGTERM) is before:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGUSR1)

    threading.Thread(target=signal_when_ours_stand, daemon=True).start()
    return serve(new_server(kind), budget=BUDGET, observers=[stopped])


def stopped() -> None:
    """Count the stop."""
    calls["stops"] += 1


async def ours_stand(loop: Any) -> None:
    """Wait until no handler of the loop's is left: ours are signal's."""
    while loop._signal_handlers.get(signal.SIGTERM) is not None:  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0.01)


async def serve_in_loop(kind: str, *, installs_after: bool) -> ShutdownReport:
    """Have a handler of asyncio's before ours, and perhaps another one after, which takes the first one's place."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, lambda: calls.update(["before"]))
    serving = asyncio.ensure_future(serve_async(new_server(kind), budget=BUDGET, observers=[stopped]))
    await ours_stand(loop)
    if installs_after:
        loop.add_signal_handler(signal.SIGTERM, lambda: calls.update(["after"]))
        await ours_stand(loop)
    os.kill(os.getpid(), signal.SIGTERM)
    return await serving


def main() -> int:
    """Run one kind."""
    kind, installs_after = sys.argv[1], "after" in sys.argv
    if kind in {"http_server", "socketserver"}:
        report = serve_in_threads(kind, installs_after=installs_after)
    else:
        report = asyncio.run(serve_in_loop(kind, installs_after=installs_after))
    sys.stdout.write(json.dumps({name: calls[name] for name in ("stops", "before", "after")}) + "\n")
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
