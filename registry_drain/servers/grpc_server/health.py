"""Health checks (``grpc.health.v1``): answered for servers that have none, and NOT_SERVING from the stop's beginning.

Theory of operation: clients that check the health of their connections leave a server that says NOT_SERVING by
themselves, while it still serves. A server that has a ``HealthServicer`` of grpcio-health-checking gives it to the
interceptor; for one that has none, the interceptor answers for the whole server (the service name ``""``).

Sources: ``grpc_health/v1/health.py``, gRFC A17 (client-side health checking).
"""

from __future__ import annotations

from typing import Any

import grpc

from registry_drain.errors import MissingExtraError

HEALTH = "/grpc.health.v1.Health/"
"""What the names of health checks begin with."""


def new_servicer(*, is_async: bool) -> Any:
    """Return a HealthServicer of our own.

    Raises:
        MissingExtraError: grpcio-health-checking is not installed.
    """
    try:
        from grpc_health.v1 import health
    except ImportError as error:
        raise MissingExtraError("gRPC health checking", "grpcio-health-checking", "grpc") from error
    return health.aio.HealthServicer() if is_async else health.HealthServicer()


def handlers_of(servicer: Any) -> dict[str, Any]:
    """Return a servicer's handlers by full method name."""
    from grpc_health.v1 import health_pb2

    decode = health_pb2.HealthCheckRequest.FromString
    encode = health_pb2.HealthCheckResponse.SerializeToString
    return {
        f"{HEALTH}Check": grpc.unary_unary_rpc_method_handler(servicer.Check, decode, encode),
        f"{HEALTH}Watch": grpc.unary_stream_rpc_method_handler(servicer.Watch, decode, encode),
    }
