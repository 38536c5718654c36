"""The calculator service: a Thrift server as ever, and one call around it.

    python -m examples.thrift_calculator.server --registry local:///tmp/cluster

Start a few (``--port 0`` takes a free port), start the client, and send any of them SIGTERM.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time

from thrift.protocol.TBinaryProtocol import TBinaryProtocolAcceleratedFactory
from thrift.server.TServer import TServer, TThreadedServer, TThreadPoolServer
from thrift.transport.TSocket import TServerSocket
from thrift.transport.TTransport import TBufferedTransportFactory

from examples.thrift_calculator.calculator.Calculator import Processor
from examples.thrift_calculator.calculator.ttypes import DivisionByZero
from registry_drain import serve
from registry_drain.servers.thrift_server import ThriftServer


class Calculator:
    """The handler. It knows nothing of registries or of being stopped."""

    def add(self, a: int, b: int) -> int:
        """Add."""
        return a + b

    def divide(self, dividend: float, divisor: float) -> float:
        """Divide, or raise the exception that the IDL declares."""
        if divisor == 0:
            raise DivisionByZero(message=f"{dividend} cannot be divided by zero")
        return dividend / divisor

    def add_slowly(self, a: int, b: int, delay_ms: int) -> int:
        """Add, after ``delay_ms`` milliseconds."""
        time.sleep(delay_ms / 1000)
        return a + b


def new_threaded_server(handler: object, host: str, port: int) -> TThreadedServer:
    """Return a Thrift server with a thread for each connection, not yet listening."""
    return TThreadedServer(*_parts(handler, host, port), daemon=True)


def new_pool_server(handler: object, host: str, port: int, *, threads: int = 10) -> TThreadPoolServer:
    """Return a Thrift server with a fixed number of threads, not yet listening."""
    server = TThreadPoolServer(*_parts(handler, host, port), daemon=True)
    server.setNumThreads(threads)
    return server


def _parts(handler: object, host: str, port: int) -> tuple[object, ...]:
    return (
        Processor(handler),
        TServerSocket(host, port),
        TBufferedTransportFactory(),
        TBinaryProtocolAcceleratedFactory(),
    )


def main() -> int:
    """Serve until a signal stops the service; the exit status says whether the stop went as it should."""
    parser = argparse.ArgumentParser(description="The calculator service.")
    parser.add_argument("--registry", required=True, help="for instance local:///tmp/cluster, consul://127.0.0.1:8500")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: a free one")
    parser.add_argument("--pool", action="store_true", help="a fixed number of threads instead of one per connection")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")

    make = new_pool_server if options.pool else new_threaded_server
    server: TServer = make(Calculator(), options.host, options.port)
    report = serve(ThriftServer(server), options.registry, service="calculator")
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
