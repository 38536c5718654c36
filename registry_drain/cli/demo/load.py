"""The demo's clients: each follows the registry by a watch, calls the listed instances in turn, and retries nothing.

A client that fails is a user who saw an error, so every failure counts. Most clients keep a connection to each instance
and hang up when it is no longer listed; the others connect for each call. They pause between calls: the machine should
be busy, not flooded, or the figures would measure the machine.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import threading
from collections.abc import Iterable
from types import TracebackType
from typing import NamedTuple

from thrift.Thrift import TException
from thrift.transport.TTransport import TTransportException

from registry_drain.cli.demo.wire import Caller
from registry_drain.clock import Clock
from registry_drain.instance import ServiceInstance
from registry_drain.registries.base import Watch

PERSISTENT, SHORT = 4, 2
"""Clients of each kind."""
LONGEST_WORK_MS = 15
"""A call takes the server from 1 to so many milliseconds."""
THINK_TIME = 0.004
"""Seconds between two calls of a client."""
AFTER_FAILURE = 0.02
"""... after one that failed: who hammers a dead address would only make the naive side look worse."""
CALL_TIMEOUT = 10.0

_KINDS = {TTransportException.NOT_OPEN: "refused", TTransportException.TIMED_OUT: "timed out"}


class Sample(NamedTuple):
    """One request: when it was begun on the clock, the seconds it took, and what kind of failure it was, if any."""

    began_at: float
    seconds: float
    failure: str


class _Client:
    def __init__(self, watch: Watch, clock: Clock, *, is_persistent: bool, seed: int) -> None:
        self._watch = watch
        self._clock = clock
        self._is_persistent = is_persistent
        self._random = random.Random(seed)  # noqa: S311 -- the same work on both sides; it protects nothing
        self._callers: dict[ServiceInstance, Caller] = {}
        self._turn = itertools.count(seed)
        self.samples: list[Sample] = []
        self.failed = 0

    def run(self, stopped: threading.Event) -> None:
        """Call until ``stopped``, then hang up."""
        while not stopped.is_set():
            is_fine = self._call()
            self._clock.wait(stopped, THINK_TIME if is_fine else AFTER_FAILURE)
        self._hang_up(list(self._callers))

    def _call(self) -> bool:
        listed = self._watch.instances
        self._hang_up([each for each in self._callers if each not in listed])
        if not listed:
            return False
        instance = listed[next(self._turn) % len(listed)]
        began_at, failure = self._clock.now(), ""
        try:
            self._caller(instance).work(self._random.randint(1, LONGEST_WORK_MS))
        except TTransportException as error:
            failure = _KINDS.get(error.type, "cut off")
        except (TException, OSError, EOFError):
            failure = "cut off"
        except ValueError:
            failure = "wrong answer"
        self.samples.append(Sample(began_at, self._clock.now() - began_at, failure))
        if failure:
            self.failed += 1
        if failure or not self._is_persistent:
            self._hang_up([instance])
        return not failure

    def _caller(self, instance: ServiceInstance) -> Caller:
        if instance not in self._callers:
            self._callers[instance] = Caller(instance.address, instance.port, timeout=CALL_TIMEOUT)
        return self._callers[instance]

    def _hang_up(self, instances: Iterable[ServiceInstance]) -> None:
        for instance in instances:
            caller = self._callers.pop(instance, None)
            if caller is not None:
                with contextlib.suppress(OSError):
                    caller.close()


class Load:
    """Clients in threads of this process, as long as the ``with`` block lasts."""

    def __init__(self, watch: Watch, clock: Clock) -> None:
        """Follow ``watch``, which stays its owner's to close."""
        self._stopped = threading.Event()
        self._clients = [
            _Client(watch, clock, is_persistent=number < PERSISTENT, seed=number)
            for number in range(PERSISTENT + SHORT)
        ]
        self._threads = [
            threading.Thread(
                target=client.run, args=(self._stopped,), name=f"registry-drain-demo-client-{number}", daemon=True
            )
            for number, client in enumerate(self._clients)
        ]

    @property
    def requests(self) -> int:
        """How many were made so far."""
        return sum(len(client.samples) for client in self._clients)

    @property
    def failed(self) -> int:
        """How many of them failed so far."""
        return sum(client.failed for client in self._clients)

    def samples(self) -> list[Sample]:
        """Return all requests, in no order."""
        return [sample for client in self._clients for sample in client.samples]

    def __enter__(self) -> Load:
        """Begin to call."""
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop; calls under way are finished."""
        self._stopped.set()
        for thread in self._threads:
            thread.join(CALL_TIMEOUT)
