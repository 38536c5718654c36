"""Thrift's binary protocol, buffered: ``binary call(1: binary payload)``, as Apache Thrift and thriftpy2 speak it."""

from __future__ import annotations

import select
import socket
import struct

_TIMEOUT_S = 10.0
_CALL, _STRING = 1, 11
_LENGTH = struct.Struct("!I")
_HEAD = struct.pack("!II4sI", 0x80010000 | _CALL, 4, b"call", 0)
_FIELD = struct.Struct("!bhI")
_REPLY_HEAD = len(_HEAD) + _FIELD.size


class Client:
    """One connection; see :class:`benchmarks.rolling_restart.load.Client`."""

    is_framed = False

    def __init__(self, address: tuple[str, int]) -> None:
        """Connect."""
        self._sock = socket.create_connection(address, _TIMEOUT_S)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def call(self, payload: bytes) -> bytes:
        """Send one request and return its answer."""
        message = _HEAD + _FIELD.pack(_STRING, 1, len(payload)) + payload + b"\0"
        self._sock.sendall(_LENGTH.pack(len(message)) + message if self.is_framed else message)
        if self.is_framed:
            self._receive(_LENGTH.size)
        head = self._receive(_REPLY_HEAD)
        (size,) = _LENGTH.unpack(head[-_LENGTH.size :])
        return self._receive(size + 1)[:-1]

    def _receive(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self._sock.recv(size - len(data))
            if not more:
                raise EOFError("the server has closed the connection")
            data += more
        return data

    def is_closed(self) -> bool:
        """Whether the server has said goodbye: nothing else comes without a request."""
        return bool(select.select([self._sock], [], [], 0)[0])

    def close(self) -> None:
        """Hang up."""
        self._sock.close()
