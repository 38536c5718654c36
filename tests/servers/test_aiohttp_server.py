"""The aiohttp adapter: the server contract, and what is aiohttp's own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiohttp import web

from registry_drain.servers.aiohttp_server import AiohttpServer
from registry_drain.servers.base import DrainableServer
from registry_drain.testing.server_contract import ContractClient, ServerContract
from tests.servers.http_echo import HttpClient

PATIENCE = 20.0
Serve = Callable[[bytes], bytes]


def echo_app(serve: Serve) -> web.Application:
    """Return an application that answers a POST with ``serve(body)``, which may block if the body is ``wait``."""

    async def echo(request: web.Request) -> web.Response:
        body = await request.read()
        if body == b"wait":
            return web.Response(body=await asyncio.to_thread(serve, body))
        return web.Response(body=serve(body))

    app = web.Application()
    app.router.add_post("/", echo)
    return app


class TestAiohttp(ServerContract):
    """HTTP/1.1."""

    request_name = "POST /"
    patience = PATIENCE

    def new_server(self, serve: Serve) -> DrainableServer:
        """Return the adapter."""
        return AiohttpServer(echo_app(serve), "127.0.0.1", 0, access_log=None)

    def connect(self, address: tuple[str, int]) -> ContractClient:
        """Return a client."""
        return HttpClient(address)
