"""Thrift servers that serve in child processes: the contract on both kinds, and what is special about processes."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Any

import pytest
from thrift.protocol.TBinaryProtocol import TBinaryProtocolFactory
from thrift.protocol.TCompactProtocol import TCompactProtocolFactory
from thrift.server.TProcessPoolServer import TProcessPoolServer
from thrift.server.TServer import TForkingServer
from thrift.transport.TSocket import TServerSocket
from thrift.transport.TSSLSocket import TSSLServerSocket
from thrift.transport.TTransport import TBufferedTransportFactory, TFramedTransportFactory

from registry_drain.servers.base import DrainableServer
from registry_drain.servers.thrift_server import ThriftProcessServer
from registry_drain.testing.server_contract import ContractClient, ServerContract
from tests.servers.thrift_echo import EchoClient, EchoProcessor, TlsEchoClient
from tests.support.tls_files import TlsFiles

TIMEOUT = 20.0
FRAMED = TFramedTransportFactory()

# Forking while a test runner has threads of its own: the warning is right, and the one fork of the adapter stands it.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


class ForkingContract(ServerContract):
    """The contract on a TForkingServer, buffered and binary."""

    request_name = "call"
    serves_in_processes = True
    patience = TIMEOUT
    transports: Any = TBufferedTransportFactory()
    protocols: Any = TBinaryProtocolFactory()

    def new_tserver(self, serve: Callable[[bytes], bytes]) -> Any:
        """Return the bare server."""
        return TForkingServer(*self.parts(serve))

    def parts(self, serve: Callable[[bytes], bytes]) -> tuple[Any, ...]:
        """Return what every TServer is made of."""
        return EchoProcessor(serve), TServerSocket("127.0.0.1", 0), self.transports, self.protocols

    def new_server(self, serve: Callable[[bytes], bytes]) -> DrainableServer:
        """Return the adapter."""
        return ThriftProcessServer(self.new_tserver(serve))

    def connect(self, address: tuple[str, int]) -> ContractClient:
        """Return a client."""
        return EchoClient(address, self.transports, self.protocols, timeout=TIMEOUT)


class TestForkingBuffered(ForkingContract):
    """A process for each connection."""


class TestForkingFramed(ForkingContract):
    """Frames, the compact protocol."""

    transports = FRAMED
    protocols = TCompactProtocolFactory()


class TestForkingTls(ForkingContract):
    """Over TLS: the handshake is the child's."""

    @pytest.fixture(autouse=True)
    def _certificates(self, tls_files: TlsFiles) -> None:
        self._tls = tls_files

    def parts(self, serve: Callable[[bytes], bytes]) -> tuple[Any, ...]:
        """Return what every TServer is made of."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._tls.server_cert, self._tls.server_key)
        transport = TSSLServerSocket("127.0.0.1", 0, ssl_context=context)
        return EchoProcessor(serve), transport, self.transports, self.protocols

    def connect(self, address: tuple[str, int]) -> ContractClient:
        """Return a client."""
        return TlsEchoClient(address, self._tls.ca, timeout=TIMEOUT)


class TestProcessPool(ForkingContract):
    """A pool with fewer processes than connections."""

    transports = FRAMED

    def new_tserver(self, serve: Callable[[bytes], bytes]) -> Any:
        """Return the bare server."""
        server = TProcessPoolServer(*self.parts(serve))
        server.setNumWorkers(5)
        return server


class TestProcessPoolOfOne(ForkingContract):
    """A pool in which everybody waits for everybody."""

    is_concurrent = False

    def new_tserver(self, serve: Callable[[bytes], bytes]) -> Any:
        """Return the bare server."""
        server = TProcessPoolServer(*self.parts(serve))
        server.setNumWorkers(1)
        return server
