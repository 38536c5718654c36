"""Throughput of uvicorn and hypercorn with their adapters, and of a drained application, against the bare servers.

    python -m benchmarks.asgi_overhead uvicorn
    python -m benchmarks.asgi_overhead hypercorn hosted

The method is that of :mod:`benchmarks.in_flight_overhead`: both servers run side by side and take turns in batches of
some 10 ms, which are compared in pairs, and cheap clients leave the processor to them.

Goal: the median of the rounds' ratios is at least 0.95 each.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import hypercorn.asyncio
import hypercorn.config
import uvicorn

from benchmarks import keep_apart, take_turns, throughput_ratio
from registry_drain.clock import Deadline
from registry_drain.hosted import drained
from registry_drain.servers.asgi_adapter import ASGIAdapter
from registry_drain.servers.http.asgi_types import ASGIApplication, Receive, Scope, Send
from registry_drain.servers.hypercorn_server import HypercornServer
from registry_drain.servers.uvicorn_server import UvicornServer

GOAL = 0.95
ROUNDS = 25
CLIENTS = 4
BATCHES = 48
"""Per round and server."""
CALLS = 12
"""Per client and batch."""
REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with two bytes, after reading the request as frameworks do."""
    if scope["type"] == "lifespan":
        for _ in range(2):
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
        return
    await receive()
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"2")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"ok"})


def run_batch(clients: list[socket.socket]) -> float:
    """Let every client make its calls, each waiting for its answers; return the seconds it took."""
    began_at = time.perf_counter()
    for _ in range(CALLS):
        for client in clients:
            client.sendall(REQUEST)
        for client in clients:
            answer = b""
            while not answer.endswith(b"\r\n\r\nok"):  # the head and the body may be two segments
                part = client.recv(4096)
                assert part, "the server closed a connection"
                answer += part
    return time.perf_counter() - began_at


def uvicorn_config(application: ASGIApplication, port: int) -> uvicorn.Config:
    """Return uvicorn's settings, without its access log."""
    return uvicorn.Config(application, host="127.0.0.1", port=port, http="h11", log_level="warning", access_log=False)


def hypercorn_config(port: int) -> hypercorn.config.Config:
    """Return hypercorn's settings."""
    config = hypercorn.config.Config()
    config.bind = [f"127.0.0.1:{port}"]
    config.accesslog = config.errorlog = None
    config.keep_alive_max_requests = sys.maxsize  # by default a connection ends after 1,000
    return config


def serve_adapter(adapter: ASGIAdapter) -> None:
    """Serve with an adapter until standard input ends."""
    adapter.start()
    sys.stdin.read()
    adapter.close_listener(Deadline.after(1))
    assert adapter.drain(Deadline.after(10))
    assert not adapter.cut_off()


SERVERS: dict[str, tuple[Callable[[int], object], Callable[[int], object]]] = {
    "uvicorn": (
        lambda port: uvicorn.Server(uvicorn_config(app, port)).run(),
        lambda port: serve_adapter(UvicornServer(uvicorn_config(app, port))),
    ),
    "hypercorn": (
        lambda port: asyncio.run(hypercorn.asyncio.serve(app, hypercorn_config(port))),  # type: ignore[arg-type]
        lambda port: serve_adapter(HypercornServer(app, hypercorn_config(port))),
    ),
    "hosted": (
        lambda port: uvicorn.Server(uvicorn_config(app, port)).run(),
        lambda port: uvicorn.Server(uvicorn_config(drained(app, port=port), port)).run(),
    ),
}
"""By case: the bare server, and ours."""


class ServerProcess:
    """One server in a process of its own."""

    def __init__(self, case: str, kind: str) -> None:
        """Start it, and wait until it answers."""
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        argv = [sys.executable, "-m", "benchmarks.asgi_overhead", case, "--serve", kind, "--port", str(self.port)]
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE)
        keep_apart(self.process)
        ends_at = time.monotonic() + 30
        while time.monotonic() < ends_at:
            try:
                self.clients = [socket.create_connection(("127.0.0.1", self.port)) for _ in range(CLIENTS)]
            except ConnectionRefusedError:  # noqa: PERF203 - it is starting
                time.sleep(0.02)
            else:
                return
        raise TimeoutError(f"{case} {kind} does not listen")

    def stop(self) -> None:
        """End it."""
        for client in self.clients:
            client.close()
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.terminate()
        self.process.wait(30)


def measure(case: str, rounds: int) -> float:
    """Print each round's ratio; return their median."""
    ratios: list[float] = []
    for _ in range(rounds):
        bare, ours = ServerProcess(case, "bare"), ServerProcess(case, "ours")
        for server in (bare, ours) * 5:
            run_batch(server.clients)  # both warm
        times = take_turns(partial(run_batch, bare.clients), partial(run_batch, ours.clients), BATCHES)
        bare.stop()
        ours.stop()
        without, with_us = (CLIENTS * CALLS / statistics.median(each) for each in zip(*times, strict=True))
        ratios.append(throughput_ratio(times))
        print(f"{case:10} bare {without:6.0f}/s   ours {with_us:6.0f}/s   ratio {ratios[-1]:.3f}", flush=True)
    return statistics.median(ratios)


def main() -> int:
    """Print the median of each case; status 1 if one misses the goal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", choices=[*SERVERS, []], metavar="CASE")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--serve", choices=["bare", "ours"], help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        SERVERS[options.cases[0]][options.serve == "ours"](options.port)
        return 0
    is_kept = True
    for case in options.cases or SERVERS:
        ratio = measure(case, options.rounds)
        print(f"{case}: median ratio of {options.rounds} rounds: {ratio:.3f} (goal: at least {GOAL})")
        is_kept &= ratio >= GOAL
    return 0 if is_kept else 1


if __name__ == "__main__":
    sys.exit(main())
