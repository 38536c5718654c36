"""Apache Thrift's ``TProcessPoolServer``: a fixed number of processes."""

from __future__ import annotations

from thrift.protocol.TBinaryProtocol import TBinaryProtocolFactory
from thrift.server.TProcessPoolServer import TProcessPoolServer
from thrift.transport.TSocket import TServerSocket
from thrift.transport.TTransport import TBufferedTransportFactory

from benchmarks.rolling_restart import subject, thrift_subject
from registry_drain.servers.thrift_server import ThriftProcessServer

CLIENT = "thrift"
IGNORING_LIMIT = 1 / 1000


def main() -> None:
    """Serve until SIGTERM."""
    given = subject.options()
    transport = TServerSocket(subject.HOST, given.port)
    parts = thrift_subject.EchoProcessor(), transport, TBufferedTransportFactory(), TBinaryProtocolFactory()
    server = TProcessPoolServer(*parts)
    server.setNumWorkers(16)  # more than there are persistent connections
    thrift_subject.run_thrift(given, server, ThriftProcessServer)


if __name__ == "__main__":
    main()
