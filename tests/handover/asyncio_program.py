"""An asyncio echo that can be handed over: ``python -m`` this, with a registry's URL and a port."""

from __future__ import annotations

import asyncio
import logging
import os
import sys

from registry_drain import Handover, StopBudget, listening_socket, serve_async
from registry_drain.servers.asyncio_streams import AsyncioServer


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer each line with it and this process' id."""
    while line := await reader.readline():
        writer.write(line.strip() + f" {os.getpid()}\n".encode())
        await writer.drain()
    writer.close()


async def main() -> int:
    """Serve until stopped or handed over."""
    registry, port = sys.argv[1], int(sys.argv[2])
    logging.basicConfig(level=logging.INFO, format="%(process)d %(message)s", stream=sys.stdout)
    server = AsyncioServer(echo, sock=listening_socket("127.0.0.1", port))
    budget = StopBudget(grace_period=20.0, floor=0.2, quiet_period=0.1)
    report = await serve_async(server, registry, service="echo", budget=budget, handover=Handover(ready_within=60.0))
    return report.exit_code


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
