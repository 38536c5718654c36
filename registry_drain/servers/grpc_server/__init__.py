"""Drains gRPC servers, sync and aio.

``server`` is the adapter of ``grpc.server``, ``aio_server`` that of ``grpc.aio.server``; ``interceptor`` and
``aio_interceptor`` count their calls, ``health`` answers health checks, ``ports`` finds the sockets that the C core has
opened, ``departure`` waits for clients to leave, ``connection_age`` advises on the setting that makes them.
"""

from registry_drain.errors import MissingExtraError

try:
    import grpc  # noqa: F401 - here, so that a missing one is named
except ImportError as error:
    raise MissingExtraError("GrpcServer", "grpcio", "grpc") from error

from registry_drain.servers.grpc_server.aio_interceptor import AioDrainInterceptor
from registry_drain.servers.grpc_server.aio_server import AioGrpcServer
from registry_drain.servers.grpc_server.connection_age import age_misfits, connection_age_options
from registry_drain.servers.grpc_server.interceptor import DrainInterceptor
from registry_drain.servers.grpc_server.server import GrpcServer

__all__ = [
    "AioDrainInterceptor",
    "AioGrpcServer",
    "DrainInterceptor",
    "GrpcServer",
    "age_misfits",
    "connection_age_options",
]
