"""What stands between gunicorn and the stop: one object in the master, and its copies in the workers.

Theory of operation: gunicorn calls hooks. In the master they make the :class:`Service`, whose ``run`` lives in a thread
(the arbiter keeps the main one), and replace two of the arbiter's methods on the instance: ``kill_worker`` notes whom
the arbiter signals, ``stop`` notices a stop that nobody asked us for. In a worker they make a
:class:`~registry_drain.hosted.gunicorn.worker.WorkerAgent`.

Rules:

1. Registries, threads and signal handlers are the master's. A worker that is forked later inherits none of the threads,
   and nothing that it inherits deregisters when it exits.
2. Nothing is registered before a worker serves.
3. A reload (SIGHUP) executes the configuration again: the hooks are new, the integration stays.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from registry_drain.errors import RegistryDrainError, RegistryError
from registry_drain.hosted.gunicorn.board import Board
from registry_drain.hosted.gunicorn.server import GunicornServer
from registry_drain.hosted.gunicorn.signals import STOP_SIGNALS, MasterSignals
from registry_drain.hosted.gunicorn.worker import WorkerAgent
from registry_drain.instance import ServiceInstance
from registry_drain.service import Service
from registry_drain.shutdown.budget import StopBudget

logger = logging.getLogger(__name__)

OURS = "is_registry_drain"
"""An attribute of our hooks, by which they are told from the user's."""
_EXIT_LIMIT = 3.0
"""Seconds that the exit waits for a stop which is over but for its report."""
_REJOIN_LOOK = 0.2
"""Seconds between two looks of the master whether a worker wants it to rejoin."""


@dataclass(frozen=True)
class Settings:
    """What the configuration file gives.

    Attributes:
        registry: one or several.
        service: the arguments of :class:`Service` that say what is registered.
        listeners: those that say who is told. Functions of a file that is executed again are others than before.
        budget: of the stop.
        health_check_paths: see the middlewares.
        readiness_path: see the middlewares.
        hooks: those that must be ours.
    """

    registry: Any
    service: dict[str, Any]
    budget: StopBudget
    listeners: dict[str, Any] = field(default_factory=dict, compare=False)
    health_check_paths: tuple[str, ...] = ()
    readiness_path: str = ""
    hooks: tuple[str, ...] = field(default=(), compare=False)


class Integration:
    """One gunicorn's. The hooks of the configuration file call it."""

    def __init__(self, settings: Settings) -> None:
        """Start nothing."""
        self.settings = settings
        self._board = Board()
        self._arbiter: Any = None
        self._server: GunicornServer | None = None
        self._service: Service | None = None
        self._signals: MasterSignals | None = None
        self._agent: WorkerAgent | None = None
        self._may_stop = threading.Event()
        self._has_ended = threading.Event()

    @property
    def is_started(self) -> bool:
        """Whether gunicorn has called us in its master."""
        return self._service is not None

    @property
    def is_stopping(self) -> bool:
        """Whether the stop has begun; in the master and in workers."""
        return self._board.phase.is_stopping

    # --- in the master ----------------------------------------------------------------------------------------------

    def on_starting(self, arbiter: Any) -> None:
        """Check what can be checked, before anything is opened."""
        for line in _misfits(arbiter.cfg, self.settings):
            _refuse(arbiter, line)

    def when_ready(self, arbiter: Any) -> None:
        """Take the master's stop over: gunicorn listens, and has not forked yet."""
        signals = MasterSignals(self._on_signal, self._on_orphaned, self._kill_workers)
        server = GunicornServer(arbiter, self._board, self._stop_gunicorn)
        try:
            self._check_instance(server)
            service = Service(
                server,
                self.settings.registry,
                budget=self.settings.budget,
                handle_signals=False,
                **self.settings.service,
                **self.settings.listeners,
            )
        except RegistryDrainError as error:
            _refuse(arbiter, str(error))
            return
        self._arbiter, self._server, self._service, self._signals = arbiter, server, service, signals
        self._watch_arbiter(arbiter, service)
        signals.install()
        threading.Thread(target=self._run, args=(service, signals), name="registry-drain-gunicorn", daemon=True).start()
        threading.Thread(
            target=self._rejoin_when_asked, args=(service,), name="registry-drain-rejoin", daemon=True
        ).start()

    def _rejoin_when_asked(self, service: Service) -> None:
        while not self._has_ended.wait(_REJOIN_LOOK):
            if not self._board.take_rejoin():
                continue
            try:
                if not service.rejoin():
                    logger.info("registry_drain: told to rejoin, and no operator has removed %s", service)
            except RegistryError as error:
                logger.warning("registry_drain: told to rejoin, and could not: %s", error)

    def rejoin(self) -> None:
        """Have the master register again wherever an operator has removed the instance; in any process."""
        self._board.ask_to_rejoin()

    def _check_instance(self, server: GunicornServer) -> None:
        if not self.settings.registry:
            return
        given = self.settings.service
        host, port = server.bound()
        ServiceInstance(given["service"], given["address"] or host, given["port"] or port, id=given["instance_id"])

    def _run(self, service: Service, signals: MasterSignals) -> None:
        try:
            service.run()
        except Exception as error:  # noqa: BLE001 - ends here, in the log and with gunicorn's stop
            logger.critical("registry_drain: %s: stopping gunicorn", error)
        finally:
            self._has_ended.set()
            self._may_stop.set()
            # Gunicorn stops whatever became of our stop; a second time does nothing.
            signals.pass_on()

    def _stop_gunicorn(self) -> None:
        self._may_stop.set()
        if threading.main_thread().is_alive() and self._signals is not None:
            self._signals.pass_on()
        else:
            # Nobody runs the arbiter any more. Its stop waits for the workers, so it gets a thread.
            threading.Thread(target=self._arbiter.stop, name="registry-drain-gunicorn-stop", daemon=True).start()

    def _watch_arbiter(self, arbiter: Any, service: Service) -> None:
        kill_worker, stop = arbiter.kill_worker, arbiter.stop

        def tell_and_kill(pid: int, number: int) -> None:
            worker = arbiter.WORKERS.get(pid)
            slot = getattr(worker, "registry_drain_slot", None)
            if slot is not None and number in STOP_SIGNALS:
                slot.tell()
            kill_worker(pid, number)

        def notice_and_stop(graceful: bool = True) -> None:  # noqa: FBT001, FBT002 -- gunicorn's signature
            # Normally it is us who asked, and nothing is waited for. Else gunicorn has given up (a worker that does not
            # boot); the others serve on until callers have been told.
            service.request_stop("gunicorn stops by itself")
            self._may_stop.wait(self.settings.budget.grace_period)
            stop(graceful)

        arbiter.kill_worker, arbiter.stop = tell_and_kill, notice_and_stop

    def _on_signal(self, name: str, is_first: bool) -> None:  # noqa: FBT001 -- a callback
        if self._service is None:
            return
        if is_first:
            self._service.request_stop(name)
        else:
            self._service.routine.hurry(name)

    def _on_orphaned(self) -> None:
        """Stop what still serves: gunicorn's main thread has ended without telling anybody, workers or us."""
        if self._service is not None:
            self._service.request_stop("gunicorn gave up")
            self._service.routine.wait(self.settings.budget.grace_period)
            self._has_ended.wait(_EXIT_LIMIT)

    def _kill_workers(self) -> None:
        for pid in list(self._arbiter.WORKERS):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def pre_fork(self, arbiter: Any, worker: Any) -> None:
        """Give the worker its place on the board."""
        if not self.is_started:
            _refuse(arbiter, "when_ready is not ours any more: " + _LAST_LINE)
        worker.registry_drain_slot = self._board.take()

    def child_exit(self, worker: Any) -> None:
        """Forget a worker that has been reaped."""
        slot = getattr(worker, "registry_drain_slot", None)
        if slot is not None:
            self._board.free(slot)

    def on_exit(self) -> None:
        """Wait for the end of the stop: every worker has gone, so only observers and the report are left."""
        if self._service is None:
            return
        notify = self.settings.budget.part("notify")
        if not self._has_ended.wait(notify + _EXIT_LIMIT):
            self._service.routine.hurry("gunicorn exits")
            self._has_ended.wait(self._hurried_limit)
        if self._signals is not None:
            self._signals.end()

    @property
    def _hurried_limit(self) -> float:
        budget = self.settings.budget
        return budget.hurried_deregister + budget.part("closing") + budget.hurried_notify + _EXIT_LIMIT

    # --- in a worker ------------------------------------------------------------------------------------------------

    def post_worker_init(self, worker: Any) -> None:
        """Prepare a worker that is about to serve."""
        self._agent = WorkerAgent(
            worker,
            worker.registry_drain_slot,
            self._board,
            health_check_paths=self.settings.health_check_paths,
            readiness_path=self.settings.readiness_path,
        )
        self._agent.install()

    def pre_request(self, request: Any) -> None:
        """Let the worker's agent see a request."""
        if self._agent is not None:
            self._agent.begin(request)

    def post_request(self, request: Any) -> None:
        """Let it see that the request's answer is written."""
        if self._agent is not None:
            self._agent.end(request)


_LAST_LINE = "call drain(globals(), ...) in the last line of the configuration, it chains the hooks that stand above it"


def _misfits(cfg: Any, settings: Settings) -> list[str]:
    lines = [
        f"{name} is defined after drain(): {_LAST_LINE}"
        for name in settings.hooks
        if not hasattr(getattr(cfg, name), OURS)
    ]
    budget = settings.budget
    needed = budget.grace_period - budget.part("notify") - budget.part("margin")
    if cfg.graceful_timeout < needed:
        lines.append(
            f"graceful_timeout={cfg.graceful_timeout} is shorter than the drain may be: set graceful_timeout="
            f"{needed:.0f} or more, or lower grace_period={budget.grace_period:g} of the budget"
        )
    if budget.drain is not None and 0 < budget.drain < cfg.timeout:
        lines.append(
            f"timeout={cfg.timeout} lets a request take longer than drain={budget.drain:g} of the budget:"
            " lower timeout, or raise drain"
        )
    if cfg.reuse_port:
        lines.append("reuse_port gives each worker a backlog of its own, which every recycling resets: leave it out")
    return lines


def _refuse(arbiter: Any, line: str) -> None:
    arbiter.log.critical("registry_drain: %s", line)
    sys.exit(1)
