"""``xmlrpc.server.SimpleXMLRPCServer`` as it comes: no threads, HTTP/1.0, a connection for each call."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any
from xmlrpc.server import SimpleXMLRPCServer

from benchmarks.rolling_restart import subject
from registry_drain import Service
from registry_drain.servers.http_server import HttpServer

CLIENT = "xmlrpc"
KEEPS_CONNECTIONS = False
IGNORING_LIMIT = 0.0


class Server(SimpleXMLRPCServer):
    """As its users set it up."""

    request_queue_size = 128


def echo(payload: Any) -> Any:
    """Serve one call, whose argument and result are Binary."""
    time.sleep(subject.WORK_S)
    return payload


def main() -> None:
    """Serve until SIGTERM."""
    given = subject.options()
    server = Server((subject.HOST, given.port), logRequests=False)
    server.register_function(echo)
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
