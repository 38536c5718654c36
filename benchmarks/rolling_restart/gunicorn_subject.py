"""What the gunicorn subjects share: the applications, and gunicorn without a command line, as frameworks embed it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from gunicorn.app.base import BaseApplication  # type: ignore[import-untyped]

from benchmarks.rolling_restart import subject
from registry_drain import Deadline, open_registry
from registry_drain.hosted.gunicorn import drain


def wsgi(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    """Echo a request's body."""
    body: bytes = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    time.sleep(subject.WORK_S)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


async def asgi(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    """Echo a request's body."""
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return
    body, has_more = b"", True
    while has_more:
        message = await receive()
        body += message.get("body", b"")
        has_more = message.get("more_body", False)
    await asyncio.sleep(subject.WORK_S)
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def serve(worker_class: str, **settings: object) -> None:
    """Serve until SIGTERM. Stopped its own way it deregisters in ``on_exit``, the only hook of the master's stop."""
    given = subject.options()
    is_asgi = "asgi" in worker_class.lower() or "uvicorn" in worker_class.lower()
    configuration: dict[str, Any] = {
        "bind": f"{subject.HOST}:{given.port}",
        "worker_class": worker_class,
        "workers": 2,
        "control_socket_disable": True,
        "loglevel": "warning",
        **settings,
    }
    if given.is_drained:
        configuration["when_ready"] = lambda _server: _say_ready_when_listed(given)
        drain(configuration, registry=given.registry, service=given.service, budget=subject.BUDGET)
    else:
        deregister: list[Callable[[], None]] = []
        configuration["when_ready"] = lambda _server: deregister.append(subject.naive_registration(given))
        # In the first worker that serves; standard output is one.
        configuration["post_worker_init"] = lambda _worker: subject.say_ready()
        configuration["on_exit"] = lambda _server: deregister[0]()
    _Application(configuration, asgi if is_asgi else wsgi).run()


class _Application(BaseApplication):  # type: ignore[misc] # gunicorn is not annotated
    def __init__(self, configuration: dict[str, Any], app: object) -> None:
        self._configuration = configuration
        self._app = app
        super().__init__()

    def load_config(self) -> None:
        for name, value in self._configuration.items():
            self.cfg.set(name, value)

    def load(self) -> object:
        return self._app


def _say_ready_when_listed(given: subject.Options) -> None:
    def wait() -> None:
        registry = open_registry(given.registry)
        while not any(
            entry.port == given.port and entry.is_live for entry in registry.entries(given.service, Deadline.after(10))
        ):
            time.sleep(0.01)
        registry.close()
        subject.say_ready()

    threading.Thread(target=wait, name="say-ready", daemon=True).start()
