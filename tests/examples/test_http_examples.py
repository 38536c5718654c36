"""The HTTP examples, each started as its docstring says, and stopped by a signal."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosedOK
from websockets.sync.client import connect

from registry_drain import Deadline, open_registry
from tests.servers.http_echo import HttpClient
from tests.support.processes import ManagedProcess, free_port

pytestmark = pytest.mark.slow

PATIENCE = 30.0
BUSY = "/slow?seconds=5"
"""In flight still when the signal comes, on a busy machine too; the stop waits for its end."""


class Example:
    """One example that runs, registered in a registry of its own."""

    def __init__(self, module: str, directory: Path) -> None:
        """Start it."""
        self.port = free_port()
        self.url = f"local://{directory}/registry"
        self.clients: list[HttpClient] = []
        self.process = ManagedProcess.python(
            "-m", f"examples.{module}", "--registry", self.url, "--port", str(self.port), log=directory / "log"
        )
        self.process.wait_output("registered ")

    def client(self) -> HttpClient:
        """Return a connected client."""
        self.clients.append(HttpClient(("127.0.0.1", self.port)))
        return self.clients[-1]

    def listed(self, service: str) -> list[str]:
        """Return the endpoints in the registry."""
        registry = open_registry(self.url)
        try:
            return [entry.endpoint for entry in registry.entries(service, Deadline.after(PATIENCE))]
        finally:
            registry.close()

    def stopped(self) -> str:
        """Wait for its clean end; return what it said."""
        self.process.wait(timeout=PATIENCE)
        assert self.process.returncode == 0, self.process.output_tail()
        assert ": clean" in self.process.output()
        return self.process.output()

    @contextlib.contextmanager
    def serving_until_it_closes(self) -> Iterator[None]:
        """Let a request fail only if this test stood still for so long that the stop hangs up on idle clients."""
        try:
            yield
        except (OSError, EOFError):
            if "CLOSING: " not in self.process.output():
                raise

    def close(self) -> None:
        """End it."""
        for client in self.clients:
            client.close()
        self.process.stop()


@pytest.fixture
def example(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Example]:
    """Return the example that the test names."""
    running = Example(request.param, tmp_path)
    yield running
    running.close()


@pytest.mark.parametrize("example", ["http_service.server"], indirect=True)
def test_http_service(example: Example) -> None:
    """It is listed and ready; a request in flight is finished by the stop, and its client sent away."""
    assert example.listed("hello") == [f"127.0.0.1:{example.port}"]
    client, prober = example.client(), example.client()
    assert client.request("GET", "/hello")[2] == b"/hello\n"
    assert prober.request("GET", "/ready")[2] == b"ready\n"
    client.sock.sendall(f"GET {BUSY} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    example.process.signal(signal.SIGTERM)
    example.process.wait_output("deregistering")
    with example.serving_until_it_closes():
        assert prober.request("GET", "/ready")[0] == "HTTP/1.1 503 Service Unavailable"
    assert client.receive() == b"/slow\n"
    assert client.is_told_to_close
    example.stopped()
    assert example.listed("hello") == []


@pytest.mark.parametrize("example", ["jsonrpc_server.server"], indirect=True)
def test_jsonrpc_server(example: Example) -> None:
    """Its methods answer, its errors are those of the specification, and a stop loses no call."""
    client = example.client()

    def call(text: str) -> dict[str, object]:
        answer = json.loads(client.call(text.encode()))
        assert isinstance(answer, dict)
        return answer

    assert call('{"jsonrpc": "2.0", "method": "add", "params": [2, 3], "id": 1}')["result"] == 5
    assert call('{"jsonrpc": "2.0", "method": "add", "params": {"first": 1, "second": 2}, "id": 2}')["result"] == 3
    for text, code in (
        ("{", -32700),
        ("[]", -32600),
        ('{"jsonrpc": "2.0", "method": "no", "id": 3}', -32601),
        ('{"jsonrpc": "2.0", "method": "add", "id": 3}', -32602),
    ):
        error = call(text)["error"]
        assert isinstance(error, dict)
        assert error["code"] == code
    assert client.request("POST", "/", b'{"jsonrpc": "2.0", "method": "ping"}')[0] == "HTTP/1.1 204 No Content"
    slow = example.client()
    slow.send(b'{"jsonrpc": "2.0", "method": "add_slowly", "params": [2, 3, 2], "id": 4}')
    example.process.signal(signal.SIGTERM)
    assert json.loads(slow.receive())["result"] == 5
    example.stopped()


@pytest.mark.parametrize("example", ["aiohttp_service.run_app"], indirect=True)
def test_aiohttp_run_app(example: Example) -> None:
    """It is listed; a stream in flight comes to its end when the stop wants it to, and not when the signal comes."""
    assert example.listed("hello") == [f"127.0.0.1:{example.port}"]
    stream, client = example.client(), example.client()
    stream.sock.sendall(b"GET /ticks HTTP/1.1\r\nHost: x\r\n\r\n")
    assert client.request("GET", "/hello")[2] == b"/hello\n"
    example.process.signal(signal.SIGTERM)
    example.process.wait_output("deregistering")
    with example.serving_until_it_closes():
        assert client.request("GET", "/hello")[2] == b"/hello\n"
    assert stream.receive().endswith(b"tick\nto be continued elsewhere\n")
    example.stopped()
    assert example.listed("hello") == []


@pytest.mark.parametrize("example", ["aiohttp_service.server"], indirect=True)
def test_aiohttp_service(example: Example) -> None:
    """The stream ends by itself, the WebSocket is closed with 1001, and the stop is clean."""
    client = example.client()
    assert client.request("GET", "/hello")[2] == b"/hello\n"
    stream = example.client()
    stream.sock.sendall(b"GET /ticks HTTP/1.1\r\nHost: x\r\n\r\n")
    with connect(f"ws://127.0.0.1:{example.port}/echo") as websocket:
        websocket.send("hello")
        assert websocket.recv(PATIENCE) == "hello"
        example.process.signal(signal.SIGTERM)
        with pytest.raises(ConnectionClosedOK) as closed:
            websocket.recv(PATIENCE)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1001
    assert stream.receive().endswith(b"tick\nto be continued elsewhere\n")
    example.stopped()
    assert example.listed("hello") == []
