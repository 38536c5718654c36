"""Every instance of a service restarted, one after the other, under load."""

from __future__ import annotations

import contextlib
import http.client
import threading
from collections import Counter
from collections.abc import Iterator
from types import TracebackType

from benchmarks.cluster.compose import Cluster, Tally
from benchmarks.cluster.stopping import Stopped, Stopping

CLIENTS = 8
PAUSE_S = 0.005
REQUEST_LIMIT_S = 20.0
_NODES = {"zookeeper": "zookeeper-2", "consul": "consul-server-2"}


def restart_one_by_one(cluster: Cluster, which: str, count: int) -> tuple[Tally, list[Stopped]]:
    """Stop and start ``count`` instances in turn; return what the load client counted meanwhile, and each stop."""
    before = cluster.tally(which)
    stops = _stops(cluster, which, f"calculator-{which}", "calculator", count)
    return cluster.tally(which).since(before), stops


@contextlib.contextmanager
def one_node_down(cluster: Cluster, which: str) -> Iterator[None]:
    """Keep one member of the ensemble, or one Consul server, dead for the block; the others have a leader inside."""
    down = cluster.container(_NODES[which])
    down.kill()
    try:
        cluster.await_size(which)
        yield
    finally:
        down.start()
        down.await_healthy()


def restart_behind_the_proxy(cluster: Cluster, count: int) -> tuple[Counter[str], list[Stopped]]:
    """Stop and start ``count`` instances of the HTTP fleet in turn; return what came of the requests, and each stop."""
    with ProxiedLoad(cluster.port("PROXY_PORT")) as load:
        stops = _stops(cluster, "consul", "hello", "hello", count)
    return load.outcomes, stops


def _stops(cluster: Cluster, which: str, compose_service: str, service: str, count: int) -> list[Stopped]:
    stops = []
    for turn in range(count):
        containers = cluster.containers(compose_service)
        stopping = Stopping(cluster, which, containers[turn % len(containers)], service)
        stopping.begin()
        stops.append(stopping.seen())
        stopping.start_again()
    return stops


class ProxiedLoad:
    """Clients that send requests through the proxy for as long as the block lasts; half of them connect anew for each.

    Args:
        port: the proxy's, on this host.

    Attributes:
        outcomes: ``ok``, or what went wrong, and how often.
    """

    def __init__(self, port: int) -> None:
        self.outcomes: Counter[str] = Counter()
        self._port = port
        self._stopped = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(index % 2 == 0,), name=f"load-{index}") for index in range(CLIENTS)
        ]

    def _run(self, keeps_connection: bool) -> None:  # noqa: FBT001 - told by its name
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=REQUEST_LIMIT_S)
        while not self._stopped.wait(PAUSE_S):
            try:
                connection.request("GET", "/hello")
                answer = connection.getresponse()
                body = answer.read()
                is_ok = answer.status == 200 and body == b"/hello\n"
                self.outcomes["ok" if is_ok else f"{answer.status} {answer.reason}"] += 1
            except (OSError, http.client.HTTPException) as error:
                self.outcomes[repr(error)] += 1
                connection.close()
            if not keeps_connection:
                connection.close()
        connection.close()

    def __enter__(self) -> ProxiedLoad:
        """Begin."""
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End."""
        self._stopped.set()
        for thread in self._threads:
            thread.join()
