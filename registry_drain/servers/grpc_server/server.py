"""Drains ``grpc.server``. How, :mod:`~registry_drain.servers.grpc_server.adapter` says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from registry_drain.errors import ConfigurationError, ServerError
from registry_drain.servers.grpc_server.adapter import CUT_LIMIT_S, GRACE_S, GrpcAdapter
from registry_drain.servers.grpc_server.connection_age import Options
from registry_drain.servers.grpc_server.departure import IDLE_QUIET
from registry_drain.servers.grpc_server.interceptor import DrainInterceptor
from registry_drain.servers.grpc_server.ports import PortOrPath, Ports


class GrpcServer(GrpcAdapter):
    """Makes a ``grpc.server`` drainable. Thread-safe.

    Give it the server with its services and ports added, before anybody starts it.

    Args:
        server: the user's own.
        interceptor: the one in ``server``'s interceptors.
        port: what ``add_insecure_port`` or ``add_secure_port`` has returned, or several; for ``unix:`` the path. The
            first one's address is what gets registered.
        options: those that ``server`` was made with; :func:`connection_age_options` should be among them.
        idle_quiet: seconds without a new call before the server stops under connections that are idle, if it has no
            connection age.

    Raises:
        ConfigurationError: no ``grpc.server``, no port, or another's interceptor.
    """

    def __init__(
        self,
        server: Any,
        interceptor: DrainInterceptor,
        *,
        port: PortOrPath | Sequence[PortOrPath],
        options: Options = (),
        idle_quiet: float = IDLE_QUIET,
    ) -> None:
        if type(server).__module__.startswith("grpc.aio"):
            raise ConfigurationError("this is a grpc.aio.server: use AioGrpcServer")
        if not callable(getattr(server, "wait_for_termination", None)):
            raise ConfigurationError(f"{type(server).__name__} is no grpc.server")
        if not isinstance(interceptor, DrainInterceptor):
            raise ConfigurationError(
                f"{type(interceptor).__name__} is no DrainInterceptor: make one, and give it to grpc.server, too"
            )
        super().__init__(interceptor.calls, options, idle_quiet)
        self._server: Any = server
        self._interceptor = interceptor
        self._ports: Ports = Ports(port)
        self._is_told = False

    def start(self) -> tuple[str, int]:
        """Serve; return the address and port of the first port.

        Raises:
            ServerError: started or stopped before.
        """
        with self._lock:
            if self._is_started or self._is_stopped:
                raise ServerError(f"{self!r} was started or stopped before: make a new grpc.server to serve again")
            try:
                self._server.start()
            except ValueError as error:
                raise ServerError(f"{self!r} cannot be started: {error}") from error
            self._is_started = True
            return self._ports.address()

    def has_calls(self) -> bool:
        """See :meth:`GrpcAdapter.has_calls`."""
        # No interceptor sees a call whose message is still arriving, nor when the answer has left: gRPC's list does.
        state = getattr(self._server, "_state", None)
        return bool(getattr(state, "rpc_states", ()))

    def _begin_end(self) -> None:
        if not self._is_told:
            self._is_told = True
            self._ended = self._server.stop(GRACE_S)

    def _cancel(self) -> None:
        self._ended = self._server.stop(0)
        self._ended.wait(CUT_LIMIT_S)

    def _forget(self) -> None:
        # The core closes the ports of a server that was started, and only of those. Nobody gets in any more.
        self._server.start()
        self._cancel()

    def _say_not_serving(self) -> None:
        self._interceptor.health.enter_graceful_shutdown()
