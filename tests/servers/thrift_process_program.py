"""A service on a Thrift server that forks: ``python -m tests.servers.thrift_process_program REGISTRY KIND``."""

from __future__ import annotations

import logging
import sys
import time

from thrift.protocol.TBinaryProtocol import TBinaryProtocolFactory
from thrift.server.TProcessPoolServer import TProcessPoolServer
from thrift.server.TServer import TForkingServer
from thrift.transport.TSocket import TServerSocket
from thrift.transport.TTransport import TFramedTransportFactory

from registry_drain import StopBudget, serve
from registry_drain.servers.current_request import is_draining
from registry_drain.servers.thrift_server import ThriftProcessServer
from tests.servers.thrift_echo import EchoProcessor


def answer(payload: bytes) -> bytes:
    """Echo; or say that it serves, and wait for the drain first."""
    if payload == b"until draining":
        sys.stdout.write("serving\n")
        sys.stdout.flush()
        while not is_draining():
            time.sleep(0.005)
        return b"was draining"
    return payload


def main() -> int:
    """Serve until stopped."""
    registry, kind = sys.argv[1:]
    logging.basicConfig(level=logging.INFO)
    parts = EchoProcessor(answer), TServerSocket("127.0.0.1", 0), TFramedTransportFactory(), TBinaryProtocolFactory()
    if kind == "pool":
        server = TProcessPoolServer(*parts)
        server.setNumWorkers(3)
    else:
        server = TForkingServer(*parts)
    budget = StopBudget(grace_period=60, floor=0, quiet_period=0, closing=10)
    return serve(ThriftProcessServer(server), registry, service="echo", budget=budget).exit_code


if __name__ == "__main__":
    sys.exit(main())
