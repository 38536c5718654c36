"""thriftpy2's asyncio server: the contract on its transports, in a loop of its own and in the application's."""

# thriftpy2 says that it is typed, and is in half.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Any

import pytest
from thrift.protocol.TCompactProtocol import TCompactProtocolFactory as ApacheCompact
from thrift.transport.TTransport import TFramedTransportFactory as ApacheFramed
from thriftpy2.contrib.aio.processor import TAsyncProcessor
from thriftpy2.contrib.aio.protocol.binary import TAsyncBinaryProtocolFactory
from thriftpy2.contrib.aio.protocol.compact import TAsyncCompactProtocolFactory
from thriftpy2.contrib.aio.server import TAsyncServer
from thriftpy2.contrib.aio.socket import TAsyncServerSocket
from thriftpy2.contrib.aio.transport.buffered import TAsyncBufferedTransportFactory
from thriftpy2.contrib.aio.transport.framed import TAsyncFramedTransportFactory

from registry_drain.servers.base import DrainableServer
from registry_drain.servers.thriftpy2 import Thriftpy2AioServer
from registry_drain.testing.server_contract import ContractClient, ServerContract
from tests.servers.test_thriftpy2 import TIMEOUT, echo_thrift
from tests.servers.thrift_echo import EchoClient, TlsEchoClient
from tests.support.tls_files import TlsFiles


class AsyncEcho:
    """The handler. What it is to answer may wait, so that is done in a thread."""

    def __init__(self, serve: Callable[[bytes], bytes]) -> None:
        """Answer with ``serve``."""
        self._serve = serve

    async def call(self, payload: bytes) -> bytes:
        """Answer."""
        if payload in {b"wait", b"large"}:
            return await asyncio.to_thread(self._serve, payload)
        return self._serve(payload)

    async def note(self, payload: bytes) -> None:
        """Take note."""
        await self.call(payload)


class OwnProcessor(TAsyncProcessor):
    """A user's, which does something around each call."""

    async def process(self, iprot: Any, oprot: Any) -> None:
        """Serve one message."""
        await super().process(iprot, oprot)


class TestBuffered(ServerContract):
    """The common case, in a loop of its own."""

    request_name = "call"
    patience = TIMEOUT
    transports: Any = TAsyncBufferedTransportFactory()
    protocols: Any = TAsyncBinaryProtocolFactory()
    client_factories: tuple[Any, ...] = ()
    processor_kind: Any = TAsyncProcessor

    def new_socket(self) -> Any:
        """Return the server transport."""
        return TAsyncServerSocket("127.0.0.1", 0, client_timeout=None)

    def new_server(self, serve: Callable[[bytes], bytes]) -> DrainableServer:
        """Return the adapter."""
        processor = self.processor_kind(echo_thrift.Echo, AsyncEcho(serve))
        return Thriftpy2AioServer(TAsyncServer(processor, self.new_socket(), self.transports, self.protocols))

    def connect(self, address: tuple[str, int]) -> ContractClient:
        """Return a client."""
        return EchoClient(address, *self.client_factories, timeout=TIMEOUT)


class TestFramed(TestBuffered):
    """Frames, the compact protocol, a processor of the user's own."""

    transports = TAsyncFramedTransportFactory()
    protocols = TAsyncCompactProtocolFactory()
    client_factories = (ApacheFramed(), ApacheCompact())
    processor_kind = OwnProcessor


class TestTls(TestBuffered):
    """Over TLS."""

    @pytest.fixture(autouse=True)
    def _certificates(self, tls_files: TlsFiles) -> None:
        self._tls = tls_files

    def new_socket(self) -> Any:
        """Return the server transport."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._tls.server_cert, self._tls.server_key)
        return TAsyncServerSocket("127.0.0.1", 0, client_timeout=None, ssl_context=context)

    def connect(self, address: tuple[str, int]) -> ContractClient:
        """Return a client."""
        return TlsEchoClient(address, self._tls.ca, timeout=TIMEOUT)
