"""Servers on asyncio streams: the contract in several styles of handler and in both loops, and what is special."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from registry_drain.clock import Deadline
from registry_drain.errors import ServerError
from registry_drain.servers.asyncio_streams import AsyncioServer
from registry_drain.servers.base import DrainableServer, ListenerClosure
from registry_drain.servers.current_request import mark_request
from registry_drain.servers.in_flight import InFlight, InFlightRequest
from registry_drain.testing.bench import Call
from registry_drain.testing.server_contract import ContractClient, ServerContract
from tests.servers.test_socket_server import LineClient
from tests.support.processes import eventually, free_port
from tests.support.tls_files import TlsFiles

TIMEOUT = 10.0
Serve = Callable[[bytes], bytes]
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def answer_to(serve: Serve, line: bytes) -> bytes:
    """Return what ``serve`` says to a line. It may block: then in a thread, as an application would do it."""
    payload = line.rstrip(b"\n")
    if payload == b"inside":
        return serve(payload) + b"\n"
    return await asyncio.to_thread(serve, payload) + b"\n"


def by_lines(serve: Serve) -> Handler:
    """One line in, one line out."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async for line in reader:
            writer.write(await answer_to(serve, line))
            await writer.drain()
        writer.close()

    return echo


def by_chunks(serve: Serve) -> Handler:
    """The same by ``read``, with a buffer of the handler's own, and with time limits."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pending = b""
        while data := await asyncio.wait_for(reader.read(65536), 60):
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                writer.writelines([await answer_to(serve, line)])
                await writer.drain()
        writer.close()
        await writer.wait_closed()

    return echo


def by_marks(serve: Serve) -> Handler:
    """Says itself what a request is, and what it is called."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            with mark_request("marked"):
                writer.write(await answer_to(serve, line))
                await writer.drain()
        writer.close()

    return handle


class LineContract(ServerContract):
    """The contract on lines."""

    request_name = "echo"
    handler = staticmethod(by_lines)

    def new_server(self, serve: Serve) -> DrainableServer:
        """Return the adapter."""
        return AsyncioServer(self.handler(serve), "127.0.0.1", 0)

    def connect(self, address: tuple[str, int]) -> ContractClient:
        """Return a client."""
        return LineClient(address)


class TestLines(LineContract):
    """The usual handler, in a loop of the adapter's own."""


class TestChunks(LineContract):
    """A handler with a buffer of its own."""

    handler = staticmethod(by_chunks)


class TestMarks(LineContract):
    """A handler that marks its requests."""

    handler = staticmethod(by_marks)
    request_name = "marked"


class InApplicationsLoop:
    """An adapter in a loop that is not its own, which ends after it: a :class:`DrainableServer`."""

    def __init__(self, adapter: AsyncioServer, loop: asyncio.AbstractEventLoop | None = None) -> None:
        """Run a loop in a thread, as an application would in its main thread."""
        self._adapter = adapter
        self._loop = loop or asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="application")
        self._thread.start()
        adapter.use_loop(self._loop)

    def _run(self) -> None:
        executor = ThreadPoolExecutor(thread_name_prefix="application")
        self._loop.set_default_executor(executor)
        self._loop.run_forever()
        executor.shutdown(wait=False)
        self._loop.close()

    @property
    def in_flight(self) -> InFlight:
        """The adapter's."""
        return self._adapter.in_flight

    def start(self) -> tuple[str, int]:
        """Start the adapter."""
        return self._adapter.start()

    def close_listener(self, deadline: Deadline) -> ListenerClosure:
        """Close its listener."""
        return self._adapter.close_listener(deadline)

    def drain(self, deadline: Deadline) -> bool:
        """Drain it."""
        return self._adapter.drain(deadline)

    def cut_off(self) -> tuple[InFlightRequest, ...]:
        """Cut off what is left, and end the application. Once more: its loop is closed."""
        cut = self._adapter.cut_off()
        if not self._loop.is_closed():
            assert self._loop.is_running(), "the application's loop is left alone"
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        return cut


class TestApplicationsLoop(LineContract):
    """The application's loop, as serve_async gives it."""

    def new_server(self, serve: Serve) -> DrainableServer:
        """Return the adapter."""
        return InApplicationsLoop(AsyncioServer(by_lines(serve), "127.0.0.1", 0))


class TestUvloop(LineContract):
    """A loop of another make, where it is installed."""

    def new_server(self, serve: Serve) -> DrainableServer:
        """Return the adapter."""
        uvloop: Any = pytest.importorskip("uvloop")
        return InApplicationsLoop(AsyncioServer(by_lines(serve), "127.0.0.1", 0), uvloop.new_event_loop())


class TlsLineClient(LineClient):
    """The same behind TLS."""

    def __init__(self, address: tuple[str, int], context: ssl.SSLContext) -> None:
        """Connect and shake hands."""
        super().__init__(address)
        self._file.close()
        self.sock = context.wrap_socket(self.sock, server_hostname="localhost")
        self._file = self.sock.makefile("rb")


class TestTls(LineContract):
    """TLS, which knows no half-close."""

    tls: TlsFiles

    @pytest.fixture(autouse=True)
    def _files(self, tls_files: TlsFiles) -> None:
        self.tls = tls_files

    def new_server(self, serve: Serve) -> DrainableServer:
        """Return the adapter."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.tls.server_cert, self.tls.server_key)
        return AsyncioServer(by_lines(serve), "127.0.0.1", 0, ssl=context)

    def connect(self, address: tuple[str, int]) -> ContractClient:
        """Return a client."""
        return TlsLineClient(address, ssl.create_default_context(cafile=str(self.tls.ca)))


# --- what is special ------------------------------------------------------------------------------------------------


def test_a_stop_that_overtakes_the_start_closes_it_afterwards() -> None:
    """The listener that was being opened refuses, and the one who started it is told."""
    loop = asyncio.new_event_loop()
    gate = threading.Event()
    loop.call_soon(gate.wait, TIMEOUT)  # a loop that is busy: the start takes a while
    thread = threading.Thread(target=loop.run_forever, name="application")
    thread.start()
    port = free_port()
    server = AsyncioServer(by_lines(bytes), "127.0.0.1", port)
    server.use_loop(loop)
    start = Call(server.start)
    eventually(lambda: server._is_started)
    assert server.close_listener(Deadline.after(TIMEOUT)).method == "never started"
    gate.set()
    with pytest.raises(ServerError, match="stopped while it was starting"):
        start.result(TIMEOUT, "start")
    with pytest.raises(ConnectionRefusedError):
        LineClient(("127.0.0.1", port))
    assert server.cut_off() == ()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
