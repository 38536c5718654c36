"""The asyncio echo example, run the way its reader would run it."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import pytest

from registry_drain import Deadline, open_registry
from tests.support.processes import ManagedProcess, eventually

pytestmark = pytest.mark.slow

PATIENCE = 30.0


def test_it_finishes_what_it_was_writing(tmp_path: Path) -> None:
    """SIGTERM: a slow answer comes whole, a long one ends politely, an idle client reads an end of file."""
    url = f"local://{tmp_path}/cluster"
    module = "examples.asyncio_echo.server"
    log = tmp_path / "log"
    with ManagedProcess.python("-m", module, "--registry", url, "--grace-period=20", log=log) as server:
        registry = open_registry(url)
        (entry,) = eventually(lambda: registry.entries("echo", Deadline.after(PATIENCE)))
        idle, slow, long = (socket.create_connection((entry.address, entry.port), PATIENCE) for _ in range(3))
        files = [each.makefile("rb") for each in (idle, slow, long)]
        idle.sendall(b"hello\n")
        assert files[0].readline() == b"hello\n"
        slow.sendall(b"slowly 2 whole\nbehind it\n")
        long.sendall(b"count 15\n")
        assert files[2].readline() == b"0\n"
        server.signal(signal.SIGTERM)
        assert server.wait() == 0, server.output()
        assert files[0].read() == b""
        assert files[1].read() == b"whole\nbehind it\n"
        assert files[2].read().endswith(b"end\n")
        assert registry.entries("echo", Deadline.after(PATIENCE)) == []
        assert "flushed" in server.output()
        assert "clean" in server.output()
        for file in files:
            file.close()
        for client in (idle, slow, long):
            client.close()
        registry.close()
