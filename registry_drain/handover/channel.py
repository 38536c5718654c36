"""What the old and the new process say to each other: one JSON object a line, over a socket pair."""

from __future__ import annotations

import json
import select
import socket
import threading
from collections.abc import Mapping
from typing import Any

from registry_drain.clock import Deadline

Message = dict[str, Any]

_LONGEST_LOOK = 0.05
"""Seconds between two looks at an injected clock's deadline."""
_LARGEST_READ = 65536


class ChannelClosedError(Exception):
    """The other process has closed its end, or is gone."""


class Channel:
    """One end. ``send`` and ``close`` are for any thread, ``receive`` for one."""

    def __init__(self, sock: socket.socket) -> None:
        """Take a connected stream socket."""
        self._sock = sock
        self._lock = threading.Lock()
        self._received = b""
        self._is_closed = False

    @classmethod
    def pair(cls) -> tuple[Channel, socket.socket]:
        """Return our end, and the other process' socket."""
        ours, theirs = socket.socketpair()
        return cls(ours), theirs

    def send(self, message: Mapping[str, object]) -> bool:
        """Send, and return whether it was sent: False if the other end is closed."""
        with self._lock:
            if self._is_closed:
                return False
            try:
                self._sock.sendall(json.dumps(message).encode() + b"\n")
            except OSError:
                return False
            return True

    def receive(self, deadline: Deadline) -> Message | None:
        """Return the next message; None if there is none by ``deadline``.

        Raises:
            ChannelClosedError: there will be none.
        """
        while b"\n" not in self._received:
            if self._is_closed:
                raise ChannelClosedError
            poller = select.poll()
            try:
                poller.register(self._sock, select.POLLIN)
                is_readable = poller.poll(min(deadline.remaining(), _LONGEST_LOOK) * 1000)
                data = self._sock.recv(_LARGEST_READ) if is_readable else None
            except (OSError, ValueError) as error:
                raise ChannelClosedError from error
            if data == b"":
                raise ChannelClosedError
            self._received += data or b""
            if data is None and deadline.is_past:
                return None
        line, _, self._received = self._received.partition(b"\n")
        try:
            message = json.loads(line)
        except ValueError as error:
            raise ChannelClosedError from error  # who says nothing that we understand is as good as gone
        return message if isinstance(message, dict) else {}

    def close(self) -> None:
        """Close this end: the other one learns of it. Idempotent."""
        with self._lock:
            self._is_closed = True
            self._sock.close()
