"""``asyncio.start_server`` with persistent connections, a line for each request."""

from __future__ import annotations

import asyncio
import contextlib
import signal

from benchmarks.rolling_restart import subject
from registry_drain import AsyncService
from registry_drain.servers.asyncio_streams import AsyncioServer

CLIENT = "line"
IGNORING_LIMIT = 1 / 1000

OWN_LIMIT_S = 2.0
"""Seconds that its users give ``wait_closed``, which from Python 3.12.1 on waits for idle clients, too."""


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serve one connection."""
    async for line in reader:
        await asyncio.sleep(subject.WORK_S)
        writer.write(line)
        await writer.drain()
    writer.close()


async def serve_drained(given: subject.Options) -> None:
    """Serve with the adapter, in the application's loop."""
    service = AsyncService(
        AsyncioServer(echo, subject.HOST, given.port), given.registry, service=given.service, budget=subject.BUDGET
    )
    running = asyncio.ensure_future(service.run())
    while not (service.is_ready or running.done()):  # noqa: ASYNC110 - a thread registers it
        await asyncio.sleep(0.005)
    subject.say_ready()
    await running


async def serve_plainly(given: subject.Options) -> None:
    """Serve as the documentation of asyncio shows it."""
    server = await asyncio.start_server(echo, subject.HOST, given.port)
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    deregister = await asyncio.to_thread(subject.naive_registration, given)
    subject.say_ready()
    await stopped.wait()
    server.close()
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(server.wait_closed(), OWN_LIMIT_S)
    await asyncio.to_thread(deregister)


def main() -> None:
    """Serve until SIGTERM."""
    given = subject.options()
    asyncio.run(serve_drained(given) if given.is_drained else serve_plainly(given))


if __name__ == "__main__":
    main()
