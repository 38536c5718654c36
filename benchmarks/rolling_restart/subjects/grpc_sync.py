"""``grpc.server``: ``stop(5)`` on SIGTERM and deregistered behind it, or the adapter."""

from __future__ import annotations

import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from benchmarks.rolling_restart import subject
from registry_drain import Service
from registry_drain.servers.grpc_server import DrainInterceptor, GrpcServer, connection_age_options

CLIENT = "grpc"
IGNORING_LIMIT = 0.0
GRACE_S = 5.0
CONNECTION_AGE_S = 1.0
"""Short, so that stops are: clients that ignore the registry leave within it."""


def echo(request: bytes, _context: Any) -> bytes:
    """Serve one request."""
    time.sleep(subject.WORK_S)
    return request


def new_server(**settings: Any) -> Any:
    """Return a server without a port."""
    server = grpc.server(ThreadPoolExecutor(20), **settings)
    handlers = {"Call": grpc.unary_unary_rpc_method_handler(echo)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("echo.Echo", handlers)])
    return server


def main() -> None:
    """Serve until SIGTERM."""
    given = subject.options()
    where = f"{subject.HOST}:{given.port}"
    if given.is_drained:
        interceptor, options = DrainInterceptor(), connection_age_options(subject.BUDGET, CONNECTION_AGE_S)
        server = new_server(interceptors=[interceptor], options=options)
        adapter = GrpcServer(server, interceptor, port=server.add_insecure_port(where), options=options)
        service = Service(adapter, given.registry, service=given.service, budget=subject.BUDGET)
        subject.say_ready_when_started(service)
        service.run()
        return
    server = new_server()
    server.add_insecure_port(where)
    server.start()
    deregister = subject.naive_registration(given)
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    subject.say_ready()
    stopped.wait()
    server.stop(GRACE_S).wait()
    deregister()


if __name__ == "__main__":
    main()
