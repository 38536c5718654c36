"""Promises about watches: what callers see."""

from __future__ import annotations

import itertools
import threading
import time

from registry_drain.instance import ServiceInstance
from registry_drain.registries.base import Watch
from registry_drain.testing.bench import POLL, promise, until
from registry_drain.testing.registry_promises.subject import RegistrySubject


class WatchingPromises(RegistrySubject):
    """A watch shows the healthy instances, and tells."""

    def test_watch_begins_with_what_is_listed(self) -> None:
        """When watch returns, it holds the current list, and the callback is told of it."""
        with self.bench() as bench:
            instance = self.instance()
            bench.registered(bench.registry(), instance)
            told: list[tuple[ServiceInstance, ...]] = []
            watch = bench.watch(bench.registry(), instance.service, told.append)
            promise(
                watch.instances == (instance,),
                f"a new watch holds the list, equal to what was registered: {watch.instances}",
            )
            until(
                lambda: told[:1] == [(instance,)],
                self.settle,
                "on_change is called with the first list too",
                lambda: told,
            )

    def test_watch_follows_changes(self) -> None:
        """Instances that come and go appear and disappear, sorted by id, in the list and in the callback."""
        with self.bench() as bench:
            registry, one = bench.registry(), self.instance()
            two = self.instance(one.service, "two", 9091)
            told: list[tuple[ServiceInstance, ...]] = []
            watch = bench.watch(bench.registry(), one.service, told.append)
            promise(watch.instances == (), "a service that does not exist yet can be watched, and is empty")
            second = bench.registered(registry, two)
            until(
                lambda: watch.instances == (two,), self.settle, "a watch shows a new instance", lambda: watch.instances
            )
            first = bench.registered(registry, one)
            until(
                lambda: watch.instances == (one, two), self.settle, "a watch is sorted by id", lambda: watch.instances
            )
            first.on_shutdown(bench.deadline())
            until(
                lambda: watch.instances == (two,),
                self.settle,
                "a watch drops a removed instance",
                lambda: watch.instances,
            )
            second.on_shutdown(bench.deadline())
            until(
                lambda: watch.instances == (), self.settle, "a watch drops the last instance", lambda: watch.instances
            )
            until(lambda: told[-1:] == [()], self.settle, "on_change is told of the last change", lambda: told)
            promise((one, two) in told, f"on_change is called with each new list: {told}")
            changes = list(itertools.pairwise(told))
            promise(all(a != b for a, b in changes), f"on_change is called for changes only: {told}")

    def test_two_watches_of_one_service(self) -> None:
        """Closing one watch does not end the other."""
        with self.bench() as bench:
            registry, instance = bench.registry(), self.instance()
            closed, kept = bench.watch(registry, instance.service), bench.watch(registry, instance.service)
            closed.close()
            bench.registered(registry, instance)
            until(
                lambda: kept.instances == (instance,),
                self.settle,
                "a watch goes on when another one is closed",
                lambda: kept.instances,
            )
            promise(closed.instances == (), "a closed watch keeps its last list")

    def test_a_callback_that_raises_does_not_end_the_watch(self) -> None:
        """on_change raises every time; the list goes on and the callback is called again."""
        with self.bench() as bench:
            registry, instance = bench.registry(), self.instance()
            calls: list[int] = []

            def fail(instances: tuple[ServiceInstance, ...]) -> None:
                calls.append(len(instances))
                message = "raised by the contract suite, on purpose"
                raise ValueError(message)

            watch = bench.watch(registry, instance.service, fail)
            bench.registered(registry, instance)
            until(
                lambda: watch.instances == (instance,),
                self.settle,
                "a watch survives an exception of on_change",
                lambda: watch.instances,
            )
            until(lambda: 1 in calls, self.settle, "on_change is called again after it raised")

    def test_callbacks_come_one_at_a_time(self) -> None:
        """on_change is never called twice at once, however slow it is."""
        with self.bench() as bench:
            registry, service = bench.registry(), self.unique_service()
            inside, overlaps, seen = threading.Lock(), [], []

            def slow(instances: tuple[ServiceInstance, ...]) -> None:
                if not inside.acquire(blocking=False):
                    overlaps.append(instances)
                    return
                threading.Event().wait(0.05)
                seen.append(instances)
                inside.release()

            bench.watch(registry, service, slow)
            instances = tuple(self.instance(service, f"{index}", 9000 + index) for index in range(4))
            for instance in instances:
                bench.registered(registry, instance)
            until(
                lambda: seen[-1:] == [instances],
                self.settle,
                "a slow on_change is told of the last change",
                lambda: seen,
            )
            promise(not overlaps, "on_change is called one call at a time")

    def test_no_callback_after_close(self) -> None:
        """Close joins the watch's thread: nothing is called afterwards; a second close does nothing."""
        with self.bench() as bench:
            registry, instance = bench.registry(), self.instance()
            told: list[tuple[ServiceInstance, ...]] = []
            watch = bench.watch(registry, instance.service, told.append)
            until(lambda: bool(told), self.settle, "on_change is called with the first list")
            before = len(told)
            watch.close()
            watch.close()
            # It joins the thread for a while only, and no longer than a caller wants to wait.
            until(lambda: not bench.new_threads(), self.settle, "Watch.close() ends its thread", bench.new_threads)
            witness = bench.watch(registry, instance.service)
            bench.registered(registry, instance)
            until(
                lambda: witness.instances == (instance,),
                self.settle,
                "a watch shows a new instance",
                lambda: witness.instances,
            )
            promise(len(told) == before, f"on_change is never called after close(): {told}")

    def test_close_from_inside_the_callback(self) -> None:
        """A callback may close its own watch."""
        with self.bench() as bench:
            registry, instance = bench.registry(), self.instance()
            holder: list[Watch] = []
            told: list[int] = []

            def close(instances: tuple[ServiceInstance, ...]) -> None:
                told.append(len(instances))
                if instances:
                    holder[0].close()

            holder.append(bench.watch(registry, instance.service, close))
            registration = bench.registered(registry, instance)
            until(lambda: 1 in told, self.settle, "on_change is told of the new instance", lambda: told)
            registration.on_shutdown(bench.deadline())
            until(lambda: not bench.new_threads(), self.settle, "a watch closed by its callback ends its thread")
            promise(told[-1] == 1, f"on_change is never called after close(): {told}")

    def test_registry_close_closes_watches(self) -> None:
        """Registry.close ends its watches, removes no instance, and leaves other registry objects alone."""
        with self.bench() as bench:
            registry, other, instance = bench.registry(), bench.registry(), self.instance()
            owner = bench.registry()
            bench.registered(owner, instance)
            kept = bench.watch(other, instance.service)
            closed = bench.watch(registry, instance.service)
            registry.close()
            promise(len(bench.listed(other, instance)) == 1, "Registry.close() removes no instance")
            two = self.instance(instance.service, "two", 9091)
            bench.registered(owner, two)
            until(
                lambda: kept.instances == (instance, two),
                self.settle,
                "another registry's watch goes on",
                lambda: kept.instances,
            )
            # A watch that goes on may be slower to see it than the other one was.
            ends_at = time.monotonic() + self.look_again
            while time.monotonic() < ends_at:
                promise(closed.instances == (instance,), "Registry.close() closes its watches")
                time.sleep(POLL)
