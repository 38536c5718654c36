"""An HTTP/1.1 service on ``http.server``, and one call around it.

    python -m examples.http_service.server --registry local:///tmp/cluster --port 8080
    curl http://127.0.0.1:8080/hello
    curl -i http://127.0.0.1:8080/ready

Stop it with SIGTERM, while a slow request (``/slow?seconds=3``) is in flight.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from examples.own_address import own_address
from registry_drain import serve
from registry_drain.servers.current_request import time_left
from registry_drain.servers.http_server import HttpServer

LONGEST_S = 60.0


class Handler(BaseHTTPRequestHandler):
    """Knows nothing of registries, and of being stopped only what it asks for."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Serve one request."""
        url = urlsplit(self.path)
        if url.path == "/slow":
            wanted = float(parse_qs(url.query).get("seconds", ["1"])[0])
            left = time_left()
            # A request that begins during a stop takes no more time than there is.
            time.sleep(min(wanted, LONGEST_S if left is None else left))
        self._answer(f"{url.path}\n".encode())

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Server(ThreadingHTTPServer):
    """The backlog is 5 otherwise, and no adapter helps a client that the kernel never accepted."""

    request_queue_size = 128


def main() -> int:
    """Serve until a signal stops the service; the exit status says whether the stop went as it should."""
    parser = argparse.ArgumentParser(description="An HTTP service.")
    parser.add_argument("--registry", required=True, help="for instance local:///tmp/cluster, consul://127.0.0.1:8500")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 in a container: callers are told its own address")
    parser.add_argument("--port", type=int, default=0, help="0: a free one")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")

    server = HttpServer(Server((options.host, options.port), Handler), readiness_path="/ready")
    return serve(server, options.registry, service="hello", address=own_address(options.host)).exit_code


if __name__ == "__main__":
    sys.exit(main())
