"""The example of a hand-over: both ports change their process, new code answers, and the units are sound."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.calculator_load import call_once
from tests.support.processes import REPOSITORY, ManagedProcess, eventually, free_port

pytestmark = pytest.mark.slow

EXAMPLE = REPOSITORY / "examples" / "handover"


def ask_version(port: int) -> tuple[str, int]:
    """Return the version and the process that answer on the admin port."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
        sock.sendall(b"version\n")
        _, version, _, pid = sock.recv(200).decode().split()
        return version, int(pid)


def test_the_example_restarts_into_new_code(tmp_path: Path) -> None:
    """A symbolic link is changed, as a deploy does; SIGHUP; the new version answers on the same ports."""
    for version in ("1", "2"):
        directory = tmp_path / f"release-{version}" / "examples" / "handover"
        directory.mkdir(parents=True)
        source = (EXAMPLE / "server.py").read_text()
        (directory / "server.py").write_text(source.replace('VERSION = "1"', f'VERSION = "{version}"'))
    current = tmp_path / "current"
    current.symlink_to(tmp_path / "release-1")
    port, admin_port = free_port(), free_port()
    process = ManagedProcess(
        [
            *("bash", "-c", 'cd "$0" && exec "$@"', str(current)),  # a shell sets PWD, by the link's name
            *(shutil.which("env") or "env", f"PYTHONPATH={REPOSITORY}"),
            *(sys.executable, "examples/handover/server.py"),
            f"--registry=local://{tmp_path}/cluster",
            f"--port={port}",
            f"--admin-port={admin_port}",
        ],
        log=tmp_path / "log",
    )
    successor = 0
    try:
        process.wait_output("registered calculator")
        assert ask_version(admin_port) == ("1", process.pid)
        current.unlink()
        current.symlink_to(tmp_path / "release-2")
        process.signal(signal.SIGHUP)
        assert process.wait(timeout=60) == 0
        found = re.search(r"handed over to pid (\d+)", process.output())
        assert found, process.output_tail()
        successor = int(found[1])
        assert ask_version(admin_port) == ("2", successor)
        assert call_once(f"127.0.0.1:{port}", "add", 1, 2) == 3
    finally:
        if successor:
            with contextlib.suppress(ProcessLookupError):
                os.kill(successor, signal.SIGTERM)
        process.stop()
        eventually(lambda: not _is_running(successor), because="the new process has ended")


def _is_running(pid: int) -> bool:
    try:
        return "server.py" in Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return False


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd's own check is not installed here")
def test_the_units_are_sound() -> None:
    """systemd-analyze has nothing to say."""
    run = subprocess.run(
        ["systemd-analyze", "verify", "./calculator.service", "./calculator.socket"],
        cwd=EXAMPLE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=60,
    )
    assert (run.returncode, run.stdout) == (0, "")
