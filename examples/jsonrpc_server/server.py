"""A JSON-RPC 2.0 service on ``http.server``, whose requests are named by their method, and one call around it.

    python -m examples.jsonrpc_server.server --registry local:///tmp/cluster --port 8081
    curl -d '{"jsonrpc": "2.0", "method": "add", "params": [2, 3], "id": 1}' http://127.0.0.1:8081/

What a stop finds in flight stands in its report as ``add``, not as ``POST /``; the method ``ping`` is a health check.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from registry_drain import serve
from registry_drain.servers.current_request import name_request
from registry_drain.servers.http_server import HttpServer


def add_slowly(first: float, second: float, seconds: float) -> float:
    """Add, after a while."""
    time.sleep(seconds)
    return first + second


METHODS: dict[str, Callable[..., object]] = {
    "add": lambda first, second: first + second,
    "add_slowly": add_slowly,
    "ping": lambda: "pong",
}


def answer_to(text: bytes) -> dict[str, Any] | None:
    """Carry out one call; return its answer, None for a notification (JSON-RPC 2.0, sections 4.1 and 5.1)."""
    try:
        call = json.loads(text)
    except ValueError:
        return _error(None, -32700, "Parse error")
    if not isinstance(call, dict) or not isinstance(call.get("method"), str):
        return _error(None, -32600, "Invalid Request")
    name, parameters, identifier = call["method"], call.get("params", []), call.get("id")
    method = METHODS.get(name)
    if method is None:
        return _error(identifier, -32601, "Method not found")
    name_request(name, is_health_check=name == "ping")
    try:
        result = method(**parameters) if isinstance(parameters, dict) else method(*parameters)
    except TypeError as error:
        return _error(identifier, -32602, f"Invalid params: {error}")
    return {"jsonrpc": "2.0", "result": result, "id": identifier} if "id" in call else None


def _error(identifier: object, code: int, message: str) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "error": {"code": code, "message": message}, "id": identifier}


class Handler(BaseHTTPRequestHandler):
    """One call for each POST, over connections that are kept."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Serve one call."""
        answer = answer_to(self.rfile.read(int(self.headers.get("Content-Length", 0))))
        body = b"" if answer is None else json.dumps(answer).encode()
        self.send_response(200 if body else 204)
        self.send_header("Content-Type", "application/json")
        if body:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Server(ThreadingHTTPServer):
    """The backlog is 5 otherwise, and no adapter helps a client that the kernel never accepted."""

    request_queue_size = 128


def main() -> int:
    """Serve until a signal stops the service; the exit status says whether the stop went as it should."""
    parser = argparse.ArgumentParser(description="A JSON-RPC service.")
    parser.add_argument("--registry", required=True, help="for instance local:///tmp/cluster, consul://127.0.0.1:8500")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: a free one")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")

    server = HttpServer(Server((options.host, options.port), Handler), readiness_path="/ready")
    return serve(server, options.registry, service="calculator").exit_code


if __name__ == "__main__":
    sys.exit(main())
