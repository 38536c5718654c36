"""Throughput of HTTP servers with the middlewares and adapters against the same servers without them.

    python -m benchmarks.http_overhead                  # all of them
    python -m benchmarks.http_overhead asgi --rounds 3

Each server runs in a process of its own, and this one holds the clients: raw sockets with keep-alive and a request that
was encoded once, so that it is the server's processor time that limits both. The bare server and ours take turns in
batches of some 10 ms, there and back, which are compared in pairs, so that slow moments of the machine hit both. Beside
that stands the processor time that each spent on the same requests, summed over all batches: on a machine that does
other things as well it is the steadier figure, but it leaves out what is spent waiting.

Goal: for each, the median of the rounds' ratios of throughput is at least 0.95. The ratio of processor times is bare to
ours, so that for both ratios 1 means that nothing is lost.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from xmlrpc.client import dumps
from xmlrpc.server import SimpleXMLRPCRequestHandler, SimpleXMLRPCServer

from benchmarks import keep_apart, take_turns, throughput_ratio
from registry_drain.servers.base import DrainableServer
from registry_drain.servers.http import ASGIMiddleware, WSGIMiddleware
from registry_drain.servers.http.asgi_types import Receive, Scope, Send
from registry_drain.servers.http_server import HttpServer

GOAL = 0.95
ROUNDS = 25
CLIENTS = 4
BATCHES = 48
"""Per round and server."""
CALLS = 12
"""Per client and batch."""
READY_S = 30.0

HOST = "127.0.0.1"
GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
BODY = b"hello, world"
CALL = dumps(("hello",), "echo").encode()
POST = b"POST /RPC2 HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/xml\r\nContent-Length: %d\r\n\r\n%s" % (
    len(CALL),
    CALL,
)


async def asgi_app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer."""
    assert scope["type"] == "http"
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(BODY))]})
    await send({"type": "http.response.body", "body": BODY})


def wsgi_app(_: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Answer."""
    start_response("200 OK", [("Content-Length", str(len(BODY)))])
    return [BODY]


class Handler(BaseHTTPRequestHandler):
    """Answers."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1

    def do_GET(self) -> None:
        """Serve one request."""
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, *args: object) -> None:
        """Say nothing."""


class RpcHandler(SimpleXMLRPCRequestHandler):
    """Keeps connections."""

    protocol_version = "HTTP/1.1"


def serve_asgi(port: int, *, is_ours: bool) -> None:
    """Run uvicorn."""
    uvicorn = importlib.import_module("uvicorn")
    app = ASGIMiddleware(asgi_app) if is_ours else asgi_app
    uvicorn.run(app, host=HOST, port=port, log_level="error", lifespan="off")


def serve_wsgi(port: int, *, is_ours: bool) -> None:
    """Run gunicorn with a worker with threads."""
    base = importlib.import_module("gunicorn.app.base")
    app = WSGIMiddleware(wsgi_app) if is_ours else wsgi_app
    # A connection waits for its next batch, while the other server has its turn.
    settings = {"worker_class": "gthread", "threads": CLIENTS, "keepalive": 60, "loglevel": "error"}

    class Application(base.BaseApplication):  # type: ignore[misc, name-defined]
        def load_config(self) -> None:
            for name, value in {**settings, "bind": f"{HOST}:{port}"}.items():
                self.cfg.set(name, value)

        def load(self) -> Any:
            return app

    Application().run()


def serve_http_server(port: int, *, is_ours: bool) -> None:
    """Run ``http.server``."""
    server = ThreadingHTTPServer((HOST, port), Handler)
    if is_ours:
        _serve_ours(HttpServer(server))
    else:
        server.serve_forever()


def serve_xmlrpc(port: int, *, is_ours: bool) -> None:
    """Run ``xmlrpc.server``, with threads: else one client's connection would keep the others waiting."""

    class Server(ThreadingHTTPServer, SimpleXMLRPCServer):
        def __init__(self) -> None:
            SimpleXMLRPCServer.__init__(self, (HOST, port), requestHandler=RpcHandler, logRequests=False)

    server = Server()
    server.register_function(lambda text: text, "echo")
    if is_ours:
        _serve_ours(HttpServer(server))
    else:
        server.serve_forever()


def serve_aiohttp(port: int, *, is_ours: bool) -> None:
    """Run aiohttp."""
    web = importlib.import_module("aiohttp.web")

    async def hello(_: object) -> object:
        return web.Response(body=BODY)

    app = web.Application()
    app.router.add_get("/", hello)
    if is_ours:
        adapter = importlib.import_module("registry_drain.servers.aiohttp_server")
        _serve_ours(adapter.AiohttpServer(app, HOST, port, access_log=None))
    else:
        web.run_app(app, host=HOST, port=port, access_log=None, print=None)


def _serve_ours(server: DrainableServer) -> None:
    server.start()
    threading.Event().wait()


CASES: dict[str, tuple[Callable[..., None], bytes]] = {
    "asgi": (serve_asgi, GET),
    "wsgi": (serve_wsgi, GET),
    "http_server": (serve_http_server, GET),
    "xmlrpc": (serve_xmlrpc, POST),
    "aiohttp": (serve_aiohttp, GET),
}
"""What is served, and what is asked."""


class ServerProcess:
    """One server in a process of its own, which ends when its standard input does."""

    def __init__(self, case: str, *, is_ours: bool) -> None:
        """Start it, and connect."""
        with socket.create_server((HOST, 0)) as probe:
            self.port = probe.getsockname()[1]
        argv = [sys.executable, "-m", "benchmarks.http_overhead", "--serve", case, "--port", str(self.port)]
        self.process = subprocess.Popen([*argv, *(["--ours"] if is_ours else [])], stdin=subprocess.PIPE)
        keep_apart(self.process)
        self.clients = [self._connect() for _ in range(CLIENTS)]
        self.pids = [self.process.pid, *_children(self.process.pid)]
        self.processor_s = 0.0

    def _connect(self) -> socket.socket:
        until = time.monotonic() + READY_S
        while True:
            with suppress(OSError):
                client = socket.create_connection((HOST, self.port), timeout=READY_S)
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return client
            assert time.monotonic() < until, f"nobody listens on port {self.port}"
            time.sleep(0.05)

    def run_batch(self, request: bytes) -> float:
        """Let every client make its calls, each waiting for its answers; return the seconds it took."""
        used_before = _processor_s(self.pids)
        began_at = time.perf_counter()
        for _ in range(CALLS):
            for client in self.clients:
                client.sendall(request)
            for client in self.clients:
                answer = b""
                while b"hello" not in answer:  # the last that is written
                    part = client.recv(4096)
                    assert part, "the server closed a connection"
                    answer += part
        took = time.perf_counter() - began_at
        self.processor_s += _processor_s(self.pids) - used_before
        return took

    def stop(self) -> None:
        """End it."""
        for client in self.clients:
            client.close()
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(READY_S)


def _children(pid: int) -> list[int]:
    """Return the worker processes of a server that has some."""
    try:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _processor_s(pids: Iterable[int]) -> float:
    """Return the processor time that these processes have used, all threads; zeros where the kernel is not Linux."""
    if sys.platform != "linux":
        return 0.0
    # What clock_getcpuclockid(3) returns: the process' number inverted, and CPUCLOCK_SCHED.
    return sum(time.clock_gettime((~pid << 3) | 2) for pid in pids)


def measure(case: str, rounds: int) -> tuple[float, float]:
    """Return the medians of the rounds' ratios: of throughput, and of processor time."""
    _, request = CASES[case]
    ratios: list[float] = []
    processor_ratios: list[float] = []
    for _ in range(rounds):
        # New processes for each round: where its memory happens to lie makes one faster than another by some percent.
        bare, ours = ServerProcess(case, is_ours=False), ServerProcess(case, is_ours=True)
        for server in (bare, ours) * 3:
            server.run_batch(request)  # both warm
        bare.processor_s = ours.processor_s = 0.0
        times = take_turns(partial(bare.run_batch, request), partial(ours.run_batch, request), BATCHES)
        bare.stop()
        ours.stop()
        without, tracked = (CLIENTS * CALLS / statistics.median(each) for each in zip(*times, strict=True))
        ratios.append(throughput_ratio(times))
        processor_ratios.append(bare.processor_s / (ours.processor_s or 1.0))
        without_us, tracked_us = (each.processor_s * 1e6 / (BATCHES * CLIENTS * CALLS) for each in (bare, ours))
        print(
            f"{case:12} bare {without:7.0f}/s   ours {tracked:7.0f}/s   ratio {ratios[-1]:.3f}   "
            f"processor {without_us:5.1f} µs and {tracked_us:5.1f} µs   ratio {processor_ratios[-1]:.3f}",
            flush=True,
        )
    return statistics.median(ratios), statistics.median(processor_ratios)


def _serve(case: str, port: int, *, is_ours: bool) -> None:
    def end_with_parent() -> None:
        os.read(0, 1)  # past the buffer, which the end of the interpreter must not find locked
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=end_with_parent, daemon=True).start()
    logging.getLogger().setLevel(logging.ERROR)
    with suppress(SystemExit, KeyboardInterrupt):
        CASES[case][0](port, is_ours=is_ours)


def main() -> int:
    """Print each round's ratio and the medians; status 1 if the goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"default: all of {', '.join(CASES)}")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--serve", choices=list(CASES), help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--ours", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        _serve(options.serve, options.port, is_ours=options.ours)
        return 0
    medians = {case: measure(case, options.rounds) for case in options.cases or CASES}
    for case, (ratio, processor_ratio) in medians.items():
        print(
            f"{case:12} medians of {options.rounds} rounds: throughput {ratio:.3f} (goal: at least {GOAL}), "
            f"processor time {processor_ratio:.3f}"
        )
    return 0 if min(ratio for ratio, _ in medians.values()) >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
