"""The master's adapter alone, without a gunicorn: what it does with the time that it is given."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from registry_drain.clock import Deadline
from registry_drain.hosted.gunicorn import server as server_module
from registry_drain.hosted.gunicorn.board import Board
from registry_drain.hosted.gunicorn.server import GunicornServer
from registry_drain.testing.clock import FakeClock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """Give the clock that the adapter goes by, too; only sleeping passes its time."""
    clock = FakeClock(autojump=False)
    monkeypatch.setattr(server_module, "time", SimpleNamespace(monotonic=clock.now, sleep=clock.advance))
    return clock


@pytest.fixture
def arbiter() -> Iterator[SimpleNamespace]:
    """Give as much of an arbiter as is looked at: a listener, and a worker that serves."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield SimpleNamespace(
            LISTENERS=[SimpleNamespace(sock=listening)], WORKERS={}, reexec_pid=0, master_pid=0, systemd=False
        )


@pytest.mark.parametrize("seconds", [0.18, 0.6, 2.7])
def test_closing_ends_well_before_its_limit_though_a_worker_is_slow_to_go(
    seconds: float, clock: FakeClock, arbiter: SimpleNamespace
) -> None:
    """The ASGI worker of gunicorn looks once a second. The drain goes on waiting, and shuts the listener then."""
    board = Board()
    slot = board.take()
    slot.be_ready()
    arbiter.WORKERS[1] = SimpleNamespace(registry_drain_slot=slot)
    told: list[str] = []
    server = GunicornServer(arbiter, board, lambda: told.append("go"))
    deadline = Deadline.after(seconds, clock)
    server.close_listener(deadline)
    assert told == ["go"]
    assert deadline.remaining() > seconds / 4
    assert server._listeners, "the worker still accepts"
    slot.leave()
    arbiter.WORKERS.clear()
    assert server.drain(Deadline.after(seconds, clock))
    assert not server._listeners
    assert told == ["go"]
