"""The ASGI example, run by each server: it answers, ends its streams when it is stopped, and says how it went."""

from __future__ import annotations

import http.client
import os
import signal
import sys
from pathlib import Path

import pytest

from registry_drain import Deadline, open_registry
from tests.support.processes import REPOSITORY, ManagedProcess, eventually, free_port

pytestmark = pytest.mark.slow

PATIENCE = 30.0
_HOSTED = "examples.asgi_service.hosted:service"


@pytest.mark.parametrize(
    ("command", "status"),
    [
        ("examples.asgi_service.serve_uvicorn", 0),
        ("examples.asgi_service.serve_hypercorn", 0),
        (f"uvicorn {_HOSTED} --port PORT", -signal.SIGTERM),
        (f"granian --interface asgi --loop asyncio --port PORT {_HOSTED}", 0),
        (f"hypercorn --workers 0 --bind 127.0.0.1:PORT {_HOSTED}", 0),
    ],
)
def test_it_serves_and_stops(command: str, status: int, tmp_path: Path) -> None:
    """A stream that is open when the signal comes ends by its own word."""
    port, url = free_port(), f"local://{tmp_path}/registry"
    env = dict(os.environ, REGISTRY=url, PORT=str(port), PYTHONPATH=str(REPOSITORY))
    argv = [sys.executable, "-m", *command.replace("PORT", str(port)).split()]
    registry = open_registry(url)
    with ManagedProcess(argv, log=tmp_path / "log", env=env) as process:
        eventually(
            lambda: registry.entries("asgi-example", Deadline.after(5)), timeout=PATIENCE, because="it is registered"
        )
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        client.request("GET", "/")
        assert b"served by" in client.getresponse().read()
        client.request("GET", "/stream")
        stream = client.getresponse()
        assert stream.readline() == b"tick\n"
        process.signal(signal.SIGTERM)
        assert stream.read().endswith(b"this instance is stopping\n")
        client.close()
        assert process.wait(timeout=PATIENCE) == status
        assert "clean" in process.output(), process.output()
    registry.close()
