"""Listeners that are closed while the server's loop is late: it serves on, and nothing of the listener is left."""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.rolling_restart.clients.http import Client
from registry_drain.clock import Deadline
from registry_drain.servers.asyncio_listeners import close_listeners, duplicates
from registry_drain.servers.http.asgi_types import Receive, Scope, Send
from registry_drain.servers.thrift_server import ThriftNonblockingServer
from registry_drain.testing.bench import Call
from tests.servers.asgi_echo import echo_app, read_body, respond, serve_lifespan
from tests.servers.test_thrift_nonblocking import FRAMED, nonblocking
from tests.servers.test_thriftpy2_aio import new_echo_server
from tests.servers.test_uvicorn_server import new_server as new_uvicorn
from tests.servers.thrift_echo import EchoClient
from tests.support.processes import eventually

TIMEOUT = 10.0


class LatePoll:
    """A poll() whose thread is not scheduled for a while, before or after it has looked."""

    def __init__(self, *, looks_first: bool) -> None:
        """Be on time, until ``is_late`` is set."""
        self._poll = select.poll()
        self._looks_first = looks_first
        self.is_late = False
        self.stands_still = threading.Event()
        self.goes_on = threading.Event()

    def poll(self) -> list[tuple[int, int]]:
        """Look."""
        seen = self._poll.poll() if self._looks_first else []
        if self.is_late:
            self.stands_still.set()
            assert self.goes_on.wait(TIMEOUT)
        return seen if self._looks_first else self._poll.poll()

    def __getattr__(self, name: str) -> Any:
        """Register and unregister."""
        return getattr(self._poll, name)


@pytest.mark.parametrize("looks_first", [True, False], ids=["after-poll", "before-poll"])
def test_a_nonblocking_thrift_loop_that_is_late_loses_no_call(looks_first: bool) -> None:
    """Its listener is closed under it; the call in flight is answered all the same, and the drain waits for it."""
    gate, entered = threading.Event(), threading.Event()

    def serve(payload: bytes) -> bytes:
        entered.set()
        assert gate.wait(TIMEOUT)
        return payload

    poll = LatePoll(looks_first=looks_first)
    library = nonblocking(serve)
    library.poll = poll
    server = ThriftNonblockingServer(library)
    try:
        with contextlib.closing(EchoClient(server.start(), FRAMED, timeout=TIMEOUT)) as client:
            client.send(b"busy")
            assert entered.wait(TIMEOUT)
            poll.is_late = True
            library.wake_up()
            assert poll.stands_still.wait(TIMEOUT)
            server.close_listener(Deadline.after(0.0))
            poll.is_late = False
            poll.goes_on.set()
            draining = Call(lambda: server.drain(Deadline.after(TIMEOUT)))
            gate.set()
            assert client.receive() == b"busy"
            assert draining.result(TIMEOUT, "the drain")
    finally:
        poll.goes_on.set()
        gate.set()
        assert server.cut_off() == ()
    assert not [each for each in threading.enumerate() if each.name == "registry-drain-thrift"]


def test_an_asgi_server_whose_loop_is_blocked_listens_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler blocks the loop for longer than the closing may take: clients are refused, and its own is answered."""
    gate, entered = threading.Event(), threading.Event()
    held_off: list[socket.socket] = []
    monkeypatch.setattr("registry_drain.servers.asyncio_listeners.hold_off", held_off.append)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await serve_lifespan(receive, send)
            return
        body = await read_body(receive)
        entered.set()
        assert gate.wait(TIMEOUT)
        await respond(send, body)

    server = new_uvicorn(app)
    address = server.start()
    try:
        with contextlib.closing(Client(address)) as client:
            client.send(b"busy")
            assert entered.wait(TIMEOUT)
            closure = server.close_listener(Deadline.after(0.0))
            assert not closure.is_clean
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(address, timeout=TIMEOUT)
            gate.set()
            assert client.receive() == b"busy"
            # The loop has let go of the listener's descriptor, too.
            eventually(lambda: all(each.fileno() < 0 for each in server._listening))
            assert not held_off, "one that is shut is left alone: it might listen again"
            assert server.drain(Deadline.after(TIMEOUT))
    finally:
        gate.set()
        server.cut_off()


def test_an_asgi_server_is_cut_off_although_its_listener_was_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """A listener that cannot be closed in time is no reason not to cancel."""
    monkeypatch.setattr("registry_drain.servers.asgi_adapter._CLOSING_OVERTIME_S", 0.0)
    server = new_uvicorn(echo_app(bytes))
    address = server.start()
    running: Any = server._running

    async def never(_: Deadline) -> None:
        await asyncio.sleep(TIMEOUT)

    monkeypatch.setattr(running, "close_listener", never)
    with contextlib.closing(Client(address)) as client:
        assert client.call(b"one") == b"one"
        server.cut_off()
        assert client.is_closed()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, timeout=TIMEOUT)


def test_a_close_that_is_cancelled_closes() -> None:
    """While it waits for the backlog to be emptied: what is held open for that is let go of."""
    closed = []

    async def close_and_cancel(mine: list[socket.socket]) -> None:
        closing = asyncio.ensure_future(close_listeners(mine, lambda: closed.append(1), Deadline.after(TIMEOUT)))
        await asyncio.sleep(0.05)
        closing.cancel()
        await asyncio.wait([closing])
        assert closing.cancelled()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        mine = duplicates([listener.fileno()])
        with socket.create_connection(address, timeout=TIMEOUT):  # nobody accepts it
            asyncio.run(close_and_cancel(mine))
        assert closed == [1]
        assert mine[0].fileno() < 0
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address, timeout=TIMEOUT)


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """Give an application's loop, which runs in a thread."""
    running = asyncio.new_event_loop()
    thread = threading.Thread(target=running.run_forever)
    thread.start()
    yield running
    running.call_soon_threadsafe(running.stop)
    thread.join(TIMEOUT)
    running.close()


def test_a_thriftpy2_loop_that_is_late_forgets_the_listener(loop: asyncio.AbstractEventLoop) -> None:
    """It watches no number that may be another socket's by now."""
    gate = threading.Event()
    server = new_echo_server(bytes)
    server.use_loop(loop)
    server.start()
    sock: Any = server._sock
    number = sock.fileno()

    async def watches() -> bool:
        return asyncio.get_running_loop().remove_reader(number)

    try:
        loop.call_soon_threadsafe(gate.wait, TIMEOUT)
        server.close_listener(Deadline.after(0.0))
        gate.set()
        assert not asyncio.run_coroutine_threadsafe(watches(), loop).result(TIMEOUT)
        eventually(lambda: sock.fileno() < 0, because="the loop closes it")
    finally:
        gate.set()
        server.cut_off()
