"""Throughput of a Thrift server with the adapter against the same server without it.

Each runs in a process of its own, and this one holds the clients. A client is as cheap as can be (a request encoded
once, raw sockets), so that it is the server's processor time per request that limits both, and no round trip or client
hides the difference. The two servers take turns in batches of some 10 ms, there and back, so that slow moments of the
machine hit both, and the batches are compared in pairs.

Goal: the median of the rounds' ratios is at least 0.97.
"""

from __future__ import annotations

import argparse
import socket
import statistics
import subprocess
import sys
import threading
import time
from functools import partial

from thrift.protocol.TBinaryProtocol import TBinaryProtocol
from thrift.transport.TTransport import TMemoryBuffer

from benchmarks import take_turns, throughput_ratio
from examples.thrift_calculator.calculator.Calculator import Client
from examples.thrift_calculator.server import Calculator, new_threaded_server
from registry_drain.clock import Deadline
from registry_drain.servers.thrift_server import ThriftServer

GOAL = 0.97
ROUNDS = 15
CLIENTS = 4
BATCHES = 80
"""Per round and server."""
CALLS = 100
"""Per client and batch."""


def encoded_request() -> bytes:
    """Return the bytes of one call of ``add``."""
    buffer = TMemoryBuffer()
    Client(TBinaryProtocol(buffer)).send_add(1, 2)
    return bytes(buffer.getvalue())


def run_batch(clients: list[socket.socket], request: bytes) -> float:
    """Let every client make its calls, each waiting for its answers; return the seconds it took."""
    began_at = time.perf_counter()
    for _ in range(CALLS):
        for client in clients:
            client.sendall(request)
        for client in clients:
            # An answer is some 40 bytes, written at once: one segment on the loopback device.
            assert client.recv(4096)
    return time.perf_counter() - began_at


class ServerProcess:
    """One server in a process of its own, which ends when its standard input does."""

    def __init__(self, kind: str) -> None:
        """Start it."""
        argv = [sys.executable, "-m", "benchmarks.in_flight_overhead", "--serve", kind]
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.port = int(self.read())

    def read(self) -> str:
        """Return the next line it says."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def stop(self) -> str:
        """Stop it, and return what it says then."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        last_words = self.read()
        self.process.wait(30)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return last_words


def serve_bare() -> None:
    """Serve without the adapter."""
    server = new_threaded_server(Calculator(), "127.0.0.1", 0)
    server.serverTransport.listen()
    print(server.serverTransport.handle.getsockname()[1], flush=True)
    server.serverTransport.listen = lambda: None
    threading.Thread(target=server.serve, daemon=True).start()
    sys.stdin.read()


def serve_drainable() -> None:
    """Serve with the adapter; drain, and say how many requests were counted."""
    server = ThriftServer(new_threaded_server(Calculator(), "127.0.0.1", 0))
    print(server.start()[1], flush=True)
    sys.stdin.read()
    server.close_listener(Deadline.after(1))
    assert server.drain(Deadline.after(10))
    assert not server.cut_off()
    print(server.in_flight.total, flush=True)


def main() -> int:
    """Print each round's ratio and their median; status 1 if the goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--serve", choices=["bare", "drainable"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        {"bare": serve_bare, "drainable": serve_drainable}[options.serve]()
        return 0
    request = encoded_request()
    ratios = []
    # New processes for each round: where its memory happens to lie makes one faster than another by some percent.
    for _ in range(options.rounds):
        bare, ours = ServerProcess("bare"), ServerProcess("drainable")
        to_bare, to_ours = (
            [socket.create_connection(("127.0.0.1", server.port)) for _ in range(CLIENTS)] for server in (bare, ours)
        )
        for clients in (to_bare, to_ours) * 5:
            run_batch(clients, request)  # both warm
        times = take_turns(partial(run_batch, to_bare, request), partial(run_batch, to_ours, request), BATCHES)
        for client in to_bare + to_ours:
            client.close()
        bare.stop()
        counted, made = int(ours.stop()), CLIENTS * CALLS * (5 + len(times))
        assert counted == made, f"{counted} requests counted, {made} made"
        without, tracked = (CLIENTS * CALLS / statistics.median(each) for each in zip(*times, strict=True))
        ratios.append(throughput_ratio(times))
        print(f"bare {without:7.0f}/s   drainable {tracked:7.0f}/s   ratio {ratios[-1]:.3f}", flush=True)
    ratio = statistics.median(ratios)
    print(f"median ratio of {len(ratios)} rounds: {ratio:.3f} (goal: at least {GOAL})")
    return 0 if ratio >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
