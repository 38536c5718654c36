"""Callers of the calculator: one slow call that must survive, and a load of clients that follow the registry."""

from __future__ import annotations

import threading
from types import TracebackType

from examples.thrift_calculator.client import Connection, FollowingClient
from registry_drain import Deadline, open_registry
from registry_drain.instance import parse_endpoint

_ANSWER_LIMIT = 60.0


class SlowCall:
    """A call of ``1 + 1`` that takes the server ``seconds``: sent at the start of the block, given up at its end."""

    def __init__(self, endpoint: str, *, seconds: float) -> None:
        self._connection = Connection(*parse_endpoint(endpoint), timeout=_ANSWER_LIMIT)
        self._seconds = seconds

    def result(self) -> int:
        """Wait for the answer and return it; raise what the call raised."""
        answer: int = self._connection.calculator.recv_add_slowly()
        return answer

    def __enter__(self) -> SlowCall:
        """Send the request: it is in the kernel's hands when this returns."""
        self._connection.calculator.send_add_slowly(1, 1, int(self._seconds * 1000))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Hang up, answered or not."""
        self._connection.close()


def call_once(endpoint: str, method: str, *arguments: float) -> float:
    """Make one call on a connection of its own and return the answer."""
    connection = Connection(*parse_endpoint(endpoint))
    try:
        answer: float = getattr(connection.calculator, method)(*arguments)
        return answer
    finally:
        connection.close()


class Load:
    """Client threads that call whatever the registry lists, half of them over connections that they keep.

    They pause for a millisecond or two between calls, so that the machine under test is busy and not flooded.
    """

    def __init__(self, registry_url: str, service: str, *, clients: int) -> None:
        self._registry = open_registry(registry_url)
        self._service = service
        self._count = clients
        self._stopped = threading.Event()
        self._clients: list[FollowingClient] = []
        self._threads: list[threading.Thread] = []

    @property
    def calls(self) -> int:
        """How many calls were made so far."""
        return sum(client.calls for client in self._clients)

    @property
    def failures(self) -> list[str]:
        """What went wrong so far."""
        return [failure for client in self._clients for failure in client.failures]

    def __enter__(self) -> Load:
        """Follow the service and start calling."""
        watch = self._registry.watch(self._service, Deadline.after(20.0))
        self._clients = [FollowingClient(watch, keeps_connections=bool(number % 2)) for number in range(self._count)]
        self._threads = [
            threading.Thread(target=client.run, args=(self._stopped,), kwargs={"pause": 0.002, "delay_ms": number % 3})
            for number, client in enumerate(self._clients)
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop calling; the counts stay."""
        self._stopped.set()
        for thread in self._threads:
            thread.join(_ANSWER_LIMIT)
        self._registry.close()
