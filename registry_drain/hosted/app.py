"""The wrapper around an application: :func:`drained`.

Theory of operation: the server calls the application once with a ``lifespan``. At its startup the stop signals are
taken over (:mod:`registry_drain.hosted.host`); as soon as the server listens the instance is registered; a signal
begins the stop routine, while the server goes on serving; and the lifespan shutdown, which comes when the server has
stopped, answers only when the stop has ended, since the server ends the process behind it.

Rules:

1. The application's own lifespan runs inside ours, its shutdown when its last request has ended. An application without
   one stays one: servers allow it.
2. A server that stops without a signal is stopped all the same: a recycled worker leaves to others what is theirs, and
   a lone server leaves its registries.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from registry_drain.clock import SYSTEM_CLOCK, Clock, Deadline
from registry_drain.errors import ConfigurationError
from registry_drain.hosted.host import Host
from registry_drain.hosted.lifespan import InnerLifespan
from registry_drain.hosted.settings import RegistryLike, Settings
from registry_drain.hosted.stop import HostedStop
from registry_drain.persistent_registration import REGISTER_TIMEOUT
from registry_drain.servers.http.asgi import ASGIMiddleware
from registry_drain.servers.http.asgi_types import ASGIApplication, Receive, Scope, Send
from registry_drain.shutdown.budget import StopBudget
from registry_drain.shutdown.events import EventSink, log_event
from registry_drain.shutdown.observers import ShutdownObserver


def drained(
    app: ASGIApplication,
    registry: RegistryLike | Sequence[RegistryLike] = (),
    *,
    service: str = "",
    port: int,
    address: str = "",
    listen_port: int | None = None,
    instance_id: str = "",
    metadata: Mapping[str, str] | None = None,
    tags: Sequence[str] = (),
    budget: StopBudget | None = None,
    observers: Iterable[ShutdownObserver | Callable[[], object]] = (),
    sinks: Iterable[EventSink] = (log_event,),
    clock: Clock = SYSTEM_CLOCK,
    soft_drain: float = 0.0,
    **middleware: Any,
) -> DrainedApp:
    """Wrap an ASGI application that a server's own command line runs, so that it stops without losing a request.

    Give the result to the server (``uvicorn module:app``). Importing it starts nothing. Several workers of one
    supervisor are one instance. See :func:`registry_drain.serve` for what is not said here.

    Args:
        app: the application, outermost: nothing but the server around what this returns.
        registry: one or several, as URLs or objects; none: just stop gracefully. Objects cannot be shared by workers.
        service: the cluster's name; needed with a registry.
        port: what callers connect to.
        address: what callers connect to; default: the address that the server listens on.
        listen_port: what the server listens on, if that is not ``port``.
        instance_id: default ``service-address-port``.
        metadata: short strings for callers.
        tags: labels for callers.
        budget: how long the stop may take; default: 30 s in all.
        observers: told when the drain has ended, in each worker.
        sinks: are told each event; default: the log.
        clock: measures and passes all time.
        soft_drain: see there; at least 1 s. Of several workers one does it, when all of them stop.
        middleware: options of :class:`~registry_drain.servers.http.ASGIMiddleware`.

    Raises:
        ConfigurationError: something given cannot work.
    """
    listed = [registry] if isinstance(registry, str) or not isinstance(registry, Sequence) else list(registry)
    settings = Settings(
        listed,
        service,
        port,
        address,
        port if listen_port is None else listen_port,
        instance_id,
        dict(metadata or {}),
        tuple(tags),
        budget or StopBudget(),
        tuple(observers),
        tuple(sinks),
        clock,
        soft_drain,
    )
    return DrainedApp(app, settings, **middleware)


class DrainedApp(ASGIMiddleware):
    """What :func:`drained` returns; see there. One event loop, one lifespan.

    Attributes:
        in_flight: the requests of this process.
    """

    def __init__(self, app: ASGIApplication, settings: Settings, **middleware: Any) -> None:
        """Nothing is started."""
        super().__init__(app, **middleware)
        self._settings = settings
        self._stop: HostedStop | None = None

    @property
    def is_stopping(self) -> bool:
        """Whether the stop has begun: readiness checks should answer no."""
        return self.in_flight.stop_state.is_stopping

    async def rejoin(self, timeout: float = REGISTER_TIMEOUT) -> tuple[str, ...]:
        """Register again wherever an operator has removed this instance; return the URLs of those registries.

        Any worker may be told; the one that keeps the registration does it. None is no error. In the application's
        event loop; it takes ``timeout`` seconds at most.

        Raises:
            LiveOwnerError: the stop has begun, or a successor has the id.
            RegistryError: of the first registry that could not be rejoined; the others were tried, too.
        """
        if self._stop is None:
            return ()
        return await asyncio.to_thread(self._stop.rejoin, Deadline.after(timeout, self._settings.clock))

    async def serve_lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Begin with the server, and end behind it; the application's own lifespan runs inside."""
        await receive()
        try:
            # Before the application's own startup, which may install handlers of its own.
            host = Host(asyncio.get_running_loop())
        except ConfigurationError as error:
            await send({"type": "lifespan.startup.failed", "message": f"registry_drain: {error}"})
            return
        inner = InnerLifespan(self._app, scope)
        answer = await inner.startup()
        if answer["type"] == "lifespan.startup.failed":
            await send(answer)
            return
        if host.uvicorn_server is not None:
            from registry_drain.servers.uvicorn_server.request import CycleRequest, send_last

            self.use(send_last, CycleRequest)
        self._stop = stop = HostedStop(self._settings, host, self)
        await send(answer)
        await receive()
        stop.server_has_stopped()
        answer = await inner.shutdown()
        await stop.ended()
        await send(answer)

    def __repr__(self) -> str:
        """Show the service and the count."""
        service = self._settings.service or "unregistered"
        return f"<DrainedApp {service} port={self._settings.port} in_flight={self.in_flight.count}>"
