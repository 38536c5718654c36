"""The adapter of ``grpc.aio.server``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import grpc.aio
import pytest

from registry_drain.servers.base import DrainableServer
from registry_drain.servers.grpc_server import AioDrainInterceptor, AioGrpcServer
from registry_drain.servers.grpc_server.departure import IDLE_QUIET
from tests.servers.grpc_wire import WireClient
from tests.servers.test_grpc_server import GrpcContract


@pytest.fixture(scope="module", autouse=True)
def _poller() -> Iterator[None]:
    # grpc.aio has one thread and one pair of sockets per process, as long as anything of it is alive: not the server's.
    loop = asyncio.new_event_loop()

    async def make() -> grpc.aio.Channel:
        return grpc.aio.insecure_channel("127.0.0.1:1")

    channel = loop.run_until_complete(make())
    yield
    loop.run_until_complete(channel.close())
    loop.close()


def echo_service(serve: Callable[[bytes], bytes]) -> Any:
    """Return the handlers of the echo service, coroutines and asynchronous generators."""

    async def answer(payload: bytes) -> bytes:
        # What blocks does so in a thread, as it has to.
        return await asyncio.to_thread(serve, payload) if payload == b"wait" else serve(payload)

    async def call(request: bytes, _context: Any) -> bytes:
        return await answer(request)

    return grpc.method_handlers_generic_handler("echo.Echo", {"Call": grpc.unary_unary_rpc_method_handler(call)})


def new_server(
    service: Any,
    *,
    options: list[tuple[str, int]] | None = None,
    idle_quiet: float = IDLE_QUIET,
    **settings: Any,
) -> AioGrpcServer:
    """Make a server around a service, on a free port and in a loop of the adapter's own."""
    interceptor = AioDrainInterceptor(**settings)

    def make() -> tuple[Any, int]:
        server = grpc.aio.server(interceptors=[interceptor], options=options)
        server.add_generic_rpc_handlers([service])
        return server, server.add_insecure_port("127.0.0.1:0")

    return AioGrpcServer(make, interceptor, options=options or (), idle_quiet=idle_quiet)


class TestContract(GrpcContract):
    """Every promise."""

    def new_server(self, serve: Callable[[bytes], bytes]) -> DrainableServer:
        """Make an echo server."""
        return new_server(echo_service(serve), idle_quiet=self.idle_quiet)

    def connect(self, address: tuple[str, int]) -> WireClient:
        """Connect."""
        return WireClient(address)
