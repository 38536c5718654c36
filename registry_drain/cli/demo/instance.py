"""One server process of the demo's fleet: ``python -m`` this. The two styles differ in nothing but how they stop.

*naive* does what most services do, and what most servers' own shutdown hooks lead to: SIGTERM ends the serving at once,
listener and connections with it, and the instance is deregistered on the way out. *drained* is one call of
:func:`registry_drain.serve`.

It ends itself when its standard input does: a demo that was killed must not leave servers behind.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from enum import Enum
from typing import Any

from registry_drain.cli.demo.wire import new_server
from registry_drain.clock import Deadline
from registry_drain.instance import ServiceInstance
from registry_drain.registries.url import open_registry
from registry_drain.servers.thrift_server import ThriftServer
from registry_drain.service import serve
from registry_drain.shutdown.budget import StopBudget

HOST = "127.0.0.1"
BUDGET = StopBudget(floor=0.5, quiet_period=0.2)
"""Brisk, and still ten times what the demo's clients need to notice a change. The defaults suit a real service."""
_CALL_TIMEOUT = 10.0


class Style(Enum):
    """How an instance stops."""

    NAIVE = "naive"
    DRAINED = "drained"


def main() -> int:
    """Serve until SIGTERM; the exit status says whether the stop went as it should."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--registry", required=True)
    parser.add_argument("--service", required=True)
    parser.add_argument("--id", required=True)
    parser.add_argument("--style", required=True, type=Style)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(relativeCreated)7.0f ms %(threadName)s: %(message)s")
    threading.Thread(target=_end_with_parent, name="registry-drain-demo-parent", daemon=True).start()
    if options.style is Style.NAIVE:
        return _serve_naively(options.registry, options.service, options.id)
    server = ThriftServer(new_server(HOST, 0))
    return serve(server, options.registry, service=options.service, instance_id=options.id, budget=BUDGET).exit_code


def _serve_naively(registry_url: str, service: str, instance_id: str) -> int:
    def leave(_signal: int, _frame: object) -> None:
        sys.exit(0)

    server: Any = new_server(HOST, 0)
    transport = server.serverTransport
    clients: list[Any] = []
    accept = transport.accept

    def accept_and_remember() -> Any:
        client = accept()
        clients.append(client)
        return client

    transport.accept = accept_and_remember
    transport.listen()
    transport.listen = lambda: None  # serve() would bind again, to another port
    port = transport.handle.getsockname()[1]
    registry = open_registry(registry_url)
    registration = registry.registration(ServiceInstance(service, HOST, port, id=instance_id))
    signal.signal(signal.SIGTERM, leave)
    try:
        registration.register(Deadline.after(_CALL_TIMEOUT))
        server.serve()
    finally:
        transport.close()
        for client in clients:
            with contextlib.suppress(OSError, AttributeError):  # gone already
                client.handle.shutdown(socket.SHUT_RDWR)
        registration.on_shutdown(Deadline.after(_CALL_TIMEOUT))
        registry.close()
    return 0


def _end_with_parent() -> None:
    # Not sys.stdin, whose lock a thread of a process that exits would still hold.
    while os.read(0, 64):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
