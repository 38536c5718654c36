"""Throughput of gRPC and RPyC servers with the adapter against the same servers without it.

Each server runs in a process of its own, the clients in this one; the two of a kind take turns in batches, there and
back, which are compared in pairs, so that slow moments of the machine hit both. The second figure is the processor time
that a server spent per call, bare over drainable: what else runs on the machine has little part in it.

Goal: the median of the rounds' ratios is at least 0.95 for each kind.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import grpc
import grpc.aio
import rpyc
from rpyc.utils.server import ThreadedServer

from benchmarks import throughput_ratio
from benchmarks.thrift_overhead import Ratios, cpu_seconds_of
from registry_drain.servers.grpc_server import AioDrainInterceptor, AioGrpcServer, DrainInterceptor, GrpcServer
from registry_drain.servers.rpyc_server import RpycServer

GOAL = 0.95
KINDS = ("grpc", "grpc-aio", "rpyc")
METHOD = "/echo.Echo/Call"
CLIENTS = 4
CALLS = 25
"""Per client and batch."""
BATCHES = 40
"""Per round and server."""


def service(function: Callable[[bytes, Any], Any]) -> Any:
    """Return the handlers of a service with one method."""
    methods = {"Call": grpc.unary_unary_rpc_method_handler(function)}
    return grpc.method_handlers_generic_handler("echo.Echo", methods)


def echo(request: bytes, _context: Any) -> bytes:
    """Serve."""
    return request


async def echo_async(request: bytes, _context: Any) -> bytes:
    """Serve."""
    return request


class EchoService(rpyc.Service):  # type: ignore[misc]  # rpyc is not annotated
    """One method."""

    def exposed_echo(self, payload: bytes) -> bytes:
        """Serve."""
        return payload


def serve_grpc(*, is_drainable: bool) -> int:
    """Serve by threads; return the port."""
    interceptor = DrainInterceptor()
    server = grpc.server(ThreadPoolExecutor(8), interceptors=[interceptor] if is_drainable else [])
    server.add_generic_rpc_handlers([service(echo)])
    port = int(server.add_insecure_port("127.0.0.1:0"))
    if is_drainable:
        return GrpcServer(server, interceptor, port=port).start()[1]
    server.start()
    _kept.append(server)
    return port


def serve_aio(*, is_drainable: bool) -> int:
    """Serve in an event loop; return the port."""
    interceptor = AioDrainInterceptor()

    def make() -> tuple[Any, int]:
        server = grpc.aio.server(interceptors=[interceptor] if is_drainable else [])
        server.add_generic_rpc_handlers([service(echo_async)])
        return server, server.add_insecure_port("127.0.0.1:0")

    # Both in the adapter's loop: it is the interceptor that costs.
    _kept.append(AioGrpcServer(make, interceptor))
    return int(_kept[-1].start()[1])


def serve_rpyc(*, is_drainable: bool) -> int:
    """Serve by threads; return the port."""
    server = ThreadedServer(EchoService, hostname="127.0.0.1", port=0)
    if is_drainable:
        return RpycServer(server).start()[1]
    threading.Thread(target=server.start, daemon=True).start()
    while not server.active:
        time.sleep(0.01)
    return int(server.port)


_kept: list[Any] = []


class Target:
    """One server in a process of its own, and its clients here."""

    def __init__(self, kind: str, how: str, exits: ExitStack) -> None:
        """Start it, and connect."""
        argv = [sys.executable, "-m", "benchmarks.grpc_rpyc_overhead", "--serve", kind, how]
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        exits.callback(process.wait, 30)
        assert process.stdin is not None
        assert process.stdout is not None
        exits.callback(process.kill)
        exits.callback(process.stdout.close)
        exits.callback(process.stdin.close)
        port = int(process.stdout.readline())
        self.times: list[float] = []
        self.spent: list[float] = []
        self._pid = process.pid
        self._calls: list[Callable[[bytes], Any]] = []
        for _ in range(CLIENTS):
            if kind == "rpyc":
                connection = rpyc.connect_stream(rpyc.SocketStream.connect("127.0.0.1", port, nodelay=True))
                exits.callback(connection.close)
                self._calls.append(connection.root.echo)
            else:
                channel = grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.use_local_subchannel_pool", 1)])
                exits.callback(channel.close)
                self._calls.append(channel.unary_unary(METHOD))

    def run_batch(self) -> None:
        """Let every client make its calls, one after the other."""
        began_at, spent_before = time.perf_counter(), cpu_seconds_of(self._pid)
        for call in self._calls:
            for _ in range(CALLS):
                call(b"payload")
        self.times.append(time.perf_counter() - began_at)
        self.spent.append(cpu_seconds_of(self._pid) - spent_before)

    def rate(self) -> float:
        """Return the calls per second of half of the batches, at least."""
        return CLIENTS * CALLS / statistics.median(self.times[2:])

    def rate_of_cpu(self) -> float:
        """Return the calls per second of processor time of the cheapest tenth."""
        return CLIENTS * CALLS / statistics.quantiles(self.spent[2:], n=10)[0]


def measure(kind: str) -> Ratios:
    """Return one round's ratios."""
    with ExitStack() as exits:
        bare, ours = Target(kind, "bare", exits), Target(kind, "drainable", exits)
        for _ in range(BATCHES // 2):
            for target in (bare, ours, ours, bare):
                target.run_batch()
        ratio = throughput_ratio(zip(bare.times[2:], ours.times[2:], strict=True))
        ratios = Ratios(ratio, ours.rate_of_cpu() / bare.rate_of_cpu())
        print(
            f"{kind}: bare {bare.rate():7.0f}/s   drainable {ours.rate():7.0f}/s   "
            f"ratio {ratios.throughput:.3f}   of calls per CPU second {ratios.cpu:.3f}",
            flush=True,
        )
    return ratios


def main() -> int:
    """Print each round's ratio and the medians; status 1 if the goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", choices=[*KINDS, []], metavar="KIND", help=f"of {', '.join(KINDS)}")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        kind, how = options.serve
        start = {"grpc": serve_grpc, "grpc-aio": serve_aio, "rpyc": serve_rpyc}[kind]
        print(start(is_drainable=how == "drainable"), flush=True)
        sys.stdin.read()
        return 0
    is_kept = True
    for kind in options.kinds or KINDS:
        rounds = [measure(kind) for _ in range(options.rounds)]
        ratio, cpu = (statistics.median(each) for each in zip(*rounds, strict=True))
        print(f"{kind}: median of {options.rounds} rounds: {ratio:.3f} (goal: at least {GOAL}); of CPU time {cpu:.3f}")
        is_kept = is_kept and ratio >= GOAL
    return 0 if is_kept else 1


if __name__ == "__main__":
    sys.exit(main())
