"""Promises about registering and listing."""

from __future__ import annotations

from registry_drain.errors import RegistryDrainError
from registry_drain.instance import ServiceInstance
from registry_drain.registries.base import RegistryEntry
from registry_drain.testing.bench import Call, promise, until
from registry_drain.testing.registry_promises.subject import RegistrySubject


def check_entry(entry: RegistryEntry, instance: ServiceInstance) -> None:
    """Fail unless ``entry`` shows ``instance`` as it was registered."""
    for name in ("service", "id", "address", "port", "tags"):
        seen, given = getattr(entry, name), getattr(instance, name)
        promise(seen == given, f"entries() shows what was registered: {name} is {seen!r}, not {given!r}")
    for key, value in instance.metadata.items():
        seen = entry.metadata.get(key)
        promise(seen == value, f"entries() shows what was registered: metadata {key!r} is {seen!r}, not {value!r}")
    promise(not entry.problem, f"a sound entry has no problem, not {entry.problem!r}")
    promise(entry.is_live is not False, "an instance whose owner runs is live, or the registry cannot tell")
    promise(entry.health in {"", "passing"}, f"a registered instance is healthy, not {entry.health!r}")
    promise(bool(entry.locator), "locator says where the entry stands")
    promise(bool(entry.version), "version tells this registration from the next one")


class RegisteringPromises(RegistrySubject):
    """Registering, and what entries() then shows."""

    def test_register_lists_the_instance(self) -> None:
        """When register returns, another client's entries() shows the instance with every field."""
        with self.bench() as bench:
            instance = self.instance()
            registration = bench.registration(bench.registry(), instance)
            promise(not registration.is_registered, "is_registered is False before register()")
            promise(registration.instance == instance, "Registration.instance is what was given")
            registration.register(bench.deadline())
            promise(registration.is_registered, "is_registered is True after register()")
            listed = bench.listed(bench.registry(), instance)
            promise(len(listed) == 1, f"the instance is listed exactly once when register() returns, not {listed}")
            check_entry(listed[0], instance)

    def test_making_a_registration_sends_nothing(self) -> None:
        """A registration that was never registered is in no list."""
        with self.bench() as bench:
            registry, instance = bench.registry(), self.instance()
            bench.registration(registry, instance)
            promise(not bench.listed(registry, instance), "Registry.registration() sends nothing")

    def test_register_twice_does_nothing(self) -> None:
        """A second register on a registered instance changes nothing, its version included."""
        with self.bench() as bench:
            registry, instance = bench.registry(), self.instance()
            registration = bench.registered(registry, instance)
            before = bench.listed(registry, instance)
            registration.register(bench.deadline())
            after = bench.listed(registry, instance)
            promise(len(after) == 1, f"registering twice lists once, not {after}")
            promise(after[0].version == before[0].version, "registering twice writes nothing the second time")

    def test_register_from_many_threads_lists_once(self) -> None:
        """Concurrent registers of one registration end with one entry and no error."""
        with self.bench() as bench:
            registry, instance = bench.registry(), self.instance()
            registration = bench.registration(registry, instance)
            calls = [Call(lambda: registration.register(bench.deadline())) for _ in range(4)]
            for call in calls:
                call.result(2 * self.timeout, "a concurrent register()")
            listed = bench.listed(registry, instance)
            promise(len(listed) == 1, f"concurrent registers list the instance once, not {listed}")

    def test_instances_are_independent(self) -> None:
        """Two instances of one service come and go without touching each other."""
        with self.bench() as bench:
            registry, one = bench.registry(), self.instance(instance_id="one")
            two = self.instance(one.service, "two", port=9091)
            first = bench.registered(registry, one)
            bench.registered(registry, two)
            ids = [entry.id for entry in registry.entries(one.service, bench.deadline())]
            promise(ids == ["one", "two"], f"entries() lists both instances sorted by id, not {ids}")
            first.on_shutdown(bench.deadline())
            ids = [entry.id for entry in registry.entries(one.service, bench.deadline())]
            promise(ids == ["two"], f"removing one instance leaves the other alone, not {ids}")

    def test_entries_of_every_service_are_sorted(self) -> None:
        """entries(None) shows all services, sorted by service and id; entries(name) only one."""
        with self.bench() as bench:
            registry = bench.registry()
            b = self.instance("contract-b-" + self.unique_service())
            a = self.instance("contract-a-" + self.unique_service())
            bench.registered(registry, b)
            bench.registered(registry, a)
            everything = [(entry.service, entry.id) for entry in registry.entries(None, bench.deadline())]
            promise({(a.service, a.id), (b.service, b.id)} <= set(everything), "entries(None) shows every service")
            promise(everything == sorted(everything), "entries(None) is sorted by service and id")
            services = {entry.service for entry in registry.entries(a.service, bench.deadline())}
            promise(services == {a.service}, f"entries(service) shows only that service, not {services}")

    def test_unknown_service_has_no_entries(self) -> None:
        """A service nobody registered is an empty list, not an error."""
        with self.bench() as bench:
            found = bench.registry().entries(self.unique_service(), bench.deadline())
            promise(not found, f"an unknown service has no entries, not {found}")

    def test_odd_but_legal_ids_round_trip(self) -> None:
        """Ids that are legal everywhere come back as they were given, and can be removed."""
        with self.bench() as bench:
            registry, service = bench.registry(), self.unique_service()
            instances = [self.instance(service, odd, 9000 + index) for index, odd in enumerate(self.odd_ids)]
            registrations = [bench.registered(registry, instance) for instance in instances]
            entries = {entry.id: entry for entry in registry.entries(service, bench.deadline())}
            for instance in instances:
                promise(instance.id in entries, f"the id {instance.id!r} is listed as given; listed are {set(entries)}")
                check_entry(entries[instance.id], instance)
            for registration in registrations:
                removal = registration.on_shutdown(bench.deadline())
                promise(removal.is_gone, f"the odd id {registration.instance.id!r} can be removed: {removal}")
            left = registry.entries(service, bench.deadline())
            promise(not left, f"every odd id is gone after on_shutdown(), not {left}")

    def test_addresses_round_trip(self) -> None:
        """IPv6 addresses, host names and the highest port come back as they were given, in entries and watches."""
        with self.bench() as bench:
            registry, service = bench.registry(), self.unique_service()
            instances = [
                ServiceInstance(service, address, port)
                for address, port in (("2001:db8::17", 65535), ("::1", 1), ("worker-1.example", 443))
            ]
            for instance in instances:
                bench.registered(registry, instance)
            for instance in instances:
                check_entry(bench.listed(registry, instance)[0], instance)
            watch = bench.watch(registry, service)
            wanted = tuple(sorted(instances, key=lambda instance: instance.id))
            until(
                lambda: watch.instances == wanted,
                self.settle,
                "a watch shows instances equal to those registered",
                lambda: watch.instances,
            )

    def test_a_past_deadline_ends_every_call_promptly(self) -> None:
        """With no time left each call returns or raises an error of our tree, at once."""
        with self.bench() as bench:
            registry, other = bench.registry(), bench.registry()
            instance = self.instance()
            bench.registered(registry, instance)
            entry = bench.listed(registry, instance)[0]
            late = bench.registration(other, self.instance(instance.service, "late", 9092))
            calls = {
                "register()": lambda: late.register(self.past()),
                "entries()": lambda: other.entries(instance.service, self.past()),
                "watch()": lambda: other.watch(instance.service, self.past()).close(),
                "remove()": lambda: other.remove(entry, self.past()),
                "fence()": lambda: late.fence(self.past()),
                "on_shutdown()": lambda: late.on_shutdown(self.past()),
            }
            for name, call in calls.items():
                what = f"{name} with a past deadline"
                error = Call[object](call).ended(self.prompt, what).error
                promise(
                    error is None or isinstance(error, RegistryDrainError),
                    f"{what} returns or raises a RegistryDrainError, not {error!r}",
                )
                promise(
                    error is None or name not in {"fence()", "on_shutdown()"},
                    f"{what} never raises, it raised {error!r}",
                )

    def test_registry_close_is_idempotent(self) -> None:
        """A registry can be closed twice, and unused."""
        with self.bench() as bench:
            unused, used = bench.registry(), bench.registry()
            used.entries(self.unique_service(), bench.deadline())
            for registry in (unused, used):
                registry.close()
                registry.close()
