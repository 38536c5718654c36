"""The greeter service: a gRPC server as ever, an interceptor, and one call around it.

    python -m examples.grpc_greeter.server --registry local:///tmp/cluster

Start a few (``--port 0`` takes a free port), start the client, and send any of them SIGTERM.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import grpc.aio

from registry_drain import StopBudget, serve
from registry_drain.servers.current_request import is_draining
from registry_drain.servers.grpc_server import (
    AioDrainInterceptor,
    AioGrpcServer,
    DrainInterceptor,
    GrpcServer,
    connection_age_options,
)

BUDGET = StopBudget(grace_period=20)
OPTIONS = connection_age_options(BUDGET, age=2.0)


def greet(request: bytes, _context: Any) -> bytes:
    """Greet once."""
    return b"Hello, " + request


def greet_on(request: bytes, _context: Any) -> Iterator[bytes]:
    """Greet again and again, until the server drains: a long stream comes to an end by itself."""
    while not is_draining():
        yield b"Hello again, " + request


async def greet_async(request: bytes, _context: Any) -> bytes:
    """Greet once, in an event loop."""
    return b"Hello, " + request


def new_server(address: str) -> GrpcServer:
    """Return the server with threads, drainable."""
    interceptor = DrainInterceptor()
    server = grpc.server(ThreadPoolExecutor(10), interceptors=[interceptor], options=OPTIONS)
    methods = {
        "Greet": grpc.unary_unary_rpc_method_handler(greet),
        "GreetOn": grpc.unary_stream_rpc_method_handler(greet_on),
    }
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("greeter.Greeter", methods)])
    return GrpcServer(server, interceptor, port=server.add_insecure_port(address), options=OPTIONS)


def new_aio_server(address: str) -> AioGrpcServer:
    """Return the asyncio server, drainable; it is made in its event loop."""
    interceptor = AioDrainInterceptor()

    def make() -> tuple[Any, int]:
        server = grpc.aio.server(interceptors=[interceptor], options=OPTIONS)
        methods = {"Greet": grpc.unary_unary_rpc_method_handler(greet_async)}
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("greeter.Greeter", methods)])
        return server, server.add_insecure_port(address)

    return AioGrpcServer(make, interceptor, options=OPTIONS)


def main() -> int:
    """Serve until a signal stops the service; the exit status says whether the stop went as it should."""
    parser = argparse.ArgumentParser(description="The greeter service.")
    parser.add_argument("--registry", required=True, help="for instance local:///tmp/cluster, consul://127.0.0.1:8500")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: a free one")
    parser.add_argument("--aio", action="store_true", help="grpc.aio instead of threads")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")

    address = f"{options.host}:{options.port}"
    server = new_aio_server(address) if options.aio else new_server(address)
    return serve(server, options.registry, service="greeter", budget=BUDGET).exit_code


if __name__ == "__main__":
    sys.exit(main())
