"""Promises about handing a registration to the next process; for backends whose registrations can be handed over."""

from __future__ import annotations

import threading
import unittest
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from registry_drain.instance import ServiceInstance
from registry_drain.registries.abilities import HandoverRegistration
from registry_drain.registries.base import Registry, RemovalOutcome
from registry_drain.testing.bench import RegistryBench, promise, until
from registry_drain.testing.registry_promises.subject import RegistrySubject

_PROCESS = "process"
"""The metadata that tells the old process' entry from the new one's."""


class HandingOverPromises(RegistrySubject):
    """The entry of a registration that is handed over is never missing, never double, and never removed by the wrong
    one.
    """

    def _registration(self, bench: RegistryBench, instance: ServiceInstance, process: str) -> HandoverRegistration:
        instance = replace(instance, metadata={**instance.metadata, _PROCESS: process})
        registration = bench.registration(bench.registry(), instance)
        if not isinstance(registration, HandoverRegistration):
            reason = f"{type(registration).__name__} has no offer(): it cannot be handed over"
            raise unittest.SkipTest(reason)
        return registration

    def _processes(self, bench: RegistryBench, registry: Registry, instance: ServiceInstance) -> list[str]:
        return [str(entry.metadata.get(_PROCESS)) for entry in bench.listed(registry, instance)]

    def test_handing_over_shows_neither_gap_nor_double(self) -> None:
        """Whoever looks, all the time, sees one entry; and it is the new one's in the end."""
        with self.bench() as bench:
            instance, looking = self.instance(), bench.registry()
            old = self._registration(bench, instance, "old")
            old.register(bench.deadline())
            with self._always_one(bench, looking, instance):
                new = self._registration(bench, instance, "new")
                new.adopt(old.offer(bench.deadline()))
                new.register(bench.deadline())
                promise(self._processes(bench, looking, instance) == ["new"], "a registration that adopts takes over")
                new.confirm()
                removal = old.hand_over(bench.deadline())
                promise(
                    removal.outcome is RemovalOutcome.HANDED_OVER, f"hand_over() says so, and looks: it said {removal}"
                )
                promise(removal.is_gone, "what is handed over is nothing of ours any more")
                promise(new.is_registered, "the new process knows that it is registered")
            removal = new.on_shutdown(bench.deadline())
            promise(removal.outcome is RemovalOutcome.CONFIRMED, f"what was confirmed is removed: {removal}")
            promise(not bench.listed(looking, instance), "the new process removes what it took over")

    def test_a_hand_over_that_fails_leaves_the_old_one_listed(self) -> None:
        """The new process registered, and is no good: the old one takes back, and the new one removes nothing."""
        with self.bench() as bench:
            instance, looking = self.instance(), bench.registry()
            old = self._registration(bench, instance, "old")
            old.register(bench.deadline())
            with self._always_one(bench, looking, instance):
                new = self._registration(bench, instance, "new")
                new.adopt(old.offer(bench.deadline()))
                new.register(bench.deadline())
                old.take_back(bench.deadline())
                new.on_shutdown(bench.deadline())
                old.take_back(bench.deadline())
                promise(self._processes(bench, looking, instance) == ["old"], "take_back() lists the old one again")
                promise(old.is_registered, "the old process knows that it is registered")
            removal = old.on_shutdown(bench.deadline())
            promise(removal.outcome is RemovalOutcome.CONFIRMED, f"what was taken back is removed: {removal}")
            promise(not bench.listed(looking, instance), "what was taken back is removed in the end")

    def test_an_offer_that_nobody_takes_changes_nothing(self) -> None:
        """The new process never registered: the old one is listed, and can be offered again, and removed."""
        with self.bench() as bench:
            instance, looking = self.instance(), bench.registry()
            old = self._registration(bench, instance, "old")
            old.register(bench.deadline())
            old.offer(bench.deadline())
            old.take_back(bench.deadline())
            promise(self._processes(bench, looking, instance) == ["old"], "an offer changes nothing")
            old.offer(bench.deadline())
            removal = old.on_shutdown(bench.deadline())
            promise(
                removal.outcome is RemovalOutcome.CONFIRMED, f"what is only offered is removed by a stop: {removal}"
            )

    def test_several_hand_overs_in_a_row(self) -> None:
        """A registration that was adopted can be handed over itself."""
        with self.bench() as bench:
            instance, looking = self.instance(), bench.registry()
            current = self._registration(bench, instance, "0")
            current.register(bench.deadline())
            with self._always_one(bench, looking, instance):
                for number in range(1, 4):
                    successor = self._registration(bench, instance, str(number))
                    successor.adopt(current.offer(bench.deadline()))
                    successor.register(bench.deadline())
                    successor.confirm()
                    current.hand_over(bench.deadline())
                    current = successor
            promise(self._processes(bench, looking, instance) == ["3"], "the last one is listed")

    @contextmanager
    def _always_one(self, bench: RegistryBench, registry: Registry, instance: ServiceInstance) -> Iterator[None]:
        """Fail if a look, one after the other, or a watch ever shows another number of entries than one."""
        is_over = threading.Event()
        seen: list[int] = []
        watched: list[int] = []
        errors: list[Exception] = []

        def look() -> None:
            while not is_over.is_set():
                try:
                    seen.append(len(bench.listed(registry, instance)))
                except Exception as error:  # noqa: BLE001, PERF203 -- said below
                    errors.append(error)

        watch = bench.watch(bench.registry(), instance.service, lambda instances: watched.append(len(instances)))
        until(lambda: watched == [1], self.settle, "the watch shows the instance", lambda: watched)
        looking = threading.Thread(target=look, name="contract-look", daemon=True)
        looking.start()
        until(lambda: bool(seen), self.settle, "entries() answers")
        try:
            yield
        finally:
            is_over.set()
            looking.join(self.timeout)
        promise(not errors, f"entries() fails during a hand-over: {errors[:1]}")
        promise(set(seen) == {1}, f"neither gap nor double: of {len(seen)} looks some showed {set(seen) - {1}} entries")
        promise(set(watched) == {1}, f"neither gap nor double: the watch showed {watched} instances")
        watch.close()
