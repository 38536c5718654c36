"""The same for asyncio applications: :func:`serve_async`.

Theory of operation: there is one stop routine, and it runs in threads. :class:`AsyncService` runs the
:class:`~registry_drain.service.Service` in a thread of its own and awaits it, so that the loop goes on serving during
the stop. The server's adapter gets the running loop (``use_loop``), and so do the observers that are coroutines. What
the stop does with the server, it does in that loop, from threads.

Rules:

1. Nothing here blocks the loop: the drain of its own requests would wait for ever.
2. A cancelled ``await serve_async(...)`` is a stop like any other: graceful. Cancelled once more, it is hurried. The
   CancelledError goes on its way when the stop has ended.
3. In the loop's thread nobody waits for the stop but by ``await``; and who serves a request, or is told of the stop,
   waits for it not at all, since it waits for him.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial

from registry_drain.clock import SYSTEM_CLOCK, Clock
from registry_drain.errors import ConfigurationError
from registry_drain.handover.settings import Handover
from registry_drain.persistent_registration import REGISTER_TIMEOUT
from registry_drain.servers.base import DrainableServer
from registry_drain.servers.current_request import serving
from registry_drain.service import OnRegistrationFailure, RegistryLike, Service
from registry_drain.shutdown.async_observers import AsyncObserver, CoroutineRunner, waited_for_by
from registry_drain.shutdown.budget import StopBudget
from registry_drain.shutdown.events import EventSink, log_event
from registry_drain.shutdown.loop_signals import LOOK_EVERY, LoopSignals
from registry_drain.shutdown.observers import ShutdownNotifier
from registry_drain.shutdown.report import ShutdownReport
from registry_drain.shutdown.routine import StopRoutine

_LOOK_FOR_START_EVERY = 0.01
_LOOK_FOR_END_EVERY = 0.02
"""Seconds. Looking is simpler than waking any number of loops from threads, and a stop takes seconds."""


class AsyncService:
    """A server, its registries and its stop, in an asyncio application. :func:`serve_async` is this, run.

    May be made before the loop runs. :meth:`run` is called once, in the loop. ``request_stop`` and the properties may
    be used from any thread.
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
        observers: Iterable[AsyncObserver] = (),
        on_registration_failure: OnRegistrationFailure = "retry",
        handle_signals: bool = True,
        sinks: Iterable[EventSink] = (log_event,),
        clock: Clock = SYSTEM_CLOCK,
        handover: Handover | None = None,
        soft_drain: float = 0.0,
    ) -> None:
        """Check everything that can be checked; nothing is started."""
        self._server = server
        self._service = Service(
            server,
            registry,
            service=service,
            address=address,
            port=port,
            instance_id=instance_id,
            metadata=metadata,
            tags=tags,
            budget=budget,
            on_registration_failure=on_registration_failure,
            handle_signals=handle_signals,
            sinks=sinks,
            clock=clock,
            handover=handover,
            soft_drain=soft_drain,
        )
        self._hands_over = handover is not None
        self._handles_signals = handle_signals
        self._loop: asyncio.AbstractEventLoop | None = None
        self._coroutines = CoroutineRunner(self.routine)
        self.notifier.accept_coroutines(self._coroutines)
        for observer in observers:
            self.notifier.add(observer)

    @property
    def notifier(self) -> ShutdownNotifier:
        """Who is told of the stop; add to it before the stop begins."""
        return self._service.notifier

    @property
    def routine(self) -> StopRoutine:
        """The stop. Its ``stop`` and ``wait`` block: call them in threads only."""
        return self._service.routine

    @property
    def started(self) -> threading.Event:
        """Set once the server is listening and registration has begun; see :meth:`wait_until_started`."""
        return self._service.started

    @property
    def bound(self) -> tuple[str, int] | None:
        """The address and port that the server is bound to; None before it listens."""
        return self._service.bound

    @property
    def is_ready(self) -> bool:
        """What a readiness check should answer: listening, in every registry, and not stopping."""
        return self._service.is_ready

    @property
    def is_stopping(self) -> bool:
        """Whether the stop has begun. Requests are still served for a while."""
        return self._service.is_stopping

    async def wait_until_started(self) -> None:
        """Wait until the server is listening and registration has begun, or the stop has."""
        while not (self.started.is_set() or self.is_stopping):  # noqa: ASYNC110 - threads set these
            await asyncio.sleep(_LOOK_FOR_START_EVERY)

    def request_stop(self, reason: str) -> None:
        """Begin the stop and return at once; see :meth:`StopRoutine.request_stop`."""
        self._service.request_stop(reason)

    def request_hand_over(self, reason: str = "request_hand_over() was called") -> None:
        """Begin a restart by hand-over and return at once; see :meth:`Service.request_hand_over`."""
        self._service.request_hand_over(reason)

    async def rejoin(self, timeout: float = REGISTER_TIMEOUT) -> tuple[str, ...]:
        """Register again wherever an operator has removed this instance; see :meth:`Service.rejoin`. In any loop.

        Cancelling it does not take back what was sent.
        """
        return await asyncio.get_running_loop().run_in_executor(None, self._service.rejoin, timeout)

    def hurry(self, reason: str) -> None:
        """Skip every wait of the stop, and return at once; see :meth:`StopRoutine.hurry`."""
        self.routine.hurry(reason)

    async def stop_async(self, reason: str = "stop_async() was called") -> ShutdownReport:
        """Stop, or join the stop under way, and return its report when it has ended. In any loop.

        Called while serving a request, or from an observer, it returns at once, with the report so far: the stop waits
        for that caller, so the caller cannot wait for the stop. Cancelling it does not take the stop back.
        """
        self.request_stop(reason)
        if not self._is_waited_for():
            while not self.routine.wait(0):  # noqa: ASYNC110 - a thread ends it
                await asyncio.sleep(_LOOK_FOR_END_EVERY)
        return self.routine.report

    def stop(self, reason: str = "stop() was called") -> ShutdownReport:
        """Stop, and return the report: from a thread when the stop has ended; in a loop's thread at once, so far.

        A loop that waits cannot drain. ``await stop_async()`` waits there.
        """
        self.request_stop(reason)
        if _runs_in_a_loop() or self._is_waited_for():
            return self.routine.report
        return self.routine.stop(reason)

    def _is_waited_for(self) -> bool:
        return serving.get() is not None or self.routine in waited_for_by.get()

    async def run(self) -> ShutdownReport:
        """Serve until stopped; see :func:`serve_async`."""
        if self._loop is not None:
            raise ConfigurationError("this AsyncService has run already: make a new one")
        self._loop = loop = asyncio.get_running_loop()
        use_loop: Callable[[object], object] | None = getattr(self._server, "use_loop", None)
        if use_loop is not None:
            use_loop(loop)
        self._coroutines.use_loop(loop)
        # A call to stop() in this thread, by whatever way, would keep the loop from draining.
        self._server.in_flight.add_loop_thread(threading.get_ident())
        ended: asyncio.Future[ShutdownReport] = loop.create_future()
        signals = LoopSignals(self.routine, loop) if self._handles_signals else None
        if signals and self._hands_over:
            signals.on_hangup = self.request_hand_over
        try:
            if signals:
                await self._install(signals)
            threading.Thread(target=self._run, args=(ended,), name="registry-drain-service", daemon=True).start()
            return await self._wait_for_end(ended, signals)
        finally:
            self._service.end_watchdog(is_process_ending=bool(signals and signals.received))
            if signals:
                signals.uninstall()

    async def _install(self, signals: LoopSignals) -> None:
        try:
            signals.install()
        except BaseException:
            await asyncio.get_running_loop().run_in_executor(None, self._service.abandon_start)
            raise

    def _run(self, ended: asyncio.Future[ShutdownReport]) -> None:
        """Serve until stopped, in a thread of our own."""
        try:
            tell = partial(_tell_result, ended, self._service.run_without_signals())
        except BaseException as error:  # noqa: BLE001 - raised where it is awaited
            tell = partial(_tell_error, ended, error)
        with suppress(RuntimeError):  # the loop was closed, so nobody waits
            ended.get_loop().call_soon_threadsafe(tell)

    async def _wait_for_end(self, ended: asyncio.Future[ShutdownReport], signals: LoopSignals | None) -> ShutdownReport:
        cancelled: asyncio.CancelledError | None = None
        while not ended.done():
            try:
                await asyncio.wait({ended}, timeout=LOOK_EVERY if signals else None)
            except asyncio.CancelledError as error:
                if cancelled is None:
                    cancelled = error
                    self.request_stop("cancelled")
                else:
                    self.hurry("cancelled again")
            if signals:
                signals.reinstall()
        await self._coroutines.cancel_rest()
        if cancelled is not None:
            raise cancelled from ended.exception()
        return ended.result()

    def __repr__(self) -> str:
        """Show the stop's state and the registrations."""
        return f"<AsyncService {self._service!r}>"


async def serve_async(
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
    observers: Iterable[AsyncObserver] = (),
    on_registration_failure: OnRegistrationFailure = "retry",
    handle_signals: bool = True,
    sinks: Iterable[EventSink] = (log_event,),
    clock: Clock = SYSTEM_CLOCK,
    handover: Handover | None = None,
    soft_drain: float = 0.0,
) -> ShutdownReport:
    """Start ``server``, register it, serve until a signal or a cancellation stops it, and return what happened.

    As :func:`~registry_drain.service.serve`, which see for the parameters, for asyncio applications:

    - An asyncio server lives in the running loop; others run in threads of their own.
    - ``observers`` may be coroutine functions, or objects with ``async def on_shutdown(deadline)``. They run in this
      loop, and are cancelled at their time limit.
    - Cancelling the task that awaits this is a graceful stop; cancelling it once more hurries it. The CancelledError is
      raised when the stop has ended.
    - Signal handlers of the loop, be they added before or later, are called when the stop has ended.

    For a stop by other means, or to ask whether it is stopping, make an :class:`AsyncService` and await its ``run()``.

    Raises:
        ConfigurationError: something given cannot work, or (with signals) the loop does not run in the main thread.
        OSError: the server cannot bind its address.
        RegistryError: registration failed and ``on_registration_failure`` is ``"fail"``.
        asyncio.CancelledError: it was cancelled; the stop has ended.
    """
    return await AsyncService(
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


def _tell_result(ended: asyncio.Future[ShutdownReport], report: ShutdownReport) -> None:
    if not ended.done():
        ended.set_result(report)


def _tell_error(ended: asyncio.Future[ShutdownReport], error: BaseException) -> None:
    if not ended.done():
        ended.set_exception(error)


def _runs_in_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
