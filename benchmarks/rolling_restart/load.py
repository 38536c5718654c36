"""The clients: four that connect for each request, four that keep connections, and four that ignore the registry.

The first eight follow the registry, as of :data:`NOTICE_S` ago, and every failure of theirs counts, a refused
connection too: they were sent there. The last four know one address each, two of them keep their connection. Being
refused, or finding the connection ended before a request, tells them to come back later; only a request that was sent
and not answered, or a connection that was reset, has failed.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple, Protocol

from registry_drain.instance import ServiceInstance

NOTICE_S = 0.1
"""Seconds until a client acts on a change of the registry."""
THINK_S = 0.002
"""Seconds between two requests of a client; otherwise the clients would measure each other."""
AFTER_FAILURE_S = 0.02
FOLLOWING, IGNORING = "following", "ignoring"

Address = tuple[str, int]


class Client(Protocol):
    """One connection of a client, for one thread; every operation ends within 10 s."""

    def call(self, payload: bytes) -> bytes:
        """Send one request and return its answer.

        Raises:
            OSError: it failed.
            EOFError: the connection ended instead.
        """
        ...

    def is_closed(self) -> bool:
        """Whether the server has said goodbye, as far as can be seen without waiting."""
        ...

    def close(self) -> None:
        """Hang up. Idempotent."""
        ...


Connect = Callable[[Address], Client]


class Sample(NamedTuple):
    """One request.

    Attributes:
        kind: ``FOLLOWING`` or ``IGNORING``.
        began_at: on the monotonic clock.
        seconds: how long it took.
        failure: what went wrong; empty if it was answered.
    """

    kind: str
    began_at: float
    seconds: float
    failure: str


class DelayedList:
    """What the registry listed :data:`NOTICE_S` ago: a watch's callback, and the list as clients see it."""

    def __init__(self) -> None:
        """Nothing is listed yet."""
        self._changes: deque[tuple[float, tuple[ServiceInstance, ...]]] = deque([(0.0, ())])

    def __call__(self, instances: tuple[ServiceInstance, ...]) -> None:
        """Take in a new list."""
        self._changes.append((time.monotonic(), instances))

    @property
    def newest(self) -> tuple[ServiceInstance, ...]:
        """What is listed now."""
        return self._changes[-1][1]

    def addresses(self) -> list[Address]:
        """Return what clients go by."""
        noticed = time.monotonic() - NOTICE_S
        listed = next(instances for at, instances in reversed(tuple(self._changes)) if at <= noticed)
        return [(each.address, each.port) for each in listed]


@dataclass
class _Caller:
    """One client's thread."""

    kind: str
    keeps_connections: bool
    connect: Connect
    targets: Callable[[], list[Address]]
    first_turn: int

    def __post_init__(self) -> None:
        self.samples: list[Sample] = []
        self.connections = 0
        self._open: dict[Address, Client] = {}
        self._turn = itertools.count(self.first_turn)

    def run(self, stopped: threading.Event) -> None:
        while not stopped.wait(THINK_S):
            targets = self.targets()
            for address in [each for each in self._open if each not in targets]:
                self._hang_up(address)
            if targets and not self._request(targets[next(self._turn) % len(targets)]):
                stopped.wait(AFTER_FAILURE_S)
        for address in list(self._open):
            self._hang_up(address)

    def _request(self, address: Address) -> bool:
        """Make one request; return whether to go on at once."""
        payload = f"{self.first_turn}:{len(self.samples)}".encode()
        began_at = time.monotonic()
        failure = ""
        try:
            client = self._client(address)
            if client.call(payload) != payload:
                failure = "wrong answer"
        except ConnectionRefusedError:
            if self.kind is IGNORING:
                return False
            failure = "refused"
        except TimeoutError:
            failure = "no answer in time"
        except (OSError, EOFError) as error:
            failure = f"cut off ({type(error).__name__})"
        self.samples.append(Sample(self.kind, began_at, time.monotonic() - began_at, failure))
        if failure or not self.keeps_connections:
            self._hang_up(address)
        return not failure

    def _client(self, address: Address) -> Client:
        client = self._open.get(address)
        if client is not None and client.is_closed():
            self._hang_up(address)
            client = None
        if client is None:
            client = self._open[address] = self.connect(address)
            self.connections += 1
        return client

    def _hang_up(self, address: Address) -> None:
        client = self._open.pop(address, None)
        if client is not None:
            with contextlib.suppress(OSError, EOFError):
                client.close()


class Load:
    """Twelve clients in threads of this process, as long as the ``with`` block lasts.

    Args:
        connect: makes a client of the subject's protocol.
        listed: what those that follow the registry go by.
        known: what those that ignore it have been told, once and for all.
        keeps_connections: whether a connection carries more than one request in this protocol.
    """

    def __init__(
        self, connect: Connect, listed: DelayedList, known: Sequence[Address], *, keeps_connections: bool
    ) -> None:
        kinds = [(FOLLOWING, False)] * 4 + [(FOLLOWING, True)] * 4 + [(IGNORING, False), (IGNORING, True)] * 2
        self._callers = [
            _Caller(
                kind,
                is_persistent and keeps_connections,
                connect,
                listed.addresses if kind is FOLLOWING else _always(known[turn // 2 % len(known)]),
                turn,
            )
            for turn, (kind, is_persistent) in enumerate(kinds)
        ]
        self._stopped = threading.Event()
        self._threads = [
            threading.Thread(target=each.run, args=(self._stopped,), name=f"client-{each.first_turn}")
            for each in self._callers
        ]

    @property
    def samples(self) -> list[Sample]:
        """All requests made so far."""
        return [sample for caller in self._callers for sample in list(caller.samples)]

    def connections(self, kind: str) -> int:
        """How many connections the clients of one kind have made so far."""
        return sum(caller.connections for caller in self._callers if caller.kind is kind)

    def __enter__(self) -> Load:
        """Begin to call."""
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop; requests under way are finished."""
        self._stopped.set()
        for thread in self._threads:
            thread.join()


def _always(address: Address) -> Callable[[], list[Address]]:
    return lambda: [address]
