"""What systemd (or whoever else gave us ``NOTIFY_SOCKET``) is told: the protocol of ``sd_notify(3)``."""

from __future__ import annotations

import logging
import os
import socket
import time

logger = logging.getLogger(__name__)


def is_listening() -> bool:
    """Return whether there is somebody to tell."""
    return bool(os.environ.get("NOTIFY_SOCKET"))


def notify(*states: str) -> None:
    """Tell the supervisor ``states``, such as ``READY=1``, in one message; nothing if there is none. Never raises."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    if path[0] not in "/@":
        logger.warning("NOTIFY_SOCKET=%s is no Unix socket: the supervisor is not told %s", path, ", ".join(states))
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.settimeout(1.0)
            sock.connect("\0" + path[1:] if path[0] == "@" else path)
            sock.send("\n".join(states).encode())
    except OSError as error:
        logger.warning("the supervisor at NOTIFY_SOCKET=%s cannot be told %s: %s", path, ", ".join(states), error)


def ready(status: str) -> None:
    """Tell that start-up, or a restart, has ended."""
    notify("READY=1", f"STATUS={status}")


def reloading() -> None:
    """Tell that a restart has begun: what ``Type=notify-reload`` waits for, with the clock that it compares."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")


def handed_over(pid: int) -> None:
    """Tell that another process is the main one from now on."""
    notify(f"MAINPID={pid}", "READY=1", f"STATUS=handed over to pid {pid}")


def stopping(status: str) -> None:
    """Tell that the stop has begun."""
    notify("STOPPING=1", f"STATUS={status}")
