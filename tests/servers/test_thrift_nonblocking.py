"""TNonblockingServer: the contract, and what is special about one loop for all connections."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from thrift.protocol.TBinaryProtocol import TBinaryProtocolFactory
from thrift.protocol.TCompactProtocol import TCompactProtocolFactory
from thrift.server.TNonblockingServer import TNonblockingServer
from thrift.transport.TSocket import TServerSocket
from thrift.transport.TTransport import TFramedTransportFactory

from registry_drain.servers.base import DrainableServer
from registry_drain.servers.thrift_server import ThriftNonblockingServer
from registry_drain.testing.server_contract import ContractClient, ServerContract
from tests.servers.thrift_echo import EchoClient, EchoProcessor

FRAMED = TFramedTransportFactory()


def nonblocking(serve: Callable[[bytes], bytes], protocols: Any = None, *, threads: int = 10) -> Any:
    """Return a bare server."""
    protocols = protocols or TBinaryProtocolFactory()
    return TNonblockingServer(EchoProcessor(serve), TServerSocket("127.0.0.1", 0), protocols, threads=threads)


class TestNonblocking(ServerContract):
    """The contract, with poll()."""

    request_name = "call"
    patience = 20.0
    protocols: Any = TBinaryProtocolFactory()

    def new_server(self, serve: Callable[[bytes], bytes]) -> DrainableServer:
        """Return the adapter."""
        return ThriftNonblockingServer(nonblocking(serve, self.protocols))

    def connect(self, address: tuple[str, int]) -> ContractClient:
        """Return a client."""
        return EchoClient(address, FRAMED, self.protocols, timeout=self.patience)


class TestNonblockingCompact(TestNonblocking):
    """The compact protocol, and select() where there is no poll()."""

    protocols = TCompactProtocolFactory()

    def new_server(self, serve: Callable[[bytes], bytes]) -> DrainableServer:
        """Return the adapter."""
        server = nonblocking(serve, self.protocols)
        server.poll = None
        return ThriftNonblockingServer(server)
