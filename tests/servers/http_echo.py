"""What the tests of HTTP servers share: clients on the harness' raw connection, and handlers that echo."""

from __future__ import annotations

import socket
from http.server import BaseHTTPRequestHandler
from typing import Any, cast

from benchmarks.rolling_restart.clients.http import Client


class HttpClient(Client):
    """A :class:`~registry_drain.testing.server_contract.ContractClient`: a request is a POST, its body the payload."""

    @property
    def sock(self) -> socket.socket:
        """The socket."""
        return self._sock

    @property
    def is_told_to_close(self) -> bool:
        """Whether the last answer said ``Connection: close``."""
        return self._is_told_to_close

    def request(self, method: str, path: str, body: bytes = b"", *headers: str) -> tuple[str, dict[str, str], bytes]:
        """Make one request; return the status line, the headers and the body."""
        lines = [f"{method} {path} HTTP/1.1", "Host: test", f"Content-Length: {len(body)}", *headers, "", ""]
        self._sock.sendall("\r\n".join(lines).encode() + body)
        status, answered = self._read_head()
        return status, answered, b"" if method == "HEAD" or " 204 " in status else self._read_body(answered)


class EchoHandler(BaseHTTPRequestHandler):
    """Answers a POST with ``self.server.serve(body)``, and a GET with its path."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Echo."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(cast("Any", self.server).serve(body))

    def do_GET(self) -> None:
        """Say the path."""
        self._answer(self.path.encode())

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Say nothing."""
