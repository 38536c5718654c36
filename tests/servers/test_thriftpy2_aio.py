"""thriftpy2's asyncio server: the contract on its transports, in a loop of its own and in the application's."""

# thriftpy2 says that it is typed, and is in half.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import asyncio
import contextlib
import socket
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

from registry_drain import Deadline
from registry_drain.errors import ServerError
from registry_drain.servers.base import DrainableServer
from registry_drain.servers.thriftpy2 import Thriftpy2AioServer
from registry_drain.testing.bench import Call
from registry_drain.testing.server_contract import ContractClient, ServerContract
from tests.servers.application_loop import InApplicationsLoop
from tests.servers.test_thriftpy2 import TIMEOUT, echo_thrift
from tests.servers.thrift_echo import EchoClient, TlsEchoClient
from tests.support.processes import eventually
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


class TestTlsOnUvloop(TestTls):
    """A loop that hides what lies below its TLS, where it is installed."""

    def new_server(self, serve: Callable[[bytes], bytes]) -> DrainableServer:
        """Return the adapter."""
        uvloop: Any = pytest.importorskip("uvloop")
        adapter = super().new_server(serve)
        assert isinstance(adapter, Thriftpy2AioServer)
        return InApplicationsLoop(adapter, uvloop.new_event_loop())


def new_echo_server(serve: Callable[[bytes], bytes]) -> Thriftpy2AioServer:
    """Return one."""
    processor = TAsyncProcessor(echo_thrift.Echo, AsyncEcho(serve))
    return Thriftpy2AioServer(TAsyncServer(processor, TAsyncServerSocket("127.0.0.1", 0, client_timeout=None)))


def test_an_answer_is_written_before_the_connection_ends() -> None:
    """What the event loop still has of it when the handler's part is done is not with the kernel yet."""
    answer = b"x" * 200_000  # more than kernel and loop take without holding the handler up
    server = new_echo_server(lambda _: answer)
    address = server.start()
    try:
        with contextlib.closing(EchoClient(address, timeout=TIMEOUT)) as client:
            eventually(lambda: len(server.connections) == 1)
            [connection] = server.connections._open
            connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.send(b"")
            eventually(lambda: server.in_flight.total == 1)
            draining = Call(lambda: server.drain(Deadline.after(TIMEOUT)))
            eventually(lambda: server.connections.is_draining)
            assert client.receive() == answer
            assert draining.result(TIMEOUT, "drain")
    finally:
        server.cut_off()


def test_a_closed_listener_is_forgotten_by_the_loop() -> None:
    """Its descriptor will be somebody else's."""
    server = new_echo_server(bytes)
    server.start()
    try:
        loop, listening = server._running, server._sock
        assert loop is not None
        assert listening is not None
        descriptor = listening.fileno()
        server.close_listener(Deadline.after(TIMEOUT))

        async def has_reader() -> bool:
            return loop.remove_reader(descriptor)

        assert not asyncio.run_coroutine_threadsafe(has_reader(), loop).result(TIMEOUT)
    finally:
        server.cut_off()


def test_a_start_that_fails_leaves_no_listener() -> None:
    """Clients would connect to it and wait for ever: there is no loop that accepts them."""
    trans = TAsyncServerSocket(host="127.0.0.1", port=0)
    server = Thriftpy2AioServer(TAsyncServer(TAsyncProcessor(echo_thrift.Echo, AsyncEcho(bytes)), trans))
    loop = asyncio.new_event_loop()
    loop.close()
    server.use_loop(loop)
    with pytest.raises(ServerError, match="event loop is not running"):
        server.start()
    assert trans.raw_sock.fileno() == -1
    assert server.close_listener(Deadline.after(TIMEOUT)).method == "never started"
