"""One process' registrations and its stop, between the server that runs the process and the stop routine."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from typing import Any

from registry_drain.clock import Deadline
from registry_drain.errors import RegistryDrainError
from registry_drain.hosted.host import Host
from registry_drain.hosted.kept import KeptRegistrations
from registry_drain.hosted.server import HostedServer
from registry_drain.hosted.settings import RegistryLike, Settings
from registry_drain.hosted.shared_registration import SharedMembership, SharedRegistration
from registry_drain.hosted.workers import Workers
from registry_drain.phases import Phase
from registry_drain.registries.base import Registry, Removal
from registry_drain.registries.url import open_registry
from registry_drain.servers.http.asgi import ASGIMiddleware
from registry_drain.servers.listener import bound_address, listening_sockets
from registry_drain.shutdown.observers import FirstObserver, ShutdownNotifier
from registry_drain.shutdown.routine import StopRoutine
from registry_drain.shutdown.watchdog import Watchdog

logger = logging.getLogger(__name__)

_LOOK_EVERY = 0.02
_DATE_EVERY = 50
"""Looks between two updates of uvicorn's Date header: a second."""
_SAY_AFTER = 10.0
"""Seconds without a listener on the port before that is said."""


class HostedStop:
    """Made in the lifespan startup, in the server's event loop; it takes the signals over and registers.

    Args:
        settings: what was given.
        host: the server around us.
        middleware: around the application.
    """

    def __init__(self, settings: Settings, host: Host, middleware: ASGIMiddleware) -> None:
        self._settings, self._host = settings, host
        loop = asyncio.get_running_loop()
        running = None
        if host.uvicorn_server is not None:
            from registry_drain.servers.uvicorn_server.running import RunningUvicorn

            running = RunningUvicorn(host.uvicorn_server, middleware)
            self._await_us(host.uvicorn_server)
        self._server = HostedServer(middleware, settings.listen_port, loop, host.pass_on, running)
        self._notifier = _Notifier(reserved=settings.budget.part("notify"))
        for observer in settings.observers:
            self._notifier.add(observer)
        self._watchdog = Watchdog()
        self._routine = StopRoutine(
            self._server,
            budget=settings.budget,
            notifier=self._notifier,
            clock=settings.clock,
            sinks=settings.sinks,
            watchdog=self._watchdog,
            soft_drain=settings.soft_drain,
        )
        self._membership: SharedMembership | None = None
        self._kept: KeptRegistrations | None = None
        self._opened: list[Registry] = []
        if host.has_supervisor:
            self._join_workers()
        host.put_in_front(self)
        threading.Thread(target=self._register, name="registry-drain-register", daemon=True).start()

    # --- what signals say -------------------------------------------------------------------------------------------

    def request_stop(self, reason: str) -> None:
        """Begin the stop."""
        self._routine.request_stop(reason)

    def hurry(self, reason: str) -> None:
        """Skip every wait."""
        self._routine.hurry(reason)

    def report_displaced(self, signal_name: str, handler: str) -> None:
        """Not looked for: the server itself puts its handlers back at its end."""

    # --- registering ------------------------------------------------------------------------------------------------

    def _join_workers(self) -> None:
        """Be counted before this worker accepts: what it leaves too early may be the listener of all.

        A file is written, under a lock that is held for microseconds; registries are not asked.
        """
        settings = self._settings
        # For good, if the others cannot be asked.
        self._server.others_listen, self._server.is_last = lambda: True, lambda: False
        try:
            workers = Workers(settings.service, settings.port, os.getppid())
            membership = SharedMembership(
                workers,
                settings.clock,
                has_stop_signal=lambda: bool(self._host.stop_signal),
                on_removed=self._routine.tell,
            )
            membership.join()
        except RegistryDrainError as error:
            logger.error("serving, but not registered: %s", error)  # noqa: TRY400 - one line says what to do
            return
        except OSError:
            logger.exception("serving, but not registered")
            return
        self._membership = membership
        self._server.is_last = membership.closed
        if settings.registries:
            self._server.others_listen = membership.others_listen
            self._notifier.stand_in(_Unregistered(membership, settings.service, len(settings.registries)))
        else:
            # No observer leaves for this worker: who else does is found out when it is to stop accepting.
            self._server.others_listen = membership.leave_to_others

    def _register(self) -> None:
        if not self._settings.registries or (self._host.has_supervisor and self._membership is None):
            return  # there is nothing to do, or it has been said why that cannot be done
        try:
            address = self._wait_for_listener()
            if address is not None:
                self._register_at(address)
        except RegistryDrainError as error:
            logger.error("serving, but not registered: %s", error)  # noqa: TRY400 - one line says what to do
        except Exception:
            logger.exception("serving, but not registered")

    def _wait_for_listener(self) -> str | None:
        settings, waited = self._settings, 0.0
        while not self._routine.is_stopping:
            listeners = listening_sockets(settings.listen_port)
            addresses = [bound_address(each)[0] for each in listeners]
            for each in listeners:
                each.close()
            if addresses:
                return settings.address or addresses[0]
            settings.clock.sleep(_LOOK_EVERY)
            waited += _LOOK_EVERY
            if _SAY_AFTER <= waited < _SAY_AFTER + _LOOK_EVERY:
                logger.warning("not registered: nothing listens on port %d yet; is port= right?", settings.listen_port)
        return None

    def _register_at(self, address: str) -> None:
        settings = self._settings
        instance = settings.instance(address)
        registries = [self._open(each) for each in settings.registries]
        membership = self._membership
        if membership is None:
            self._kept = kept = KeptRegistrations(registries, instance, settings.clock, self._routine.tell)
            for registration in kept.by_url.values():
                self._notifier.add_first(registration)
            kept.start()
            return
        for registry in registries:
            self._notifier.add_first(SharedRegistration(membership, registry, lambda: str(instance)))
        membership.start(instance, registries)

    def _open(self, registry: RegistryLike) -> Registry:
        if not isinstance(registry, str):
            return registry
        opened = open_registry(registry, self._settings.clock)
        self._opened.append(opened)
        return opened

    def rejoin(self, deadline: Deadline) -> tuple[str, ...]:
        """Register again wherever an operator has removed the instance; see :meth:`DrainedApp.rejoin`."""
        if self._membership is not None and self._settings.registries:
            return self._membership.rejoin(deadline)
        return () if self._kept is None else self._kept.rejoin_all(deadline)

    # --- the server's stop ------------------------------------------------------------------------------------------

    def _await_us(self, server: Any) -> None:
        """Let uvicorn's shutdown, for whatever reason it comes, begin ours and wait for it."""
        shutdown = server.shutdown

        async def shutdown_drained(*arguments: Any, **options: Any) -> None:
            self._routine.request_stop(self._host.stop_signal or "limit_max_requests")
            counter = 0
            while not self._server.is_drained.is_set():
                if counter % _DATE_EVERY == 0:
                    await server.on_tick(0)  # the Date header
                counter += 1
                await asyncio.sleep(_LOOK_EVERY)
            await shutdown(*arguments, **options)

        server.shutdown = shutdown_drained

    def server_has_stopped(self) -> None:
        """Take note of the lifespan shutdown: the server has stopped serving, and if nobody asked for it, we stop."""
        self._server.has_stopped.set()
        if not self._routine.is_stopping:
            self._routine.hurry("the server has stopped by itself")

    async def ended(self) -> None:
        """Wait for the stop's end; say what it was."""
        while self._routine.phase is not Phase.STOPPED:  # noqa: ASYNC110 - the routine is threads
            await asyncio.sleep(_LOOK_EVERY)
        report = self._routine.report
        logger.log(logging.INFO if report.is_clean else logging.WARNING, "%s", report)
        if self._membership is not None:
            self._membership.end()
        self._host.end()
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        for registry in self._opened:
            registry.close()
        # Once this process ends by itself nothing of ours keeps it; the supervisor's own limits apply.
        self._watchdog.disarm()


class _Notifier(ShutdownNotifier):
    """One in which somebody leaves in place of the registrations, as long as there are none."""

    _substitute: tuple[tuple[str, FirstObserver], ...] = ()

    def stand_in(self, observer: _Unregistered) -> None:
        """Let ``observer`` leave, unless a registration is added before the stop begins."""
        self._substitute = ((observer.instance, observer),)

    @property
    def first(self) -> tuple[tuple[str, FirstObserver], ...]:
        """Those that take the instance out of its clusters, with their names."""
        return super().first or self._substitute


class _Unregistered:
    """A worker that serves, and whose registries are not opened yet; what it leaves is what the others have."""

    def __init__(self, membership: SharedMembership, service: str, registries: int) -> None:
        self.instance = service
        self._membership, self._registries = membership, registries

    def fence(self, deadline: Deadline) -> None:
        """Register nothing from now on."""
        self._membership.begin_leaving(deadline)

    def on_shutdown(self, deadline: Deadline) -> Removal:
        """Leave, or wait for the one that removes the instance."""
        return self._membership.leave_unregistered(self.instance, self._registries, deadline)
