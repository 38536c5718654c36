"""A client that follows the registry: it calls the listed instances in turn, over connections that it keeps.

    python -m examples.thrift_calculator.client --registry local:///tmp/cluster --seconds 30

Restart the servers meanwhile; at the end it says how many calls it made and how many failed.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import sys
import threading
import time
from types import TracebackType
from typing import Any

from thrift.protocol.TBinaryProtocol import TBinaryProtocolAccelerated
from thrift.Thrift import TException
from thrift.transport.TSocket import TSocket
from thrift.transport.TTransport import TBufferedTransport, TFramedTransport

from examples.thrift_calculator.calculator.Calculator import Client
from registry_drain import Deadline, ServiceInstance, open_registry
from registry_drain.registries.base import Watch

CALL_TIMEOUT = 10.0
"""Seconds that one call may take."""


class Connection:
    """One open connection to one instance. For one thread."""

    def __init__(self, host: str, port: int, *, timeout: float = CALL_TIMEOUT, is_framed: bool = False) -> None:
        """Connect.

        Raises:
            TTransportException: nobody listens there.
        """
        self.socket = TSocket(host, port)
        self.socket.setTimeout(timeout * 1000)
        transport = TFramedTransport(self.socket) if is_framed else TBufferedTransport(self.socket)
        # Generated code carries no annotations.
        self.calculator: Any = Client(TBinaryProtocolAccelerated(transport))
        transport.open()

    def close(self) -> None:
        """Hang up. Idempotent."""
        self.socket.close()


class FollowingClient:
    """Calls whatever the registry lists at the moment of the call. A call that fails is counted and never repeated.

    For one thread; the counts may be read from others. Several clients may share one watch.

    Args:
        watch: the list to follow; it stays the caller's to close.
        keeps_connections: keep one connection to each listed instance, and hang up when it is no longer listed;
            otherwise connect anew for each call.
        is_framed: whether the servers expect messages in frames, as the nonblocking one does.

    Attributes:
        succeeded: how many calls were answered, and answered correctly.
        failures: what went wrong, a line for each call that failed.
        unconnected: how many of them reached nobody. These were certainly not served, so that a client which tries
            another instance would have lost nothing.
        longest: seconds that the slowest successful call took.
    """

    def __init__(self, watch: Watch, *, keeps_connections: bool = True, is_framed: bool = False) -> None:
        self._watch = watch
        self._is_framed = is_framed
        self._keeps_connections = keeps_connections
        self._connections: dict[ServiceInstance, Connection] = {}
        self._turn = itertools.count()
        self.succeeded = 0
        self.failures: list[str] = []
        self.unconnected = 0
        self.longest = 0.0

    @property
    def calls(self) -> int:
        """How many calls were made."""
        return self.succeeded + len(self.failures)

    def tally(self) -> str:
        """Return in one line what became of the calls so far."""
        failed = f"{len(self.failures)} failed ({self.unconnected} not connected)"
        return f"{self.calls} calls, {failed}, the slowest took {self.longest * 1000:.0f} ms"

    def call(self, *, delay_ms: int = 0) -> bool:
        """Make one call, which takes the server ``delay_ms`` milliseconds; return whether it succeeded.

        With no instance listed nothing is called, and nothing counted: False.
        """
        instances = self._watch.instances
        self._hang_up_on_the_delisted(instances)
        if not instances:
            return False
        turn = next(self._turn)
        instance = instances[turn % len(instances)]
        began_at = time.monotonic()
        try:
            calculator = self._connection(instance).calculator
            result = calculator.add_slowly(turn, 1, delay_ms) if delay_ms else calculator.add(turn, 1)
            if result != turn + 1:
                raise ValueError(f"{turn} + 1 = {result}?")  # noqa: TRY301 - a failure like any other
        except (TException, OSError, EOFError, ValueError) as error:
            self.unconnected += instance not in self._connections
            self.failures.append(f"{instance}: {type(error).__name__}: {error}")
            self._hang_up(instance)
            return False
        self.longest = max(self.longest, time.monotonic() - began_at)
        self.succeeded += 1
        if not self._keeps_connections:
            self._hang_up(instance)
        return True

    def run(self, stopped: threading.Event, *, delay_ms: int = 0, pause: float = 0.0) -> None:
        """Call again and again until ``stopped``, with ``pause`` seconds in between, then hang up."""
        with self:
            while not stopped.is_set():
                is_ok = self.call(delay_ms=delay_ms)
                if pause or not is_ok:
                    stopped.wait(pause or 0.01)

    def close(self) -> None:
        """Hang up everywhere. Idempotent."""
        for instance in list(self._connections):
            self._hang_up(instance)

    def _connection(self, instance: ServiceInstance) -> Connection:
        if instance not in self._connections:
            self._connections[instance] = Connection(instance.address, instance.port, is_framed=self._is_framed)
        return self._connections[instance]

    def _hang_up_on_the_delisted(self, listed: tuple[ServiceInstance, ...]) -> None:
        for instance in [instance for instance in self._connections if instance not in listed]:
            self._hang_up(instance)

    def _hang_up(self, instance: ServiceInstance) -> None:
        connection = self._connections.pop(instance, None)
        if connection is not None:
            connection.close()

    def __enter__(self) -> FollowingClient:
        """Use as a context: hangs up at the end."""
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Hang up everywhere."""
        self.close()


def report(client: FollowingClient, every: float, stopped: threading.Event) -> None:
    """Say every so many seconds how many calls were made and have failed, and what has gone wrong since."""
    told = 0
    while not stopped.wait(every):
        print(client.tally(), flush=True)
        for failure in client.failures[told:]:
            print(f"  {failure}", flush=True)
            told += 1


def main() -> int:
    """Call for a while; status 1 if any call failed or none was made."""
    parser = argparse.ArgumentParser(description="A client of the calculator service.")
    parser.add_argument("--registry", required=True, help="for instance local:///tmp/cluster, consul://127.0.0.1:8500")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--pause", type=float, default=0.0, metavar="S", help="seconds between two calls")
    parser.add_argument("--every", type=float, default=0.0, metavar="S", help="also say so every so many seconds")
    parser.add_argument("--framed", action="store_true", help="for --kind nonblocking")
    options = parser.parse_args()

    with contextlib.closing(open_registry(options.registry)) as registry:
        watch = registry.watch("calculator", Deadline.after(10.0))
        client = FollowingClient(watch, is_framed=options.framed)
        stopped = threading.Event()
        timer = threading.Timer(options.seconds, stopped.set)
        timer.daemon = True
        timer.start()
        if options.every:
            threading.Thread(target=report, args=(client, options.every, stopped), daemon=True).start()
        with contextlib.suppress(KeyboardInterrupt), contextlib.closing(watch):
            client.run(stopped, pause=options.pause)
        stopped.set()
    print(client.tally())
    for failure in client.failures[:10]:
        print(f"  {failure}")
    return 1 if client.failures or not client.succeeded else 0


if __name__ == "__main__":
    sys.exit(main())
