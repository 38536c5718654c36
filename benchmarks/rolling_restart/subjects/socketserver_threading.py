"""``socketserver.ThreadingTCPServer`` with persistent connections, a line for each request."""

from __future__ import annotations

import signal
import socketserver
import threading
import time

from benchmarks.rolling_restart import subject
from registry_drain import Service
from registry_drain.servers.socket_server import SocketServer

CLIENT = "line"
IGNORING_LIMIT = 1 / 1000


class Handler(socketserver.StreamRequestHandler):
    """Echoes lines."""

    disable_nagle_algorithm = True

    def handle(self) -> None:
        """Serve one connection."""
        for line in self.rfile:
            time.sleep(subject.WORK_S)
            self.wfile.write(line)


class Server(socketserver.ThreadingTCPServer):
    """As its users set it up."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128


def main() -> None:
    """Serve until SIGTERM."""
    given = subject.options()
    server = Server((subject.HOST, given.port), Handler)
    if given.is_drained:
        service = Service(SocketServer(server), given.registry, service=given.service, budget=subject.BUDGET)
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
