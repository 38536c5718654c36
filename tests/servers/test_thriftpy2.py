"""thriftpy2's servers: the contract on every kind and transport, with Apache Thrift's clients: the wire is the same."""

# thriftpy2 says that it is typed, and is in half.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import thriftpy2
from thrift.protocol.TCompactProtocol import TCompactProtocolFactory as ApacheCompact
from thrift.transport.TTransport import TFramedTransportFactory as ApacheFramed
from thriftpy2.protocol import TBinaryProtocolFactory, TCompactProtocolFactory, TCyBinaryProtocolFactory
from thriftpy2.server import TSimpleServer, TThreadedServer
from thriftpy2.thrift import TProcessor
from thriftpy2.transport import (
    TBufferedTransportFactory,
    TCyBufferedTransportFactory,
    TCyFramedTransportFactory,
    TFramedTransportFactory,
    TServerSocket,
    TSSLServerSocket,
)

from registry_drain.servers.base import DrainableServer
from registry_drain.servers.thriftpy2 import Thriftpy2Server
from registry_drain.testing.server_contract import ContractClient, ServerContract
from tests.servers.thrift_echo import EchoClient, TlsEchoClient
from tests.support.tls_files import TlsFiles

TIMEOUT = 20.0

echo_thrift: Any = thriftpy2.load(str(Path(__file__).with_name("echo.thrift")), module_name="echo_thrift")


class Echo:
    """The handler."""

    def __init__(self, serve: Callable[[bytes], bytes]) -> None:
        """Answer with ``serve``."""
        self.call = self.note = serve


class Thriftpy2Contract(ServerContract):
    """The contract on a TThreadedServer."""

    request_name = "call"
    patience = TIMEOUT
    server_kind: Any = TThreadedServer
    transports: Any = TCyBufferedTransportFactory()
    protocols: Any = TCyBinaryProtocolFactory()
    client_factories: tuple[Any, ...] = ()

    def new_socket(self) -> Any:
        """Return the server transport."""
        return TServerSocket("127.0.0.1", 0, client_timeout=int(TIMEOUT * 1000))

    def new_server(self, serve: Callable[[bytes], bytes]) -> DrainableServer:
        """Return the adapter."""
        processor = TProcessor(echo_thrift.Echo, Echo(serve))
        return Thriftpy2Server(self.server_kind(processor, self.new_socket(), self.transports, self.protocols))

    def connect(self, address: tuple[str, int]) -> ContractClient:
        """Return a client."""
        return EchoClient(address, *self.client_factories, timeout=TIMEOUT)


class TestThreadedBuffered(Thriftpy2Contract):
    """The common case: buffered and binary, both in C."""


class TestThreadedBufferedInPython(Thriftpy2Contract):
    """The same in Python."""

    transports = TBufferedTransportFactory()
    protocols = TBinaryProtocolFactory()


class TestThreadedFramed(Thriftpy2Contract):
    """Frames, in C."""

    transports = TCyFramedTransportFactory()
    client_factories = (ApacheFramed(),)


class TestThreadedFramedInPython(Thriftpy2Contract):
    """Frames and the compact protocol, in Python."""

    transports = TFramedTransportFactory()
    protocols = TCompactProtocolFactory()
    client_factories = (ApacheFramed(), ApacheCompact())


class TestSimple(Thriftpy2Contract):
    """One thread that accepts and serves."""

    is_concurrent = False
    server_kind = TSimpleServer


class TestThreadedTls(Thriftpy2Contract):
    """Over TLS."""

    @pytest.fixture(autouse=True)
    def _certificates(self, tls_files: TlsFiles) -> None:
        self._tls = tls_files

    def new_socket(self) -> Any:
        """Return the server transport."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._tls.server_cert, self._tls.server_key)
        return TSSLServerSocket("127.0.0.1", 0, ssl_context=context, client_timeout=int(TIMEOUT * 1000))

    def connect(self, address: tuple[str, int]) -> ContractClient:
        """Return a client."""
        return TlsEchoClient(address, self._tls.ca, timeout=TIMEOUT)
