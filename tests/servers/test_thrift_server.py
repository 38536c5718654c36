"""Thrift servers: the contract on every kind, transport and protocol, and what is Thrift's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from thrift.protocol.TBinaryProtocol import TBinaryProtocolAcceleratedFactory, TBinaryProtocolFactory
from thrift.protocol.TCompactProtocol import TCompactProtocolFactory
from thrift.protocol.THeaderProtocol import THeaderProtocolFactory
from thrift.server.TServer import TSimpleServer, TThreadedServer, TThreadPoolServer
from thrift.transport.TSocket import TServerSocket
from thrift.transport.TTransport import TBufferedTransportFactory, TFramedTransportFactory, TTransportFactoryBase

from registry_drain.servers.base import DrainableServer
from registry_drain.servers.thrift_server import ThriftServer
from registry_drain.testing.server_contract import ContractClient, ServerContract
from tests.servers.thrift_echo import EchoClient, EchoProcessor


class ThriftContract(ServerContract):
    """The contract on a TThreadedServer, buffered and binary."""

    request_name = "call"
    transports: Any = TBufferedTransportFactory()
    protocols: Any = TBinaryProtocolFactory()

    def new_tserver(self, serve: Callable[[bytes], bytes]) -> Any:
        """Return the bare server."""
        return TThreadedServer(*self.parts(serve))

    def parts(self, serve: Callable[[bytes], bytes]) -> tuple[Any, ...]:
        """Return what every TServer is made of."""
        return EchoProcessor(serve), TServerSocket("127.0.0.1", 0), self.transports, self.protocols

    def new_server(self, serve: Callable[[bytes], bytes]) -> DrainableServer:
        """Return the adapter."""
        return ThriftServer(self.new_tserver(serve))

    def connect(self, address: tuple[str, int]) -> ContractClient:
        """Return a client."""
        return EchoClient(address, self.transports, self.protocols)


class TestThreadedBuffered(ThriftContract):
    """The common case."""


class TestThreadedFramed(ThriftContract):
    """Frames, the compact protocol."""

    transports = TFramedTransportFactory()
    protocols = TCompactProtocolFactory()


class TestThreadedUnbuffered(ThriftContract):
    """Straight from the socket."""

    transports = TTransportFactoryBase()
    protocols = TBinaryProtocolAcceleratedFactory()


class TestThreadedHeader(ThriftContract):
    """The header protocol, whose server loop asks for the factory's type."""

    transports = TTransportFactoryBase()
    protocols = THeaderProtocolFactory()


class TestThreadPool(ThriftContract):
    """A pool with fewer threads than connections."""

    def new_tserver(self, serve: Callable[[bytes], bytes]) -> Any:
        """Return the bare server."""
        server = TThreadPoolServer(*self.parts(serve))
        server.setNumThreads(5)
        return server


class TestThreadPoolOfOne(ThriftContract):
    """A pool in which everybody waits for everybody."""

    is_concurrent = False

    def new_tserver(self, serve: Callable[[bytes], bytes]) -> Any:
        """Return the bare server."""
        server = TThreadPoolServer(*self.parts(serve), daemon=True)
        server.setNumThreads(1)
        return server


class TestSimple(ThriftContract):
    """One thread that accepts and serves."""

    is_concurrent = False

    def new_tserver(self, serve: Callable[[bytes], bytes]) -> Any:
        """Return the bare server."""
        return TSimpleServer(*self.parts(serve))
