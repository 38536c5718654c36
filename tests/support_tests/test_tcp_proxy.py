"""Every way in which the link can go wrong, against an echo server."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tests.support.processes import eventually
from tests.support.tcp_proxy import TcpProxy

NewProxy = Callable[[str], TcpProxy]


class _Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        sock: socket.socket = self.request
        with contextlib.suppress(ConnectionError):  # resets are what these tests are about
            while data := sock.recv(65536):
                sock.sendall(data)


class _EchoServer(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True


@pytest.fixture
def echo() -> Iterator[str]:
    """Give the address of an echo server."""
    with _EchoServer(("127.0.0.1", 0), _Echo) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def _connect(proxy: TcpProxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=10)


def _ask(connection: socket.socket, text: bytes) -> bytes:
    connection.sendall(text)
    answer = b""
    while len(answer) < len(text):
        data = connection.recv(65536)
        if not data:
            break
        answer += data
    return answer


def _is_silent(connection: socket.socket) -> bool:
    connection.settimeout(0.15)
    try:
        return connection.recv(1) == b"never"
    except TimeoutError:
        return True
    finally:
        connection.settimeout(10)


def test_pass_through_forwards_and_records(echo: str, tcp_proxy: NewProxy) -> None:
    """What is sent arrives, comes back, and is on record; so does a megabyte, and the end of the stream."""
    proxy = tcp_proxy(echo)
    with _connect(proxy) as connection:
        assert _ask(connection, b"hello") == b"hello"
        assert proxy.recorded == b"hello"
        large = b"x" * 1_000_000
        sender = threading.Thread(target=connection.sendall, args=(large,))
        sender.start()
        received = 0
        while received < len(large):
            received += len(connection.recv(65536))
        sender.join()
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""
    assert len(proxy.recorded) == len(proxy.answered) == 1_000_005
    eventually(lambda: proxy.open_connections == 0)


def test_black_hole_swallows_and_is_reset_when_it_ends(echo: str, tcp_proxy: NewProxy) -> None:
    """Open and new connections stay open in silence; what was said is on record, and is lost."""
    proxy = tcp_proxy(echo)
    with _connect(proxy) as old:
        assert _ask(old, b"1") == b"1"
        proxy.black_hole()
        with _connect(proxy) as new:
            old.sendall(b"lost")
            new.sendall(b"gone")
            assert _is_silent(old)
            assert _is_silent(new)
            eventually(lambda: {b"lost", b"gone"} == {proxy.recorded[1:5], proxy.recorded[5:]})
            proxy.pass_through()
            for each in (old, new):
                with pytest.raises(ConnectionResetError):
                    each.recv(1)
    with _connect(proxy) as again:
        assert _ask(again, b"2") == b"2"


def test_stall_loses_nothing(echo: str, tcp_proxy: NewProxy) -> None:
    """What is sent into a stall arrives when it ends, on old connections and on new ones."""
    proxy = tcp_proxy(echo)
    with _connect(proxy) as old:
        assert _ask(old, b"1") == b"1"
        proxy.stall()
        with _connect(proxy) as new:
            old.sendall(b"a")
            new.sendall(b"b")
            assert _is_silent(old)
            assert _is_silent(new)
            proxy.pass_through()
            assert old.recv(1) == b"a"
            assert new.recv(1) == b"b"


def test_refuse_closes_the_listener_only(echo: str, tcp_proxy: NewProxy) -> None:
    """New connections are refused, open ones go on, and the port comes back."""
    proxy = tcp_proxy(echo)
    with _connect(proxy) as old:
        assert _ask(old, b"1") == b"1"
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            _connect(proxy)
        assert _ask(old, b"2") == b"2"
    proxy.pass_through()
    with _connect(proxy) as new:
        assert _ask(new, b"3") == b"3"


def test_reset_resets_old_and_new_connections(echo: str, tcp_proxy: NewProxy) -> None:
    """No connection survives, and none comes up."""
    proxy = tcp_proxy(echo)
    with _connect(proxy) as old:
        assert _ask(old, b"1") == b"1"
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            old.recv(1)
    with pytest.raises(ConnectionResetError), _connect(proxy) as new:
        new.recv(1)


def test_drop_connections_keeps_the_mode(echo: str, tcp_proxy: NewProxy) -> None:
    """Open connections are reset; the next one is served."""
    proxy = tcp_proxy(echo)
    with _connect(proxy) as old:
        assert _ask(old, b"1") == b"1"
        proxy.drop_connections()
        with pytest.raises(ConnectionResetError):
            old.recv(1)
    with _connect(proxy) as new:
        assert _ask(new, b"2") == b"2"


def test_delay_is_at_least_what_was_asked_for(echo: str, tcp_proxy: NewProxy) -> None:
    """Both directions are late."""
    proxy = tcp_proxy(echo)
    proxy.delay(0.1)
    with _connect(proxy) as connection:
        started = time.monotonic()
        assert _ask(connection, b"late") == b"late"
        assert time.monotonic() - started >= 0.2


def test_delayed_answers_follow_requests_that_arrived_at_once(echo: str, tcp_proxy: NewProxy) -> None:
    """The server has answered while the client still hears nothing."""
    proxy = tcp_proxy(echo)
    proxy.delay_answers(60)
    with _connect(proxy) as connection:
        connection.sendall(b"done")
        eventually(lambda: proxy.answered == b"done")
        assert _is_silent(connection)
