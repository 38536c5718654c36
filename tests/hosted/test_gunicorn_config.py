"""What ``drain()`` does to a configuration, and refuses; and the memory that master and workers share."""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.config import Config  # type: ignore[import-untyped]

from registry_drain import ConfigurationError, StopBudget
from registry_drain.hosted.gunicorn import drain, is_stopping
from registry_drain.hosted.gunicorn.board import ENTRIES, SLOTS, Board
from registry_drain.hosted.gunicorn.config import HOOKS, _Process
from registry_drain.hosted.gunicorn.gate import Gate, GatedListener, put_behind
from registry_drain.hosted.gunicorn.shared_in_flight import SharedInFlight
from registry_drain.phases import Phase
from registry_drain.servers.loop_requests import LoopRequest, LoopRequests


@pytest.fixture(autouse=True)
def process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each test begin as a process does."""
    monkeypatch.setattr(_Process, "integration", None)


class Log:
    """An arbiter's log."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def critical(self, line: str, *arguments: object) -> None:
        """Take a line."""
        self.lines.append(line % arguments)


def arbiter_of(namespace: dict[str, Any]) -> SimpleNamespace:
    """Return as much of an arbiter as is looked at before anything starts."""
    cfg = Config()
    for name, value in namespace.items():
        cfg.set(name, value)
    return SimpleNamespace(cfg=cfg, log=Log())


def refusal(namespace: dict[str, Any]) -> str:
    """Return why gunicorn does not start with this configuration."""
    arbiter = arbiter_of(namespace)
    with pytest.raises(SystemExit):
        arbiter.cfg.on_starting(arbiter)
    (line,) = arbiter.log.lines
    return str(line)


# ----------------------------------------------------------------------------------------------------- configuration


def test_hooks_above_are_chained() -> None:
    """The user's own are called as well, and every hook is one that gunicorn takes."""
    called: list[object] = []
    namespace: dict[str, Any] = {"on_starting": called.append}
    drain(namespace)
    assert set(namespace) == set(HOOKS)
    arbiter = arbiter_of(namespace)
    arbiter.cfg.on_starting(arbiter)
    assert called == [arbiter]
    assert not is_stopping()


def test_a_hook_below_is_refused() -> None:
    """It would displace ours, and nobody would notice before a deploy loses requests."""
    namespace: dict[str, Any] = {}
    drain(namespace)
    namespace["post_worker_init"] = lambda _worker: None
    assert "post_worker_init is defined after drain()" in refusal(namespace)


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("graceful_timeout", 10, "set graceful_timeout=23 or more"),
        ("timeout", 120, "timeout=120 lets a request take longer than drain=9"),
        ("reuse_port", True, "leave it out"),
    ],
)
def test_settings_that_do_not_fit_are_refused(setting: str, value: object, words: str) -> None:
    """In one line, which says what to do."""
    namespace: dict[str, Any] = {"timeout": 9, setting: value}
    drain(namespace, budget=StopBudget(grace_period=30, drain=9))
    assert words in refusal(namespace)


def test_a_registry_needs_a_name() -> None:
    """As it does everywhere."""
    with pytest.raises(ConfigurationError, match="no service= name"):
        drain({}, registry="local:///tmp/x")


# ------------------------------------------------------------------------------------------------------------- board


@pytest.fixture
def board() -> Board:
    """Give the memory that is shared."""
    return Board()


def in_child(work: Any) -> None:
    """Do it in a forked process."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_worker_and_its_master_see_the_same(board: Board) -> None:
    """Requests of a child process, by name, and what the master says in return."""
    slot = board.take()
    board.publish(Phase.PROPAGATING, 12.5)

    def work() -> None:
        assert board.phase is Phase.PROPAGATING
        assert board.cut_off_at == 12.5
        in_flight = SharedInFlight(board, slot)
        in_flight.begin("GET /a", "10.0.0.1:1")
        assert in_flight.stop_state.is_delisted
        in_flight.end(in_flight.begin("GET /b"))
        in_flight.begin("GET /health", is_health_check=True)
        slot.be_ready()

    in_child(work)
    assert slot.is_ready
    assert not slot.has_left
    assert board.total == 2
    assert {(each.name, each.peer) for each in board.requests()} == {("GET /a", "10.0.0.1:1"), ("GET /health", "")}
    board.free(slot)
    assert board.requests() == []
    assert board.total == 2, "what a worker that is gone has counted stays counted"
    assert board.last_arrival_at


def test_nothing_but_counts_is_written_while_nobody_stops(board: Board) -> None:
    """And those now and then. When the stop begins what is in flight becomes known, whenever it began."""
    in_flight = SharedInFlight(board, board.take())
    key = in_flight.begin("GET /before")
    in_flight.end(in_flight.begin("GET /over"))
    in_flight.publish()
    assert board.requests() == []
    assert board.total == 2
    board.publish(Phase.DEREGISTERING, 99.0)
    in_flight.publish()
    in_flight.begin("GET /after")
    assert {each.name for each in board.requests()} == {"GET /before", "GET /after"}
    assert board.total == 3
    assert in_flight.stop_state.cut_off_at == 99.0
    in_flight.end(key)
    assert [each.name for each in board.requests()] == ["GET /after"]


def test_more_requests_than_names(board: Board) -> None:
    """They are counted all the same; long names are cut."""
    board.publish(Phase.DRAINING, 99.0)
    in_flight = SharedInFlight(board, board.take())
    keys = [in_flight.begin("x" * 500) for _ in range(ENTRIES + 3)]
    assert len(board.requests()) == ENTRIES + 3
    for key in keys:
        in_flight.end(key)
        in_flight.end(key)
    assert board.requests() == []
    assert board.total == ENTRIES + 3


def test_a_name_that_is_learnt_later(board: Board) -> None:
    """It replaces the first one; a health check's arrival is taken back."""
    board.publish(Phase.PROPAGATING, 99.0)
    in_flight = SharedInFlight(board, board.take())
    key = in_flight.begin("", "10.0.0.1:1")
    in_flight.identify(key, "GET /health", is_health_check=True)
    assert [(each.name, each.peer) for each in board.requests()] == [("GET /health", "10.0.0.1:1")]
    assert board.total == 0


def test_slots_are_used_again(board: Board) -> None:
    """A worker that comes later begins with a clean one."""
    for _ in range(SLOTS + 1):
        slot = board.take()
        assert not slot.is_told
        slot.tell()
        slot.leave()
        board.free(slot)
        board.free(slot)
    assert board.slots == []


# -------------------------------------------------------------------------------------------------------------- gate


@pytest.fixture
def listener() -> Iterator[SimpleNamespace]:
    """Give a listener as gunicorn holds it, with one connection in its backlog."""
    sock = socket.create_server(("127.0.0.1", 0))
    sock.setblocking(False)
    holder = SimpleNamespace(sock=sock)
    client = socket.create_connection(sock.getsockname())
    select.select([sock], [], [], 10)
    yield holder
    client.close()
    holder.sock.close()


def test_a_gate_is_closed_before_the_listener(listener: SimpleNamespace) -> None:
    """Nothing is taken any more, and nothing that waits is lost: the others accept it."""
    descriptor, gate = listener.sock.fileno(), Gate()
    put_behind(gate, [listener, SimpleNamespace(), listener])
    assert isinstance(listener.sock, GatedListener)
    assert listener.sock.fileno() == descriptor
    gate.is_closed = True
    with pytest.raises(BlockingIOError):
        listener.sock.accept()
    gate.is_closed = False
    connection, _ = listener.sock.accept()
    connection.close()


def test_a_listener_that_was_shut_has_nothing_to_accept(listener: SimpleNamespace) -> None:
    """It is no error that a worker would die of."""
    put_behind(Gate(), [listener])
    listener.sock.shutdown(socket.SHUT_RDWR)
    with pytest.raises(BlockingIOError):
        listener.sock.accept()


def test_the_requests_of_a_loop_are_published_and_taken_away() -> None:
    """They tell nobody when they end; who waits for the stop is woken, and who asks for it learns of it, at once."""

    class Request(LoopRequest):
        name, peer = "GET /", "10.0.0.9:5000"

    board = Board()
    slot = board.take()
    in_flight = SharedInFlight(board, slot)
    requests = LoopRequests(in_flight)
    request = Request(requests)
    woken = threading.Thread(target=board.wait_for_stop, args=(3600,), daemon=True)
    woken.start()
    board.wait_for_stop(0.01)
    assert woken.is_alive(), "nobody has begun a stop"
    board.publish(Phase.PROPAGATING, 1e9)
    woken.join(10)
    assert not woken.is_alive()
    board.wait_for_stop(60)  # returns at once, for whoever asks later
    assert in_flight.stop_state.is_stopping
    assert in_flight.stop_state.is_delisted
    in_flight.publish()
    assert (slot.total, [each.name for each in board.requests()]) == (1, ["GET /"])
    del requests.active[request]
    in_flight.publish()
    assert board.requests() == []
