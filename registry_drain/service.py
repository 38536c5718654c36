"""One call that joins a server, its registries and a stop routine: :func:`serve`.

Theory of operation: the server is started first, since an instance that is listed must answer; then it is registered in
every registry, in the background and again and again if a registry is down, because a service that can serve should.
Then the calling thread waits for the stop. Registrations still being retried when the stop begins are cancelled by
their fence.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

from registry_drain.clock import SYSTEM_CLOCK, Clock, Deadline
from registry_drain.errors import ConfigurationError, RegistryDrainError, RegistryError
from registry_drain.instance import ServiceInstance
from registry_drain.registries.base import Registration, Registry, Removal
from registry_drain.registries.url import open_registry
from registry_drain.servers.base import DrainableServer
from registry_drain.shutdown.bounded import BoundedCall
from registry_drain.shutdown.budget import StopBudget
from registry_drain.shutdown.events import EventSink, log_event, logger
from registry_drain.shutdown.observers import ShutdownNotifier, ShutdownObserver
from registry_drain.shutdown.report import ShutdownReport
from registry_drain.shutdown.routine import StopRoutine
from registry_drain.shutdown.signals import StopSignals
from registry_drain.shutdown.watchdog import Watchdog

REGISTER_TIMEOUT = 10.0
"""Seconds for one attempt to register: long enough for a leader election, short enough to be said in the log."""
LONGEST_RETRY = 5.0
"""Seconds between two attempts at most: how long an instance stays unlisted after its registry has come back."""

_CLOSE_LIMIT = 0.5
"""Seconds at most for closing the registries' clients, and a quarter of the margin if that is less."""

OnRegistrationFailure = Literal["retry", "fail"]
RegistryLike = str | Registry


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


class Service:
    """A server, its registries and its stop. :func:`serve` is this, run; see there for the parameters.

    :meth:`run` is called once. ``stop``, ``request_stop`` and the properties may be used from any thread.
    """

    def __init__(
        self,
        server: DrainableServer,
        registry: RegistryLike | Sequence[RegistryLike] = (),
        *,
        service: str = "",
        address: str = "",
        port: int | None = None,
        instance_id: str = "",
        metadata: Mapping[str, str] | None = None,
        tags: Sequence[str] = (),
        budget: StopBudget | None = None,
        observers: Iterable[ShutdownObserver | Callable[[], object]] = (),
        on_registration_failure: OnRegistrationFailure = "retry",
        handle_signals: bool = True,
        sinks: Iterable[EventSink] = (log_event,),
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """Check everything that can be checked; nothing is started."""
        listed = [registry] if isinstance(registry, str) or not isinstance(registry, Sequence) else list(registry)
        if listed and not service:
            raise ConfigurationError("a registry is given, but no service= name to register under")
        if on_registration_failure not in {"retry", "fail"}:
            raise ConfigurationError(f"on_registration_failure={on_registration_failure!r}: must be 'retry' or 'fail'")
        budget = budget or StopBudget()
        self._clock = clock
        self._close_limit = min(_CLOSE_LIMIT, budget.part("margin") / 4)
        self._server = server
        self._opened: list[Registry] = []
        self._registries = [self._open(each) for each in listed]
        self._service, self._address, self._port = service, address, port
        self._instance_id, self._metadata, self._tags = instance_id, dict(metadata or {}), tuple(tags)
        self._is_fatal = on_registration_failure == "fail"
        self._registrations: list[PersistentRegistration] = []
        self._watchdog = Watchdog() if handle_signals else None
        self.notifier = ShutdownNotifier(reserved=budget.part("notify"))
        for observer in observers:
            self.notifier.add(observer)
        self.routine = StopRoutine(
            server, budget=budget, notifier=self.notifier, clock=clock, sinks=sinks, watchdog=self._watchdog
        )
        self._signals = StopSignals(self.routine) if handle_signals else None
        self._started = threading.Event()
        self._is_started_late = False
        self._bound: tuple[str, int] | None = None

    def _open(self, registry: RegistryLike) -> Registry:
        if not isinstance(registry, str):
            return registry
        opened = open_registry(registry, self._clock)
        self._opened.append(opened)
        return opened

    @property
    def started(self) -> threading.Event:
        """Set once the server is listening and registration has begun. Wait for it; do not set it."""
        return self._started

    @property
    def bound(self) -> tuple[str, int] | None:
        """The address and port that the server is bound to; None before it listens."""
        return self._bound

    @property
    def is_ready(self) -> bool:
        """What a readiness check should answer: listening, in every registry, and not stopping."""
        return (
            self._started.is_set()
            and not self.routine.is_stopping
            and all(registration.is_registered for registration in self._registrations)
        )

    @property
    def is_stopping(self) -> bool:
        """Whether the stop has begun. Requests are still served for a while."""
        return self.routine.is_stopping

    def stop(self, reason: str = "stop() was called") -> ShutdownReport:
        """Stop, or join the stop under way; see :meth:`StopRoutine.stop`."""
        return self.routine.stop(reason)

    def request_stop(self, reason: str) -> None:
        """Begin the stop and return at once; see :meth:`StopRoutine.request_stop`."""
        self.routine.request_stop(reason)

    def run(self) -> ShutdownReport:
        """Serve until stopped; see :func:`serve`."""
        try:
            if self._signals:
                self._signals.install()
            self._start()
        except BaseException as error:
            if not (self.routine.is_stopping and isinstance(error, RegistryDrainError)):
                # Nothing may be left behind by a start that failed, least of all an entry in a registry.
                self.routine.hurry("start failed")
                self.routine.wait()
                self._close()
                raise
            # Somebody asked for the stop meanwhile, and what fails after that fails because of it: no error.
            logger.info("stopped while starting: %s", error)
        self._started.set()
        try:
            self._clock.wait(self.routine.requested)
        finally:
            # Also when somebody else's signal handler raises (KeyboardInterrupt): it stops gracefully, then goes on.
            try:
                self._finish_stop()
            finally:
                report = self.routine.report
                logger.log(logging.INFO if report.is_clean else logging.WARNING, "%s", report)
                self._close()
        return report

    def _finish_stop(self) -> None:
        try:
            self.routine.request_stop("interrupted")
            self.routine.wait()
        except BaseException:
            # A second interrupt, where the signals are not ours: it means what a second signal means.
            self.routine.hurry("interrupted again")
            self.routine.wait()
            raise

    def _start(self) -> None:
        self._bound = bound, port = self._server.start()
        self._is_started_late = self.routine.is_stopping
        if not self._registries:
            return
        instance = ServiceInstance(
            self._service,
            self._address or bound,
            self._port or port,
            id=self._instance_id,
            metadata=self._metadata,
            tags=self._tags,
        )
        for registry in self._registries:
            registration = PersistentRegistration(registry.registration(instance), registry.url, self._clock)
            self.notifier.add_first(registration)
            self._registrations.append(registration)
        for registration in self._registrations:
            if self._is_fatal:
                registration.register(Deadline.after(REGISTER_TIMEOUT, self._clock))
                logger.info("registered %s", registration.instance)
            else:
                registration.start()

    def _close(self) -> None:
        deadline = Deadline.after(self._close_limit, self._clock)
        closing: list[BoundedCall[object]] = [
            BoundedCall(f"close {each.url}", each.close, deadline) for each in self._opened
        ]
        if self._is_started_late:
            closing.append(BoundedCall("close the server", lambda: self._close_again(deadline), deadline))
        for call in closing:
            call.wait()
            if call.detail:
                logger.warning("%s: %s: %s", call.name, call.outcome.value, call.detail)
        if self._signals is None or self._watchdog is None:
            return
        # After a signal the process is expected to be gone by the deadline, so the watchdog stays on: a thread of
        # somebody's that does not end must not keep it.
        if not self._signals.received:
            self._watchdog.disarm()
        self._signals.uninstall()

    def _close_again(self, deadline: Deadline) -> None:
        # The stop overtook a server that was still starting, and found nothing to close.
        self._server.close_listener(deadline)
        self._server.cut_off()

    def __repr__(self) -> str:
        """Show the stop's state and the registrations."""
        return f"<Service {self._service or 'unregistered'} {self.routine!r} {self._registrations!r}>"


def serve(
    server: DrainableServer,
    registry: RegistryLike | Sequence[RegistryLike] = (),
    *,
    service: str = "",
    address: str = "",
    port: int | None = None,
    instance_id: str = "",
    metadata: Mapping[str, str] | None = None,
    tags: Sequence[str] = (),
    budget: StopBudget | None = None,
    observers: Iterable[ShutdownObserver | Callable[[], object]] = (),
    on_registration_failure: OnRegistrationFailure = "retry",
    handle_signals: bool = True,
    sinks: Iterable[EventSink] = (log_event,),
    clock: Clock = SYSTEM_CLOCK,
) -> ShutdownReport:
    """Start ``server``, register it, serve until a signal stops it, and return what happened. Blocks.

    SIGTERM, SIGINT and SIGQUIT stop it gracefully; a second one skips every wait; a third exits at once. For a stop by
    other means, or to ask whether it is stopping, make a :class:`Service` and call its ``run()``.

    Args:
        server: an adapter from :mod:`registry_drain.servers`, or anything with its five members.
        registry: one or several, as URLs or objects; none: just stop gracefully.
        service: the cluster's name; needed with a registry.
        address: what callers connect to; default: the bound address. Needed if that is a wildcard.
        port: what callers connect to, if not the bound port (behind a port mapping).
        instance_id: default ``service-address-port``.
        metadata: short strings for callers.
        tags: labels for callers.
        budget: how long the stop may take; default: 30 s in all.
        observers: told, in this order, when the drain has ended: functions, or objects with ``on_shutdown(deadline)``.
            For time limits, or to be told when draining starts, make a :class:`Service` and use its ``notifier``.
        on_registration_failure: ``"retry"`` serves and keeps trying in the background, with a warning in the log;
            ``"fail"`` tries for 10 s and raises.
        handle_signals: False leaves the process' signals alone and sets no watchdog; then the caller stops the service.
        sinks: are told each event; default: the log.
        clock: measures and passes all time.

    Raises:
        ConfigurationError: something given cannot work, or (with signals) this is not the main thread.
        OSError: the server cannot bind its address.
        RegistryError: registration failed and ``on_registration_failure`` is ``"fail"``.
    """
    return Service(
        server,
        registry,
        service=service,
        address=address,
        port=port,
        instance_id=instance_id,
        metadata=metadata,
        tags=tags,
        budget=budget,
        observers=observers,
        on_registration_failure=on_registration_failure,
        handle_signals=handle_signals,
        sinks=sinks,
        clock=clock,
    ).run()
