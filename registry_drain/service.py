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
from functools import partial
from typing import Literal

from registry_drain.clock import SYSTEM_CLOCK, Clock, Deadline
from registry_drain.errors import ConfigurationError, RegistryDrainError, RegistryError
from registry_drain.handover import supervisor
from registry_drain.handover.course import HandoverCourse
from registry_drain.handover.predecessor import Predecessor
from registry_drain.handover.settings import Handover
from registry_drain.instance import ServiceInstance
from registry_drain.persistent_registration import REGISTER_TIMEOUT, PersistentRegistration
from registry_drain.phases import Phase
from registry_drain.registries.base import Registry
from registry_drain.registries.url import open_registry
from registry_drain.servers.base import DrainableServer
from registry_drain.servers.current_request import serving
from registry_drain.servers.listener.activation import process_sockets
from registry_drain.shutdown.bounded import BoundedCall
from registry_drain.shutdown.budget import StopBudget
from registry_drain.shutdown.events import EventSink, RemovedByOperator, log_event, logger
from registry_drain.shutdown.observers import ShutdownNotifier, ShutdownObserver
from registry_drain.shutdown.report import ShutdownReport
from registry_drain.shutdown.routine import StopRoutine
from registry_drain.shutdown.signals import StopSignals
from registry_drain.shutdown.watchdog import Watchdog

_READY_LOOK = 0.02
"""Seconds between two looks whether everything is registered, for whoever waits for that."""
_CLOSE_LIMIT = 0.5
"""Seconds at most for closing the registries' clients, and a quarter of the margin if that is less."""

OnRegistrationFailure = Literal["retry", "fail"]
RegistryLike = str | Registry


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
        handover: Handover | None = None,
        soft_drain: float = 0.0,
    ) -> None:
        """Check everything that can be checked; nothing is started."""
        listed = [registry] if isinstance(registry, str) or not isinstance(registry, Sequence) else list(registry)
        if listed and not service:
            raise ConfigurationError("a registry is given, but no service= name to register under")
        if on_registration_failure not in {"retry", "fail"}:
            raise ConfigurationError(f"on_registration_failure={on_registration_failure!r}: must be 'retry' or 'fail'")
        self._budget = budget = budget or StopBudget()
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
            server,
            budget=budget,
            notifier=self.notifier,
            clock=clock,
            sinks=sinks,
            watchdog=self._watchdog,
            soft_drain=soft_drain,
        )
        self._signals = StopSignals(self.routine) if handle_signals else None
        self._predecessor = Predecessor.from_environment(clock)
        self._handover = HandoverCourse(
            handover or Handover(),
            self.routine,
            registrations=lambda: self._registrations,
            port=lambda: self._bound[1] if self._bound else None,
            clock=clock,
            is_successor=self._predecessor is not None,
        )
        if handover is not None and self._signals is not None:
            self._signals.on_hangup = self.request_hand_over
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
        """What a readiness check should answer: listening, in every registry, and not stopping.

        An operator's removal changes nothing about it: the process serves whoever still calls, and whoever watches its
        readiness must not restart, and so register again, what somebody took out.
        """
        return (
            self._started.is_set()
            and not self.routine.is_stopping
            and all(each.is_registered or each.removed_by_operator for each in self._registrations)
        )

    def rejoin(self, timeout: float = REGISTER_TIMEOUT) -> tuple[str, ...]:
        """Register again wherever an operator has removed this instance; return the URLs of those registries.

        None is no error. What is not removed is left as it is. From any thread but an event loop's, since it blocks,
        at most for ``timeout`` seconds; not for signal handlers.

        Raises:
            LiveOwnerError: the stop has begun, or a successor has the id.
            RegistryError: of the first registry that could not be rejoined; the others were tried, too.
        """
        deadline = Deadline.after(timeout, self._clock)
        rejoined: list[str] = []
        errors: list[RegistryError] = []
        for registration in self._registrations:
            try:
                if registration.rejoin(deadline):
                    rejoined.append(registration.registry_url)
            except RegistryError as error:  # noqa: PERF203 - the others are tried, too
                errors.append(error)
        for url in rejoined:
            logger.info("%s: told to rejoin, and registered at %s", self._service, url)
        if errors:
            raise errors[0]
        return tuple(rejoined)

    @property
    def is_stopping(self) -> bool:
        """Whether the stop has begun. Requests are still served for a while."""
        return self.routine.is_stopping

    def stop(self, reason: str = "stop() was called") -> ShutdownReport:
        """Stop, or join the stop under way; see :meth:`StopRoutine.stop`.

        In a thread that a coroutine waits for which serves a request (``asyncio.to_thread``) it returns at once, too.
        """
        request = serving.get()
        if request is not None and request.stop_state is self._server.in_flight.stop_state:
            self.routine.request_stop(reason)
            return self.routine.report
        return self.routine.stop(reason)

    def request_stop(self, reason: str) -> None:
        """Begin the stop and return at once; see :meth:`StopRoutine.request_stop`."""
        self.routine.request_stop(reason)

    def request_hand_over(self, reason: str = "request_hand_over() was called") -> None:
        """Begin a restart by hand-over and return at once: what SIGHUP does, where that is asked for.

        Ignored, with a log line, while one is under way, before this process is ready, and once the stop has begun. If
        this process is itself being handed over to, it begins when that is done.
        """
        self._handover.request(reason, may_postpone=True)

    def hand_over(self, reason: str = "hand_over() was called") -> bool:
        """Restart by hand-over; return whether another process serves now, and this one's stop has begun.

        If not, this one serves on, and the log says why. Blocks until that is known, at most for
        ``Handover.ready_within`` and ``end_within`` together. Not for signal handlers.
        """
        thread = self._handover.request(reason)
        if thread is not None:
            thread.join()
        return self.routine.handed_over_to is not None

    def run(self) -> ShutdownReport:
        """Serve until stopped; see :func:`serve`."""
        if self._signals is None:
            return self.run_without_signals()
        try:
            try:
                self._signals.install()
            except BaseException:
                self.abandon_start()
                raise
            return self.run_without_signals()
        finally:
            self.end_watchdog(is_process_ending=bool(self._signals.received))
            self._signals.uninstall()

    def run_without_signals(self) -> ShutdownReport:
        """Serve until stopped, in any thread: the caller handles signals, and calls :meth:`end_watchdog` in the end."""
        try:
            self._start()
        except BaseException as error:
            if not (self.routine.is_stopping and isinstance(error, RegistryDrainError)):
                self.abandon_start()
                raise
            # Somebody asked for the stop meanwhile, and what fails after that fails because of it: no error.
            logger.info("stopped while starting: %s", error)
        try:
            self._started.set()
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

    def end_watchdog(self, *, is_process_ending: bool) -> None:
        """Let the process live on after the stop, unless it is expected to be gone by the deadline: a signal came.

        Then the watchdog stays on: a thread of somebody's that does not end must not keep it.
        """
        if self._watchdog is not None and not is_process_ending:
            self._watchdog.disarm()

    def abandon_start(self) -> None:
        """Leave nothing behind of a start that failed, least of all an entry in a registry.

        Where it listened already, somebody may have connected: through another registry, or to a socket that is shared.
        """
        if self._bound is None:
            self.routine.hurry("start failed")
        else:
            self.routine.request_stop("start failed")
        self.routine.wait()
        self._close()

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
        self._server.in_flight.stop_state.watch(self._tell_supervisor)
        self._bound = bound, port = self._server.start()
        self._is_started_late = self.routine.is_stopping
        predecessor = self._predecessor
        offers: dict[str, str] = {}
        if predecessor is not None:
            self._server.in_flight.stop_state.watch(predecessor.watch)
            offers = predecessor.offers()
        if self._registries:
            self._make_registrations(bound, port, offers)
        if predecessor is None:
            self._handover.allow()
            process_sockets().close_unused()
        else:
            predecessor.follow(self._registrations, on_ours=self._handover.allow)
        for registration in self._registrations:
            if self._is_fatal:
                registration.register(Deadline.after(REGISTER_TIMEOUT, self._clock))
                logger.info("registered %s", registration.instance)
            else:
                registration.start()
        if predecessor is None and supervisor.is_listening():
            threading.Thread(target=self._say_ready, name="registry-drain-ready", daemon=True).start()

    def _make_registrations(self, bound: str, port: int, offers: Mapping[str, str]) -> None:
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
            registration.on_removed(partial(self._tell_removed, str(instance), registry.url))
            if registration.key in offers and self._predecessor is not None:
                registration.adopt(offers[registration.key], before_leaving=self._predecessor.leave)
            self.notifier.add_first(registration)
            self._registrations.append(registration)

    def _tell_removed(self, subject: str, url: str, how: str) -> None:
        self.routine.tell(RemovedByOperator(subject, url, how))

    def _say_ready(self) -> None:
        # A registry that is down must not make systemd kill a service that serves: ready it is, and the status says so.
        deadline = Deadline.after(REGISTER_TIMEOUT, self._clock)
        while not (self.is_ready or deadline.is_past):
            if self._clock.wait(self.routine.requested, _READY_LOOK):
                return
        supervisor.ready("serving" if self.is_ready else "serving, but not registered yet")

    def _tell_supervisor(self, phase: Phase) -> None:
        # What was handed over goes on; only its first process stops.
        if phase is Phase.DEREGISTERING and self.routine.handed_over_to is None:
            supervisor.stopping("stopping")

    def _close(self) -> None:
        left = self._budget.grace_period - self._budget.part("margin") - self.routine.report.elapsed
        self._handover.finish(Deadline.after(max(left, self._close_limit), self._clock))
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
    handover: Handover | None = None,
    soft_drain: float = 0.0,
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
        handover: SIGHUP then restarts by hand-over: a new process takes the sockets of
            :func:`~registry_drain.servers.listener.activation.listening_socket` and the registrations, and this one
            stops. None: SIGHUP is left alone.
        soft_drain: seconds for which the stop lets the instance stay listed, out of rotation, before it removes it,
            where the registry has such a state (Consul's maintenance mode; ZooKeeper's layouts that have one). Part of
            the budget's ``deregister``, at most half of it. 0: it is removed at once.

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
        handover=handover,
        soft_drain=soft_drain,
    ).run()
