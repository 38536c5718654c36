"""An asyncio service is handed over like any other."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
from pathlib import Path

import pytest

from tests.handover.bench import Storm
from tests.support.processes import ManagedProcess, eventually, free_port

pytestmark = pytest.mark.slow


def test_an_asyncio_service_is_handed_over_under_a_storm(tmp_path: Path) -> None:
    """Its loop's listener is shared and left alone: 0 refused, 0 reset, twice in a row."""
    port = free_port()
    process = ManagedProcess.python(
        "-m", "tests.handover.asyncio_program", f"local://{tmp_path}/registry", str(port), log=tmp_path / "log"
    )
    pids = [process.pid]

    def ask() -> int:
        with socket.create_connection(("127.0.0.1", port), timeout=30) as sock:
            sock.sendall(b"hello\n")
            answer = sock.recv(100)
        assert answer.startswith(b"hello "), answer
        return int(answer.split()[1])

    try:
        process.wait_output("registered echo")
        storm = Storm(ask)
        with storm:
            for _ in range(2):
                os.kill(pids[-1], signal.SIGHUP)
                pids.append(_successor(process, pids[-1]))
                calls = storm.calls
                eventually(lambda: storm.calls > calls + 50, because="the storm goes on")  # noqa: B023 - used at once
        assert storm.failures == []
        assert ask() == pids[-1]
        assert process.output().count("listener      handed over") == 2
    finally:
        if len(pids) > 1:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pids[-1], signal.SIGTERM)
        process.stop()
    eventually(lambda: f"{pids[-1]} stopped (SIGTERM)" in process.output(), because="the last one has stopped")


def _successor(process: ManagedProcess, pid: int) -> int:
    """Wait until ``pid`` has stopped, handed over and clean; return to whom."""
    pattern = rf"{pid} stopped \(handed over to pid (\d+)\) in .*: clean"
    return int(eventually(lambda: re.findall(pattern, process.output()), timeout=60, because=pattern)[0])
