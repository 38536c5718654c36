"""The calculator service on thriftpy2: a server as ever, and one call around it.

    python -m examples.thriftpy2_calculator.server --registry local:///tmp/cluster
    python -m examples.thriftpy2_calculator.server --registry local:///tmp/cluster --aio

The client is that of ``examples.thrift_calculator``.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import time
from pathlib import Path
from typing import Any

import thriftpy2
from thriftpy2.contrib.aio.rpc import make_server as make_aio_server
from thriftpy2.rpc import make_server

from registry_drain import serve, serve_async
from registry_drain.servers.thriftpy2 import Thriftpy2AioServer, Thriftpy2Server

_IDL = Path(__file__).parents[1] / "thrift_calculator" / "calculator.thrift"

calculator_thrift: Any = thriftpy2.load(str(_IDL), module_name="calculator_thrift")


class Calculator:
    """The handler. It knows nothing of registries or of being stopped."""

    def add(self, a: int, b: int) -> int:
        """Add."""
        return a + b

    def divide(self, dividend: float, divisor: float) -> float:
        """Divide, or raise the exception that the IDL declares."""
        if divisor == 0:
            raise calculator_thrift.DivisionByZero(message=f"{dividend} cannot be divided by zero")
        return dividend / divisor

    def add_slowly(self, a: int, b: int, delay_ms: int) -> int:
        """Add, after ``delay_ms`` milliseconds."""
        time.sleep(delay_ms / 1000)
        return a + b


class AsyncCalculator:
    """The same for asyncio."""

    async def add(self, a: int, b: int) -> int:
        """Add."""
        return a + b

    async def divide(self, dividend: float, divisor: float) -> float:
        """Divide, or raise the exception that the IDL declares."""
        return Calculator().divide(dividend, divisor)

    async def add_slowly(self, a: int, b: int, delay_ms: int) -> int:
        """Add, after ``delay_ms`` milliseconds."""
        await asyncio.sleep(delay_ms / 1000)
        return a + b


async def serve_in_a_loop(server: Thriftpy2AioServer, registry: str) -> int:
    """Serve in the application's own event loop."""
    report = await serve_async(server, registry, service="calculator")
    return report.exit_code


def main() -> int:
    """Serve until a signal stops the service; the exit status says whether the stop went as it should."""
    parser = argparse.ArgumentParser(description="The calculator service, on thriftpy2.")
    parser.add_argument("--registry", required=True, help="for instance local:///tmp/cluster, consul://127.0.0.1:8500")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--aio", action="store_true", help="with asyncio")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")

    service = calculator_thrift.Calculator
    if options.aio:
        # Its time limit is for a whole connection, and these are kept.
        aio_server = make_aio_server(
            service, AsyncCalculator(), options.host, options.port, client_timeout=None, loop=None
        )
        return asyncio.run(serve_in_a_loop(Thriftpy2AioServer(aio_server), options.registry))
    server = make_server(service, Calculator(), options.host, options.port, client_timeout=30_000)
    server.daemon = True
    return serve(Thriftpy2Server(server), options.registry, service="calculator").exit_code


if __name__ == "__main__":
    sys.exit(main())
