"""The application that the tests' command lines run: an echo, with words that ask for more.

``pid`` is answered by the process' id; ``wait`` is answered when the file named by ``SERVICE_GATE`` is there;
``rejoin`` tells the service to, and is answered by the registries.

With ``SERVICE_LATE``, a file's name, the first worker creates that file, and all others wait for the gate before they
open the registry.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from pathlib import Path

from registry_drain import StopBudget
from registry_drain.clock import SYSTEM_CLOCK, Clock
from registry_drain.hosted import DrainedApp, drained, stop
from registry_drain.registries.base import Registry
from registry_drain.registries.url import open_registry
from registry_drain.servers.http.asgi_types import Receive, Scope, Send
from tests.servers.asgi_echo import read_body, respond

BUDGET = StopBudget(grace_period=24.0, deregister=9.0, floor=0.3, quiet_period=0.1, ceiling=0.8)

APPS: list[DrainedApp] = []
"""What this process serves."""


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Serve a request; there is no lifespan."""
    if scope["type"] != "http":
        raise NotImplementedError(scope["type"])
    body = await read_body(receive)
    if body == b"wait":
        gate = Path(os.environ["SERVICE_GATE"])
        while not gate.exists():  # noqa: ASYNC110, ASYNC240 - another process opens it
            await asyncio.sleep(0.01)
    if body == b"rejoin":
        body = " ".join(await APPS[0].rejoin()).encode()
    await respond(send, str(os.getpid()).encode() if body == b"pid" else body)


def _be_late(first: str) -> None:
    """Stand still before the registry is opened, unless this is the first worker."""
    try:
        Path(first).touch(exist_ok=False)
    except FileExistsError:

        def open_late(url: str, clock: Clock = SYSTEM_CLOCK) -> Registry:
            while not Path(os.environ["SERVICE_GATE"]).exists():
                time.sleep(0.01)
            return open_registry(url, clock)

        stop.open_registry = open_late  # type: ignore[attr-defined]


def new_app() -> DrainedApp:
    """Return the application, as the environment says."""
    logging.basicConfig(level=logging.INFO)
    if first := os.environ.get("SERVICE_LATE"):
        _be_late(first)
    app = drained(
        echo,
        os.environ["SERVICE_REGISTRY"] or (),
        service="hosted",
        port=int(os.environ["SERVICE_PORT"]),
        budget=BUDGET,
        soft_drain=float(os.environ.get("SERVICE_SOFT_DRAIN", "0")),
    )
    APPS.append(app)
    return app
