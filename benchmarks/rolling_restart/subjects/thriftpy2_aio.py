"""thriftpy2's ``TAsyncServer``, on asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from pathlib import Path
from typing import Any

import thriftpy2
from thriftpy2.contrib.aio.rpc import make_server

from benchmarks.rolling_restart import subject
from registry_drain import Service
from registry_drain.servers.thriftpy2 import Thriftpy2AioServer

CLIENT = "thrift"
IGNORING_LIMIT = 1 / 1000

echo_thrift: Any = thriftpy2.load(str(Path(__file__).parent.with_name("echo.thrift")), module_name="echo_thrift")


class Echo:
    """The handler."""

    async def call(self, payload: bytes) -> bytes:
        """Serve one request."""
        await asyncio.sleep(subject.WORK_S)
        return payload


def main() -> None:
    """Serve until SIGTERM."""
    given = subject.options()
    loop = asyncio.new_event_loop()
    # Its time limit is for a whole connection.
    server: Any = make_server(echo_thrift.Echo, Echo(), subject.HOST, given.port, client_timeout=None, loop=loop)
    if given.is_drained:
        loop.close()
        service = Service(Thriftpy2AioServer(server), given.registry, service=given.service, budget=subject.BUDGET)
        subject.say_ready_when_started(service)
        service.run()
        return
    server.init_server()
    loop.add_signal_handler(signal.SIGTERM, loop.stop)
    deregister = subject.naive_registration(given)
    subject.say_ready()
    try:
        # As its serve() goes on.
        loop.run_forever()
        # From Python 3.12.1 on it waits for idle clients, too.
        with contextlib.suppress(asyncio.TimeoutError):
            loop.run_until_complete(asyncio.wait_for(server.close(), 2.0))
    finally:
        deregister()


if __name__ == "__main__":
    main()
