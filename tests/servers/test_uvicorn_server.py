"""The uvicorn adapter: the server contract, with both of uvicorn's HTTP parsers, and what is uvicorn's own."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import uvicorn
import websockets.exceptions
import websockets.sync.client

from benchmarks.rolling_restart.clients.http import Client
from registry_drain.async_service import AsyncService
from registry_drain.clock import Deadline
from registry_drain.errors import ConfigurationError, ServerError
from registry_drain.phases import Phase
from registry_drain.servers.base import DrainableServer
from registry_drain.servers.http.asgi_types import ASGIApplication, Receive, Scope, Send
from registry_drain.servers.uvicorn_server import UvicornServer
from registry_drain.shutdown.budget import StopBudget
from registry_drain.testing.bench import Call
from registry_drain.testing.server_contract import ServerContract
from tests.servers.asgi_echo import echo_app, failing_app, read_body, respond, serve_lifespan, websocket_echo
from tests.support.processes import eventually

PATIENCE = 20.0


class TestUvicornH11(ServerContract):
    """With h11, which is always there."""

    request_name = "POST /"
    patience = 20.0
    http = "h11"

    def new_server(self, serve: Callable[[bytes], bytes]) -> DrainableServer:
        """Return the adapter around the echo."""
        # With a keep-alive timeout that does nothing: what closes idle connections is the drain.
        return new_server(echo_app(serve), http=self.http, access_log=False, timeout_keep_alive=3600)

    def connect(self, address: tuple[str, int]) -> Client:
        """Return a persistent HTTP connection."""
        return Client(address)

    def test_an_answer_under_way_when_the_instance_is_delisted_is_the_last(self) -> None:
        """Unless another request waits behind it: then that one's answer is."""
        gate = threading.Event()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "lifespan":
                await serve_lifespan(receive, send)
                return
            body = await read_body(receive)
            while not gate.is_set():  # noqa: ASYNC110 - another thread opens it
                await asyncio.sleep(0.005)
            await respond(send, body)

        server = new_server(app, http=self.http, access_log=False)
        address = server.start()
        with contextlib.closing(Client(address)) as one, contextlib.closing(Client(address)) as two:
            for each in (one, two):
                each.send(b"first")
            eventually(lambda: server.in_flight.count == 2, because="both have arrived")
            server.in_flight.stop_state.enter(Phase.PROPAGATING)
            two.send(b"second")
            time.sleep(0.05)  # what has been sent has arrived: nothing tells
            gate.set()
            assert one.receive() == two.receive() == b"first"
            assert one.is_closed()
            assert two.receive() == b"second"
            assert two.is_closed()
        server.cut_off()

    def test_a_streamed_answer_is_cut_off_without_a_word(self, caplog: pytest.LogCaptureFixture) -> None:
        """Whose head has left cannot be answered again, and is not tried to be."""

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "lifespan":
                await serve_lifespan(receive, send)
                return
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]})
            await send({"type": "http.response.body", "body": b"half", "more_body": True})
            await asyncio.sleep(PATIENCE)

        server = new_server(app, http=self.http, access_log=False)
        with socket.create_connection(server.start(), timeout=PATIENCE) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = b""
            while not answer.endswith(b"half"):
                answer += client.recv(4096)
            assert [request.name for request in server.cut_off()] == ["GET /"]
            assert client.recv(4096) == b""
        assert "Unexpected ASGI message" not in caplog.text
        assert "Expected ASGI message" not in caplog.text


@pytest.mark.skipif(importlib.util.find_spec("httptools") is None, reason="httptools is not installed")
class TestUvicornHttptools(TestUvicornH11):
    """With httptools."""

    http = "httptools"


def new_server(app: ASGIApplication, **settings: object) -> UvicornServer:
    """Return the adapter around ``app`` on a free port."""
    options: dict[str, Any] = {"host": "127.0.0.1", "port": 0, "log_config": None, **settings}
    return UvicornServer(uvicorn.Config(app, **options))


def test_a_client_is_sent_away_with_its_answer_once_the_instance_is_delisted() -> None:
    """``Connection: close``, while new connections are still accepted."""
    server = new_server(echo_app(bytes.upper))
    address = server.start()
    client = Client(address)
    assert client.call(b"one") == b"ONE"
    assert not client.is_closed()
    server.in_flight.stop_state.enter(Phase.PROPAGATING)
    assert client.call(b"two") == b"TWO"
    assert client.is_closed()
    client.close()
    late = Client(address)
    assert late.call(b"three") == b"THREE"
    late.close()
    server.cut_off()


def test_a_websocket_is_closed_with_going_away() -> None:
    """Close code 1001, where uvicorn itself says 1012."""
    server = new_server(websocket_echo)
    host, port = server.start()
    with websockets.sync.client.connect(f"ws://{host}:{port}/chat") as websocket:
        websocket.send("hello")
        assert websocket.recv(PATIENCE) == "hello"
        server.close_listener(Deadline.after(PATIENCE))
        draining = Call(lambda: server.drain(Deadline.after(PATIENCE)))
        with pytest.raises(websockets.exceptions.ConnectionClosed) as closed:
            websocket.recv(PATIENCE)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1001
    assert draining.result(PATIENCE, "drain")
    assert server.cut_off() == ()


def test_what_is_cut_off_is_cancelled_and_awaited() -> None:
    """The task of a request that does not end learns it, and its ``finally`` has run when cut_off returns."""
    ended: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await serve_lifespan(receive, send)
            return
        try:
            await asyncio.sleep(PATIENCE)
        finally:
            ended.append(str(scope["path"]))

    server = new_server(app)
    client = Client(server.start())
    client.send(b"anything")
    eventually(lambda: server.in_flight.count == 1, because="the request has arrived")
    server.close_listener(Deadline.after(PATIENCE))
    assert not server.drain(Deadline.after(0.05))
    assert [request.name for request in server.cut_off()] == ["POST /"]
    assert ended == ["/"]
    with pytest.raises((OSError, EOFError)) as end:
        client.receive()
    assert not isinstance(end.value, TimeoutError), "it must not hang"
    client.close()


def test_the_lifespan_ends_behind_the_last_request() -> None:
    """Startup before the first one, shutdown when the drain has ended."""
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await read_body(receive)
            await asyncio.sleep(0.1)
            seen.append("request")
            await respond(send, b"done")
            return
        for _ in range(2):
            message = await receive()
            seen.append(message["type"])
            await send({"type": f"{message['type']}.complete"})

    server = new_server(app)
    client = Client(server.start())
    client.send(b"x")
    eventually(lambda: server.in_flight.count == 1, because="the request has arrived")
    server.close_listener(Deadline.after(PATIENCE))
    assert server.drain(Deadline.after(PATIENCE))
    assert client.receive() == b"done"
    assert seen == ["lifespan.startup", "request", "lifespan.shutdown"]
    assert server.cut_off() == ()
    client.close()


def test_it_serves_in_the_applications_loop() -> None:
    """With serve_async, beside the application's own tasks; uvicorn's signal handlers are not installed."""
    handler = signal.getsignal(signal.SIGTERM)
    answers: list[bytes] = []

    async def main() -> None:
        server = new_server(echo_app(bytes.upper))
        budget = StopBudget(grace_period=60, closing=10)
        service = AsyncService(server, handle_signals=False, budget=budget)
        running = asyncio.create_task(service.run())
        while service.bound is None:  # noqa: ASYNC110 - it is a thread that binds
            await asyncio.sleep(0.005)
        client = await asyncio.to_thread(Client, service.bound)
        answers.append(await asyncio.to_thread(client.call, b"hello"))
        assert signal.getsignal(signal.SIGTERM) is handler
        service.request_stop("test")
        report = await running
        client.close()
        assert report.is_clean, str(report)

    asyncio.run(main())
    assert answers == [b"HELLO"]


def test_an_address_in_use_is_an_error_and_not_an_exit() -> None:
    """Its own way would be to end the process."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = new_server(echo_app(bytes), port=taken.getsockname()[1])
        with pytest.raises(OSError, match="in use"):
            server.start()
    assert server.cut_off() == ()


def test_a_lifespan_that_fails_fails_the_start() -> None:
    """And the process goes on."""
    server = new_server(failing_app)
    with pytest.raises(ServerError, match="startup failed"):
        server.start()
    assert server.cut_off() == ()


@pytest.mark.parametrize("setting", [{"workers": 2}, {"limit_max_requests": 5}])
def test_settings_of_a_supervisor_are_refused(setting: dict[str, object]) -> None:
    """In one line that names the setting and the way out."""
    with pytest.raises(ConfigurationError, match=rf"{next(iter(setting))}.*registry_drain\.hosted"):
        new_server(echo_app(bytes), **setting)


def test_a_unix_socket(tmp_path: Path) -> None:
    """Served, refused when closed, and its path removed."""
    path = tmp_path / "socket"
    server = new_server(echo_app(bytes.upper), uds=str(path))
    assert server.start() == (str(path), 0)
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE)
        client.connect(str(path))
        client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi")
        assert b"200 OK" in client.recv(65536)
        server.close_listener(Deadline.after(PATIENCE))
        assert not path.exists()
        assert server.drain(Deadline.after(PATIENCE))
    server.cut_off()
