"""``http.server.ThreadingHTTPServer`` with HTTP/1.1, whose connections are kept."""

from __future__ import annotations

import signal
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from benchmarks.rolling_restart import subject
from registry_drain import Service
from registry_drain.servers.http_server import HttpServer

CLIENT = "http"
IGNORING_LIMIT = 0.0


class Handler(BaseHTTPRequestHandler):
    """Echoes the body of a POST."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        """Serve one request."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(subject.WORK_S)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Say nothing."""


class Server(ThreadingHTTPServer):
    """As its users set it up."""

    request_queue_size = 128


def main() -> None:
    """Serve until SIGTERM."""
    given = subject.options()
    server = Server((subject.HOST, given.port), Handler)
    if given.is_drained:
        service = Service(HttpServer(server), given.registry, service=given.service, budget=subject.BUDGET)
        subject.say_ready_when_started(service)
        service.run()
        return
    # shutdown() waits for serve_forever, which runs in this very thread: hence another one.
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    deregister = subject.naive_registration(given)
    subject.say_ready()
    server.serve_forever()
    server.server_close()
    deregister()


if __name__ == "__main__":
    main()
