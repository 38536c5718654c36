"""RPyC's ``ThreadedServer``: ``close()`` on SIGTERM and deregistered behind it, or the adapter."""

from __future__ import annotations

import signal
import threading
import time

import rpyc
from rpyc.utils.server import ThreadedServer

from benchmarks.rolling_restart import subject
from registry_drain import Service
from registry_drain.servers.rpyc_server import RpycServer

CLIENT = "rpyc"
IGNORING_LIMIT = 0.001


class EchoService(rpyc.Service):  # type: ignore[misc]  # rpyc is not annotated
    """One method."""

    def exposed_echo(self, payload: bytes) -> bytes:
        """Serve one request."""
        time.sleep(subject.WORK_S)
        return payload


def main() -> None:
    """Serve until SIGTERM."""
    given = subject.options()
    server = ThreadedServer(EchoService, hostname=subject.HOST, port=given.port)
    if given.is_drained:
        service = Service(RpycServer(server), given.registry, service=given.service, budget=subject.BUDGET)
        subject.say_ready_when_started(service)
        service.run()
        return
    serving = threading.Thread(target=server.start, daemon=True)
    serving.start()
    deregister = subject.naive_registration(given)
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    subject.say_ready()
    stopped.wait()
    server.close()
    deregister()


if __name__ == "__main__":
    main()
