"""A gRPC client on a bare socket, and an echo service without generated code.

By h2, so that every frame can be seen: GOAWAY, RST_STREAM, the end of the connection.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import h2.config
import h2.connection
import h2.events

from registry_drain.clock import Deadline, SystemClock
from registry_drain.testing.bench import Call
from tests.support.processes import eventually

METHOD = "/echo.Echo/Call"
TIMEOUT_S = 20.0
_FRAME_HEAD, _GOAWAY = 9, 7


def echo_service(serve: Callable[[bytes], bytes]) -> Any:
    """Return the handlers of a service for a ``grpc.server``: ``Call``, ``Count``, ``Join``, ``Chat``, in bytes."""

    def call(request: bytes, _context: Any) -> bytes:
        return serve(request)

    def count(request: bytes, _context: Any) -> Any:
        for turn in range(int(request)):
            yield serve(str(turn).encode())

    def join(requests: Any, _context: Any) -> bytes:
        return serve(b"".join(requests))

    def chat(requests: Any, _context: Any) -> Any:
        for request in requests:
            yield serve(request)

    return grpc.method_handlers_generic_handler(
        "echo.Echo",
        {
            "Call": grpc.unary_unary_rpc_method_handler(call),
            "Count": grpc.unary_stream_rpc_method_handler(count),
            "Join": grpc.stream_unary_rpc_method_handler(join),
            "Chat": grpc.stream_stream_rpc_method_handler(chat),
        },
    )


class WireClient:
    """One connection, as a :class:`~registry_drain.testing.server_contract.ContractClient`: answers come in order.

    It reads in a thread, as gRPC's own clients do: they answer the PING that follows a GOAWAY whatever they wait for.

    Attributes:
        is_told_to_leave: whether a GOAWAY has come.
    """

    def __init__(self, address: tuple[str, int], *, method: str = METHOD, reads: bool = True) -> None:
        """Connect, and say hello; a client that does not read is as good as gone."""
        self._method = method
        self._sock = socket.create_connection(address, timeout=TIMEOUT_S)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration())
        self._news = threading.Condition()
        self._asked: list[int] = []
        self._bodies: dict[int, bytes] = {}
        self._statuses: dict[int, tuple[str, str]] = {}
        self._received = b""
        self._end: Exception | None = None
        self.is_told_to_leave = False
        self._h2.initiate_connection()
        self._flush()
        self._reader = threading.Thread(target=self._read, name="wire-client", daemon=True)
        if reads:
            self._reader.start()

    def send(self, payload: bytes) -> None:
        """Send one request."""
        self.send_half(payload)()

    def send_half(self, payload: bytes) -> Callable[[], None]:
        """Send the first half of one request; return what sends the other."""
        headers = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", self._method),
            (":authority", "localhost"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
        ]
        message = struct.pack("!BI", 0, len(payload)) + payload
        half = len(message) // 2
        with self._news:
            stream = self._h2.get_next_available_stream_id()
            self._asked.append(stream)
            self._bodies[stream] = b""
            self._h2.send_headers(stream, headers)
            self._h2.send_data(stream, message[:half])
            self._flush()

        def send_rest() -> None:
            with self._news:
                self._h2.send_data(stream, message[half:], end_stream=True)
                self._flush()

        return send_rest

    def receive(self) -> bytes:
        """Return the answer to the oldest request that has none."""
        with self._news:
            stream = self._asked[0] if self._asked else 0
            if not self._news.wait_for(lambda: stream in self._statuses or self._end is not None, TIMEOUT_S):
                raise TimeoutError("no answer")
            if stream not in self._statuses:
                if self._asked:
                    raise ConnectionAbortedError(f"the connection ended before the answer: {self._end!r}")
                raise self._end or EOFError()
            self._asked.pop(0)
            status, message = self._statuses[stream]
            if status != "0":
                raise ConnectionAbortedError(f"status {status}: {message}")
            return self._bodies.pop(stream)[5:]

    def _read(self) -> None:
        end: Exception = EOFError("the connection ended")
        try:
            while data := self._sock.recv(65536):
                with self._news:
                    self._received += data
                    self._read_frames()
                    self._flush()
                    self._news.notify_all()
        except OSError as error:
            end = error
        with self._news:
            self._end = end
            self._news.notify_all()

    def _read_frames(self) -> None:
        # RFC 9113, 4.1. GOAWAY is kept from h2, which would take the connection for closed: open streams are answered.
        while len(self._received) >= _FRAME_HEAD:
            size = _FRAME_HEAD + int.from_bytes(self._received[:3], "big")
            if len(self._received) < size:
                return
            frame, self._received = self._received[:size], self._received[size:]
            if frame[3] == _GOAWAY:
                self.is_told_to_leave = True
                continue
            for event in self._h2.receive_data(frame):
                self._take(event)

    def _take(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.DataReceived):
            assert event.stream_id is not None
            self._bodies[event.stream_id] += event.data or b""
            self._h2.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id)
        elif isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
            # An error is one block of headers, "trailers only".
            headers = dict(event.headers or [])
            if b"grpc-status" in headers:
                assert event.stream_id is not None
                status, message = headers[b"grpc-status"], headers.get(b"grpc-message", b"")
                self._statuses[event.stream_id] = (status.decode(), message.decode())
        elif isinstance(event, h2.events.StreamReset):
            assert event.stream_id is not None
            self._statuses.setdefault(event.stream_id, ("reset", str(event.error_code)))

    def _flush(self) -> None:
        if data := self._h2.data_to_send():
            self._sock.sendall(data)

    def close(self) -> None:
        """Hang up."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        # In this order: the reader must not find the descriptor's number given to somebody else.
        if self._reader.is_alive():
            self._reader.join(TIMEOUT_S)
        self._sock.close()


class LookingClock(SystemClock):
    """The real clock, which counts how often somebody has waited.

    Attributes:
        waits: so often.
    """

    waits = 0

    def wait(self, event: threading.Event, timeout: float | None = None) -> bool:
        """Wait, and count it."""
        is_set = super().wait(event, timeout)
        self.waits += 1
        return is_set


def assert_a_request_that_arrives_slowly_is_served(server: Any, address: tuple[str, int]) -> None:
    """Drain a server that has taken a call whose message is still arriving, and is told of no other."""
    client, clock = WireClient(address), LookingClock()
    client.send(b"first")  # so that the connection is up, and the half below is all that is on its way
    assert client.receive() == b"first"
    eventually(lambda: not server.has_calls())
    send_rest = client.send_half(b"slow")
    eventually(server.has_calls)
    server.close_listener(Deadline.after(TIMEOUT_S))
    draining = Call(lambda: server.drain(Deadline.after(TIMEOUT_S, clock)))
    eventually(lambda: client.is_told_to_leave)
    looks = clock.waits + 5
    eventually(lambda: clock.waits >= looks or not draining.is_alive())
    send_rest()
    assert client.receive() == b"slow"
    assert draining.result(TIMEOUT_S, "drain")
    client.close()


@contextlib.contextmanager
def channel_to(address: tuple[str, int]) -> Iterator[Any]:
    """Give a channel of gRPC's own client, with a connection of its own."""
    channel = grpc.insecure_channel(f"{address[0]}:{address[1]}", options=[("grpc.use_local_subchannel_pool", 1)])
    with channel:
        yield channel


class IgnoringClient(threading.Thread):
    """Calls one server over a channel, without a pause and without a retry, until it is refused.

    Attributes:
        answered: how many calls were.
        failures: of calls that were not, but for the refusal that ended it.
    """

    def __init__(self, address: tuple[str, int]) -> None:
        """Begin."""
        super().__init__(name="ignoring-client", daemon=True)
        self._address = address
        self.answered = 0
        self.failures: list[str] = []
        self.start()

    def run(self) -> None:
        """Call."""
        with channel_to(self._address) as channel:
            call = channel.unary_unary(METHOD)
            while True:
                try:
                    call(b"payload", timeout=TIMEOUT_S)
                except grpc.RpcError as error:
                    if "refused" not in error.details():
                        self.failures.append(f"{error.code()}: {error.details()}")
                    return
                self.answered += 1
