"""Apache Thrift's ``TNonblockingServer``: one thread for all connections, framed."""

from __future__ import annotations

import signal

from thrift.server.TNonblockingServer import TNonblockingServer
from thrift.transport.TSocket import TServerSocket

from benchmarks.rolling_restart import subject, thrift_subject
from registry_drain.servers.thrift_server import ThriftNonblockingServer

CLIENT = "thrift_framed"
IGNORING_LIMIT = 1 / 1000


def main() -> None:
    """Serve until SIGTERM."""
    given = subject.options()
    server = TNonblockingServer(thrift_subject.EchoProcessor(), TServerSocket(subject.HOST, given.port), threads=32)

    def serve() -> None:
        signal.signal(signal.SIGTERM, lambda _number, _frame: server.stop())
        server.serve()

    def listen() -> None:
        server.prepare()

    thrift_subject.run(given, listen, serve, lambda: ThriftNonblockingServer(server))


if __name__ == "__main__":
    main()
