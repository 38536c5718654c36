"""The calculator service: a Thrift server as ever, and one call around it.

    python -m examples.thrift_calculator.server --registry local:///tmp/cluster

Start a few (``--port 0`` takes a free port), start the client, and send any of them SIGTERM. ``--kind`` chooses among
Thrift's servers; the client speaks to all of them but the nonblocking one, which wants frames (``--framed``).
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable

from thrift.protocol.TBinaryProtocol import TBinaryProtocolAcceleratedFactory
from thrift.server.TNonblockingServer import TNonblockingServer
from thrift.server.TProcessPoolServer import TProcessPoolServer
from thrift.server.TServer import TForkingServer, TSimpleServer, TThreadedServer, TThreadPoolServer
from thrift.transport.TSocket import TServerSocket
from thrift.transport.TTransport import TBufferedTransportFactory

from examples.own_address import own_address
from examples.thrift_calculator.calculator.Calculator import Processor
from examples.thrift_calculator.calculator.ttypes import DivisionByZero
from registry_drain import serve
from registry_drain.servers.base import DrainableServer
from registry_drain.servers.thrift_server import ThriftNonblockingServer, ThriftProcessServer, ThriftServer


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


def new_process_pool_server(handler: object, host: str, port: int, *, workers: int = 4) -> TProcessPoolServer:
    """Return a Thrift server with a fixed number of processes, not yet listening."""
    server = TProcessPoolServer(*_parts(handler, host, port))
    server.setNumWorkers(workers)
    return server


KINDS: dict[str, Callable[[object, str, int], DrainableServer]] = {
    "threaded": lambda *where: ThriftServer(new_threaded_server(*where)),
    "pool": lambda *where: ThriftServer(new_pool_server(*where)),
    "simple": lambda *where: ThriftServer(TSimpleServer(*_parts(*where))),
    "forking": lambda *where: ThriftProcessServer(TForkingServer(*_parts(*where))),
    "process-pool": lambda *where: ThriftProcessServer(new_process_pool_server(*where)),
    "nonblocking": lambda handler, host, port: ThriftNonblockingServer(
        TNonblockingServer(Processor(handler), TServerSocket(host, port), TBinaryProtocolAcceleratedFactory())
    ),
}
"""How each of Thrift's servers is made drainable."""


def main() -> int:
    """Serve until a signal stops the service; the exit status says whether the stop went as it should."""
    parser = argparse.ArgumentParser(description="The calculator service.")
    parser.add_argument("--registry", required=True, help="for instance local:///tmp/cluster, consul://127.0.0.1:8500")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 in a container: callers are told its own address")
    parser.add_argument("--port", type=int, default=0, help="0: a free one")
    parser.add_argument("--kind", choices=KINDS, default="threaded", help="which of Thrift's servers")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")

    server = KINDS[options.kind](Calculator(), options.host, options.port)
    report = serve(server, options.registry, service="calculator", address=own_address(options.host))
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
