"""``grpc.aio.server``: ``stop(5)`` on SIGTERM and deregistered behind it, or the adapter."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import grpc
import grpc.aio

from benchmarks.rolling_restart import subject
from registry_drain import Service
from registry_drain.servers.grpc_server import AioDrainInterceptor, AioGrpcServer, connection_age_options

CLIENT = "grpc"
IGNORING_LIMIT = 0.0
GRACE_S = 5.0
CONNECTION_AGE_S = 1.0
"""Short, so that stops are: clients that ignore the registry leave within it."""


async def echo(request: bytes, _context: Any) -> bytes:
    """Serve one request."""
    await asyncio.sleep(subject.WORK_S)
    return request


def new_server(**settings: Any) -> Any:
    """Return a server without a port."""
    server = grpc.aio.server(**settings)
    handlers = {"Call": grpc.unary_unary_rpc_method_handler(echo)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("echo.Echo", handlers)])
    return server


async def serve_own_way(given: subject.Options) -> None:
    """Serve as the documentation of ``grpc.aio`` has it."""
    server = new_server()
    server.add_insecure_port(f"{subject.HOST}:{given.port}")
    await server.start()
    deregister = await asyncio.to_thread(subject.naive_registration, given)
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    subject.say_ready()
    await stopped.wait()
    await server.stop(GRACE_S)
    await asyncio.to_thread(deregister)


def main() -> None:
    """Serve until SIGTERM."""
    given = subject.options()
    if not given.is_drained:
        asyncio.run(serve_own_way(given))
        return
    interceptor, options = AioDrainInterceptor(), connection_age_options(subject.BUDGET, CONNECTION_AGE_S)

    def make() -> tuple[Any, int]:
        server = new_server(interceptors=[interceptor], options=options)
        return server, server.add_insecure_port(f"{subject.HOST}:{given.port}")

    adapter = AioGrpcServer(make, interceptor, options=options)
    service = Service(adapter, given.registry, service=given.service, budget=subject.BUDGET)
    subject.say_ready_when_started(service)
    service.run()


if __name__ == "__main__":
    main()
