"""The adapter of ``grpc.server``."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from registry_drain.servers.base import DrainableServer
from registry_drain.servers.grpc_server import DrainInterceptor, GrpcServer, departure
from registry_drain.servers.grpc_server.departure import IDLE_QUIET
from registry_drain.servers.in_flight import InFlightRequest
from registry_drain.testing.server_contract import ServerContract
from tests.servers.grpc_wire import METHOD, WireClient, echo_service


class EchoServer(GrpcServer):
    """Ends its pool as well: that is the user's, and nobody's in these tests."""

    pool: ThreadPoolExecutor
    grpc_server: Any

    def cut_off(self) -> tuple[InFlightRequest, ...]:
        """Cut off, and let go of the pool."""
        cut = super().cut_off()
        self.pool.shutdown(wait=False)
        return cut


def new_server(
    serve: Callable[[bytes], bytes],
    *,
    threads: int = 32,
    options: list[tuple[str, int]] | None = None,
    idle_quiet: float = IDLE_QUIET,
    **settings: Any,
) -> EchoServer:
    """Make an echo server, on a free port."""
    interceptor, pool = DrainInterceptor(**settings), ThreadPoolExecutor(threads)
    server = grpc.server(pool, interceptors=[interceptor], options=options)
    server.add_generic_rpc_handlers([echo_service(serve)])
    port = server.add_insecure_port("127.0.0.1:0")
    ours = EchoServer(server, interceptor, port=port, options=options or (), idle_quiet=idle_quiet)
    ours.pool, ours.grpc_server = pool, server
    return ours


SENDS_BEFORE_THE_DRAIN = {
    ServerContract.test_what_waits_to_be_accepted_is_served.__name__,
    ServerContract.test_no_client_is_reset_by_a_closing_listener.__name__,
    ServerContract.test_a_pipelined_request_is_answered.__name__,
}
"""What draws on requests that nobody has taken yet when the drain begins."""


class GrpcContract(ServerContract):
    """Every promise, also where gRPC's threads take a request seconds after it has come."""

    patience = 20.0
    request_name = METHOD

    @pytest.fixture(autouse=True)
    def _time_to_take_requests(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
        # Else as short as it is: every drain with an idle connection takes so long.
        self.idle_quiet = IDLE_QUIET
        if request.function.__name__ in SENDS_BEFORE_THE_DRAIN:
            self.idle_quiet = 3.5
            monkeypatch.setattr(departure, "PATIENCE", self.patience)


class TestContract(GrpcContract):
    """The threaded server's."""

    def new_server(self, serve: Callable[[bytes], bytes]) -> DrainableServer:
        """Make an echo server with a pool that is larger than what the suite asks for."""
        return new_server(serve, idle_quiet=self.idle_quiet)

    def connect(self, address: tuple[str, int]) -> WireClient:
        """Connect."""
        return WireClient(address)
