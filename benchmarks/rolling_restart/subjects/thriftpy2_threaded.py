"""thriftpy2's ``TThreadedServer``: a thread for each connection."""

# thriftpy2 says that it is typed, and is in half.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import thriftpy2
from thriftpy2.rpc import make_server

from benchmarks.rolling_restart import subject, thrift_subject
from registry_drain.servers.thriftpy2 import Thriftpy2Server

CLIENT = "thrift"
IGNORING_LIMIT = 1 / 1000

echo_thrift: Any = thriftpy2.load(str(Path(__file__).parent.with_name("echo.thrift")), module_name="echo_thrift")


class Echo:
    """The handler."""

    def call(self, payload: bytes) -> bytes:
        """Serve one request."""
        time.sleep(subject.WORK_S)
        return payload


def main() -> None:
    """Serve until SIGTERM."""
    given = subject.options()
    server: Any = make_server(echo_thrift.Echo, Echo(), subject.HOST, given.port)
    server.daemon = True

    def listen() -> None:
        server.trans.listen()
        server.trans.listen = _do_nothing

    thrift_subject.run(given, listen, server.serve, lambda: Thriftpy2Server(server))


def _do_nothing() -> None:
    """It listens already."""


if __name__ == "__main__":
    main()
