"""``http.server`` and what is built on it: the contract in five kinds of server, and what HTTP says of goodbyes."""

from __future__ import annotations

import functools
import socket
import ssl
import threading
import time
import wsgiref.simple_server
import xmlrpc.client
import xmlrpc.server
from collections.abc import Callable, Iterable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import BaseRequestHandler, StreamRequestHandler, TCPServer, ThreadingMixIn
from typing import Any, cast

import pytest

from registry_drain.clock import Deadline
from registry_drain.errors import ConfigurationError
from registry_drain.phases import Phase
from registry_drain.servers.base import DrainableServer
from registry_drain.servers.current_request import name_request
from registry_drain.servers.http_server import HttpServer
from registry_drain.servers.http_server import server as server_module
from registry_drain.testing.bench import Call
from registry_drain.testing.server_contract import ContractClient, ServerContract
from tests.servers.http_echo import EchoHandler, HttpClient
from tests.support.processes import eventually
from tests.support.tls_files import TlsFiles

PATIENCE = 20.0
Serve = Callable[[bytes], bytes]


class EchoServer(ThreadingHTTPServer):
    """One daemon thread per connection."""

    request_queue_size = 64

    def __init__(self, serve: Serve, handler: Any = EchoHandler) -> None:
        """Bind a free port."""
        self.serve = serve
        super().__init__(("127.0.0.1", 0), handler)


class SerialEchoServer(HTTPServer):
    """One connection after the other."""

    request_queue_size = 64

    def __init__(self, serve: Serve, handler: Any) -> None:
        """Bind a free port."""
        self.serve = serve
        super().__init__(("127.0.0.1", 0), handler)


class OldEchoHandler(EchoHandler):
    """HTTP/1.0: one request, one connection."""

    protocol_version = "HTTP/1.0"


class HttpContract(ServerContract):
    """The contract on POSTs."""

    patience = PATIENCE
    request_name = "POST /"

    def connect(self, address: tuple[str, int]) -> ContractClient:
        """Return a client."""
        return HttpClient(address)


class TestThreadingHttpServer(HttpContract):
    """HTTP/1.1, threads."""

    def new_server(self, serve: Serve) -> DrainableServer:
        """Return the adapter."""
        return HttpServer(EchoServer(serve))


class TestHttpServer(HttpContract):
    """HTTP/1.1, no threads."""

    is_concurrent = False

    def new_server(self, serve: Serve) -> DrainableServer:
        """Return the adapter."""
        return HttpServer(SerialEchoServer(serve, EchoHandler))


class TestHttp10(HttpContract):
    """HTTP/1.0, threads: what ``http.server`` speaks unless told otherwise."""

    keeps_connections = False
    can_pipeline = False

    def new_server(self, serve: Serve) -> DrainableServer:
        """Return the adapter."""
        return HttpServer(EchoServer(serve, OldEchoHandler))


class TlsHttpClient(HttpClient):
    """The same over TLS. Who waits for a server without threads waits in the handshake: so that has a thread."""

    def __init__(self, address: tuple[str, int], authority: Path) -> None:
        """Connect."""
        super().__init__(address)
        self._answers.close()
        self._sock = ssl.create_default_context(cafile=str(authority)).wrap_socket(
            self._sock, server_hostname="127.0.0.1", do_handshake_on_connect=False
        )
        self._answers = self._sock.makefile("rb")
        self._sending: Call[None] | None = None
        self.sent_at = 0.0

    def send(self, payload: bytes) -> None:
        """Send one request, behind the handshake if that is due."""
        if self._sending is None:
            self._sending = Call(lambda: self._send_first(payload))
        else:
            self._sending.result(PATIENCE, "the first request is sent")
            super().send(payload)

    def _send_first(self, payload: bytes) -> None:
        try:
            super().send(payload)  # the first write shakes hands
        finally:
            self.sent_at = time.monotonic()  # whoever was late to send may be closed as idle

    def receive(self) -> bytes:
        """Return the next answer."""
        if self._sending is not None:
            self._sending.result(PATIENCE, "the first request is sent")
        return super().receive()


def secured(server: TCPServer, tls: TlsFiles) -> Any:
    """Return ``server`` with its listening socket wrapped, as the documentation of ``http.server`` has it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls.server_cert, tls.server_key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    return server


class TlsContract(HttpContract):
    """Over TLS, whose bytes on the wire are not those that are read."""

    @pytest.fixture(autouse=True)
    def _certificates(self, tls_files: TlsFiles) -> None:
        self._tls = tls_files

    def connect(self, address: tuple[str, int]) -> ContractClient:
        """Return a client."""
        return TlsHttpClient(address, self._tls.ca)


class TestThreadingHttpServerTls(TlsContract):
    """HTTPS, threads."""

    def new_server(self, serve: Serve) -> DrainableServer:
        """Return the adapter."""
        return HttpServer(secured(EchoServer(serve), self._tls))


class TestHttpServerTls(TlsContract):
    """HTTPS, no threads."""

    is_concurrent = False

    def new_server(self, serve: Serve) -> DrainableServer:
        """Return the adapter."""
        return HttpServer(secured(SerialEchoServer(serve, EchoHandler), self._tls))


class XmlRpcClient(HttpClient):
    """Calls the method ``echo``."""

    path = "/RPC2"
    content_type = "text/xml"

    def encode(self, payload: bytes) -> bytes:
        """Return a call."""
        return xmlrpc.client.dumps((payload,), "echo").encode()

    def decode(self, body: bytes) -> bytes:
        """Return the result, or raise the fault."""
        ((result,), _) = xmlrpc.client.loads(body)
        return cast("xmlrpc.client.Binary", result).data


class QuietXmlRpcHandler(xmlrpc.server.SimpleXMLRPCRequestHandler):
    """Keeps connections; compresses nothing, as the raw client asks for."""

    protocol_version = "HTTP/1.1"


class ThreadingXmlRpcServer(ThreadingMixIn, xmlrpc.server.SimpleXMLRPCServer):
    """One daemon thread per connection."""

    daemon_threads = True
    request_queue_size = 64


class SerialXmlRpcServer(xmlrpc.server.SimpleXMLRPCServer):
    """One connection after the other."""

    request_queue_size = 64


class TestXmlRpc(ServerContract):
    """``SimpleXMLRPCServer``, HTTP/1.0 and without threads, as it comes; calls are named by their method."""

    patience = PATIENCE
    request_name = "echo"
    is_concurrent = False
    keeps_connections = False
    can_pipeline = False
    kind: type[xmlrpc.server.SimpleXMLRPCServer] = SerialXmlRpcServer
    handler: type[xmlrpc.server.SimpleXMLRPCRequestHandler] = xmlrpc.server.SimpleXMLRPCRequestHandler

    def new_server(self, serve: Serve) -> DrainableServer:
        """Return the adapter."""
        server = self.kind(("127.0.0.1", 0), requestHandler=self.handler, logRequests=False)
        server.register_function(lambda payload: serve(payload.data), "echo")
        return HttpServer(server)

    def connect(self, address: tuple[str, int]) -> ContractClient:
        """Return a client."""
        return XmlRpcClient(address)


class TestThreadingXmlRpc(TestXmlRpc):
    """With threads, HTTP/1.1."""

    is_concurrent = True
    keeps_connections = True
    can_pipeline = True
    kind = ThreadingXmlRpcServer
    handler = QuietXmlRpcHandler


# ----------------------------------------------------------------------------------------------- what is special


@pytest.fixture
def stage() -> Iterator[Callable[..., tuple[HttpServer, Callable[[], HttpClient]]]]:
    """Return a function that starts an adapter around an echo server, and one that connects to it."""
    adapters: list[HttpServer] = []
    clients: list[HttpClient] = []

    def start(serve: Serve = bytes, handler: Any = EchoHandler, **settings: Any) -> Any:
        adapter = HttpServer(EchoServer(serve, handler), **settings)
        address = adapter.start()
        adapters.append(adapter)

        def connect() -> HttpClient:
            clients.append(HttpClient(address))
            return clients[-1]

        return adapter, connect

    yield start
    for client in clients:
        client.close()
    for adapter in adapters:
        adapter.cut_off()


def delist(adapter: HttpServer, seconds: float = PATIENCE) -> None:
    """Do what the stop routine does first."""
    adapter.in_flight.stop_state.enter(Phase.PROPAGATING, Deadline.after(seconds).at)


class HeldBack:
    """An echo that is given once its gate is open."""

    def __init__(self) -> None:
        """Close the gate."""
        self.entered, self.gate = threading.Event(), threading.Event()

    def __call__(self, body: bytes) -> bytes:
        """Wait, and echo."""
        self.entered.set()
        self.gate.wait(PATIENCE)
        return body


def test_clients_are_told_to_close_once_delisted(stage: Any) -> None:
    """Each answer says so from the propagation wait on, and the connection ends behind it: nothing drains yet."""
    adapter, connect = stage()
    client = connect()
    assert client.call(b"one") == b"one"
    assert not client.is_closed()
    adapter.in_flight.stop_state.enter(Phase.DEREGISTERING)
    assert client.call(b"still listed") == b"still listed"
    assert not client.is_closed()
    delist(adapter)
    assert client.call(b"last") == b"last"
    assert client.is_told_to_close
    assert client.sock.recv(1) == b""
    assert connect().call(b"new ones are served") == b"new ones are served"


def test_a_client_that_goes_on_after_the_goodbye_is_not_reset(stage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What crosses the goodbye meets an end of file: the answer before it arrives whole."""
    # What this machine keeps from being sent for longer than a round trip does not cross the goodbye any more.
    monkeypatch.setattr(server_module, "LINGER", PATIENCE)
    adapter, connect = stage(lambda body: body * 100_000)
    client = connect()
    delist(adapter)
    client.send(b"first")
    assert client.sock.recv(1, socket.MSG_PEEK) == b"H"  # the goodbye is under way
    client.send(b"behind the goodbye")
    assert client.receive() == b"first" * 100_000
    assert client.is_told_to_close
    assert client.sock.recv(1) == b""


def test_requests_of_one_segment_are_answered_while_draining() -> None:
    """The last of them ends as a lone one does, and is read ahead all the same."""
    entered, gate = threading.Event(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            entered.set()
            gate.wait(PATIENCE)
            self.send_response(200)
            self.send_header("Content-Length", str(len(self.path)))
            self.end_headers()
            self.wfile.write(self.path.encode())

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = HttpServer(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
    with socket.create_connection(server.start(), timeout=PATIENCE) as client:
        client.sendall(b"".join(b"GET /%s HTTP/1.1\r\nHost: localhost\r\n\r\n" % path for path in (b"one", b"two")))
        assert entered.wait(PATIENCE)
        server.close_listener(Deadline.after(PATIENCE))
        draining = Call(lambda: server.drain(Deadline.after(PATIENCE)))
        eventually(lambda: server.connections.is_draining)
        gate.set()
        answers = b"".join(iter(lambda: client.recv(4096), b""))
    assert [path in answers for path in (b"/one", b"/two")] == [True, True]
    assert draining.result(PATIENCE, "drain")
    assert server.cut_off() == ()


def test_pipelined_requests_are_answered_before_the_goodbye(stage: Any) -> None:
    """Nothing may be answered behind ``Connection: close``, so only the last of them gets it."""
    entered, gate = threading.Event(), threading.Event()

    def serve(body: bytes) -> bytes:
        if body == b"first":
            entered.set()
            gate.wait(PATIENCE)
        return body

    adapter, connect = stage(serve)
    client = connect()
    client.send(b"first")
    assert entered.wait(PATIENCE)
    client.send(b"second")
    delist(adapter)
    gate.set()
    assert client.receive() == b"first"
    assert not client.is_told_to_close
    assert client.receive() == b"second"
    assert client.is_told_to_close


def test_an_expected_continue_is_no_answer(stage: Any) -> None:
    """``100 Continue`` carries no goodbye and ends no request, though the handler reads on behind it."""
    adapter, connect = stage()
    client = connect()
    delist(adapter)
    client.sock.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
    assert client._read_head() == ("HTTP/1.1 100 Continue", {})
    adapter.close_listener(Deadline.after(PATIENCE))
    draining = Call(lambda: adapter.drain(Deadline.after(PATIENCE)))
    draining.join(0.3)
    assert draining.is_alive()
    client.sock.sendall(b"body")
    assert client.receive() == b"body"
    assert client.is_told_to_close
    assert draining.result(PATIENCE, "drain")


class KeepAliveHandler(EchoHandler):
    """Says itself that connections are kept, as servers of HTTP/1.0 do; or that this is no HTTP any more."""

    def do_GET(self) -> None:  # noqa: N802  the library's name
        """Answer with a ``Connection`` header of its own."""
        self.send_response(101 if self.path == "/upgrade" else 200)
        self.send_header("Connection", "Upgrade" if self.path == "/upgrade" else "keep-alive")
        self.send_header("Content-Length", "0")
        self.end_headers()


def test_a_connection_header_of_the_handler_is_replaced_but_not_an_upgrade(stage: Any) -> None:
    """Two headers that contradict each other would be left to the client to interpret."""
    adapter, connect = stage(handler=KeepAliveHandler)
    delist(adapter)
    client = connect()
    client.sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
    head = b"".join(iter(lambda: client.sock.recv(4096), b"")).lower()
    assert head.count(b"connection:") == head.count(b"connection: close") == 1
    assert connect().request("GET", "/upgrade")[1]["connection"] == "Upgrade"


def test_health_checks_do_not_count(stage: Any) -> None:
    """They are in flight while they are served, named without their query, and no sign of callers."""
    adapter, connect = stage(health_check_paths=["/health"])
    client = connect()
    assert client.request("GET", "/health?full=1")[2] == b"/health?full=1"
    eventually(lambda: adapter.in_flight.count == 0)
    assert adapter.in_flight.total == 0
    client.request("GET", "/work")
    assert adapter.in_flight.total == 1


def test_readiness_is_answered_from_the_stop(stage: Any) -> None:
    """200 while serving, 503 from the first moment of the stop; the handler never sees it."""
    adapter, connect = stage(readiness_path="/ready")
    client = connect()
    assert client.request("GET", "/ready")[0::2] == ("HTTP/1.1 200 OK", b"ready\n")
    assert client.request("HEAD", "/ready")[0] == "HTTP/1.1 200 OK"
    adapter.in_flight.stop_state.enter(Phase.DEREGISTERING)
    status, headers, body = client.request("GET", "/ready")
    assert (status, body) == ("HTTP/1.1 503 Service Unavailable", b"stopping\n")
    assert headers["retry-after"] == "1"
    assert adapter.in_flight.total == 0


def test_late_requests_are_served_while_there_is_time(stage: Any) -> None:
    """A client that was never told to close did nothing wrong; without time left it gets 503 and when to try again."""
    adapter, connect = stage(retry_after=7)
    early, late = connect(), connect()
    assert early.call(b"known") == late.call(b"known") == b"known"
    adapter.in_flight.stop_state.enter(Phase.DRAINING, Deadline.after(PATIENCE).at)
    assert early.call(b"served") == b"served"
    adapter.in_flight.stop_state.hurry(Deadline.after(0).at)
    status, headers, _ = late.request("POST", "/", b"too late")
    assert status == "HTTP/1.1 503 Service Unavailable"
    assert (headers["retry-after"], headers["connection"]) == ("7", "close")


def test_late_requests_can_be_refused_from_the_closed_listener_on(stage: Any) -> None:
    """As a load balancer's filter does it; health checks pass."""
    adapter, connect = stage(refuses_when_sealed=True, health_check_paths=["/health"])
    client, prober = connect(), connect()
    assert client.call(b"known") == b"known"
    adapter.in_flight.stop_state.enter(Phase.DRAINING, Deadline.after(PATIENCE).at)
    assert prober.request("GET", "/health")[0] == "HTTP/1.1 200 OK"
    assert client.request("POST", "/", b"x" * 100)[0] == "HTTP/1.1 503 Service Unavailable"


def test_requests_are_named_by_their_first_line(stage: Any) -> None:
    """Without the query, which may be secret. Until that line is there, a connection's last request names no other."""
    held = HeldBack()
    adapter, connect = stage(held)
    client = connect()

    def names() -> list[str]:
        return [request.name for request in adapter.in_flight.snapshot()]

    client.sock.sendall(b"POST /sum?secret=1 HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx")
    assert held.entered.wait(PATIENCE)
    assert names() == ["POST /sum"]
    held.gate.set()
    assert client.receive() == b"x"
    client.sock.sendall(b"POST /diff")
    eventually(lambda: names() == ["(unnamed)"], because="half a line is a request")


def test_a_request_at_work_when_the_instance_is_delisted_is_the_last(stage: Any) -> None:
    """Its handler was made before the stop began."""
    held = HeldBack()
    adapter, connect = stage(held)
    client = connect()
    client.send(b"x")
    assert held.entered.wait(PATIENCE)
    delist(adapter)
    held.gate.set()
    assert client.receive() == b"x"
    assert client.is_told_to_close
    assert client.sock.recv(1) == b""


def test_a_handler_that_waits_in_vain_ends_without_an_error(stage: Any, capfd: pytest.CaptureFixture[str]) -> None:
    """Of a connection that carried no request, too: there is no line that a name could come from."""

    class Impatient(EchoHandler):
        timeout = 0.1

    _, connect = stage(handler=Impatient)
    assert connect().sock.recv(1) == b""
    assert "Traceback" not in capfd.readouterr().err


def test_a_handler_may_name_its_request(stage: Any) -> None:
    """As a JSON-RPC service does, whose requests all have the same path."""
    held = HeldBack()

    def serve(body: bytes) -> bytes:
        name_request("subtract")
        return held(body)

    adapter, connect = stage(serve)
    connect().send(b"x")
    assert held.entered.wait(PATIENCE)
    assert [request.name for request in adapter.in_flight.snapshot()] == ["subtract"]
    held.gate.set()


def test_a_partial_handler_is_understood(tmp_path: Path, stage: Any) -> None:
    """``partial(SimpleHTTPRequestHandler, directory=...)`` is how the standard library itself does it."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    (tmp_path / "hello.txt").write_text("hello")
    adapter, connect = stage(handler=functools.partial(Quiet, directory=str(tmp_path)))
    delist(adapter)
    _, headers, body = connect().request("GET", "/hello.txt")
    assert (headers["connection"], body) == ("close", b"hello")


def test_a_wsgi_server_is_drained() -> None:
    """``wsgiref``, whose handler writes its answers past ``end_headers``, and speaks HTTP/1.0."""
    entered, gate = threading.Event(), threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        entered.set()
        gate.wait(PATIENCE)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [environ["PATH_INFO"].encode()]

    class Quiet(wsgiref.simple_server.WSGIRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    class Server(ThreadingMixIn, wsgiref.simple_server.WSGIServer):
        daemon_threads = True

    server = Server(("127.0.0.1", 0), Quiet)
    server.set_app(app)
    adapter = HttpServer(server)
    client = HttpClient(adapter.start())
    client.sock.sendall(b"GET /wsgi HTTP/1.1\r\nHost: x\r\n\r\n")
    assert entered.wait(PATIENCE)
    assert [request.name for request in adapter.in_flight.snapshot()] == ["GET /wsgi"]
    adapter.close_listener(Deadline.after(PATIENCE))
    draining = Call(lambda: adapter.drain(Deadline.after(PATIENCE)))
    gate.set()
    assert client.receive() == b"/wsgi"
    assert draining.result(PATIENCE, "drain")
    assert adapter.cut_off() == ()
    client.close()


def test_bad_settings_are_refused() -> None:
    """In one line that says what to do."""

    class Lines(StreamRequestHandler):
        pass

    def server(handler: type[BaseRequestHandler]) -> TCPServer:
        return TCPServer(("127.0.0.1", 0), handler)

    with server(Lines) as lines, pytest.raises(ConfigurationError, match=r"Lines.*use SocketServer"):
        HttpServer(lines)
    with server(BaseHTTPRequestHandler) as http:
        with pytest.raises(ConfigurationError, match="'health' is no path"):
            HttpServer(http, health_check_paths=["health"])
        with pytest.raises(ConfigurationError, match="collection of paths"):
            HttpServer(http, health_check_paths="/health")
        with pytest.raises(ConfigurationError, match="retry_after=-1"):
            HttpServer(http, retry_after=-1)


def test_its_own_stop_resets_what_waits() -> None:
    """The baseline: ``shutdown`` and ``server_close`` reset a client that had connected and sent its request."""
    server = SerialEchoServer(bytes, EchoHandler)
    client = HttpClient(("127.0.0.1", server.server_port))
    client.send(b"lost")
    server.server_close()
    with pytest.raises((ConnectionResetError, EOFError)):
        client.receive()
    client.close()


def test_goodbye_over_tls_ends_with_close_notify(tls_files: TlsFiles) -> None:
    """``Connection: close``, and then TLS' own end: no client can take the end for an attack."""
    server = HttpServer(secured(EchoServer(bytes), tls_files))
    address = server.start()
    client = TlsHttpClient(address, tls_files.ca)
    client._sock.suppress_ragged_eofs = False  # type: ignore[attr-defined]
    try:
        assert client.call(b"before") == b"before"
        server.in_flight.stop_state.enter(Phase.PROPAGATING)
        assert client.call(b"after") == b"after"
        assert client.is_told_to_close
        assert client._answers.read() == b""
    finally:
        client.close()
        server.cut_off()
