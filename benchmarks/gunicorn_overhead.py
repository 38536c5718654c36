"""Throughput of gunicorn with ``drain()`` in its configuration against the same gunicorn without it.

    python -m benchmarks.gunicorn_overhead                 # every worker class
    python -m benchmarks.gunicorn_overhead gthread

One worker each, and an application that does nothing but answer, so that it is gunicorn's and our processor time per
request that limits. The clients are raw sockets. The two gunicorns take turns in short batches, there and back, which
are compared in pairs, so that slow moments of the machine hit both.

Goal: the median of the rounds' ratios is at least 0.95.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks import keep_apart, take_turns, throughput_ratio

GOAL = 0.95
ROUNDS = 25
CLIENTS = 4
BATCHES = 40
"""Per round and gunicorn."""
CALLS = 10
"""Per client and batch."""

KINDS = {
    "sync": ("sync", "wsgi"),
    "gthread": ("gthread", "wsgi"),
    "asgi": ("asgi", "asgi"),
    "uvicorn": ("uvicorn.workers.UvicornWorker", "asgi"),
}
_REQUEST = b"GET /hello HTTP/1.1\r\nHost: localhost\r\n\r\n"
_BODY = b"hello"
_START_LIMIT_S = 30.0


def wsgi(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    """Answer."""
    assert environ["PATH_INFO"] == "/hello"
    start_response("200 OK", [("Content-Length", str(len(_BODY)))])
    return [_BODY]


async def asgi(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    """Answer."""
    assert scope["path"] == "/hello"
    await receive()
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(len(_BODY)).encode())]}
    )
    await send({"type": "http.response.body", "body": _BODY})


class GunicornProcess:
    """One gunicorn, on a port of the kernel's choice, for the length of a ``with`` block."""

    def __init__(self, kind: str, directory: Path, *, is_drained: bool) -> None:
        """Start it."""
        worker_class, app = KINDS[kind]
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.address: tuple[str, int] = probe.getsockname()
        lines = [
            f"bind = '127.0.0.1:{self.address[1]}'",
            f"worker_class = {worker_class!r}",
            "workers = 1",
            f"threads = {CLIENTS if kind == 'gthread' else 1}",
            "keepalive = 60",
            "control_socket_disable = True",
            "asgi_lifespan = 'off'",
            "loglevel = 'error'",
        ]
        if is_drained:
            lines += [
                "from registry_drain.hosted.gunicorn import drain",
                f"drain(globals(), registry='local://{directory}/registry', service='bench')",
            ]
        configuration = directory / f"{kind}-{is_drained}.conf.py"
        configuration.write_text("\n".join(lines) + "\n", encoding="utf-8")
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-W", "ignore::DeprecationWarning", "-m", "gunicorn"),
                *("-c", str(configuration), f"benchmarks.gunicorn_overhead:{app}"),
            ],
            start_new_session=True,
        )
        keep_apart(self._process)
        self._keeps_connections = kind != "sync"
        self._clients: list[socket.socket] = []

    def __enter__(self) -> GunicornProcess:
        """Wait until it answers."""
        ends_at = time.monotonic() + _START_LIMIT_S
        while not self._answers():
            if time.monotonic() > ends_at:
                self.close()
                raise TimeoutError("gunicorn did not start")
            time.sleep(0.05)
        return self

    def _answers(self) -> bool:
        try:
            self.run_batch(calls=1)
        except OSError:
            return False
        return True

    def __exit__(self, *_error: object) -> None:
        """End it."""
        self.close()

    def close(self) -> None:
        """End it."""
        for client in self._clients:
            client.close()
        # The group: uvicorn's workers do not look whether their master is still there.
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def run_batch(self, calls: int = CALLS) -> float:
        """Let every client make its calls; return the seconds it took."""
        if self._keeps_connections and not self._clients:
            self._clients = [socket.create_connection(self.address, timeout=10) for _ in range(CLIENTS)]
        began_at = time.perf_counter()
        for _ in range(calls):
            clients = self._clients or [socket.create_connection(self.address, timeout=10) for _ in range(CLIENTS)]
            for client in clients:
                client.sendall(_REQUEST)
            for client in clients:
                answer = b""
                while not answer.endswith(_BODY):
                    chunk = client.recv(4096)
                    if not chunk:
                        raise ConnectionError("gunicorn hung up")
                    answer += chunk
                if not self._keeps_connections:
                    client.close()  # before the next one is looked at: the worker waits for that
        return time.perf_counter() - began_at


def ratio_of(bare: GunicornProcess, drained: GunicornProcess) -> float:
    """Return the throughput with ``drain()`` as a share of that without, in one round."""
    for gunicorn in (bare, drained) * 3:
        gunicorn.run_batch()  # both warm
    return throughput_ratio(take_turns(bare.run_batch, drained.run_batch, BATCHES))


def one_round(kind: str) -> float:
    """Return the ratio of two new processes: where its memory happens to lie makes one faster by some percent."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        bare = stack.enter_context(GunicornProcess(kind, Path(name), is_drained=False))
        drained = stack.enter_context(GunicornProcess(kind, Path(name), is_drained=True))
        return ratio_of(bare, drained)


def main() -> int:
    """Measure, print, and return 0 if the goal is met."""
    parser = argparse.ArgumentParser(description="What drain() costs a gunicorn.")
    parser.add_argument("kinds", nargs="*", metavar="worker class", help=f"of {', '.join(KINDS)}; default: all")
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))  # and not without ending the gunicorns
    kinds = parser.parse_args().kinds or list(KINDS)
    if unknown := set(kinds) - set(KINDS):
        parser.error(f"no such worker class: {', '.join(unknown)}")
    is_met = True
    for kind in kinds:
        ratios = [one_round(kind) for _ in range(ROUNDS)]
        ratio = statistics.median(ratios)
        print(f"{kind}: {ratio:.3f} of the bare throughput (rounds {min(ratios):.3f} to {max(ratios):.3f})", flush=True)
        is_met = is_met and ratio >= GOAL
    print(f"goal {GOAL}: {'met' if is_met else 'MISSED'}")
    return 0 if is_met else 1


if __name__ == "__main__":
    sys.exit(main())
