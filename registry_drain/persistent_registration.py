"""A registration that goes on trying while the service serves: a registry that is down at start must not keep it down.

Theory of operation: one thread tries, pauses (longer each time, with jitter) and tries again. The fence of the stop
cancels both, and waits for the thread; from then on nothing registers.
"""

from __future__ import annotations

import logging
import threading

from registry_drain.clock import Clock, Deadline
from registry_drain.errors import RegistryError
from registry_drain.instance import ServiceInstance
from registry_drain.registries.base import Registration, Removal
from registry_drain.shutdown.events import logger

REGISTER_TIMEOUT = 10.0
"""Seconds for one attempt to register: long enough for a leader election, short enough to be said in the log."""
LONGEST_RETRY = 5.0
"""Seconds between two attempts at most: how long an instance stays unlisted after its registry has come back."""


class PersistentRegistration:
    """A registration that does not give up: a thread tries until it is registered or fenced. A first observer.

    Thread-safe. Failures are logged as warnings, once for each distinct reason, and the success that follows them too.
    """

    def __init__(self, registration: Registration, registry_url: str, clock: Clock) -> None:
        """Prepare; :meth:`start` begins."""
        self._registration = registration
        self._registry_url = registry_url
        self._clock = clock
        self._cancelled = threading.Event()
        self._is_trying = False
        self._has_ended = threading.Event()

    @property
    def instance(self) -> ServiceInstance:
        """What is, or will be, registered."""
        return self._registration.instance

    @property
    def is_registered(self) -> bool:
        """Whether the registry lists it, as far as we know."""
        return self._registration.is_registered

    def start(self) -> None:
        """Begin trying, in a thread of ours, unless fenced already; returns at once."""
        if self._cancelled.is_set():
            return
        self._is_trying = True
        threading.Thread(target=self._try_until_cancelled, name="registry-drain-register", daemon=True).start()

    def register(self, deadline: Deadline) -> None:
        """Try until ``deadline``, in the caller's thread.

        Raises:
            RegistryError: the last failure.
        """
        from registry_drain.registries.retry import retrying

        for attempt in retrying(deadline, cancelled=self._cancelled):
            with attempt:
                self._registration.register(deadline)

    def fence(self, deadline: Deadline) -> None:
        """Stop trying, cancel an attempt under way, and join the thread. See :meth:`Registration.fence`."""
        self._cancelled.set()
        self._registration.fence(deadline)
        if self._is_trying:
            deadline.wait(self._has_ended)  # the injected clock's way to join

    def on_shutdown(self, deadline: Deadline) -> Removal:
        """See :meth:`Registration.on_shutdown`."""
        return self._registration.on_shutdown(deadline)

    def _try_until_cancelled(self) -> None:
        try:
            self._keep_trying()
        finally:
            self._has_ended.set()

    def _keep_trying(self) -> None:
        import tenacity

        subject = f"{self.instance} at {self._registry_url}"
        said: set[str] = set()

        def say(state: tenacity.RetryCallState) -> None:
            error = state.outcome.exception() if state.outcome else None
            reason = str(error) if isinstance(error, RegistryError) else f"{type(error).__name__}: {error}"
            if reason not in said:
                said.add(reason)
                logger.warning("serving, but not registered: %s: %s; trying again until it works", subject, reason)

        def pause(seconds: float) -> None:
            self._clock.wait(self._cancelled, seconds)

        try:
            # What a retry cannot help today (a refused token) is retried too: an operator can mend it meanwhile. And
            # so is what a backend should not raise: a service that nobody finds must go on saying why.
            for attempt in tenacity.Retrying(
                retry=tenacity.retry_if_exception_type(Exception),
                wait=tenacity.wait_random_exponential(multiplier=0.1, max=LONGEST_RETRY),
                stop=lambda _state: self._cancelled.is_set(),
                sleep=pause,
                before_sleep=say,
                reraise=True,
            ):
                with attempt:
                    self._registration.register(Deadline.after(REGISTER_TIMEOUT, self._clock))
        except Exception as error:  # noqa: BLE001 - only once cancelled: the fence refused the attempt
            logger.debug("gave up registering %s: %s", subject, error)
            return
        logger.log(logging.WARNING if said else logging.INFO, "registered %s", subject)

    def __repr__(self) -> str:
        """Show what and whether."""
        return f"<PersistentRegistration {self.instance} is_registered={self.is_registered}>"
