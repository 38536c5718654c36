"""An echo server on asyncio streams which loses no line when it is stopped.

    python -m examples.asyncio_echo.server --registry local:///tmp/cluster

A line is a request. ``slowly SECONDS TEXT`` takes that long, or less if the server is about to stop; ``count SECONDS``
is a long answer, a line every 100 ms, that comes to an end early, politely, when the server drains.
"""

from __future__ import annotations

import argparse
import asyncio
import logging

from registry_drain import StopBudget, serve_async
from registry_drain.servers.asyncio_streams import AsyncioServer
from registry_drain.servers.current_request import is_draining, name_request, time_left

STEP_S = 0.1


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serve one connection. When it is idle and the server drains, the read ends as if the client had left."""
    async for line in reader:
        command, _, rest = line.decode(errors="replace").strip().partition(" ")
        if command == "slowly":
            await answer_slowly(writer, rest)
        elif command == "count":
            await count(writer, float(rest))
        else:
            writer.write(line)
        await writer.drain()
    writer.close()


async def answer_slowly(writer: asyncio.StreamWriter, rest: str) -> None:
    """Take the time that was asked for, but no more than is left before everything is cut off."""
    name_request("slowly")
    seconds, _, text = rest.partition(" ")
    try:
        await asyncio.wait_for(asyncio.sleep(float(seconds)), time_left())  # None is no limit
        writer.write(f"{text}\n".encode())
    except asyncio.TimeoutError:
        writer.write(b"no time left\n")


async def count(writer: asyncio.StreamWriter, seconds: float) -> None:
    """Write a line every now and then; the last one says that it is the last."""
    name_request("count")
    for number in range(int(seconds / STEP_S)):
        if is_draining():
            break
        writer.write(f"{number}\n".encode())
        await asyncio.sleep(STEP_S)
    writer.write(b"end\n")


async def flush() -> None:
    """Stand for what an application does in the end: close a pool, flush a buffer."""
    await asyncio.sleep(0)
    print("flushed", flush=True)


async def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--registry", default="local:///tmp/registry-drain-examples")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--grace-period", type=float, default=30.0)
    options = parser.parse_args()
    report = await serve_async(
        AsyncioServer(echo, "127.0.0.1", options.port),
        options.registry,
        service="echo",
        budget=StopBudget(grace_period=options.grace_period),
        observers=[flush],
    )
    print(report, flush=True)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    asyncio.run(main())
