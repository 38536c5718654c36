"""An aiohttp service with a WebSocket and a stream, and one call in place of ``web.run_app``.

    python -m examples.aiohttp_service.server --registry local:///tmp/cluster --port 8082
    curl http://127.0.0.1:8082/hello
    curl -N http://127.0.0.1:8082/ticks

Stop it with SIGTERM: the stream comes to its end, the WebSocket is closed with 1001 (going away).
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys

from aiohttp import web

from registry_drain import serve_async
from registry_drain.servers.aiohttp_server import AiohttpServer
from registry_drain.servers.current_request import is_draining


async def hello(request: web.Request) -> web.Response:
    """Answer."""
    return web.Response(text=f"{request.path}\n")


async def ticks(request: web.Request) -> web.StreamResponse:
    """Stream until the client leaves, or this instance does."""
    response = web.StreamResponse()
    await response.prepare(request)
    while not is_draining():
        await response.write(b"tick\n")
        await asyncio.sleep(0.1)
    await response.write(b"to be continued elsewhere\n")
    return response


async def echo(request: web.Request) -> web.WebSocketResponse:
    """Send back what comes; the loop ends when the client leaves, or this instance does."""
    websocket = web.WebSocketResponse()
    await websocket.prepare(request)
    async for message in websocket:
        await websocket.send_str(message.data)
    return websocket


def new_app() -> web.Application:
    """Return the application. It knows nothing of registries."""
    app = web.Application()
    app.add_routes([web.get("/hello", hello), web.get("/ticks", ticks), web.get("/echo", echo)])
    return app


async def main() -> int:
    """Serve until a signal stops the service; the exit status says whether the stop went as it should."""
    parser = argparse.ArgumentParser(description="An aiohttp service.")
    parser.add_argument("--registry", required=True, help="for instance local:///tmp/cluster, consul://127.0.0.1:8500")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: a free one")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")

    server = AiohttpServer(new_app(), options.host, options.port, readiness_path="/ready")
    report = await serve_async(server, options.registry, service="hello")
    return report.exit_code


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
