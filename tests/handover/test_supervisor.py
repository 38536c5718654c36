"""systemd's side of it: what NOTIFY_SOCKET is told, and sockets that are systemd's."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry_drain.handover import supervisor
from tests.handover.bench import HandedService
from tests.support.processes import eventually


class Supervisor:
    """A socket that notifications are sent to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(str(path))
        self._sock.setblocking(False)
        self._told: list[dict[str, str]] = []

    def told(self) -> list[dict[str, str]]:
        """Return what was said so far, without the status."""
        while True:
            try:
                message = self._sock.recv(4096).decode()
            except BlockingIOError:
                return self._told
            states = dict(line.split("=", 1) for line in message.splitlines())
            self._told.append(states)

    def names(self) -> list[str]:
        """Return the states of each message, joined."""
        return [",".join(name for name in states if name != "STATUS") for states in self.told()]

    def close(self) -> None:
        """Close."""
        self._sock.close()


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Supervisor]:
    """Give a supervisor."""
    fake = Supervisor(tmp_path / "notify")
    yield fake
    fake.close()


def test_the_supervisor_follows_a_hand_over_and_the_stop(systemd: Supervisor, tmp_path: Path, unique: str) -> None:
    """READY when registered; RELOADING, then the new MAINPID; STOPPING only when the last one stops."""
    url = f"local://{tmp_path}/registry"
    with HandedService(url, unique, tmp_path, env={"NOTIFY_SOCKET": str(systemd.path)}) as service:
        eventually(lambda: systemd.names() == ["READY"], because="ready is said")
        assert systemd.told()[0]["STATUS"] == "serving"
        pid = service.process.pid
        service.hang_up(pid)
        report = service.report_of(pid)
        assert systemd.names() == ["READY", "RELOADING,MONOTONIC_USEC", "MAINPID,READY"]
        new = report["handed_over_to"]
        assert systemd.told()[2]["MAINPID"] == str(new)
        os.kill(new, signal.SIGTERM)
        service.report_of(new)
        assert systemd.names()[3:] == ["STOPPING"]


def test_the_supervisor_is_told_that_a_hand_over_failed(systemd: Supervisor, tmp_path: Path, unique: str) -> None:
    """READY again, with the reason as the status: the unit is not left reloading."""
    url = f"local://{tmp_path}/registry"
    with HandedService(url, unique, tmp_path, env={"NOTIFY_SOCKET": str(systemd.path)}) as service:
        eventually(lambda: systemd.names() == ["READY"], because="ready is said")
        service.orders.write_text("exit")
        service.hang_up(service.process.pid)
        eventually(
            lambda: systemd.names() == ["READY", "RELOADING,MONOTONIC_USEC", "READY"], because="it is ready again"
        )
        assert "status 3" in systemd.told()[2]["STATUS"]


def test_without_a_supervisor_nothing_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No variable, nothing to do; one that leads nowhere is a log line, never an error."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not supervisor.is_listening()
    supervisor.ready("serving")
    assert caplog.text == ""
    for path in ("/nowhere/notify", "@registry-drain-nobody", "vsock:2:1"):
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        supervisor.stopping("stopping")
        assert path in caplog.text
