"""A watch of the local registry: a thread that looks at the directory again and again.

It polls because a killed owner changes no file: the kernel drops a lock and tells nobody.
"""

from __future__ import annotations

import logging
import threading

from registry_drain.clock import Clock
from registry_drain.errors import RegistryDrainError
from registry_drain.instance import ServiceInstance
from registry_drain.registries.base import WatchCallback
from registry_drain.registries.local.directory import InstanceDirectory

logger = logging.getLogger(__name__)

Instances = tuple[ServiceInstance, ...]


def healthy(directory: InstanceDirectory, service: str) -> Instances:
    """Return the live instances of ``service``, sorted by id.

    Raises:
        RegistryUnavailableError, PermissionRefusedError: the directory could not be read in full.
    """
    return tuple(file.instance for file in directory.scan(service) if file.instance is not None and file.is_live)


class LocalWatch:
    """Follows one service. See :class:`registry_drain.registries.base.Watch`."""

    def __init__(
        self,
        directory: InstanceDirectory,
        service: str,
        first: Instances,
        on_change: WatchCallback | None,
        *,
        poll_s: float,
        clock: Clock,
    ) -> None:
        """Begin with the list ``first``."""
        self._directory = directory
        self._service = service
        self._instances = first
        self._on_change = on_change
        self._poll_s = poll_s
        self._clock = clock
        self._closed = threading.Event()
        self._is_failing = False
        self._thread = threading.Thread(target=self._follow, name=f"registry-drain-local-watch-{service}", daemon=True)
        self._thread.start()

    @property
    def instances(self) -> Instances:
        """The last known list."""
        return self._instances

    def close(self) -> None:
        """Stop following; joins the thread unless called from it. Idempotent."""
        self._closed.set()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _follow(self) -> None:
        self._tell(self._instances)
        while not self._clock.wait(self._closed, self._poll_s):
            found = self._look()
            if found is not None and found != self._instances:
                self._instances = found
                self._tell(found)

    def _look(self) -> Instances | None:
        try:
            found = healthy(self._directory, self._service)
        except RegistryDrainError as error:
            if not self._is_failing:  # once per outage, not twenty times per second
                logger.warning("watch of %s: %s; its list stays as it was until that ends", self._service, error)
            self._is_failing = True
            return None
        if self._is_failing:
            logger.info("watch of %s: local registry %s can be read again", self._service, self._directory.path)
        self._is_failing = False
        return found

    def _tell(self, instances: Instances) -> None:
        if self._on_change is None:
            return
        try:
            self._on_change(instances)
        except Exception:
            logger.exception("on_change of the watch of %s failed; the watch goes on", self._service)

    def __repr__(self) -> str:
        """Show the service, how many instances it has, and whether the list is followed."""
        state = "closed" if self._closed.is_set() else "failing" if self._is_failing else "following"
        return f"<LocalWatch {self._service} {state} instances={len(self._instances)}>"
