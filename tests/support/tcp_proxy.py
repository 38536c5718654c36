"""A TCP link that can go wrong: between a client and a real server, on 127.0.0.1.

Theory: one thread, one selector. Every connection is two *pipes*, one per direction. What a pipe reads is put into a
queue with the instant at which it is due; a pipe that must not read (stalled) is simply not selected, so the kernel's
buffers fill as on a real partition. The mode may change at any time and applies to connections that are already open.

===============  =======================================================================================
mode             what a client sees
===============  =======================================================================================
pass_through     the server
stall            nothing moves, nothing is lost; it all arrives after ``pass_through`` (a partition that heals)
black_hole       connections are accepted, what is sent is swallowed, nothing ever comes back
delay            every byte arrives late, in both directions
delay_answers    the server gets requests at once, and its answers arrive late (applied, but timed out)
refuse           the listener is closed: connection refused; open connections go on
reset            open connections are reset, new ones are accepted and reset
===============  =======================================================================================

Leaving ``black_hole`` resets the connections that were in it: a stream with a hole cannot go on.
"""

from __future__ import annotations

import contextlib
import enum
import selectors
import socket
import struct
import threading
import time
from collections import deque
from types import TracebackType

_CHUNK = 65536
_LINGER_RESET = struct.pack("ii", 1, 0)  # SO_LINGER with zero seconds: close() sends RST


class Mode(enum.Enum):
    """What the link does; see the module's table."""

    PASS_THROUGH = "pass through"
    STALL = "stall"
    BLACK_HOLE = "black hole"
    DELAY = "delay"
    DELAY_ANSWERS = "delay answers"
    REFUSE = "refuse"
    RESET = "reset"


class _Pipe:
    """One direction of one connection."""

    def __init__(self, source: socket.socket, sink: socket.socket, *, is_answer: bool) -> None:
        self.source = source
        self.sink = sink
        self.is_answer = is_answer
        self.queue: deque[tuple[float, bytes]] = deque()  # b"" is the end of the stream
        self.saw_end = False
        self.sent_end = False


class _Connection:
    """A client's socket, our own socket to the server, and a pipe for each direction."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = client
        self.server = server
        self.pipes = (_Pipe(client, server, is_answer=False), _Pipe(server, client, is_answer=True))
        self.has_hole = False

    @property
    def is_finished(self) -> bool:
        return all(pipe.sent_end for pipe in self.pipes)

    def close(self, *, reset: bool) -> None:
        for each in (self.client, self.server):
            if reset:
                with contextlib.suppress(OSError):
                    each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
            each.close()


class TcpProxy:
    """Forwards 127.0.0.1:``port`` to ``target`` ("host:port"); ``with`` or ``close()`` ends it.

    Methods may be called from any thread; a mode is in force when its method returns.
    """

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host.strip("[]"), int(port))
        self._listener: socket.socket | None = self._listen(0)
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()  # guards the state below; the loop holds it except while selecting
        self._mode = Mode.PASS_THROUGH
        self._delay_s = 0.0
        self._connections: list[_Connection] = []
        self._recorded = bytearray()
        self._answered = bytearray()
        self._accepted = 0
        self._is_closed = False
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._wake_reader.setblocking(False)
        self._thread = threading.Thread(target=self._run, name=f"tcp-proxy-{self.port}", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        """Name port, target, mode and the number of open connections."""
        target = f"{self._target[0]}:{self._target[1]}"
        return f"<TcpProxy {self.address} -> {target} {self._mode.value} open={self.open_connections}>"

    def __enter__(self) -> TcpProxy:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    @property
    def address(self) -> str:
        """``127.0.0.1:port``, to be used instead of the target's."""
        return f"127.0.0.1:{self.port}"

    @property
    def recorded(self) -> bytes:
        """Everything that clients have sent so far, swallowed or not, over all connections."""
        with self._lock:
            return bytes(self._recorded)

    @property
    def answered(self) -> bytes:
        """Everything that the target has sent so far, over all connections."""
        with self._lock:
            return bytes(self._answered)

    @property
    def open_connections(self) -> int:
        """How many connections are open now."""
        with self._lock:
            return len(self._connections)

    @property
    def accepted_connections(self) -> int:
        """How many connections were ever accepted."""
        with self._lock:
            return self._accepted

    def pass_through(self) -> None:
        """Forward again; what was stalled arrives, what was in a black hole is reset, a closed listener reopens."""
        self._switch(Mode.PASS_THROUGH)

    def stall(self) -> None:
        """Let nothing through, and lose nothing."""
        self._switch(Mode.STALL)

    def black_hole(self) -> None:
        """Accept everything, swallow it, and never answer."""
        self._switch(Mode.BLACK_HOLE)

    def delay(self, seconds: float) -> None:
        """Forward everything ``seconds`` late, in both directions."""
        self._switch(Mode.DELAY, seconds)

    def delay_answers(self, seconds: float) -> None:
        """Forward requests at once and answers ``seconds`` late."""
        self._switch(Mode.DELAY_ANSWERS, seconds)

    def refuse(self) -> None:
        """Refuse new connections; open ones go on (combine with ``drop_connections``)."""
        self._switch(Mode.REFUSE)

    def reset(self) -> None:
        """Reset all connections, now and whenever one is made."""
        self._switch(Mode.RESET)

    def drop_connections(self) -> None:
        """Reset the connections that are open now, and stay in the present mode."""
        with self._lock:
            self._drop(self._connections)
        self._wake()

    def close(self) -> None:
        """End the thread and close everything. Idempotent."""
        with self._lock:
            self._is_closed = True
        self._wake()
        self._thread.join(10)
        assert not self._thread.is_alive(), f"{self!r} did not end"
        self._wake_writer.close()
        self._wake_reader.close()

    # --- called with a mode -------------------------------------------------------------------------------------------

    def _switch(self, mode: Mode, delay_s: float = 0.0) -> None:
        with self._lock:
            self._mode, self._delay_s = mode, delay_s
            if mode is Mode.RESET:
                self._drop(self._connections)
            elif mode is not Mode.BLACK_HOLE:
                self._drop([each for each in self._connections if each.has_hole])
            if mode is Mode.BLACK_HOLE:
                for connection in self._connections:
                    connection.has_hole = True
            if mode is Mode.REFUSE and self._listener is not None:
                self._listener.close()
                self._listener = None
            elif mode is not Mode.REFUSE and self._listener is None and not self._is_closed:
                self._listener = self._listen(self.port)
        self._wake()

    def _drop(self, connections: list[_Connection]) -> None:
        for connection in list(connections):
            connection.close(reset=True)
            self._connections.remove(connection)

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            self._wake_writer.send(b"!")

    @staticmethod
    def _listen(port: int) -> socket.socket:
        listener = socket.create_server(("127.0.0.1", port), backlog=256)
        listener.setblocking(False)
        return listener

    # --- the loop -----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._lock:
                if self._is_closed:
                    self._drop(self._connections)
                    if self._listener is not None:
                        self._listener.close()
                    return
                # Built anew each time: a handful of sockets, and a closed one can never linger in it.
                selector, timeout = self._interests()
            with selector:
                ready: set[object] = {key.fileobj for key, _ in selector.select(timeout)}
            with self._lock:
                self._serve(ready)

    def _interests(self) -> tuple[selectors.BaseSelector, float | None]:
        wanted: dict[socket.socket, int] = {self._wake_reader: selectors.EVENT_READ}
        now = time.monotonic()
        due: list[float] = []
        if self._listener is not None:
            wanted[self._listener] = selectors.EVENT_READ
        for connection in self._connections:
            for pipe in connection.pipes:
                # A pipe that is behind does not read on: back-pressure, as through a real link.
                if not pipe.saw_end and len(pipe.queue) < 64 and self._mode is not Mode.STALL:
                    wanted[pipe.source] = wanted.get(pipe.source, 0) | selectors.EVENT_READ
                if pipe.queue and self._mode not in {Mode.STALL, Mode.BLACK_HOLE}:
                    if pipe.queue[0][0] <= now:
                        wanted[pipe.sink] = wanted.get(pipe.sink, 0) | selectors.EVENT_WRITE
                    else:
                        due.append(pipe.queue[0][0])
        selector = selectors.DefaultSelector()
        for each, events in wanted.items():
            selector.register(each, events)
        return selector, min(due) - now if due else None

    def _serve(self, ready: set[object]) -> None:
        if self._wake_reader in ready:
            with contextlib.suppress(BlockingIOError):
                self._wake_reader.recv(_CHUNK)
        if self._listener is not None and self._listener in ready:
            self._accept(self._listener)
        for connection in list(self._connections):
            try:
                for pipe in connection.pipes:
                    if pipe.source in ready:
                        self._read(connection, pipe)
                    self._write(pipe)
            except OSError:
                # Either side is gone: so is the other, in the same rude way.
                self._drop([connection])
                continue
            if connection.is_finished:
                connection.close(reset=False)
                self._connections.remove(connection)

    def _accept(self, listener: socket.socket) -> None:
        try:
            client, _ = listener.accept()
        except OSError:
            return
        self._accepted += 1
        server = socket.socket(socket.AF_INET6 if ":" in self._target[0] else socket.AF_INET)
        connection = _Connection(client, server)
        if self._mode is Mode.RESET:
            connection.close(reset=True)
            return
        try:
            # Loopback answers at once or never will; a black hole must not even knock.
            if self._mode is Mode.BLACK_HOLE:
                connection.has_hole = True
                connection.pipes[1].saw_end = True
            else:
                server.settimeout(2.0)
                server.connect(self._target)
        except OSError:
            connection.close(reset=True)
            return
        for each in (client, server):
            each.setblocking(False)
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connections.append(connection)

    def _read(self, connection: _Connection, pipe: _Pipe) -> None:
        if pipe.saw_end or self._mode is Mode.STALL:
            return
        try:
            data = pipe.source.recv(_CHUNK)
        except BlockingIOError:
            return
        (self._answered if pipe.is_answer else self._recorded).extend(data)
        if not data:
            pipe.saw_end = True
        if connection.has_hole:
            # Nobody hears from the other side any more; a client that gives up is let go.
            if not data and not pipe.is_answer:
                raise ConnectionAbortedError("the client of a black hole has left")
            return
        late = self._mode is Mode.DELAY or (self._mode is Mode.DELAY_ANSWERS and pipe.is_answer)
        pipe.queue.append((time.monotonic() + (self._delay_s if late else 0.0), data))

    def _write(self, pipe: _Pipe) -> None:
        while pipe.queue and self._mode not in {Mode.STALL, Mode.BLACK_HOLE} and not pipe.sent_end:
            due_at, data = pipe.queue[0]
            if due_at > time.monotonic():
                return
            if not data:
                pipe.queue.popleft()
                pipe.sent_end = True
                pipe.sink.shutdown(socket.SHUT_WR)
                return
            try:
                sent = pipe.sink.send(data)
            except BlockingIOError:
                return
            if sent < len(data):
                pipe.queue[0] = (due_at, data[sent:])
                return
            pipe.queue.popleft()
