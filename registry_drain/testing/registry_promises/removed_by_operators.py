"""Promises about respecting an operator's removal; for backends whose registrations can be told to rejoin."""

from __future__ import annotations

import time
import unittest
from dataclasses import replace

from registry_drain.errors import LiveOwnerError, RemovedByOperatorError
from registry_drain.instance import ServiceInstance
from registry_drain.registries.abilities import RejoinableRegistration
from registry_drain.registries.base import Registry
from registry_drain.testing.bench import Call, RegistryBench, promise, until
from registry_drain.testing.registry_promises.subject import RegistrySubject


class RemovedByOperatorPromises(RegistrySubject):
    """What an operator removed stays out until it is told to rejoin; what was lost is restored."""

    def _registered(self, bench: RegistryBench, instance: ServiceInstance) -> RejoinableRegistration:
        registration = bench.registration(bench.registry(), instance)
        if not isinstance(registration, RejoinableRegistration):
            reason = f"{type(registration).__name__} has no rejoin(): what an operator removed may come back"
            raise unittest.SkipTest(reason)
        registration.register(bench.deadline())
        return registration

    def _remove(self, bench: RegistryBench, operator: Registry, registration: RejoinableRegistration) -> None:
        """Remove it as an operator does, and wait until its owner knows."""
        entry = bench.listed(operator, registration.instance)[0]
        operator.remove(entry, bench.deadline(), force=True)
        until(lambda: bool(registration.removed_by_operator), self.settle, "removed_by_operator says so within settle")
        promise(not registration.is_registered, "is_registered is False once an operator's removal was found out")

    def _is_told(self, told: list[str], count: int) -> None:
        """Wait until on_removed was called ``count`` times, which is after removed_by_operator says so."""
        until(lambda: len(told) >= count, self.settle, "on_removed is called within settle", lambda: told)

    def _stays_away(self, bench: RegistryBench, operator: Registry, instance: ServiceInstance) -> None:
        ends_at = time.monotonic() + self.look_again
        while time.monotonic() < ends_at:
            listed = bench.listed(operator, instance)
            promise(not listed, f"never resurrect: what an operator removed came back: {listed}")

    def test_an_operators_removal_stands(self) -> None:
        """It stays out, is told once, is not registered by register(), and its stop ends well."""
        with self.bench() as bench:
            operator, instance = bench.registry(), self.instance()
            registration = self._registered(bench, instance)
            told: list[str] = []
            registration.on_removed(told.append)
            promise(not registration.removed_by_operator, "removed_by_operator is empty while nobody removed it")
            self._remove(bench, operator, registration)
            self._stays_away(bench, operator, instance)
            self._is_told(told, 1)
            promise(told == [registration.removed_by_operator], f"on_removed is called once, with the line: {told}")
            promise("\n" not in told[0], f"removed_by_operator is one line: {told[0]!r}")
            error = Call(lambda: registration.register(bench.deadline())).ended(self.timeout, "register()").error
            promise(
                isinstance(error, RemovedByOperatorError),
                f"register() after an operator's removal raises RemovedByOperatorError, not {error!r}",
            )
            promise(not bench.listed(operator, instance), "never resurrect: register() after an operator's removal")
            removal = registration.on_shutdown(bench.deadline())
            promise(removal.is_gone, f"on_shutdown() after an operator's removal ends gone: {removal}")
            promise("by an operator" in removal.detail, f"on_shutdown() says who removed it: {removal}")

    def test_rejoining_lists_it_again(self) -> None:
        """rejoin() lists it, as often as it was removed; on a registered one it does nothing."""
        with self.bench() as bench:
            operator, instance = bench.registry(), self.instance()
            registration = self._registered(bench, instance)
            told: list[str] = []
            registration.on_removed(told.append)
            for count in (1, 2):
                self._remove(bench, operator, registration)
                self._is_told(told, count)
                registration.rejoin(bench.deadline())
                promise(len(bench.listed(operator, instance)) == 1, "rejoin() lists the instance once")
                promise(registration.is_registered, "is_registered is True after rejoin()")
                promise(not registration.removed_by_operator, "removed_by_operator is empty after rejoin()")
                promise(len(told) == count, f"on_removed is called once for each removal: {told}")
            before = bench.listed(operator, instance)[0].version
            registration.rejoin(bench.deadline())
            promise(bench.listed(operator, instance)[0].version == before, "rejoin() of a registered one does nothing")

    def test_rejoining_spares_a_successor(self) -> None:
        """The id was registered anew after the removal: rejoin() raises LiveOwnerError and changes nothing."""
        with self.bench() as bench:
            operator, instance = bench.registry(), self.instance()
            registration = self._registered(bench, instance)
            self._remove(bench, operator, registration)
            self._registered(bench, replace(instance, metadata={**instance.metadata, "process": "new"}))
            before = bench.listed(operator, instance)
            error = Call(lambda: registration.rejoin(bench.deadline())).ended(self.timeout, "rejoin()").error
            promise(isinstance(error, LiveOwnerError), f"rejoin() spares a successor: LiveOwnerError, not {error!r}")
            after = bench.listed(operator, instance)
            promise(
                [entry.version for entry in after] == [entry.version for entry in before],
                f"never remove a successor: rejoin() changed {before} to {after}",
            )

    def test_a_successor_is_no_operator(self) -> None:
        """Being taken over is not being removed."""
        if not self.takes_over_live_owner:
            raise unittest.SkipTest("takes_over_live_owner is False")
        with self.bench() as bench:
            operator, instance = bench.registry(), self.instance()
            old, new = self._registered(bench, instance), self._registered(bench, instance)
            ends_at = time.monotonic() + self.look_again
            while time.monotonic() < ends_at:
                promise(not old.removed_by_operator, f"a take-over is no removal: {old.removed_by_operator}")
                promise(len(bench.listed(operator, instance)) == 1, "one entry for one id after a take-over")
            promise(not new.removed_by_operator, f"whoever took over was not removed: {new.removed_by_operator}")

    def test_a_stop_is_no_operator(self) -> None:
        """After its own stop nothing says that it was removed, and nothing lets it rejoin."""
        with self.bench() as bench:
            operator, instance = bench.registry(), self.instance()
            registration = self._registered(bench, instance)
            registration.on_shutdown(bench.deadline())
            promise(not registration.removed_by_operator, "a stop is no operator's removal")
            error = Call(lambda: registration.rejoin(bench.deadline())).ended(self.timeout, "rejoin()").error
            promise(isinstance(error, LiveOwnerError), f"never resurrect: rejoin() after the stop raised {error!r}")
            promise(not bench.listed(operator, instance), "never resurrect: rejoin() after the stop lists nothing")

    def test_what_was_lost_is_restored(self) -> None:
        """The registry lost it, and nobody removed it: it is listed again, and nothing is said of a removal."""
        with self.bench() as bench:
            operator, instance = bench.registry(), self.instance()
            registration = self._registered(bench, instance)
            before = bench.listed(operator, instance)[0].version
            self.lose(registration)

            def is_back() -> bool:
                listed = bench.listed(operator, instance)
                return bool(listed) and listed[0].version != before and registration.is_registered

            until(is_back, self.settle, "what the registry lost is registered again within settle")
            promise(not registration.removed_by_operator, f"a loss is no removal: {registration.removed_by_operator}")
