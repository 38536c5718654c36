"""Several servers of one process stopped as one: an RPC port and an admin port, under one budget, in one report.

Theory of operation: a group is a :class:`~registry_drain.servers.base.DrainableServer` of servers. Each step is done to
all of them at the same time, each in a thread of its own, so a server that is slow or broken costs the others nothing;
what goes wrong in one is said with its name, after the others are done.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Generic, TypeVar

from registry_drain.clock import SYSTEM_CLOCK, Clock, Deadline
from registry_drain.errors import ConfigurationError, ServerError
from registry_drain.phases import Phase
from registry_drain.servers.base import DrainableServer, ListenerClosure
from registry_drain.servers.in_flight import InFlight, InFlightRequest

T = TypeVar("T")

_FEW_S = 0.25
"""A step with less time than this (a second signal) is short: a tenth of it is too little headroom for threads."""
_SHORT_S = 1.0
"""Seconds that a short step may take. A stop itself does not wait for so long, and so its phases keep their limits."""


class ServerGroup:
    """Drains several servers as one. Thread-safe.

    Args:
        servers: by the name that the report gives them. The first one's address is what gets registered.
        clock: for the instants of requests; the servers' own.

    Raises:
        ConfigurationError: there is none.
    """

    def __init__(self, servers: Mapping[str, DrainableServer], *, clock: Clock = SYSTEM_CLOCK) -> None:
        if not servers:
            raise ConfigurationError("a group needs at least one server")
        self._servers = dict(servers)
        self._in_flight = InFlight(clock=clock)
        for server in self._servers.values():
            self._in_flight.include(server.in_flight)
        self._in_flight.stop_state.watch(self._pass_on)

    @property
    def in_flight(self) -> InFlight:
        """All servers' requests together."""
        return self._in_flight

    def start(self) -> tuple[str, int]:
        """Start one after the other; return the first one's bound address and port.

        If one fails those before it are stopped again.

        Raises:
            OSError: an address cannot be bound.
            ServerError: one was started or stopped before.
        """
        bound: list[tuple[str, int]] = []
        started: list[DrainableServer] = []
        try:
            for server in self._servers.values():
                bound.append(server.start())
                started.append(server)
        except BaseException:
            for server in started:
                with suppress(Exception):
                    server.cut_off()
            raise
        return bound[0]

    def use_loop(self, loop: object) -> None:
        """Give the application's event loop to those that can use it; see :class:`ServerLoop`."""
        for server in self._servers.values():
            use_loop = getattr(server, "use_loop", None)
            if use_loop is not None:
                use_loop(loop)

    def close_listener(self, deadline: Deadline) -> ListenerClosure:
        """Close all listeners; the closure's method says each server's."""
        closures = self._all(lambda server: server.close_listener(deadline.with_headroom()), deadline)
        return ListenerClosure(
            ", ".join(f"{name}: {closure.method}" for name, closure in closures.items()),
            sum(closure.accepted for closure in closures.values()),
            all(closure.is_clean for closure in closures.values()),
        )

    def drain(self, deadline: Deadline) -> bool:
        """Drain all of them; True if every one finished."""
        return all(self._all(lambda server: server.drain(deadline.with_headroom()), deadline).values())

    def cut_off(self) -> tuple[InFlightRequest, ...]:
        """Cut off what is left of each."""
        cut = self._all(lambda server: server.cut_off())
        return tuple(sorted((each for one in cut.values() for each in one), key=lambda request: request.started_at))

    def _pass_on(self, phase: Phase) -> None:
        cut_off_at = self._in_flight.stop_state.cut_off_at
        for server in self._servers.values():
            server.in_flight.stop_state.enter(phase, cut_off_at)

    def _all(self, step: Callable[[DrainableServer], T], deadline: Deadline | None = None) -> dict[str, T]:
        """Do ``step`` to all; raise, once each has ended or the deadline is past, if it failed for any."""
        is_short = deadline is not None and deadline.remaining() < _FEW_S
        patient_until = time.monotonic() + (_SHORT_S if is_short else 0.0)
        steps = {name: _Step(name, server, step) for name, server in self._servers.items()}
        failures = [
            f"{name}: {error}" for name, each in steps.items() if (error := each.failure(deadline, patient_until))
        ]
        if failures:
            raise ServerError("; ".join(failures))
        return {name: each.value[0] for name, each in steps.items()}

    def __repr__(self) -> str:
        """Show the servers."""
        return f"<ServerGroup {self._servers!r}>"


class _Step(Generic[T]):
    """One step of one server, in a thread of its own."""

    def __init__(self, name: str, server: DrainableServer, step: Callable[[DrainableServer], T]) -> None:
        self.value: list[T] = []
        self._error = ""
        self._work: Callable[[], T] = partial(step, server)
        self._has_ended = threading.Event()
        threading.Thread(target=self._run, name=f"registry-drain-group-{name}", daemon=True).start()

    def _run(self) -> None:
        try:
            self.value.append(self._work())
        except Exception as error:  # noqa: BLE001 - said by the group, with the server's name
            self._error = f"{type(error).__name__}: {error}"
        finally:
            self._has_ended.set()

    def failure(self, deadline: Deadline | None, patient_until: float) -> str:
        """Wait for its end, without a deadline for ever; return what went wrong."""
        if deadline is None:
            self._has_ended.wait()
        elif not (deadline.wait(self._has_ended) or self._has_ended.wait(max(patient_until - time.monotonic(), 0))):
            return "did not return in time"
        return self._error
