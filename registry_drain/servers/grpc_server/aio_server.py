"""Drains ``grpc.aio.server``. How, :mod:`~registry_drain.servers.grpc_server.adapter` says.

Theory of operation: a ``grpc.aio.server`` belongs to the event loop in which it is made. With
:func:`registry_drain.serve_async` that is the application's, and the adapter takes the server; with
:func:`registry_drain.serve` it is one in a thread of the adapter's own, and so the adapter takes a function that makes
the server there.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

from registry_drain.clock import Deadline
from registry_drain.errors import ConfigurationError, ServerError
from registry_drain.servers.event_loop import ServerLoop
from registry_drain.servers.grpc_server.adapter import CUT_LIMIT_S, GRACE_S, GrpcAdapter
from registry_drain.servers.grpc_server.aio_interceptor import AioDrainInterceptor
from registry_drain.servers.grpc_server.connection_age import Options
from registry_drain.servers.grpc_server.departure import IDLE_QUIET
from registry_drain.servers.grpc_server.ports import PortOrPath, Ports
from registry_drain.servers.in_flight import InFlightRequest

_START_LIMIT_S = 30.0

Made = tuple[Any, "PortOrPath | Sequence[PortOrPath]"]
"""A ``grpc.aio.server`` and its port, or ports."""


class AioGrpcServer(GrpcAdapter):
    """Makes a ``grpc.aio.server`` drainable. Thread-safe; not to be called in the server's own loop.

    Args:
        server: the user's own, with its services and ports added, if it was made in a running loop; or a function,
            coroutine or not, that makes it and returns it with its port, and which is called in the server's loop.
        interceptor: the one in ``server``'s interceptors.
        port: what ``add_insecure_port`` or ``add_secure_port`` has returned, or several; for ``unix:`` the path. Not
            with a function.
        options: those that ``server`` was made with; :func:`connection_age_options` should be among them.
        idle_quiet: seconds without a new call before the server stops under connections that are idle, if it has no
            connection age.

    Raises:
        ConfigurationError: no ``grpc.aio.server``, no port, no loop, or another's interceptor.
    """

    def __init__(
        self,
        server: Any | Callable[[], Made | Awaitable[Made]],
        interceptor: AioDrainInterceptor,
        *,
        port: PortOrPath | Sequence[PortOrPath] = (),
        options: Options = (),
        idle_quiet: float = IDLE_QUIET,
    ) -> None:
        if not isinstance(interceptor, AioDrainInterceptor):
            raise ConfigurationError(
                f"{type(interceptor).__name__} is no AioDrainInterceptor: make one, and give it to grpc.aio.server, too"
            )
        super().__init__(interceptor.calls, options, idle_quiet)
        self._interceptor = interceptor
        self._loop = ServerLoop("registry-drain-grpc")
        self._make: Callable[[], Any] | None = None
        self._server: Any = None
        self._ending: asyncio.Task[None] | None = None
        self._saying: asyncio.Task[None] | None = None
        if type(server).__module__.startswith("grpc.aio"):
            self._server = server
            self._ports = Ports(port)
            with suppress(RuntimeError):
                self._loop.use(asyncio.get_running_loop())
        elif callable(server):
            if port != ():
                raise ConfigurationError("port= is given, and a function that makes the server: let it return the port")
            self._make = server
        else:
            raise ConfigurationError(f"{type(server).__name__} is no grpc.aio.server, nor a function that makes one")

    def use_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Serve in the application's loop; the server must have been made in it. Before :meth:`start`."""
        self._loop.use(loop)

    def start(self) -> tuple[str, int]:
        """Make the server, if that was left to us, and serve; return the address and port of the first port.

        Raises:
            ServerError: started or stopped before.
            ConfigurationError: the server belongs to a loop that the adapter was not given.
        """
        with self._lock:
            if self._is_started or self._is_stopped:
                raise ServerError(f"{self!r} was started or stopped before: make a new grpc.aio.server to serve again")
            if self._make is None and not self._loop.is_open:
                raise ConfigurationError(
                    "this grpc.aio.server was made outside of a running loop: use serve_async(), or give AioGrpcServer "
                    "a function that makes the server and returns it with its port"
                )
            self._loop.start()
            try:
                self._loop.call(self._start, Deadline.after(_START_LIMIT_S))
                if self._ports is None:
                    raise ConfigurationError("the function has not returned a grpc.aio.server and its port")
                self._is_started = True
                return self._ports.address()
            finally:
                if not self._is_started:
                    self._loop.stop()

    def has_calls(self) -> bool:
        """See :meth:`GrpcAdapter.has_calls`."""
        return bool(self._interceptor.tasks)

    def cut_off(self) -> tuple[InFlightRequest, ...]:
        """Cancel what is left, await it, and end the loop, if it is ours. See :meth:`DrainableServer.cut_off`."""
        cut = super().cut_off()
        self._loop.stop()
        return cut

    async def _start(self) -> None:
        if self._make is not None:
            made = self._make()
            if inspect.isawaitable(made):
                made = await made
            if not (isinstance(made, tuple) and len(made) == 2):
                raise ConfigurationError(
                    f"the function returned {made!r}: let it return the grpc.aio.server and its port"
                )
            self._server, port = made
            self._ports = Ports(port)
        await self._server.start()

    def _begin_end(self) -> None:
        self._loop.call_soon(self._end_soon)

    def _end_soon(self) -> None:
        if self._ending is None:
            self._ending = asyncio.ensure_future(self._server.stop(GRACE_S))
            self._ending.add_done_callback(lambda _task: self._ended.set())

    def _cancel(self) -> None:
        with suppress(TimeoutError, ServerError):  # a loop that hangs, or was closed: there is nothing left to do
            self._loop.call(self._cancel_all, Deadline.after(2 * CUT_LIMIT_S))

    async def _cancel_all(self) -> None:
        tasks = set(self._interceptor.tasks)
        # This cancels the tasks. We must not do it as well: a second cancellation would interrupt their cleaning up.
        stopping = asyncio.ensure_future(self._server.stop(0))
        await asyncio.wait({stopping, *tasks}, timeout=CUT_LIMIT_S)
        for task in tasks:
            if not task.done():
                task.cancel()
        if stopping.done():
            self._ended.set()

    def _forget(self) -> None:
        self._server = None

    def _say_not_serving(self) -> None:
        with suppress(ServerError):  # no loop: nobody can ask
            self._loop.call_soon(self._begin_to_say)

    def _begin_to_say(self) -> None:
        self._saying = asyncio.ensure_future(self._interceptor.health.enter_graceful_shutdown())
