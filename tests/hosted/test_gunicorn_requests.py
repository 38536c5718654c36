"""What gunicorn's workers do with single requests: the user's hooks, and the last answer on a connection."""

from __future__ import annotations

import contextlib
import signal
import socket
import time
from collections import deque
from pathlib import Path

import pytest

from tests.hosted.gunicorn_bench import Gunicorn
from tests.support.processes import eventually

_HOOKS = """
def pre_request(worker, request):
    logging.info("before %s", request.path)
def post_request(worker, request, environ, response):
    logging.info("after %s", request.path)
"""


@pytest.mark.parametrize("kind", ["sync", "gthread", "asgi"])
def test_the_users_hooks_see_each_request(kind: str, tmp_path: Path) -> None:
    """Once each, though gunicorn's ASGI worker gets hooks of another kind than the others."""
    gunicorn = Gunicorn(tmp_path, kind, head=_HOOKS)
    with gunicorn.process:
        gunicorn.process.wait_output("registered ")
        gunicorn.request("/one")
        gunicorn.request("/two")
        gunicorn.process.signal(signal.SIGTERM)
        output = gunicorn.wait_stopped()
    said = [line.rpartition(":")[2] for line in output.splitlines() if "before /" in line or "after /" in line]
    assert sorted(said) == ["after /one", "after /two", "before /one", "before /two"], output


@pytest.mark.parametrize("kind", ["gthread", "asgi"])
def test_a_worker_that_goes_alone_sends_its_clients_away(kind: str, tmp_path: Path) -> None:
    """On SIGHUP it answers what its connections still ask, and says in the answer that it was the last."""
    gunicorn = Gunicorn(tmp_path, kind, settings={"workers": 1, "keepalive": 30}, head=_lingering(10.0))
    with gunicorn.process:
        gunicorn.process.wait_output("registered ")
        with socket.create_connection(gunicorn.address, timeout=20) as client:
            before = gunicorn.children()
            assert "close" not in _answer(client)
            gunicorn.process.signal(signal.SIGHUP)
            eventually(lambda: gunicorn.children() - before, because="another worker is there")
            answers: list[list[str]] = []
            eventually(lambda: _told(client, answers), because="the old one sends its client away")
            assert answers[-1] == ["close"], "said once"
            assert client.recv(1) == b""
        gunicorn.process.kill()  # the old worker may linger on


_ASYNC = pytest.mark.parametrize("kind", ["asgi", "uvicorn"])
_BUDGET = {"grace_period": 60.0, "floor": 0.5, "ceiling": 0.6, "quiet_period": 0.1}
"""The drain ends with the last answer."""
_PATIENT = {"grace_period": 60.0, "floor": 14.0, "ceiling": 14.5, "quiet_period": 0.1}
"""Callers go on coming for 14 s after the instance was delisted; a second signal ends that."""
_BRIEF = {**_BUDGET, "grace_period": 9.0, "notify": 0.2, "margin": 0.2}
"""The drain lasts as long as it may: an application that waits for its client is told a tenth of it before its end."""
_SETTINGS = {"workers": 1, "keepalive": 30, "graceful_timeout": 60}


@_ASYNC
def test_an_answer_under_way_when_the_instance_is_delisted_is_the_last(kind: str, tmp_path: Path) -> None:
    """It says so."""
    gunicorn = Gunicorn(tmp_path, kind, settings=_SETTINGS, budget=_BUDGET)
    gate = tmp_path / "gate"
    with gunicorn.process:
        gunicorn.process.wait_output("registered ")
        with socket.create_connection(gunicorn.address, timeout=20) as client:
            assert "close" not in _answer(client)
            _ask(client, f"/?{gate}")
            gunicorn.request()  # behind the first one, in the same event loop
            gunicorn.process.signal(signal.SIGTERM)
            gunicorn.process.wait_output("PROPAGATING")
            gate.touch()
            assert _read_answer(client) == ["close"]
            assert client.recv(1) == b""
        assert ": clean" in gunicorn.wait_stopped()


@_ASYNC
def test_an_application_that_waits_for_its_client_to_leave_is_told_so_in_time(kind: str, tmp_path: Path) -> None:
    """It may finish, and its answer is the last one."""
    gunicorn = Gunicorn(tmp_path, kind, settings=_SETTINGS, budget=_BRIEF)
    with gunicorn.process:
        gunicorn.process.wait_output("registered ")
        with socket.create_connection(gunicorn.address, timeout=20) as client:
            assert "close" not in _answer(client)
            _ask(client, "/wait")
            gunicorn.request()  # behind the first one, in the same event loop
            gunicorn.process.signal(signal.SIGTERM)
            assert _read_answer(client) == ["close"]
            assert client.recv(1) == b""
        # Not "clean": gunicorn may need longer to exit than is left then.
        assert "cut off   " not in gunicorn.wait_stopped()


@_ASYNC
def test_an_answer_that_has_begun_when_the_instance_is_delisted_is_not_the_last(kind: str, tmp_path: Path) -> None:
    """It cannot say so any more, and a client that is not told would send its next request in vain."""
    reading = (
        "def pre_request(worker, request):\n    assert request.headers\n"  # gunicorn decides anew at the end, then
    )
    gunicorn = Gunicorn(tmp_path, kind, settings=_SETTINGS, budget=_PATIENT, head=reading)
    gate = tmp_path / "gate"
    with gunicorn.process:
        gunicorn.process.wait_output("registered ")
        with socket.create_connection(gunicorn.address, timeout=20) as client:
            client.sendall(f"POST /stream?{gate} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nab".encode())
            assert "close" not in _read_answer(client, b"a")
            gunicorn.process.signal(signal.SIGTERM)
            gunicorn.process.wait_output("PROPAGATING")
            gate.touch()
            assert client.recv(9) == b"b"
            assert _answer(client) == ["close"]
        gunicorn.process.signal(signal.SIGINT)
        assert "cut off   " not in gunicorn.wait_stopped()


@_ASYNC
def test_who_connects_to_a_worker_that_goes_is_answered_though_it_asks_late(kind: str, tmp_path: Path) -> None:
    """From a worker that goes nobody gets a connection that is closed before its first request has come."""
    gunicorn = Gunicorn(tmp_path, kind, settings={"workers": 1, "keepalive": 4}, head=_lingering(4.0))
    waiting: deque[tuple[float, socket.socket]] = deque()
    with gunicorn.process, contextlib.ExitStack() as clients:
        gunicorn.process.wait_output("registered ")
        before = gunicorn.children()
        gunicorn.process.signal(signal.SIGHUP)
        while before & gunicorn.children() or waiting:
            if before & gunicorn.children():
                client = clients.enter_context(socket.create_connection(gunicorn.address, timeout=20))
                waiting.append((time.monotonic() + 0.4, client))
            while waiting and waiting[0][0] < time.monotonic():
                _answer(waiting.popleft()[1])
            time.sleep(0.01)


def _lingering(seconds: float) -> str:
    """Return lines that make leaving workers of every class wait so long for a client's next request."""
    return (
        "import gunicorn.workers.gthread, registry_drain.hosted.gunicorn.worker\n"
        f"gunicorn.workers.gthread.STOP_KEEPALIVE_LINGER = registry_drain.hosted.gunicorn.worker.LINGER = {seconds}\n"
    )


def _told(client: socket.socket, answers: list[list[str]]) -> bool:
    answers.append(_answer(client))
    return "close" in answers[-1]


def _answer(client: socket.socket) -> list[str]:
    """Make a request, and return what the answer says of its connection."""
    _ask(client, "/")
    return _read_answer(client)


def _ask(client: socket.socket, target: str) -> None:
    client.sendall(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())


def _read_answer(client: socket.socket, body: bytes = b"") -> list[str]:
    """Read an answer as far as ``body``, and return what it says of its connection."""
    head = b""
    while not head.endswith(b"\r\n\r\n" + body):
        part = client.recv(4096)
        assert part, head
        head += part
    lines = [line.partition(":") for line in head.decode().lower().split("\r\n")]
    return [value.strip() for name, _, value in lines if name == "connection"]
