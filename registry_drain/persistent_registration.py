"""A registration that goes on trying while the service serves: a registry that is down at start must not keep it down.

Theory of operation: one thread tries, pauses (longer each time, with jitter) and tries again. The fence of the stop
cancels both, and waits for the thread; from then on nothing registers.

It also passes on what a backend may know how to do: a hand-over, leaving the rotation, rejoining after an operator's
removal. While an offer is open the removal waits: only whoever made the offer knows whose the entry is.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from registry_drain.clock import Clock, Deadline
from registry_drain.errors import LiveOwnerError, RegistryError, RemovedByOperatorError
from registry_drain.instance import ServiceInstance
from registry_drain.registries.abilities import HandoverRegistration, RejoinableRegistration, RotationRegistration
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
        self._is_settled = threading.Event()  # no offer is open
        self._is_settled.set()
        self._is_handed_over = False
        self._before_leaving: Callable[[Deadline], None] | None = None

    @property
    def key(self) -> str:
        """What tells it from the service's other registrations, in this process and in the next one."""
        return f"{self._registry_url} {self.instance.service} {self.instance.id}"

    @property
    def registry_url(self) -> str:
        """Where it is, or will be, registered."""
        return self._registry_url

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

    # --- removed by an operator ---------------------------------------------------------------------------------------

    @property
    def removed_by_operator(self) -> str:
        """See :class:`RejoinableRegistration`; empty if the backend cannot tell."""
        if isinstance(self._registration, RejoinableRegistration):
            return self._registration.removed_by_operator
        return ""

    def on_removed(self, call: Callable[[str], None]) -> None:
        """See :meth:`RejoinableRegistration.on_removed`; before :meth:`start`."""
        if isinstance(self._registration, RejoinableRegistration):
            self._registration.on_removed(call)

    def rejoin(self, deadline: Deadline) -> bool:
        """Register again if an operator removed it, with retries until ``deadline``; return whether one had.

        Raises:
            LiveOwnerError: the stop has begun, or a successor has the id.
            RegistryError: the last failure; it stays removed.
        """
        if not isinstance(self._registration, RejoinableRegistration) or not self._registration.removed_by_operator:
            return False
        from registry_drain.registries.retry import retrying

        for attempt in retrying(deadline, cancelled=self._cancelled):
            with attempt:
                if self._cancelled.is_set():
                    raise LiveOwnerError(f"{self.instance} is being stopped, and does not rejoin {self._registry_url}")
                self._registration.rejoin(deadline)
        return True

    # --- leaving ------------------------------------------------------------------------------------------------------

    @property
    def can_leave_rotation(self) -> bool:
        """Whether the entry is ours, listed, and in a registry that has a state for instances out of rotation."""
        is_ours = self._is_settled.is_set() and not self._is_handed_over and not self.is_adopted
        return isinstance(self._registration, RotationRegistration) and is_ours and self.is_registered

    def leave_rotation(self, deadline: Deadline) -> None:
        """See :meth:`RotationRegistration.leave_rotation`; only if :attr:`can_leave_rotation`."""
        if isinstance(self._registration, RotationRegistration):
            self._registration.leave_rotation(deadline)

    def await_settled(self, deadline: Deadline) -> None:
        """Stop trying, and wait until no offer is open. Before :meth:`fence`, since it may take most of the time."""
        self._cancelled.set()
        deadline.wait(self._is_settled)

    def fence(self, deadline: Deadline) -> None:
        """Stop trying, cancel an attempt under way, and join the thread. See :meth:`Registration.fence`.

        An offer that is open still is waited for, but not for longer than half of the time.
        """
        self._cancelled.set()
        if self._before_leaving is not None:
            self._before_leaving(deadline.capped(deadline.remaining() / 2))
        deadline.capped(deadline.remaining() / 2).wait(self._is_settled)
        self._registration.fence(deadline)
        if self._is_trying:
            deadline.wait(self._has_ended)  # the injected clock's way to join

    def on_shutdown(self, deadline: Deadline) -> Removal:
        """See :meth:`Registration.on_shutdown`; what was handed over is not removed."""
        if self._is_handed_over and isinstance(self._registration, HandoverRegistration):
            return self._registration.hand_over(deadline)
        return self._registration.on_shutdown(deadline)

    # --- handing over, in the old process -----------------------------------------------------------------------------

    def offer(self, deadline: Deadline) -> str:
        """See :meth:`HandoverRegistration.offer`; empty if the backend cannot. :meth:`settle` must follow.

        Raises:
            RegistryError: it cannot be offered now.
        """
        self._is_settled.clear()
        return self._registration.offer(deadline) if isinstance(self._registration, HandoverRegistration) else ""

    def take_back(self, deadline: Deadline) -> None:
        """See :meth:`HandoverRegistration.take_back`.

        Raises:
            RegistryError: it could not be put back; it goes on trying if its backend does.
        """
        if isinstance(self._registration, HandoverRegistration):
            self._registration.take_back(deadline)

    def settle(self, *, is_handed_over: bool) -> None:
        """Close the offer: the entry is the next process', or ours. Idempotent."""
        self._is_handed_over = is_handed_over
        self._is_settled.set()

    # --- and in the new one -------------------------------------------------------------------------------------------

    def adopt(self, offer: str, before_leaving: Callable[[Deadline], None]) -> None:
        """See :meth:`HandoverRegistration.adopt`; before :meth:`start`.

        ``before_leaving`` is called when the stop begins before :meth:`confirm`, to let the predecessor take back.
        """
        if isinstance(self._registration, HandoverRegistration):
            self._before_leaving = before_leaving
            self._registration.adopt(offer)

    @property
    def is_adopted(self) -> bool:
        """Whether the entry is the predecessor's still."""
        return self._before_leaving is not None

    def confirm(self) -> None:
        """See :meth:`HandoverRegistration.confirm`."""
        self._before_leaving = None
        if isinstance(self._registration, HandoverRegistration):
            self._registration.confirm()

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
                retry=tenacity.retry_if_exception(_may_help),
                wait=tenacity.wait_random_exponential(multiplier=0.1, max=LONGEST_RETRY),
                stop=lambda _state: self._cancelled.is_set(),
                sleep=pause,
                before_sleep=say,
                reraise=True,
            ):
                with attempt:
                    self._registration.register(Deadline.after(REGISTER_TIMEOUT, self._clock))
        except RemovedByOperatorError as error:
            logger.debug("removed while registering %s: %s", subject, error)  # its backend has said so
            return
        except Exception as error:  # noqa: BLE001 - only once cancelled: the fence refused the attempt
            logger.debug("gave up registering %s: %s", subject, error)
            return
        logger.log(logging.WARNING if said else logging.INFO, "registered %s", subject)

    def __repr__(self) -> str:
        """Show what and whether."""
        return f"<PersistentRegistration {self.instance} is_registered={self.is_registered}>"


def _may_help(error: BaseException) -> bool:
    """Whether to try again: whatever went wrong, unless somebody does not want it to go right."""
    return isinstance(error, Exception) and not isinstance(error, RemovedByOperatorError)
