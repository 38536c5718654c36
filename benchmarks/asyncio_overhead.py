"""Throughput of a server on asyncio streams with the adapter against the same server without it.

Each runs in a process of its own, and this one holds the clients: raw sockets and a request of one line, so that it is
the server's processor time per request that limits both. The two take turns in batches of some 10 ms, there and back,
so that slow moments of the machine hit both, and the batches are compared in pairs.

An echo is the hardest case: there is nothing in a request but what asyncio and the adapter do.

Goal: the median of the rounds' ratios is at least 0.95.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import statistics
import subprocess
import sys
import time

from benchmarks import take_turns, throughput_ratio
from registry_drain import AsyncService
from registry_drain.servers.asyncio_streams import AsyncioServer

GOAL = 0.95
ROUNDS = 15
CLIENTS = 4
BATCHES = 80
"""Per round and server."""
CALLS = 100
"""Per client and batch."""
LINE = b"hello, world\n"
HOST = "127.0.0.1"


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serve one connection."""
    while line := await reader.readline():
        writer.write(line)
        await writer.drain()
    writer.close()


async def wait_for_parent() -> None:
    """Wait until standard input ends."""
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


async def serve_bare() -> None:
    """Serve without the adapter."""
    server = await asyncio.start_server(echo, HOST, 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await wait_for_parent()
    server.close()


async def serve_drainable() -> None:
    """Serve with the adapter; drain, and say how many requests were counted."""
    server = AsyncioServer(echo, HOST, 0)
    service = AsyncService(server, handle_signals=False)
    running = asyncio.ensure_future(service.run())
    await service.wait_until_started()
    assert service.bound is not None
    print(service.bound[1], flush=True)
    await wait_for_parent()
    service.request_stop("measured")
    report = await running
    assert not report.cut_off, report
    print(server.in_flight.total, flush=True)


class ServerProcess:
    """One server in a process of its own, which ends when its standard input does."""

    def __init__(self, kind: str) -> None:
        """Start it, and connect."""
        argv = [sys.executable, "-m", "benchmarks.asyncio_overhead", "--serve", kind]
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        port = int(self.read())
        self.clients = [socket.create_connection((HOST, port)) for _ in range(CLIENTS)]

    def read(self) -> str:
        """Return the next line it says."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def run_batch(self) -> float:
        """Let every client make its calls, each waiting for its answers; return the seconds it took."""
        began_at = time.perf_counter()
        for _ in range(CALLS):
            for client in self.clients:
                client.sendall(LINE)
            for client in self.clients:
                # One segment on the loopback device.
                assert client.recv(4096) == LINE
        return time.perf_counter() - began_at

    def stop(self) -> str:
        """Stop it, and return what it says then."""
        for client in self.clients:
            client.close()
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        last_words = self.read()
        self.process.wait(30)
        self.process.stdout.close()
        return last_words


def main() -> int:
    """Print each round's ratio and their median; status 1 if the goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--serve", choices=["bare", "drainable"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run({"bare": serve_bare, "drainable": serve_drainable}[options.serve]())
        return 0
    ratios = []
    # New processes for each round: where its memory happens to lie makes one faster than another by some percent.
    for _ in range(options.rounds):
        bare, ours = ServerProcess("bare"), ServerProcess("drainable")
        for server in (bare, ours) * 5:
            server.run_batch()  # both warm
        times = take_turns(bare.run_batch, ours.run_batch, BATCHES)
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
