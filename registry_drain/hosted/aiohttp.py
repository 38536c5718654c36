"""In place of ``web.run_app``: the same call, for an aiohttp application that stops without losing a request.

Theory of operation: ``web.run_app`` closes its listener before the application hears of the signal, and has no hook
that comes earlier; so it cannot be helped from within, and is replaced. What it is given is given here: the
application, or a coroutine that makes it in the loop; where to listen; the runner's options.
"""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from ssl import SSLContext
from typing import TYPE_CHECKING, Any

from registry_drain.async_service import serve_async
from registry_drain.errors import ConfigurationError
from registry_drain.hosted.settings import RegistryLike
from registry_drain.servers.aiohttp_server import AiohttpServer
from registry_drain.shutdown.async_observers import AsyncObserver
from registry_drain.shutdown.budget import StopBudget
from registry_drain.shutdown.report import ShutdownReport

if TYPE_CHECKING:
    from aiohttp import web

_NOT_TAKEN = {
    "sock": "give host and port, or path",
    "loop": "await serve_async(AiohttpServer(app, …), …) in a loop of your own",
    "reuse_port": "start several instances, each with a port of its own",
    "reuse_address": "it is always set",
}


def run_app(
    app: web.Application | Awaitable[web.Application],
    registry: RegistryLike | Sequence[RegistryLike] = (),
    *,
    service: str = "",
    address: str = "",
    metadata: Mapping[str, str] | None = None,
    tags: Sequence[str] = (),
    budget: StopBudget | None = None,
    observers: Iterable[AsyncObserver] = (),
    host: str | None = None,
    port: int | None = None,
    path: str | os.PathLike[str] | None = None,
    ssl_context: SSLContext | None = None,
    backlog: int = 128,
    soft_drain: float = 0.0,
    print: Callable[..., None] | None = None,  # noqa: A002, ARG001 - web.run_app's
    **options: Any,
) -> ShutdownReport:
    """Serve ``app`` until a signal stops it; blocks. See :func:`registry_drain.serve_async` and ``web.run_app``.

    Args:
        app: the application, or an awaitable that makes it in the loop.
        registry: one or several, as URLs or objects; none: just stop gracefully.
        service: the cluster's name; needed with a registry.
        address: what callers connect to; needed where the server listens on every address.
        metadata: short strings for callers.
        tags: labels for callers.
        budget: how long the stop may take; default: 30 s in all.
        observers: told when the drain has ended.
        host: what to bind; None: every address.
        port: None: 8080, or 8443 for HTTPS, as in ``web.run_app``.
        path: a Unix socket's, instead of host and port.
        ssl_context: for HTTPS.
        backlog: connections that wait to be accepted.
        soft_drain: see :func:`registry_drain.serve`.
        print: is not called: the log says where the server listens.
        options: of :class:`~registry_drain.servers.aiohttp_server.AiohttpServer`: ``readiness_path``, ``access_log``…

    Raises:
        ConfigurationError: something given cannot work.
        OSError: the address cannot be bound.
    """
    for option, instead in _NOT_TAKEN.items():
        if options.pop(option, None) is not None:
            raise ConfigurationError(f"{option}= cannot be taken over from web.run_app: {instead}")
    if not isinstance(host, str | None):
        raise ConfigurationError(f"host={host!r}: one address, or None for every address")
    chosen = (8443 if ssl_context is not None else 8080) if port is None else port

    async def serve_app() -> ShutdownReport:
        application = await app if inspect.isawaitable(app) else app
        server = AiohttpServer(
            application,
            host or "",
            chosen,
            path="" if path is None else os.fspath(path),
            ssl_context=ssl_context,
            backlog=backlog,
            **options,
        )
        return await serve_async(
            server,
            registry,
            service=service,
            address=address,
            metadata=metadata,
            tags=tags,
            budget=budget,
            observers=observers,
            soft_drain=soft_drain,
        )

    return asyncio.run(serve_app())
