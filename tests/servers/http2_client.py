"""An HTTP/2 client on a bare socket, in clear text with prior knowledge (RFC 9113, 3.3): one connection."""

from __future__ import annotations

import socket
from collections import deque

import h2.config
import h2.connection
import h2.events

TIMEOUT_S = 20.0


class Http2Client:
    """Sends each request in a stream of its own, and returns the answers in the order of the requests.

    Attributes:
        last_stream_id: of the server's GOAWAY; None before.
    """

    def __init__(self, address: tuple[str, int]) -> None:
        """Connect; raises OSError."""
        self._sock = socket.create_connection(address, timeout=TIMEOUT_S)
        self._connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self._connection.initiate_connection()
        self._waiting: deque[int] = deque()
        self._bodies: dict[int, bytes] = {}
        self._ended: set[int] = set()
        self.last_stream_id: int | None = None
        self._flush()

    def send(self, payload: bytes) -> None:
        """Send one request."""
        stream_id = self._connection.get_next_available_stream_id()
        headers = [(":method", "POST"), (":path", "/"), (":scheme", "http"), (":authority", "localhost")]
        self._connection.send_headers(stream_id, headers)
        self._connection.send_data(stream_id, payload, end_stream=True)
        self._waiting.append(stream_id)
        self._bodies[stream_id] = b""
        self._flush()

    def receive(self) -> bytes:
        """Return the answer to the oldest request; EOFError if the server closed."""
        while not (self._waiting and self._waiting[0] in self._ended):
            self._read()
        return self._bodies.pop(self._waiting.popleft())

    def wait_for_goaway(self) -> None:
        """Read until the server has said goodbye; EOFError if it closed without."""
        while self.last_stream_id is None:
            self._read()

    def _read(self) -> None:
        data = self._sock.recv(65536)
        if not data:
            raise EOFError("the server closed the connection")
        for event in self._connection.receive_data(data):
            self._take(event)
        self._flush()

    def _take(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.ResponseReceived):
            status = {_text(name): _text(value) for name, value in event.headers or ()}[":status"]
            if status != "200":
                raise OSError(f"answered {status}")
        elif isinstance(event, h2.events.DataReceived):
            self._bodies[event.stream_id] += event.data
            self._connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            self._ended.add(event.stream_id)
        elif isinstance(event, h2.events.StreamReset):
            raise ConnectionResetError(f"stream {event.stream_id} was reset")
        elif isinstance(event, h2.events.ConnectionTerminated):
            self.last_stream_id = event.last_stream_id

    def close(self) -> None:
        """Hang up. Idempotent."""
        self._sock.close()

    def _flush(self) -> None:
        data = self._connection.data_to_send()
        if data:
            self._sock.sendall(data)


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode()
