"""Promises about removing somebody else's instance, as an operator does."""

from __future__ import annotations

import functools

from registry_drain.errors import InstanceNotFoundError, LiveOwnerError
from registry_drain.registries.base import RemovalOutcome
from registry_drain.testing.bench import Call, promise
from registry_drain.testing.registry_promises.subject import RegistrySubject


class RemovingPromises(RegistrySubject):
    """Exactly what was shown, never a live owner without force, and proven."""

    def test_a_live_owner_is_left_alone(self) -> None:
        """Without force, remove of a live owner's entry raises LiveOwnerError and removes nothing."""
        with self.bench() as bench:
            registry, operator, instance = bench.registry(), bench.registry(), self.instance()
            bench.registered(registry, instance)
            entry = bench.listed(operator, instance)[0]
            error = Call(lambda: operator.remove(entry, bench.deadline())).ended(2 * self.timeout, "remove()").error
            promise(isinstance(error, LiveOwnerError), f"remove() of a live owner raises LiveOwnerError, not {error!r}")
            promise(
                len(bench.listed(operator, instance)) == 1, "remove() of a live owner without force removes nothing"
            )

    def test_force_removes_a_live_owner(self) -> None:
        """With force the entry goes, proven; its owner's own stop then still ends well."""
        with self.bench() as bench:
            registry, operator, instance = bench.registry(), bench.registry(), self.instance()
            registration = bench.registered(registry, instance)
            # What an owner that still renews does about it is another question: this one does not.
            registration.fence(bench.deadline())
            entry = bench.listed(operator, instance)[0]
            began_at = self.clock.now()
            removal = operator.remove(entry, bench.deadline(), force=True)
            promise(not bench.listed(registry, instance), f"remove(force=True) removes a live owner's entry: {removal}")
            promise(removal.outcome is RemovalOutcome.CONFIRMED, f"remove() is proven: CONFIRMED, not {removal}")
            promise(
                removal.confirmed_at is not None and removal.confirmed_at >= began_at,
                f"confirmed_at is the clock's instant of the proof: {removal}",
            )
            promise(instance.id in removal.subject, f"subject names the instance: {removal}")
            own = registration.on_shutdown(bench.deadline())
            promise(own.is_gone, f"on_shutdown() after an operator's removal ends gone, not {own}")

    def test_an_entry_that_changed_is_left_alone(self) -> None:
        """The id was registered anew since it was shown: even force does not remove what was not shown."""
        with self.bench() as bench:
            registry, operator, instance = bench.registry(), bench.registry(), self.instance()
            old = bench.registered(registry, instance)
            shown = bench.listed(operator, instance)[0]
            old.on_shutdown(bench.deadline())
            bench.registered(registry, instance)
            promise(bench.listed(operator, instance)[0].version != shown.version, "a re-registration has a new version")
            for force in (False, True):
                call = Call(functools.partial(operator.remove, shown, bench.deadline(), force=force))
                error = call.ended(2 * self.timeout, "remove()").error
                promise(
                    isinstance(error, LiveOwnerError),
                    f"remove(force={force}) of an entry registered anew raises LiveOwnerError, not {error!r}",
                )
                promise(
                    len(bench.listed(operator, instance)) == 1,
                    f"remove(force={force}) never removes what was not shown to the operator",
                )

    def test_an_entry_that_is_gone(self) -> None:
        """What is gone already raises InstanceNotFoundError, with and without force."""
        with self.bench() as bench:
            registry, operator, instance = bench.registry(), bench.registry(), self.instance()
            registration = bench.registered(registry, instance)
            shown = bench.listed(operator, instance)[0]
            registration.on_shutdown(bench.deadline())
            for force in (False, True):
                call = Call(functools.partial(operator.remove, shown, bench.deadline(), force=force))
                error = call.ended(2 * self.timeout, "remove()").error
                promise(
                    isinstance(error, InstanceNotFoundError),
                    f"remove(force={force}) of what is gone raises InstanceNotFoundError, not {error!r}",
                )
