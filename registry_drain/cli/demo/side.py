"""One side of the demo: a fleet under load, its instances restarted one after the other."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from registry_drain.cli.demo.fleet import Fleet
from registry_drain.cli.demo.instance import Style
from registry_drain.cli.demo.load import Load
from registry_drain.cli.demo.tally import Stop, Tally
from registry_drain.clock import Clock, Deadline
from registry_drain.registries.base import Registry
from registry_drain.registries.url import open_registry

WARM_UP = 50
"""Requests before the first restart: every client has its connections then."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What both sides go through.

    Attributes:
        registry_url: where the fleets are listed.
        instances: how many there are at a time.
        restarts: how often each is restarted, if ``seconds`` is None.
        seconds: else restarts go on for so long.
        directory: for the processes' logs.
    """

    registry_url: str
    instances: int
    restarts: int
    seconds: float | None
    directory: Path

    @property
    def total(self) -> int | None:
        """How many restarts there will be; None if nobody knows yet."""
        return self.instances * self.restarts if self.seconds is None else None


OnRestart = Callable[[int, int, int], None]
"""Told of restarts, requests and failures so far."""


def run_side(plan: Plan, style: Style, on_progress: OnRestart, clock: Clock) -> Tally:
    """Run one side and return what it came to.

    Raises:
        ServerError: an instance did not start.
        RegistryError: the registry could not be followed.
    """
    stops: list[Stop] = []
    service = f"registry-drain-demo-{style.value}-{uuid.uuid4().hex[:8]}"
    with (
        _opened(plan.registry_url, clock) as registry,
        Fleet(registry, plan.registry_url, service, style, plan.directory, clock) as fleet,
    ):
        fleet.start(plan.instances)
        with Load(fleet.watch, clock) as load:
            _warm_up(load, clock)
            ends_at = None if plan.seconds is None else Deadline.after(plan.seconds, clock)
            while len(stops) != plan.total and not (ends_at is not None and ends_at.is_past):
                stops.append(fleet.restart(len(stops)))
                on_progress(len(stops), load.requests, load.failed)
        return Tally.of(load.samples(), stops)


@contextlib.contextmanager
def _opened(url: str, clock: Clock) -> Iterator[Registry]:
    registry = open_registry(url, clock)
    try:
        yield registry
    finally:
        registry.close()


def _warm_up(load: Load, clock: Clock) -> None:
    deadline = Deadline.after(10.0, clock)
    while load.requests < WARM_UP and not deadline.is_past:
        clock.sleep(0.01)
