"""Throughput and CPU time per request of Thrift's and thriftpy2's servers with their adapters, against those without.

As :mod:`benchmarks.in_flight_overhead` does for the threaded one, with the same clients: each server in a process group
of its own, requests encoded once. The rounds go through all kinds, so that a slow minute of the machine hits one round
of each and not all rounds of one; within a round the two servers take turns in batches, there and back, which are
compared in pairs.

The second figure is the processor time that all processes of a server spent per request, bare over drainable: what else
runs on the machine has no part in it, but for the caches.

Goal: the median of the rounds' throughput ratios is at least 0.95 for each.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from thrift.protocol.TBinaryProtocol import TBinaryProtocolAcceleratedFactory
from thrift.server.TNonblockingServer import TNonblockingServer
from thrift.server.TServer import TForkingServer, TSimpleServer
from thrift.transport.TSocket import TServerSocket
from thriftpy2.contrib.aio.rpc import make_server as make_aio_server
from thriftpy2.rpc import make_server

from benchmarks import take_turns, throughput_ratio
from benchmarks.in_flight_overhead import CALLS, encoded_request, run_batch
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
SECONDS = 4.0
"""Of batches per round and kind."""
HOST = "127.0.0.1"


def _threaded(port: int) -> Any:
    return new_threaded_server(Calculator(), HOST, port)


def _pool(port: int) -> Any:
    return new_pool_server(Calculator(), HOST, port)


def _simple(port: int) -> Any:
    parts = new_threaded_server(Calculator(), HOST, port)
    return TSimpleServer(
        parts.processor, parts.serverTransport, parts.inputTransportFactory, parts.inputProtocolFactory
    )


def _forking(port: int) -> Any:
    parts = new_threaded_server(Calculator(), HOST, port)
    return TForkingServer(
        parts.processor, parts.serverTransport, parts.inputTransportFactory, parts.inputProtocolFactory
    )


def _process_pool(port: int) -> Any:
    return new_process_pool_server(Calculator(), HOST, port, workers=2 * CLIENTS)


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
    "simple": (_simple, ThriftServer),
    "nonblocking": (_nonblocking, ThriftNonblockingServer),
    "forking": (_forking, ThriftProcessServer),
    "process-pool": (_process_pool, ThriftProcessServer),
    "thriftpy2": (_thriftpy2, Thriftpy2Server),
    "thriftpy2-aio": (_thriftpy2_aio, Thriftpy2AioServer),
}
FRAMED = {"nonblocking"}
SERVING_ONE = {"simple"}
"""Serve one connection at a time."""


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
    os.read(sys.stdin.fileno(), 1)  # Not sys.stdin.read(): its lock is what a pool's forked worker would wait for.
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

    def cpu_seconds(self) -> float:
        """Return the processor time of all its processes, children that serve included."""
        return sum(cpu_seconds_of(pid) for pid in _members(self._process.pid))

    def stop(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


def _members(session: int) -> list[int]:
    members = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # It has ended.
        if int(fields[3]) == session:
            members.append(int(path.parent.name))
    return members


def cpu_seconds_of(pid: int) -> float:
    """Return the processor time that a process has used."""
    clock = ctypes.c_int()
    if ctypes.CDLL(None).clock_getcpuclockid(pid, ctypes.byref(clock)):
        return 0.0
    return time.clock_gettime(clock.value)


class Ratios(NamedTuple):
    """Of one round: what is left of the bare server's throughput, and of its requests per second of CPU time."""

    throughput: float
    cpu: float


def measure(kind: str, seconds: float) -> Ratios:
    """Return one round's ratios."""
    request = encoded_request()
    if kind in FRAMED:
        request = struct.pack("!I", len(request)) + request
    servers = ServerProcess(kind, "bare"), ServerProcess(kind, "drainable")
    count = 1 if kind in SERVING_ONE else CLIENTS
    bare, ours = ([server.connect() for _ in range(count)] for server in servers)
    for clients in (bare, ours) * 3:
        run_batch(clients, request)  # both warm
    spent_before = [server.cpu_seconds() for server in servers]
    times: list[tuple[float, float]] = []
    ends_at = time.perf_counter() + seconds
    while time.perf_counter() < ends_at:
        times += take_turns(partial(run_batch, bare, request), partial(run_batch, ours, request), 2)
    spent = [server.cpu_seconds() - before for server, before in zip(servers, spent_before, strict=True)]
    for client in bare + ours:
        client.close()
    for server in servers:
        server.stop()
    if "-v" in sys.argv:
        print(f"  {kind} {[round(1e6 * each / (len(times) * CALLS * count), 1) for each in spent]} us cpu", flush=True)
    return Ratios(throughput_ratio(times), spent[0] / spent[1])


def main() -> int:
    """Print the ratios; status 1 if the goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", choices=[*KINDS, []], metavar="KIND", help=f"of {', '.join(KINDS)}")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of batches per round and kind")
    parser.add_argument("-v", action="store_true", help="print the CPU time per request of each round")
    parser.add_argument("--serve", choices=["bare", "drainable"], help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.kinds[0], options.port, is_drainable=options.serve == "drainable")
        return 0
    kinds = options.kinds or list(KINDS)
    rounds: dict[str, list[Ratios]] = {kind: [] for kind in kinds}
    for _ in range(options.rounds):
        for kind in kinds:
            rounds[kind].append(measure(kind, options.seconds))
    is_met = True
    for kind, ratios in rounds.items():
        throughput = statistics.median(ratio.throughput for ratio in ratios)
        cpu = statistics.median(ratio.cpu for ratio in ratios)
        is_met &= throughput >= GOAL
        print(f"{kind:13} throughput {throughput:.3f} (goal: at least {GOAL})   requests per CPU second {cpu:.3f}")
    return 0 if is_met else 1


if __name__ == "__main__":
    sys.exit(main())
