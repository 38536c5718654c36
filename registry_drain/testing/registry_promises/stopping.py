"""Promises about the fence and about removing one's own instance."""

from __future__ import annotations

import functools
import threading
import time

from registry_drain.errors import LiveOwnerError, RegistryDrainError
from registry_drain.registries.base import RemovalOutcome
from registry_drain.testing.bench import Call, promise, until
from registry_drain.testing.registry_promises.subject import RegistrySubject


class StoppingPromises(RegistrySubject):
    """Never resurrect, never remove a successor, stop during start-up works."""

    def test_own_instance_is_removed_and_proven(self) -> None:
        """on_shutdown ends CONFIRMED, with the instant of the proof, and nothing is listed."""
        with self.bench() as bench:
            registry, instance = bench.registry(), self.instance()
            registration = bench.registered(registry, instance)
            began_at = self.clock.now()
            removal = registration.on_shutdown(bench.deadline())
            ended_at = self.clock.now()
            listed = bench.listed(bench.registry(), instance)
            promise(not listed, f"a CONFIRMED instance is in no consistent read, but: {listed}")
            promise(removal.outcome is RemovalOutcome.CONFIRMED, f"removing one's own is CONFIRMED, not {removal}")
            promise(
                removal.confirmed_at is not None and began_at <= removal.confirmed_at <= ended_at,
                f"confirmed_at is the clock's instant of the proof, in [{began_at}, {ended_at}]: {removal}",
            )
            promise(removal.attempts >= 1, f"a removal that was sent counts its attempts: {removal}")
            promise(removal.subject == str(instance), f"subject names the instance: {removal}")
            promise(removal.registry == registry.url, f"registry is the registry's URL: {removal}")
            promise("\n" not in removal.detail, f"detail is one line: {removal.detail!r}")
            promise(not registration.is_registered, "is_registered is False after on_shutdown()")

    def test_on_shutdown_twice(self) -> None:
        """A second on_shutdown still says that the instance is gone."""
        with self.bench() as bench:
            registry, instance = bench.registry(), self.instance()
            registration = bench.registered(registry, instance)
            registration.on_shutdown(bench.deadline())
            again = registration.on_shutdown(bench.deadline())
            promise(again.is_gone, f"on_shutdown() is idempotent; the second one said {again}")

    def test_on_shutdown_from_many_threads(self) -> None:
        """Concurrent on_shutdown calls all learn that the instance is gone."""
        with self.bench() as bench:
            registry, instance = bench.registry(), self.instance()
            registration = bench.registered(registry, instance)
            calls = [Call(lambda: registration.on_shutdown(bench.deadline())) for _ in range(4)]
            for call in calls:
                removal = call.result(2 * self.timeout, "a concurrent on_shutdown()")
                promise(removal.is_gone, f"every concurrent on_shutdown() ends gone, one said {removal}")
            promise(not bench.listed(registry, instance), "nothing is listed after concurrent on_shutdown() calls")

    def test_on_shutdown_without_register(self) -> None:
        """What never reached the registry is NOT_REGISTERED."""
        with self.bench() as bench:
            registration = bench.registration(bench.registry(), self.instance())
            removal = registration.on_shutdown(bench.deadline())
            promise(
                removal.outcome is RemovalOutcome.NOT_REGISTERED,
                f"on_shutdown() without register() is NOT_REGISTERED, not {removal}",
            )

    def test_a_stop_that_ran_out_of_time_can_be_asked_again(self) -> None:
        """After on_shutdown with no time left, a second one with time removes the instance."""
        with self.bench() as bench:
            registry, instance = bench.registry(), self.instance()
            registration = bench.registered(registry, instance)
            registration.on_shutdown(self.past())
            removal = registration.on_shutdown(bench.deadline())
            promise(removal.is_gone, f"on_shutdown() with time left removes what an earlier one could not: {removal}")
            promise(not bench.listed(registry, instance), "nothing is listed after the second on_shutdown()")

    def test_fence_removes_nothing(self) -> None:
        """A fenced instance stays listed until it is removed: callers are not cut before the proof begins."""
        with self.bench() as bench:
            registry, instance = bench.registry(), self.instance()
            registration = bench.registered(registry, instance)
            registration.fence(bench.deadline())
            registration.fence(bench.deadline())
            promise(len(bench.listed(registry, instance)) == 1, "fence() removes nothing")
            removal = registration.on_shutdown(bench.deadline())
            promise(
                removal.outcome is RemovalOutcome.CONFIRMED, f"a fenced instance is removed CONFIRMED, not {removal}"
            )

    def test_fence_joins_what_renews(self) -> None:
        """When fence returns before its deadline, none of our threads is left that could renew or register."""
        with self.bench() as bench:
            registration = bench.registered(bench.registry(), self.instance())
            registration.fence(bench.deadline())
            left = bench.new_threads()
            promise(not left, f"never resurrect: fence() joins what could renew, but these live: {left}")

    def test_register_after_fence_is_refused(self) -> None:
        """A fenced registration refuses to register, whether or not it was registered before."""
        with self.bench() as bench:
            registry = bench.registry()
            fresh = bench.registration(registry, self.instance())
            stopped = bench.registered(registry, self.instance())
            fresh.fence(bench.deadline())
            stopped.on_shutdown(bench.deadline())
            for registration in (fresh, stopped):
                error = (
                    Call(functools.partial(registration.register, bench.deadline()))
                    .ended(self.timeout, "register()")
                    .error
                )
                promise(
                    isinstance(error, LiveOwnerError),
                    f"never resurrect: register() after fence() raises LiveOwnerError, not {error!r}",
                )
                promise(not registration.is_registered, "is_registered stays False after a refused register()")
                promise(
                    not bench.listed(registry, registration.instance),
                    "never resurrect: register() after fence() lists nothing",
                )

    def test_nothing_comes_back(self) -> None:
        """After a confirmed removal the instance stays away, while its registry object lives on."""
        with self.bench() as bench:
            registry, instance = bench.registry(), self.instance()
            bench.registered(registry, instance).on_shutdown(bench.deadline())
            ends_at = time.monotonic() + self.look_again
            while time.monotonic() < ends_at:
                listed = bench.listed(registry, instance)
                promise(not listed, f"never resurrect: the instance came back: {listed}")

    def test_stop_during_start_up(self) -> None:
        """Fence and on_shutdown race with a register in another thread: never listed afterwards."""
        with self.bench() as bench:
            registry, service = bench.registry(), self.unique_service()
            began = time.monotonic()
            bench.registered(registry, self.instance(service, "measured")).on_shutdown(bench.deadline())
            usual = time.monotonic() - began
            for race in range(self.races):
                instance = self.instance(service, f"race-{race}")
                registration = bench.registration(registry, instance)
                call = Call(functools.partial(registration.register, bench.deadline()))
                # Spread the stop over the whole of a registration: that is the race, not a wait for a state.
                threading.Event().wait(usual * race / self.races)
                if race % 2:
                    registration.fence(bench.deadline())
                removal = registration.on_shutdown(bench.deadline())
                at_once = bench.listed(registry, instance)
                error = call.ended(2 * self.timeout, "a register() that was stopped").error
                afterwards = bench.listed(registry, instance)
                promise(removal.is_gone, f"stop during start-up works: race {race} ended {removal}")
                promise(
                    error is None or isinstance(error, RegistryDrainError),
                    f"a stopped register() returns or raises a RegistryDrainError, not {error!r}",
                )
                promise(
                    not at_once and not afterwards,
                    f"never resurrect: race {race} ended {removal.outcome} and the instance is listed: {afterwards}",
                )

    def test_a_successor_survives(self) -> None:
        """A restarted process took the id over: the old one's on_shutdown says SUCCESSOR and leaves it listed."""
        with self.bench() as bench:
            old_registry, new_registry = bench.registry(), bench.registry()
            instance = self.instance()
            old = bench.registered(old_registry, instance)
            new = bench.registration(new_registry, instance)
            if not self.takes_over_live_owner:
                error = Call(lambda: new.register(bench.deadline())).ended(self.timeout, "register()").error
                promise(isinstance(error, LiveOwnerError), f"a live owner's id is refused, not {error!r}")
                promise(len(bench.listed(old_registry, instance)) == 1, "a refused successor leaves the owner listed")
                return
            new.register(bench.deadline())
            removal = old.on_shutdown(bench.deadline())
            listed = bench.listed(new_registry, instance)
            promise(
                len(listed) == 1, f"never remove a successor: it is not listed any more; the old one said {removal}"
            )
            promise(
                removal.outcome is RemovalOutcome.SUCCESSOR,
                f"on_shutdown() of a replaced instance is SUCCESSOR, not {removal}",
            )
            promise(new.is_registered, "the successor knows that it is registered")
            check_again = new.on_shutdown(bench.deadline())
            promise(
                check_again.outcome is RemovalOutcome.CONFIRMED,
                f"the successor is removed by itself, CONFIRMED, not {check_again}",
            )

    def test_a_successor_that_races_survives(self) -> None:
        """The successor registers while the old process deregisters: whoever is first, the successor is listed."""
        if not self.takes_over_live_owner:
            return
        with self.bench() as bench:
            old_registry, new_registry = bench.registry(), bench.registry()
            service = self.unique_service()
            for race in range(self.races):
                instance = self.instance(service, f"race-{race}")
                old = bench.registered(old_registry, instance)
                new = bench.registration(new_registry, instance)
                stop = Call(functools.partial(old.on_shutdown, bench.deadline()))
                new.register(bench.deadline())
                removal = stop.result(2 * self.timeout, "on_shutdown() of the old instance")
                promise(removal.is_gone, f"the old instance is gone, whoever was first: {removal}")
                listed = bench.listed(new_registry, instance)
                promise(len(listed) == 1, f"never remove a successor: race {race} ended {removal} and lists {listed}")
                new.on_shutdown(bench.deadline())

    def test_a_killed_owner_disappears(self) -> None:
        """Nobody said goodbye: callers stop seeing the instance within expiry_seconds, and a successor may register."""
        with self.bench() as bench:
            registry, instance = bench.registry(), self.instance()
            kill = self.start_doomed_owner(instance)
            watch = bench.watch(registry, instance.service)
            try:
                until(
                    lambda: watch.instances == (instance,),
                    self.settle,
                    "the doomed owner is in the watch",
                    lambda: watch.instances,
                )
            finally:
                kill()
            until(
                lambda: not watch.instances, self.expiry_seconds, "a killed owner's instance leaves the watch by itself"
            )
            live = [entry for entry in bench.listed(registry, instance) if entry.is_live and entry.health != "critical"]
            promise(not live, f"a killed owner's entry is gone, or not live: {live}")
            bench.registered(bench.registry(), instance)
            until(
                lambda: watch.instances == (instance,),
                self.settle,
                "a dead entry is taken over by a successor",
                lambda: watch.instances,
            )
