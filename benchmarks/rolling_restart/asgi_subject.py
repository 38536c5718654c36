"""What the ASGI subjects share: the application, and starting a server's own command line.

A subject that is its server's command line becomes it (``exec``), so that the signals reach what they reach in
production; a process of its own watches the registry meanwhile, and says when the instance is there.

``own`` deregisters where the users of these servers do: in the application's lifespan shutdown.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable

from benchmarks.rolling_restart import subject
from registry_drain import Deadline, open_registry
from registry_drain.hosted import DrainedApp, drained
from registry_drain.servers.http.asgi_types import ASGIApplication, Receive, Scope, Send

_READY_LIMIT_S = 30.0
_VARIABLES = {"registry": "SUBJECT_REGISTRY", "service": "SUBJECT_SERVICE", "port": "SUBJECT_PORT"}


async def serve_http(receive: Receive, send: Send) -> None:
    """Echo the body."""
    body: bytes = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body", False):
            break
    await asyncio.sleep(subject.WORK_S)
    headers = [(b"content-type", b"application/octet-stream"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def echo_app(startup: Callable[[], Callable[[], None]] = lambda: lambda: None) -> ASGIApplication:
    """Return the echo; ``startup`` is called in its lifespan startup, and what it returns in the shutdown."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await serve_http(receive, send)
            return
        await receive()
        shutdown = await asyncio.to_thread(startup)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await asyncio.to_thread(shutdown)
        await send({"type": "lifespan.shutdown.complete"})

    return app


def own_app() -> ASGIApplication:
    """Return the application that deregisters in its lifespan shutdown; a factory for command lines."""
    return echo_app(lambda: subject.naive_registration(_given()))


def drained_app() -> DrainedApp:
    """Return the drained application; a factory for command lines."""
    given = _given()
    return drained(echo_app(), given.registry, service=given.service, port=given.port, budget=subject.BUDGET)


def become(command: list[str], given: subject.Options) -> None:
    """Become ``python -m COMMAND``; does not return."""
    for name, variable in _VARIABLES.items():
        os.environ[variable] = str(getattr(given, name))
    # A session of its own: it is no part of what is stopped.
    subprocess.Popen([sys.executable, "-m", "benchmarks.rolling_restart.asgi_subject"], start_new_session=True)
    sys.stdout.flush()
    os.dup2(2, 1)  # the watcher says READY; the server's own output goes to the log
    os.execv(sys.executable, [sys.executable, "-m", *command])  # noqa: S606 - itself


def factory(given: subject.Options) -> str:
    """Return the import string of the application."""
    return f"benchmarks.rolling_restart.asgi_subject:{'drained' if given.is_drained else 'own'}_app"


def _given() -> subject.Options:
    values = {name: os.environ[variable] for name, variable in _VARIABLES.items()}
    return subject.Options(values["registry"], values["service"], int(values["port"]), is_drained=True)


def _is_there(given: subject.Options) -> bool:
    registry = open_registry(given.registry)
    try:
        ports = [entry.port for entry in registry.entries(given.service, Deadline.after(5.0))]
        socket.create_connection((subject.HOST, given.port), timeout=5.0).close()
    except OSError:
        return False
    finally:
        registry.close()
    return given.port in ports


def main() -> None:
    """Say when the instance is listed and answers."""
    given, ends_at = _given(), time.monotonic() + _READY_LIMIT_S
    while time.monotonic() < ends_at:
        if _is_there(given):
            subject.say_ready()
            return
        time.sleep(0.02)


if __name__ == "__main__":
    main()
