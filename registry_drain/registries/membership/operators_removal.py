"""An operator has taken an instance out on purpose: it is said once, told once, and respected until it is lifted."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from registry_drain.clock import Clock
from registry_drain.errors import RemovedByOperatorError
from registry_drain.registries.abilities import removal_line
from registry_drain.registries.membership.membership import Membership


class OperatorsRemoval:
    """What one registration knows of it. How it is found out is the backend's affair. Thread-safe.

    Args:
        membership: what was removed, from where.
        clock: tells when it was found out.
        log: where it is said, as a warning.
    """

    def __init__(self, membership: Membership, clock: Clock, log: logging.Logger) -> None:
        self._membership = membership
        self._clock = clock
        self._log = log
        self._lock = threading.Lock()
        self._line = ""
        self._call: Callable[[str], None] | None = None

    @property
    def is_noted(self) -> bool:
        """Whether it is removed."""
        return bool(self._line)

    @property
    def line(self) -> str:
        """When and how that was found out; empty if it is not removed. See :class:`RejoinableRegistration`."""
        return self._line

    def on_removed(self, call: Callable[[str], None]) -> None:
        """Have ``call`` called with each new line. See :class:`RejoinableRegistration`."""
        with self._lock:
            self._call = call

    def note(self, how: str) -> None:
        """It was removed, which is known by ``how``. Until it is lifted only the first note counts."""
        if line := self.mark(how):
            self.tell(line)

    def mark(self, how: str) -> str:
        """Do the first half of :meth:`note`, which calls nobody; return what :meth:`tell` is to say, or nothing."""
        with self._lock:
            if self._line:
                return ""
            self._line = removal_line(self._clock.unix_time(), how)
            return self._line

    def tell(self, line: str) -> None:
        """Log it, and call whoever wants to be told. Outside of every lock; it may have been lifted meanwhile."""
        call = self._call
        where, instance = self._membership.url, self._membership.instance
        self._log.warning("%s stays out of %s until it is told to rejoin: %s", instance, where, line)
        if call is None:
            return
        try:
            call(line)
        except Exception:  # noqa: BLE001 -- somebody's code
            # Whose thread this is goes on: it keeps other things alive.
            self._log.exception("on_removed of %s failed", self._membership)

    def lift(self) -> None:
        """It is registered again."""
        with self._lock:
            self._line = ""

    def check(self) -> None:
        """Return if it is not removed.

        Raises:
            RemovedByOperatorError: it is.
        """
        if line := self._line:
            raise RemovedByOperatorError(f"{self._membership}: it was {line}; it stays out until it is told to rejoin")

    def added_to(self, detail: str) -> str:
        """Return the ``detail`` of a removal, and what it was removed by before, if it was."""
        return "; ".join(part for part in (detail, self._line) if part)
