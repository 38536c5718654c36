"""What gunicorn's workers do with single requests: the user's hooks, and the last answer on a connection."""

from __future__ import annotations

import signal
import socket
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
    gunicorn = Gunicorn(tmp_path, kind, settings={"workers": 1, "keepalive": 30})
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


def _told(client: socket.socket, answers: list[list[str]]) -> bool:
    answers.append(_answer(client))
    return "close" in answers[-1]


def _answer(client: socket.socket) -> list[str]:
    """Make a request, and return what the answer says of its connection."""
    client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    head = b""
    while b"\r\n\r\n" not in head:
        part = client.recv(4096)
        assert part, head
        head += part
    lines = [line.partition(":") for line in head.decode().lower().split("\r\n")]
    return [value.strip() for name, _, value in lines if name == "connection"]
