"""thriftpy2's servers: the contract on every kind and transport, with Apache Thrift's clients: the wire is the same."""

# thriftpy2 says that it is typed, and is in half.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import contextlib
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import thriftpy2
from thrift.protocol.TCompactProtocol import TCompactProtocolFactory as ApacheCompact
from thrift.transport.TTransport import TFramedTransportFactory as ApacheFramed
from thriftpy2.protocol import TBinaryProtocolFactory, TCompactProtocolFactory, TCyBinaryProtocolFactory
from thriftpy2.server import TServer, TSimpleServer, TThreadedServer
from thriftpy2.thrift import TProcessor
from thriftpy2.transport import (
    TBufferedTransportFactory,
    TCyBufferedTransportFactory,
    TCyFramedTransportFactory,
    TFramedTransportFactory,
    TServerSocket,
    TSSLServerSocket,
)

from registry_drain.errors import ConfigurationError
from registry_drain.servers.base import DrainableServer
from registry_drain.servers.thriftpy2 import Thriftpy2AioServer, Thriftpy2Server
from registry_drain.testing.server_contract import ContractClient, ServerContract
from tests.servers.thrift_echo import EchoClient, TlsEchoClient
from tests.support.processes import eventually
from tests.support.tls_files import TlsFiles

TIMEOUT = 20.0

echo_thrift: Any = thriftpy2.load(str(Path(__file__).with_name("echo.thrift")), module_name="echo_thrift")


class Echo:
    """The handler."""

    def __init__(self, serve: Callable[[bytes], bytes]) -> None:
        """Answer with ``serve``."""
        self.call = self.note = serve


class OwnProcessor(TProcessor):
    """A user's, which does something around each call."""

    def process(self, iprot: Any, oprot: Any) -> None:
        """Serve one message."""
        super().process(iprot, oprot)


class Thriftpy2Contract(ServerContract):
    """The contract on a TThreadedServer."""

    request_name = "call"
    patience = TIMEOUT
    server_kind: Any = TThreadedServer
    transports: Any = TCyBufferedTransportFactory()
    protocols: Any = TCyBinaryProtocolFactory()
    client_factories: tuple[Any, ...] = ()
    processor_kind: Any = TProcessor

    def new_socket(self) -> Any:
        """Return the server transport."""
        return TServerSocket("127.0.0.1", 0, client_timeout=int(TIMEOUT * 1000))

    def new_server(self, serve: Callable[[bytes], bytes]) -> DrainableServer:
        """Return the adapter."""
        processor = self.processor_kind(echo_thrift.Echo, Echo(serve))
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
    """Frames, in C; a processor of the user's own."""

    processor_kind = OwnProcessor

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


def test_servers_that_cannot_be_drained_are_refused() -> None:
    """At construction, and in words."""
    parts: Any = TProcessor(echo_thrift.Echo, Echo(bytes)), TServerSocket("127.0.0.1", 0)
    with pytest.raises(ConfigurationError, match="TServer cannot be drained"):
        Thriftpy2Server(TServer(*parts))
    blocking: Any = TThreadedServer(*parts)
    with pytest.raises(ConfigurationError, match="is not a TAsyncServer"):
        Thriftpy2AioServer(blocking)


def test_the_users_processor_stays_as_it_is() -> None:
    """It may serve elsewhere, too: the server gets a copy."""
    processor = TProcessor(echo_thrift.Echo, Echo(bytes))
    server = Thriftpy2Server(TThreadedServer(processor, TServerSocket("127.0.0.1", 0)))
    address = server.start()
    try:
        assert vars(processor).keys() == {"_service", "_handler"}
        with contextlib.closing(EchoClient(address)) as client:
            client.send(b"hello")
            assert client.receive() == b"hello"
        eventually(lambda: server.in_flight.total == 1)
    finally:
        server.cut_off()


def test_health_checks_are_no_arrivals() -> None:
    """Their calls are served, and are no sign that callers still know this instance."""
    bare = TThreadedServer(TProcessor(echo_thrift.Echo, Echo(bytes)), TServerSocket("127.0.0.1", 0))
    server = Thriftpy2Server(bare, health_check_methods={"call"})
    address = server.start()
    try:
        with contextlib.closing(EchoClient(address)) as client:
            client.send(b"up?")
            assert client.receive() == b"up?"
            assert (server.in_flight.total, server.in_flight.last_arrival_at) == (0, None)
    finally:
        server.cut_off()


def test_a_missing_thriftpy2_names_the_extra() -> None:
    """Whoever has not installed it is told what to install."""
    program = """
import sys
sys.modules["thriftpy2"] = None
from registry_drain.errors import MissingExtraError
try:
    import registry_drain.servers.thriftpy2
except MissingExtraError as error:
    print(error)
"""
    said = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60
    ).stdout
    assert "pip install 'registry-drain[thriftpy2]'" in said
