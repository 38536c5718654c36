"""Throughput of each of Thrift's and thriftpy2's servers with its adapter, against the same server without it.

As :mod:`benchmarks.in_flight_overhead` does for the threaded one, with the same clients and the same turns: each server
in a process of its own, requests encoded once, and each judged by the tenth of its fastest batches.

Goal: the median of the rounds' ratios is at least 0.95 for each.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import statistics
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

from thrift.protocol.TBinaryProtocol import TBinaryProtocolAcceleratedFactory
from thrift.server.TNonblockingServer import TNonblockingServer
from thrift.server.TServer import TForkingServer
from thrift.transport.TSocket import TServerSocket
from thriftpy2.contrib.aio.rpc import make_server as make_aio_server
from thriftpy2.rpc import make_server

from benchmarks.in_flight_overhead import encoded_request, run_batch
from examples.thrift_calculator.calculator.Calculator import Processor
from examples.thrift_calculator.server import Calculator, new_pool_server, new_process_pool_server, new_threaded_server
from examples.thriftpy2_calculator.server import AsyncCalculator, calculator_thrift
from examples.thriftpy2_calculator.server import Calculator as Thriftpy2Calculator
from registry_drain.servers.thrift_server import ThriftNonblockingServer, ThriftProcessServer, ThriftServer
from registry_drain.servers.thriftpy2 import Thriftpy2AioServer, Thriftpy2Server
from tests.support.processes import free_port

GOAL = 0.95
ROUNDS = 5
CLIENTS = 4
BATCHES = 100
"""Per round and server."""
HOST = "127.0.0.1"


def _threaded(port: int) -> Any:
    return new_threaded_server(Calculator(), HOST, port)


def _pool(port: int) -> Any:
    return new_pool_server(Calculator(), HOST, port)


def _forking(port: int) -> Any:
    parts = new_threaded_server(Calculator(), HOST, port)
    return TForkingServer(
        parts.processor, parts.serverTransport, parts.inputTransportFactory, parts.inputProtocolFactory
    )


def _process_pool(port: int) -> Any:
    return new_process_pool_server(Calculator(), HOST, port)


def _nonblocking(port: int) -> Any:
    return TNonblockingServer(Processor(Calculator()), TServerSocket(HOST, port), TBinaryProtocolAcceleratedFactory())


def _thriftpy2(port: int) -> Any:
    server: Any = make_server(calculator_thrift.Calculator, Thriftpy2Calculator(), HOST, port, client_timeout=30_000)
    server.daemon = True
    return server


def _thriftpy2_aio(port: int) -> Any:
    import asyncio

    service, loop = calculator_thrift.Calculator, asyncio.new_event_loop()
    return make_aio_server(service, AsyncCalculator(), HOST, port, client_timeout=None, loop=loop)


KINDS: dict[str, tuple[Callable[[int], Any], Callable[[Any], Any]]] = {
    "threaded": (_threaded, ThriftServer),
    "pool": (_pool, ThriftServer),
    "nonblocking": (_nonblocking, ThriftNonblockingServer),
    "forking": (_forking, ThriftProcessServer),
    "process-pool": (_process_pool, ThriftProcessServer),
    "thriftpy2": (_thriftpy2, Thriftpy2Server),
    "thriftpy2-aio": (_thriftpy2_aio, Thriftpy2AioServer),
}
FRAMED = {"nonblocking"}


def serve(kind: str, port: int, *, is_drainable: bool) -> None:
    """Serve until the standard input ends; then end the whole process group, children included."""
    make, adapter = KINDS[kind]
    server = make(port)
    if is_drainable:
        if kind == "thriftpy2-aio":
            server.loop.close()
        adapter(server).start()
    else:
        threading.Thread(target=server.serve, daemon=True).start()
    sys.stdin.read()
    os.killpg(0, signal.SIGKILL)


class ServerProcess:
    """One server in a process of its own, which ends with :meth:`stop`."""

    def __init__(self, kind: str, how: str) -> None:
        """Start it."""
        self.port = free_port()
        argv = [sys.executable, "-W", "ignore", "-m", "benchmarks.thrift_overhead", "--serve", how]
        argv += ["--port", str(self.port), kind]
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, start_new_session=True)

    def connect(self) -> socket.socket:
        """Return a connection, as soon as there can be one."""
        never = threading.Event()
        while True:
            try:
                sock = socket.create_connection((HOST, self.port))
            except ConnectionRefusedError:
                never.wait(0.05)
                continue
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return sock

    def stop(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


def measure(kind: str, rounds: int) -> float:
    """Return the median of the rounds' ratios."""
    request = encoded_request()
    if kind in FRAMED:
        request = struct.pack("!I", len(request)) + request
    ratios = []
    for _ in range(rounds):
        servers = ServerProcess(kind, "bare"), ServerProcess(kind, "drainable")
        bare, ours = ([server.connect() for _ in range(CLIENTS)] for server in servers)
        for clients in (bare, ours) * 3:
            run_batch(clients, request)  # both warm
        times: list[tuple[float, float]] = []
        for _ in range(BATCHES // 2):
            times.append((run_batch(bare, request), run_batch(ours, request)))
            second, first = run_batch(ours, request), run_batch(bare, request)
            times.append((first, second))
        for client in bare + ours:
            client.close()
        for server in servers:
            server.stop()
        without, tracked = (statistics.quantiles(each, n=10)[0] for each in zip(*times, strict=True))
        ratios.append(without / tracked)
    return float(statistics.median(ratios))


def main() -> int:
    """Print the ratios; status 1 if the goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", choices=[*KINDS, []], metavar="KIND", help=f"of {', '.join(KINDS)}")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--serve", choices=["bare", "drainable"], help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.kinds[0], options.port, is_drainable=options.serve == "drainable")
        return 0
    is_met = True
    for kind in options.kinds or KINDS:
        ratio = measure(kind, options.rounds)
        is_met &= ratio >= GOAL
        print(f"{kind:13} median ratio of {options.rounds} rounds: {ratio:.3f} (goal: at least {GOAL})", flush=True)
    return 0 if is_met else 1


if __name__ == "__main__":
    sys.exit(main())
