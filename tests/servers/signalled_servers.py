"""One server of each kind behind its adapter, with nothing to serve: for tests/servers/signal_program.py.

What a kind needs is imported when it is made, so that a process loads one framework.
"""

# thriftpy2 says that it is typed, and is in half.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import asyncio
import socketserver
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from registry_drain.servers.base import DrainableServer
from registry_drain.servers.http.asgi_types import Receive, Scope, Send

HOST = "127.0.0.1"


async def asgi_app(scope: Scope, receive: Receive, send: Send) -> None:
    """Serve nothing; it has a lifespan."""
    assert scope["type"] == "lifespan"
    for _ in range(2):
        message = await receive()
        await send({"type": f"{message['type']}.complete"})


def _http_server() -> DrainableServer:
    from registry_drain.servers.http_server import HttpServer

    return HttpServer(ThreadingHTTPServer((HOST, 0), BaseHTTPRequestHandler))


def _socketserver() -> DrainableServer:
    from registry_drain.servers.socket_server import SocketServer

    return SocketServer(socketserver.ThreadingTCPServer((HOST, 0), socketserver.StreamRequestHandler))


def _thrift_parts() -> tuple[Any, ...]:
    """Return what every TServer is made of."""
    from thrift.protocol.TBinaryProtocol import TBinaryProtocolFactory
    from thrift.transport.TSocket import TServerSocket
    from thrift.transport.TTransport import TFramedTransportFactory

    from tests.servers.thrift_echo import EchoProcessor

    return EchoProcessor(bytes), TServerSocket(HOST, 0), TFramedTransportFactory(), TBinaryProtocolFactory()


def _thrift_threaded() -> DrainableServer:
    from thrift.server.TServer import TThreadedServer

    from registry_drain.servers.thrift_server import ThriftServer

    return ThriftServer(TThreadedServer(*_thrift_parts()))


def _thrift_thread_pool() -> DrainableServer:
    from thrift.server.TServer import TThreadPoolServer

    from registry_drain.servers.thrift_server import ThriftServer

    return ThriftServer(TThreadPoolServer(*_thrift_parts()))


def _thrift_nonblocking() -> DrainableServer:
    from thrift.server.TNonblockingServer import TNonblockingServer

    from registry_drain.servers.thrift_server import ThriftNonblockingServer

    processor, sock, _, protocols = _thrift_parts()
    return ThriftNonblockingServer(TNonblockingServer(processor, sock, protocols))


def _thrift_forking() -> DrainableServer:
    from thrift.server.TServer import TForkingServer

    from registry_drain.servers.thrift_server import ThriftProcessServer

    return ThriftProcessServer(TForkingServer(*_thrift_parts()))


def _thrift_process_pool() -> DrainableServer:
    from thrift.server.TProcessPoolServer import TProcessPoolServer

    from registry_drain.servers.thrift_server import ThriftProcessServer

    pool = TProcessPoolServer(*_thrift_parts())
    pool.setNumWorkers(2)
    return ThriftProcessServer(pool)


def _thriftpy2_service() -> Any:
    import thriftpy2

    return thriftpy2.load(str(Path(__file__).with_name("echo.thrift")), module_name="echo_thrift").Echo


def _thriftpy2() -> DrainableServer:
    from thriftpy2.protocol import TCyBinaryProtocolFactory
    from thriftpy2.server import TThreadedServer
    from thriftpy2.thrift import TProcessor
    from thriftpy2.transport import TCyBufferedTransportFactory, TServerSocket

    from registry_drain.servers.thriftpy2 import Thriftpy2Server

    processor = TProcessor(_thriftpy2_service(), object())
    parts = TServerSocket(HOST, 0), TCyBufferedTransportFactory(), TCyBinaryProtocolFactory()
    return Thriftpy2Server(TThreadedServer(processor, *parts))


def _grpc() -> DrainableServer:
    import grpc

    from registry_drain.servers.grpc_server import DrainInterceptor, GrpcServer

    interceptor = DrainInterceptor()
    server = grpc.server(ThreadPoolExecutor(2), interceptors=[interceptor])
    return GrpcServer(server, interceptor, port=server.add_insecure_port(f"{HOST}:0"))


def _rpyc() -> DrainableServer:
    import rpyc
    from rpyc.utils.server import ThreadedServer

    from registry_drain.servers.rpyc_server import RpycServer

    return RpycServer(ThreadedServer(rpyc.VoidService, hostname=HOST, port=0))


def _aiohttp() -> DrainableServer:
    from aiohttp import web

    from registry_drain.servers.aiohttp_server import AiohttpServer

    return AiohttpServer(web.Application(), HOST, 0)


def _uvicorn() -> DrainableServer:
    import uvicorn

    from registry_drain.servers.uvicorn_server import UvicornServer

    return UvicornServer(uvicorn.Config(asgi_app, port=0))


def _hypercorn() -> DrainableServer:
    from hypercorn.config import Config

    from registry_drain.servers.hypercorn_server import HypercornServer

    config = Config()
    config.bind = [f"{HOST}:0"]
    return HypercornServer(asgi_app, config)


def _asyncio_streams() -> DrainableServer:
    from registry_drain.servers.asyncio_streams import AsyncioServer

    async def hang_up(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    return AsyncioServer(hang_up, HOST, 0)


def _thriftpy2_aio() -> DrainableServer:
    from thriftpy2.contrib.aio.processor import TAsyncProcessor
    from thriftpy2.contrib.aio.protocol.binary import TAsyncBinaryProtocolFactory
    from thriftpy2.contrib.aio.server import TAsyncServer
    from thriftpy2.contrib.aio.socket import TAsyncServerSocket
    from thriftpy2.contrib.aio.transport.buffered import TAsyncBufferedTransportFactory

    from registry_drain.servers.thriftpy2 import Thriftpy2AioServer

    processor = TAsyncProcessor(_thriftpy2_service(), object())
    parts = TAsyncServerSocket(HOST, 0), TAsyncBufferedTransportFactory(), TAsyncBinaryProtocolFactory()
    return Thriftpy2AioServer(TAsyncServer(processor, *parts))


def _grpc_aio() -> DrainableServer:
    import grpc.aio

    from registry_drain.servers.grpc_server import AioDrainInterceptor, AioGrpcServer

    interceptor = AioDrainInterceptor()
    server = grpc.aio.server(interceptors=[interceptor])
    return AioGrpcServer(server, interceptor, port=server.add_insecure_port(f"{HOST}:0"))


IN_PROCESSES: dict[str, Callable[[], DrainableServer]] = {
    "thrift-forking": _thrift_forking,
    "thrift-process-pool": _thrift_process_pool,
}
"""Those that serve in child processes; they are for ``serve()``, too."""
IN_THREADS: dict[str, Callable[[], DrainableServer]] = {
    "http_server": _http_server,
    "socketserver": _socketserver,
    "thrift-threaded": _thrift_threaded,
    "thrift-thread-pool": _thrift_thread_pool,
    "thrift-nonblocking": _thrift_nonblocking,
    "thriftpy2": _thriftpy2,
    "grpc": _grpc,
    "rpyc": _rpyc,
    **IN_PROCESSES,
}
"""Those for ``serve()``."""
IN_LOOP: dict[str, Callable[[], DrainableServer]] = {
    "aiohttp": _aiohttp,
    "uvicorn": _uvicorn,
    "hypercorn": _hypercorn,
    "asyncio-streams": _asyncio_streams,
    "thriftpy2-aio": _thriftpy2_aio,
    "grpc-aio": _grpc_aio,
}
"""Those for ``serve_async()``, in the application's loop."""
