"""How many clients reconnect at the same moment when a server with thousands of idle connections is drained.

The clients live in another process. Each is served once and then silent; it watches for the end of its connection and
connects elsewhere at once, as clients of a cluster do: to a listener that notes when it accepts. Printed are the worst
10 ms, for idle connections closed all at once (``spread=0``) and at the default pace: how many connections the server
closed, which is how many would come back if each client had a machine of its own, and how many one process of clients
managed to open.

Goal: at the default pace never more than twice the even share (50 of 5,000 in 10 ms), all ends polite.
"""

from __future__ import annotations

import argparse
import bisect
import contextlib
import json
import select
import socket
import subprocess
import sys
import threading
import time

from benchmarks.idle_connections import CONNECTIONS, EchoHandler, EchoServer, raise_descriptor_limit
from registry_drain.clock import Deadline
from registry_drain.servers.connections import SPREAD, Connection
from registry_drain.servers.socket_server import SocketServer

WINDOW_S = 0.010
GOAL_RATIO = 2.0
PATIENCE_S = 30


def most_within(instants: list[float], seconds: float) -> int:
    """Return how many of the sorted instants lie within the worst such time."""
    return max((bisect.bisect_left(instants, at + seconds) - place for place, at in enumerate(instants)), default=0)


def note_accepts(listener: socket.socket, count: int, instants: list[float], taken: list[socket.socket]) -> None:
    """Accept so many connections, and note when."""
    for _ in range(count):
        taken.append(listener.accept()[0])
        instants.append(time.monotonic())


def run_clients(port: int, count: int) -> None:
    """Open the connections, use each once, say so; reconnect each when it ends, and report how and when."""
    raise_descriptor_limit(3 * count)
    elsewhere = socket.create_server(("127.0.0.1", 0), backlog=4096)
    elsewhere.settimeout(PATIENCE_S)
    instants: list[float] = []
    taken: list[socket.socket] = []
    accepting = threading.Thread(target=note_accepts, args=(elsewhere, count, instants, taken), daemon=True)
    accepting.start()
    clients: dict[int, socket.socket] = {}
    poller = select.epoll()
    for _ in range(count):
        client = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
        client.sendall(b"hello\n")
        assert client.recv(16) == b"hello\n"
        clients[client.fileno()] = client
        poller.register(client, select.EPOLLIN)
    print("ready", flush=True)
    polite = 0
    while clients:
        events = poller.poll(PATIENCE_S)
        if not events:
            break
        for descriptor, _ in events:
            client = clients.pop(descriptor)
            with contextlib.suppress(OSError):
                polite += client.recv(16) == b""
            client.close()
            again = socket.socket()
            again.settimeout(0.0)
            again.connect_ex(elsewhere.getsockname())
            taken.append(again)
    accepting.join(PATIENCE_S)
    print(json.dumps({"polite": polite, "peak": most_within(instants, WINDOW_S)}), flush=True)


def measure(count: int, spread: float) -> tuple[int, int]:
    """Return the peak of closes in one stop, and how many connections ended politely."""
    server = SocketServer(EchoServer(("127.0.0.1", 0), EchoHandler), spread=spread)
    closed_at: list[float] = []
    linger = server.connections.linger

    def note_close(connection: Connection) -> None:
        closed_at.append(time.monotonic())
        linger(connection)

    server.connections.linger = note_close  # type: ignore[method-assign]
    _, port = server.start()
    argv = [sys.executable, "-m", "benchmarks.reconnect_storm", "--clients-of", str(port), "--connections", str(count)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        server.close_listener(Deadline.after(5))
        began_at = time.perf_counter()
        is_drained = server.drain(Deadline.after(PATIENCE_S))
        seconds = time.perf_counter() - began_at
        server.cut_off()
        seen = json.loads(process.stdout.readline())
    assert is_drained, server
    peak = most_within(closed_at, WINDOW_S)
    print(
        f"spread={spread:g}: drained in {seconds:.2f} s; in the worst 10 ms {peak} closed, {seen['peak']} reconnected",
        flush=True,
    )
    return peak, seen["polite"]


def main() -> int:
    """Print both; status 1 if the goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, default=CONNECTIONS)
    parser.add_argument("--spread", type=float, default=SPREAD)
    parser.add_argument("--clients-of", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.clients_of:
        run_clients(options.clients_of, options.connections)
        return 0
    raise_descriptor_limit(options.connections)
    at_once, polite_at_once = measure(options.connections, 0.0)
    spread, polite_spread = measure(options.connections, options.spread)
    is_polite = polite_at_once == polite_spread == options.connections
    print(
        f"{options.connections} idle connections: {at_once} -> {spread} closed in the worst 10 ms, "
        f"all polite: {is_polite}"
    )
    even_share = options.connections * WINDOW_S / options.spread
    return 0 if is_polite and spread <= GOAL_RATIO * even_share else 1


if __name__ == "__main__":
    sys.exit(main())
