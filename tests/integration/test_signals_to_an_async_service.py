"""Signals to a real asyncio process, whoever else handles them: it stops once, and theirs are called after that."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import ManagedProcess


class Program:
    """The program, running."""

    def __init__(self, process: ManagedProcess) -> None:
        """Wait until it listens."""
        self.process = process
        output = process.wait_output("LISTENING ")
        self.port = int(output.partition("LISTENING ")[2].split()[0])

    def report(self) -> dict[str, Any]:
        """Return its report, of which there is one."""
        (line,) = (line for line in self.process.output().splitlines() if line.startswith("REPORT "))
        report: dict[str, Any] = json.loads(line.removeprefix("REPORT "))
        return report


@contextlib.contextmanager
def program(tmp_path: Path, *options: str) -> Iterator[Program]:
    """Run it."""
    process = ManagedProcess.python("-m", "tests.integration.async_service_program", *options, log=tmp_path / "log")
    with process:
        yield Program(process)


@pytest.mark.parametrize(
    ("options", "number"),
    [
        ((), signal.SIGTERM),
        ((), signal.SIGINT),
        (("--before=loop",), signal.SIGTERM),
        (("--before=signal",), signal.SIGINT),
        (("--after=loop",), signal.SIGINT),
        (("--after=signal",), signal.SIGTERM),
        (("--before=cancel",), signal.SIGTERM),
    ],
    ids=["alone", "asyncio.run", "loop-before", "signal-before", "loop-after", "signal-after", "cancel-before"],
)
def test_the_stop_happens_once_whoever_else_handles_signals(
    tmp_path: Path, options: tuple[str, ...], number: signal.Signals
) -> None:
    """Installed before ours or after; by the loop, by the signal module, or by asyncio.run itself (SIGINT)."""
    with program(tmp_path, *options) as running:
        running.process.signal(number)
        status = running.process.wait()
        output = running.process.output()
        assert running.report() == {"reason": number.name, "is_hurried": False, "phase": "STOPPED"}, output
        assert output.count("EVENT stop requested") == 1
        assert status == 0, output
        theirs = f"THEIRS {number.name}"
        has_theirs = any(option.endswith(("loop", "signal")) for option in options)
        assert output.count(theirs) == int(has_theirs)
        if has_theirs:
            assert output.index(theirs) > output.index("EVENT NOTIFYING"), "theirs waits for the stop"
        assert "INTERRUPTED" not in output


@pytest.mark.parametrize(
    ("options", "number", "end"),
    [(("--before=cancel",), signal.SIGTERM, "CANCELLED"), ((), signal.SIGINT, "INTERRUPTED")],
    ids=["task.cancel", "asyncio.run"],
)
def test_with_signals_left_alone_what_they_do_is_a_graceful_stop(
    tmp_path: Path, options: tuple[str, ...], number: signal.Signals, end: str
) -> None:
    """A handler that cancels the main task, and what asyncio.run makes of SIGINT."""
    with program(tmp_path, "--no-signals", *options) as running:
        running.process.signal(number)
        running.process.wait()
        output = running.process.output()
        assert running.report() == {"reason": "cancelled", "is_hurried": False, "phase": "STOPPED"}, output
        assert end in output


def test_a_second_signal_hurries(tmp_path: Path) -> None:
    """With a request in flight that does not end."""
    with program(tmp_path) as running, socket.create_connection(("127.0.0.1", running.port), 10) as client:
        client.sendall(b"line\n")
        running.process.wait_output("SERVING")
        running.process.signal(signal.SIGTERM)
        running.process.wait_output("EVENT DRAINING")
        running.process.signal(signal.SIGINT)
        running.process.wait()
        assert running.report()["is_hurried"]
        assert "wait_for_ever from 127.0.0.1:" in running.process.output()
        assert client.recv(1) == b""
