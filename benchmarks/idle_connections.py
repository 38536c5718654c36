"""How long a server with thousands of open idle connections takes to close them all politely.

A ``ThreadingTCPServer`` has a thread for each connection, asleep in a read. The clients live in another process, each
served once and then silent; they watch for the end of their connection, close theirs, and report how it ended: every
one must be an end of file. With ``--deaf`` they look only when all is over, as a pool of unused connections would.

Goal: 5,000 connections within 1 s, from the first step of the stop (the listener) to the last thread's end. That is
with ``spread=0``, all at once; :mod:`benchmarks.reconnect_storm` shows why that is not the default.
"""

from __future__ import annotations

import argparse
import resource
import select
import socket
import socketserver
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter

from registry_drain.clock import Deadline
from registry_drain.servers.socket_server import SocketServer

GOAL_S = 1.0
CONNECTIONS = 5000
ROUNDS = 3
SPARE_DESCRIPTORS = 200


class EchoHandler(socketserver.StreamRequestHandler):
    """Answers each line with itself."""

    def handle(self) -> None:
        """Serve until the client leaves."""
        for line in self.rfile:
            self.wfile.write(line)


class EchoServer(socketserver.ThreadingTCPServer):
    """One thread for each connection."""

    request_queue_size = 1024
    # Otherwise socketserver looks through all of its threads for each new one.
    daemon_threads = True


def raise_descriptor_limit(needed: int) -> None:
    """Raise the soft limit of open files; the hard one is the administrator's."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = needed + SPARE_DESCRIPTORS
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise SystemExit(f"{wanted} open files are needed, and the hard limit is {hard}: try fewer --connections")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


def run_clients(port: int, connections: int, *, is_deaf: bool) -> None:
    """Open the connections, use each once, say so, and report how they end."""
    raise_descriptor_limit(connections)
    clients: dict[int, socket.socket] = {}
    poller = select.epoll()
    for _ in range(connections):
        client = socket.create_connection(("127.0.0.1", port), timeout=30)
        client.sendall(b"hello\n")
        assert client.recv(16) == b"hello\n"
        clients[client.fileno()] = client
        poller.register(client, select.EPOLLIN)
    print("ready", flush=True)
    if is_deaf:
        sys.stdin.readline()
    ends: Counter[str] = Counter()
    while clients:
        for descriptor, _ in poller.poll(30) or [(-1, 0)]:
            if descriptor == -1:
                ends["never"] = len(clients)
                clients.clear()
                break
            client = clients.pop(descriptor)
            try:
                ends["data" if client.recv(16) else "end of file"] += 1
            except OSError as error:
                ends[repr(error)] += 1
            client.close()
    print(dict(ends), flush=True)


def measure(connections: int, *, is_deaf: bool) -> tuple[float, str]:
    """Return the seconds of one stop, and what the clients said."""
    threads_before = threading.active_count()
    server = SocketServer(EchoServer(("127.0.0.1", 0), EchoHandler), spread=0.0)
    _, port = server.start()
    argv = [sys.executable, "-m", "benchmarks.idle_connections", "--clients-of", str(port)]
    argv += ["--connections", str(connections)] + ["--deaf"] * is_deaf
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert len(server.connections) == connections
        began_at = time.perf_counter()
        server.close_listener(Deadline.after(5))
        closed_at = time.perf_counter()
        is_drained = server.drain(Deadline.after(30))
        drained_at = time.perf_counter()
        cut = server.cut_off()
        ended_at = time.perf_counter()
        process.stdin.close()
        ends = process.stdout.readline().strip()
    assert is_drained, server
    assert not cut, cut
    left = threading.active_count() - threads_before
    assert not left, f"{left} threads are left"
    print(
        f"listener {closed_at - began_at:.3f} s, drain {drained_at - closed_at:.3f} s, "
        f"threads {ended_at - drained_at:.3f} s, all {ended_at - began_at:.3f} s; {ends}",
        flush=True,
    )
    return ended_at - began_at, ends


def main() -> int:
    """Print each round and the median; status 1 if the goal is missed or a connection was not closed politely."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, default=CONNECTIONS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--deaf", action="store_true", help="clients that do not notice until all is over")
    parser.add_argument("--clients-of", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.clients_of:
        run_clients(options.clients_of, options.connections, is_deaf=options.deaf)
        return 0
    raise_descriptor_limit(options.connections)
    rounds = [measure(options.connections, is_deaf=options.deaf) for _ in range(options.rounds)]
    median = statistics.median(seconds for seconds, _ in rounds)
    is_polite = all(ends == str({"end of file": options.connections}) for _, ends in rounds)
    print(f"{options.connections} idle connections: median {median:.3f} s (goal: {GOAL_S} s), all polite: {is_polite}")
    return 0 if median <= GOAL_S and is_polite else 1


if __name__ == "__main__":
    sys.exit(main())
