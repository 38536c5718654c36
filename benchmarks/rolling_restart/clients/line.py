"""One line for a request, one for its answer, over a connection that is kept."""

from __future__ import annotations

import contextlib
import select
import socket

TIMEOUT_S = 10.0


class Client:
    """One connection; see :class:`benchmarks.rolling_restart.load.Client`."""

    def __init__(self, address: tuple[str, int]) -> None:
        """Connect."""
        self._sock = socket.create_connection(address, TIMEOUT_S)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def call(self, payload: bytes) -> bytes:
        """Send a line, read a line."""
        self._sock.sendall(payload + b"\n")
        answer = b""
        while not answer.endswith(b"\n"):
            chunk = self._sock.recv(65536)
            if not chunk:
                raise EOFError
            answer += chunk
        return answer[:-1]

    def is_closed(self) -> bool:
        """Between two requests there is nothing to read but an end of file."""
        return bool(select.select([self._sock], [], [], 0)[0])

    def close(self) -> None:
        """Hang up."""
        with contextlib.suppress(OSError):
            self._sock.close()
