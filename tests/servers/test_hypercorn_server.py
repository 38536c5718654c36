"""The hypercorn adapter: the server contract over HTTP/1.1 and HTTP/2, and what is hypercorn's own."""

from __future__ import annotations

import threading
from collections.abc import Callable

import h2.config
import h2.connection
import h2.exceptions
import pytest
import websockets.exceptions
import websockets.sync.client
from hypercorn.config import Config

from benchmarks.rolling_restart.clients.http import Client
from registry_drain.clock import Deadline
from registry_drain.errors import ConfigurationError, ServerError
from registry_drain.phases import Phase
from registry_drain.servers.base import DrainableServer
from registry_drain.servers.http.asgi_types import Receive, Scope, Send
from registry_drain.servers.hypercorn_server import HypercornServer
from registry_drain.testing.bench import Call
from registry_drain.testing.server_contract import ServerContract
from tests.servers.asgi_echo import echo_app, failing_app, websocket_echo
from tests.servers.http2_client import Http2Client

PATIENCE = 20.0


def new_config() -> Config:
    """Return a configuration for a free port."""
    config = Config()
    config.bind = ["127.0.0.1:0"]
    config.accesslog = config.errorlog = None
    config.keep_alive_timeout = 3600  # what closes idle connections is the drain
    return config


class TestHypercornHttp1(ServerContract):
    """HTTP/1.1."""

    request_name = "POST /"
    patience = 20.0

    def new_server(self, serve: Callable[[bytes], bytes]) -> DrainableServer:
        """Return the adapter around the echo."""
        return HypercornServer(echo_app(serve), new_config())

    def connect(self, address: tuple[str, int]) -> Client:
        """Return a persistent HTTP connection."""
        return Client(address)


class TestHypercornHttp2(TestHypercornHttp1):
    """HTTP/2, in clear text."""

    def connect(self, address: tuple[str, int]) -> Http2Client:  # type: ignore[override]  # another client, same duties
        """Return one connection of streams."""
        return Http2Client(address)


def test_an_idle_http2_connection_is_told_by_goaway() -> None:
    """GOAWAY names the last request that was served, and the end of file comes behind it."""
    server = HypercornServer(echo_app(bytes.upper), new_config())
    client = Http2Client(server.start())
    for payload in (b"one", b"two"):
        client.send(payload)
        assert client.receive() == payload.upper()
    server.close_listener(Deadline.after(PATIENCE))
    draining = Call(lambda: server.drain(Deadline.after(PATIENCE)))
    with pytest.raises(EOFError):
        client.receive()
    assert client.last_stream_id == 3
    assert draining.result(PATIENCE, "drain")
    assert server.cut_off() == ()
    client.close()


def test_a_busy_http2_connection_is_told_behind_its_answer() -> None:
    """While the instance is delisted and still serves, the client is sent away behind the answer, and not reset."""
    server = HypercornServer(echo_app(bytes.upper), new_config())
    client = Http2Client(server.start())
    server.in_flight.stop_state.enter(Phase.PROPAGATING)
    client.send(b"one")
    assert client.receive() == b"ONE"
    client.wait_for_goaway()
    assert client.last_stream_id == 1
    server.cut_off()
    client.close()


def test_a_stream_that_has_come_is_served_before_goaway() -> None:
    """It waits in the kernel while the answer is made behind which the client would be sent away."""
    has_begun, gate = threading.Event(), threading.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            body = (await receive())["body"]
            if body == b"one":
                has_begun.set()
                gate.wait(PATIENCE)  # in the event loop, so that nothing is read
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": body})

    server = HypercornServer(app, new_config())
    client = Http2Client(server.start())
    server.in_flight.stop_state.enter(Phase.PROPAGATING)
    client.send(b"one")
    assert has_begun.wait(PATIENCE)
    client.send(b"two")
    gate.set()
    assert [client.receive(), client.receive()] == [b"one", b"two"]
    client.wait_for_goaway()
    assert client.last_stream_id == 3
    server.cut_off()
    client.close()


def test_clients_made_with_h2_read_nothing_behind_goaway() -> None:
    """Why GOAWAY is sent once, and when nothing is open: an early one with the highest number would fail them."""
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    server = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    client.initiate_connection()
    server.initiate_connection()
    head = [(":method", "GET"), (":path", "/"), (":scheme", "http"), (":authority", "localhost")]
    client.send_headers(1, head, end_stream=True)
    server.receive_data(client.data_to_send())
    server.send_headers(1, [(":status", "200")], end_stream=True)
    answer = server.data_to_send()
    server.close_connection(last_stream_id=2**31 - 1)
    client.receive_data(server.data_to_send())
    with pytest.raises(h2.exceptions.ProtocolError):
        client.receive_data(answer)


def test_a_websocket_is_closed_with_going_away() -> None:
    """Close code 1001, before the connection ends."""
    server = HypercornServer(websocket_echo, new_config())
    host, port = server.start()
    with websockets.sync.client.connect(f"ws://{host}:{port}/chat") as websocket:
        websocket.send("hello")
        assert websocket.recv(PATIENCE) == "hello"
        assert [request.name for request in server.in_flight.snapshot()] == ["WEBSOCKET /chat"]
        server.close_listener(Deadline.after(PATIENCE))
        draining = Call(lambda: server.drain(Deadline.after(PATIENCE)))
        with pytest.raises(websockets.exceptions.ConnectionClosed) as closed:
            websocket.recv(PATIENCE)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1001
    assert draining.result(PATIENCE, "drain")
    assert server.cut_off() == ()


@pytest.mark.parametrize(
    ("setting", "value"), [("workers", 2), ("use_reloader", True), ("max_requests", 5), ("quic_bind", ["127.0.0.1:0"])]
)
def test_settings_of_a_supervisor_are_refused(setting: str, value: object) -> None:
    """In one line that names the setting."""
    config = new_config()
    setattr(config, setting, value)
    with pytest.raises(ConfigurationError, match=setting):
        HypercornServer(echo_app(bytes), config)


def wsgi_app(_environ: object, _start_response: object) -> list[bytes]:
    """Answer nothing."""
    return []


def test_a_wsgi_application_is_refused() -> None:
    """With the way out."""
    with pytest.raises(ConfigurationError, match="AsyncioWSGIMiddleware"):
        HypercornServer(wsgi_app, new_config())  # type: ignore[arg-type]  # that is the point


def test_a_lifespan_that_fails_fails_the_start() -> None:
    """And leaves nothing listening."""
    server = HypercornServer(failing_app, new_config())
    with pytest.raises(ServerError, match="no database"):
        server.start()
    assert server.cut_off() == ()
