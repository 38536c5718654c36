"""What comes a moment late, or at the same moment as something else: it is waited for, and nothing is taken back."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest

from registry_drain.clock import Deadline
from registry_drain.phases import Phase
from registry_drain.servers.connections import Connection, Connections
from registry_drain.servers.group import ServerGroup
from registry_drain.servers.grpc_server import adapter as grpc_adapter
from registry_drain.servers.http_server import HttpServer
from registry_drain.servers.socket_server.tracked_socket import TrackedSocket
from registry_drain.servers.thrift_server import processes
from tests.servers.test_group import Broken
from tests.servers.test_grpc_server import new_server as new_grpc_server
from tests.servers.test_http_server import EchoServer
from tests.servers.test_thrift_processes import serving
from tests.support.processes import eventually

TIMEOUT = 10.0


class LateMember(Broken):
    """Says that it could not finish a while after it should have."""

    def drain(self, deadline: Deadline) -> bool:
        """Return False, late."""
        time.sleep(deadline.remaining() + 0.2)
        return False


@pytest.mark.parametrize("seconds", [0.0, 0.1])
def test_a_short_drain_that_is_not_finished_is_no_error(seconds: float) -> None:
    """Though the member says so late: with so little time, its thread may not have been there in time."""
    group = ServerGroup({"rpc": Broken(), "admin": LateMember()})
    assert not group.drain(Deadline.after(seconds))


def test_a_grpc_core_that_needs_its_time_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is in flight, so all that is left to do until the deadline is to wait; and it is cancelled once."""
    monkeypatch.setattr(grpc_adapter, "ANSWER_PATIENCE", 0.0)
    server = new_grpc_server(bytes, idle_quiet=0.0)
    server.start()
    cancelled = []

    def begin_end() -> None:
        """Never end, as with a client that does not answer."""

    def cancel() -> None:
        cancelled.append(1)
        threading.Timer(0.2, server._ended.set).start()

    with monkeypatch.context() as patches:
        patches.setattr(server, "_begin_end", begin_end)
        patches.setattr(server, "_cancel", cancel)
        assert server.drain(Deadline.after(TIMEOUT))
    assert cancelled == [1]
    server.cut_off()


class LockWithAnother:
    """A connection's lock that another thread gets first, and does something."""

    def __init__(self, lock: Any, first: Callable[[], None]) -> None:
        """Stand in for ``lock``."""
        self._lock = lock
        self._first: Callable[[], None] | None = first

    def __enter__(self) -> None:
        """Wait for the other one, then take the lock."""
        first, self._first = self._first, None
        if first is not None:
            first()
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        """Give it back."""
        self._lock.release()


def test_the_drain_takes_back_no_end_that_another_thread_has_sent() -> None:
    """The serving thread closes behind its answer just when the drain looks at the connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        server_side, _ = listener.accept()
        with server_side:
            connection = Connection(Connections(), server_side)
            connection.is_waiting = True
            connection._lock = LockWithAnother(connection._lock, connection.half_close)  # type: ignore[assignment]
            assert not connection.close_if_quiet(TIMEOUT)
            assert client.recv(1) == b""
            assert not connection.may_serve()


def test_why_a_connection_is_refused_is_said_before_its_client_knows(caplog: pytest.LogCaptureFixture) -> None:
    """Whoever looks into the log then finds it."""
    said = []

    class Special(socket.socket):
        def close(self) -> None:
            said.append(caplog.text)
            super().close()

    with pytest.raises(OSError, match="not supported"):
        TrackedSocket.adopt(Special(), Connections())
    assert "Special is not supported" in said[0]


class RefusedNow(logging.Handler):
    """Notes whether clients are refused when something is logged."""

    def __init__(self, address: Any) -> None:
        """Ask at ``address``."""
        super().__init__()
        self._address = address
        self.was_refused: list[bool] = []

    def emit(self, _record: logging.LogRecord) -> None:
        """Try to connect."""
        with socket.socket() as client:
            self.was_refused.append(client.connect_ex(self._address) != 0)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_clients_are_refused_before_that_is_said() -> None:
    """Whoever acts on the log finds that nothing is served any more."""
    with serving(lambda _: str(os.getppid()).encode()) as (_, client):
        client.send(b"")
        handler = RefusedNow(client.sock.getpeername())
        processes.logger.addHandler(handler)
        try:
            os.kill(int(client.receive()), signal.SIGKILL)
            eventually(lambda: handler.was_refused)
        finally:
            processes.logger.removeHandler(handler)
        assert handler.was_refused == [True]


def test_a_large_answer_is_not_cut_by_what_its_client_sends() -> None:
    """The client sends while most of its last answer is still with us: it is read, not answered with a reset."""
    answer = bytes(300_000)
    server = HttpServer(EchoServer(lambda _: answer))
    address = server.start()
    with ExitStack() as opened:
        opened.callback(server.cut_off)
        server.in_flight.stop_state.enter(Phase.PROPAGATING)
        sock = opened.enter_context(socket.socket())
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(TIMEOUT)
        sock.connect(address)
        sock.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        received = sock.recv(1)
        time.sleep(0.2)  # for longer than it lingers
        sock.sendall(b"x")
        time.sleep(0.05)
        while data := sock.recv(65536):
            received += data
        assert received.endswith(answer)
