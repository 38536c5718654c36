"""An HTTP/1.1 client on a bare socket: one connection, kept while both sides want to, and told apart from a failure.

``http.client`` reconnects by itself and hides when the server has said goodbye, which is what the harness looks at.
"""

from __future__ import annotations

import socket

TIMEOUT_S = 10.0
"""For each operation: longer than any stop may keep a request waiting."""


class Client:
    """One connection to an HTTP server that answers a POST with its body. For one thread.

    Subclasses put the payload into another wrapping (XML-RPC) by ``path``, ``content_type``, ``encode`` and ``decode``.
    """

    path = "/"
    content_type = "application/octet-stream"

    def __init__(self, address: tuple[str, int]) -> None:
        """Connect.

        Raises:
            OSError: nobody listens, or not in time.
        """
        self._sock = socket.create_connection(address, timeout=TIMEOUT_S)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._answers = self._sock.makefile("rb")
        self._host = f"{address[0]}:{address[1]}"
        self._is_told_to_close = False

    def call(self, payload: bytes) -> bytes:
        """Make one request and return its answer.

        Raises:
            OSError: reset, out of time, or any status but 200: all of them are failed requests.
            EOFError: the server closed the connection without an answer.
        """
        self.send(payload)
        return self.receive()

    def send(self, payload: bytes) -> None:
        """Send one request; do not wait for its answer."""
        body = self.encode(payload)
        head = (
            f"POST {self.path} HTTP/1.1\r\nHost: {self._host}\r\n"
            f"Content-Type: {self.content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self._sock.sendall(head.encode() + body)

    def receive(self) -> bytes:
        """Return the next answer; see :meth:`call`."""
        status, headers = self._read_head()
        body = self._read_body(headers)
        keeps = headers.get("connection", "").lower()
        is_old = status.startswith("HTTP/1.0")
        self._is_told_to_close = keeps == "close" or (is_old and keeps != "keep-alive")
        if status.split()[1] != "200":
            raise OSError(f"answered {status!r}")
        return self.decode(body)

    def encode(self, payload: bytes) -> bytes:
        """Return the request's body."""
        return payload

    def decode(self, body: bytes) -> bytes:
        """Return the payload of an answer's body."""
        return body

    def is_closed(self) -> bool:
        """Whether the server has said goodbye: ``Connection: close``, or an end of file. Does not block."""
        if self._is_told_to_close:
            return True
        self._sock.settimeout(0.0)
        try:
            return self._sock.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True
        finally:
            self._sock.settimeout(TIMEOUT_S)

    def close(self) -> None:
        """Hang up. Idempotent."""
        self._answers.close()
        self._sock.close()

    def _read_head(self) -> tuple[str, dict[str, str]]:
        status = self._line()
        headers = {}
        while line := self._line():
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        return status, headers

    def _read_body(self, headers: dict[str, str]) -> bytes:
        if "chunked" in headers.get("transfer-encoding", "").lower():
            chunks = []
            while size := int(self._line().split(";")[0], 16):
                chunks.append(self._exactly(size))
                self._line()
            self._line()
            return b"".join(chunks)
        if "content-length" in headers:
            return self._exactly(int(headers["content-length"]))
        return self._answers.read()

    def _line(self) -> str:
        line = self._answers.readline()
        if not line.endswith(b"\n"):
            raise EOFError("the server closed the connection")
        return line.decode("latin-1").strip()

    def _exactly(self, size: int) -> bytes:
        data = self._answers.read(size)
        if len(data) < size:
            raise EOFError("the server closed the connection in the middle of an answer")
        return data
