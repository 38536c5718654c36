"""The gunicorn example, started as its configuration says."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from benchmarks.rolling_restart.clients.http import Client
from registry_drain import Deadline, open_registry
from tests.support.processes import REPOSITORY, ManagedProcess, eventually, free_port

pytestmark = pytest.mark.slow

CONFIGURATION = REPOSITORY / "examples" / "gunicorn_service" / "gunicorn.conf.py"


def ask(port: int, path: str) -> str:
    """Return the answer to one request."""
    client = Client(("127.0.0.1", port))
    try:
        client.path = path
        return client.call(b"").decode()
    finally:
        client.close()


def test_it_serves_and_stops_as_it_says(tmp_path: Path) -> None:
    """It is listed, answers, says that it is ready; and leaves the registry when it is told to stop."""
    port, url = free_port(), f"local://{tmp_path}/registry"
    environment = {"WEB_BIND": f"127.0.0.1:{port}", "WEB_REGISTRY": url, "WEB_PID": str(tmp_path / "pid")}
    gunicorn = ManagedProcess.python(
        *("-m", "gunicorn", "-c", CONFIGURATION, "examples.gunicorn_service.app:application"),
        log=tmp_path / "log",
        env={"PYTHONPATH": str(REPOSITORY), **environment},
    )
    registry = open_registry(url)
    try:
        gunicorn.wait_output("registered web-")
        (entry,) = registry.entries("web", Deadline.after(10))
        assert entry.endpoint == f"127.0.0.1:{port}"
        assert ask(port, "/hello?0.01") == "POST /hello\n"
        assert ask(port, "/ready")
        eventually(lambda: (tmp_path / "pid").read_text().strip() == str(gunicorn.pid), because="the pid is written")
        gunicorn.signal(signal.SIGTERM)
        gunicorn.wait(timeout=40)
        assert gunicorn.returncode == 0
        assert ": clean" in gunicorn.output()
        assert not registry.entries("web", Deadline.after(10))
    finally:
        registry.close()
        gunicorn.kill()
