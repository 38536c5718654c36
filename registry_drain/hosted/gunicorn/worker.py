"""Inside a worker: it counts its requests, sends clients away in time, and does not go before it is meant to.

Theory of operation: the master writes on the board whom it tells to go, before it signals him. A stop signal that comes
without that was sent to the whole process group (systemd, a terminal's Ctrl-C) or to this process alone. The master has
got it too, then, and its stop is under way or is about to begin: the worker goes on serving until the master tells it.
If no stop begins within ``ALONE_AFTER``, the signal was meant for this worker alone, and is obeyed then.

Rules:

1. What the master tells is obeyed at once: a reload waits for nobody.
2. A worker closes its gate before its listener, and an event loop gets some turns in between.
3. Who leaves says so (``Connection: close``) and lingers for requests that are under way.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from registry_drain.hosted.gunicorn.asgi_request import GunicornRequest, send_last
from registry_drain.hosted.gunicorn.board import Board, WorkerSlot
from registry_drain.hosted.gunicorn.gate import Gate, put_behind
from registry_drain.hosted.gunicorn.shared_in_flight import SharedInFlight
from registry_drain.hosted.gunicorn.signals import STOP_SIGNALS
from registry_drain.phases import Phase
from registry_drain.servers.current_request import LiveRequest, serving
from registry_drain.servers.http import ASGIMiddleware
from registry_drain.servers.http.served_request import Farewell, InsideRequest

logger = logging.getLogger(__name__)

OF_THE_USER = "of_the_user"
"""An attribute of our ``pre_request`` and ``post_request``: the hook that it chains, or None."""
ALONE_AFTER = 5.0
"""Seconds after which a signal that no stop of the master followed was meant for the worker alone. Long: the worker
serves all the while, and a master that is loading an application handles its signals late."""
LINGER = 2.0
"""Seconds that a leaving worker keeps idle connections for a request that may be under way, where the worker class has
no such time of its own; as long as gunicorn's gthread."""
_LOOK_EVERY = 0.1
_LOOK_OFTEN = 0.02
"""Seconds between two looks at the board, and two messages on it: while serving, and once the stop has begun."""
_TURNS = 0.050
"""Seconds between the gate and the listener: many turns of an event loop."""


class _Request(LiveRequest):
    """One request of a WSGI application; gunicorn's own object says what it is."""

    def __init__(self, request: Any, in_flight: SharedInFlight) -> None:
        super().__init__(in_flight)
        self.thread_id = threading.get_ident()
        self._request = request

    @property
    def name(self) -> str:
        return f"{self._request.method} {self._request.path}"

    @property
    def peer(self) -> str:
        address = self._request.peer_addr
        return f"{address[0]}:{address[1]}" if isinstance(address, tuple) else ""


class WorkerAgent:
    """One worker's side. Made in ``post_worker_init``, in the worker's main thread.

    Args:
        worker: gunicorn's own.
        slot: its place on the board.
        board: what the master says.
        health_check_paths: see the middlewares.
        readiness_path: see the middlewares.
    """

    def __init__(
        self, worker: Any, slot: WorkerSlot, board: Board, *, health_check_paths: tuple[str, ...], readiness_path: str
    ) -> None:
        self._worker = worker
        self._slot = slot
        self._board = board
        self._health_check_paths = health_check_paths
        self._readiness_path = readiness_path
        self._in_flight = SharedInFlight(board, slot)
        self._gate = Gate()
        self._asked_at: float | None = None
        self._is_alone = False
        self._is_leaving = False
        self._leaving: asyncio.Task[None] | None = None
        self._limit = sys.maxsize
        self._linger = min(LINGER, float(worker.cfg.keepalive))

    def install(self) -> None:
        """Do all that there is to do before the worker serves."""
        put_behind(self._gate, self._worker.sockets)
        kind = _kind_of(self._worker)
        if kind == "uvicorn":
            self._install_uvicorn()
        elif kind == "asgi":
            self._install_asgi()
        else:
            self._install_other()
        threading.Thread(target=self._follow, name="registry-drain-gunicorn-worker", daemon=True).start()
        if self._slot.is_told:
            # Told before anybody could listen.
            os.kill(os.getpid(), signal.SIGTERM)

    # --- each request of a WSGI application ------------------------------------------------------------------------

    def begin(self, request: Any) -> None:
        """Count a request of a WSGI application, and close its connection if it is time."""
        if (self._is_leaving or self._board.is_delisted) and hasattr(request, "must_close"):
            request.must_close = True  # gunicorn drops the application's own header
        path = request.path
        counted = _Request(request, self._in_flight)
        is_health_check = path in self._health_check_paths or path == self._readiness_path
        self._in_flight.begin_request(counted, is_health_check=is_health_check)
        request.registry_drain = counted, serving.set(counted)

    def end(self, request: Any) -> None:
        """Note that its answer is written; in the thread that began it."""
        held = getattr(request, "registry_drain", None)
        if held is not None:
            counted, token = held
            serving.reset(token)
            self._in_flight.end(counted)

    # --- worker classes ---------------------------------------------------------------------------------------------

    def _install_other(self) -> None:
        """Prepare sync, gthread, and what else runs WSGI applications and has plain signal handlers."""
        worker = self._worker
        if self._readiness_path:
            worker.wsgi = self._answering_readiness(worker.wsgi)
        for number in STOP_SIGNALS:
            self._guard(number, signal.getsignal(number))
        self._slot.be_ready()

    def _answering_readiness(self, app: Callable[..., Any]) -> Callable[..., Any]:
        def application(environ: dict[str, Any], start_response: Callable[..., object]) -> Any:
            if environ.get("SCRIPT_NAME", "") + environ["PATH_INFO"] != self._readiness_path:
                return app(environ, start_response)
            status, body = ("503 Service Unavailable", b"stopping\n") if self._is_stopping else ("200 OK", b"ready\n")
            start_response(status, [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
            return [body]

        return application

    @property
    def _is_stopping(self) -> bool:
        return self._board.phase.is_stopping

    def _guard(self, number: int, previous: Any) -> None:
        def handle(signal_number: int, frame: Any) -> None:
            if self._may_leave():
                self._leave()
                previous(signal_number, frame)

        signal.signal(number, handle)
        # As gunicorn has it: the system calls of a request under way are not interrupted.
        signal.siginterrupt(number, False)  # noqa: FBT003 -- its only form

    def _install_asgi(self) -> None:
        """Prepare gunicorn's own ASGI worker, whose handlers are its loop's.

        It closes a connection behind an answer that has promised to keep it, if it is told to go between the two. So
        it is told when the connections have gone, and :meth:`_follow` looks at ``max_requests``.
        """
        worker = self._worker
        known = GunicornRequest if list(getattr(worker.cfg, "http_protocols", ())) == ["h1"] else None
        worker.asgi = self._asgi_middleware(worker.asgi, send_last, known).__call__  # called faster than the object
        # Its middleware does what ours would. With any post_request gunicorn answers a connection's next request only
        # after what the application does behind its answer.
        for name in ("pre_request", "post_request"):
            users = getattr(getattr(worker.cfg, name), OF_THE_USER, None)
            worker.cfg.set(name, users or worker.cfg.settings[name].default)
        self._limit, worker.max_requests = worker.max_requests, sys.maxsize
        # Through the loop: a handler of signal.signal beside one of the loop's does not replace it.
        worker.loop.add_signal_handler(signal.SIGTERM, self._call_if_meant, self._begin_to_leave)
        worker.loop.add_signal_handler(signal.SIGINT, self._call_if_meant, worker.handle_quit_signal)
        worker.loop.add_signal_handler(signal.SIGQUIT, self._call_if_meant, worker.handle_quit_signal)
        shut_down = worker._shutdown  # noqa: SLF001 -- the only place after the last accept and before the close

        async def leave_first() -> None:
            await self._accept_no_more()
            await shut_down()

        worker._shutdown = leave_first  # noqa: SLF001

    def _call_if_meant(self, act: Callable[[], object]) -> None:
        if self._may_leave():
            act()

    def _begin_to_leave(self) -> None:
        """Linger, and then go. In gunicorn's ASGI worker's loop."""
        if self._leaving is None:
            self._leaving = self._worker.loop.create_task(self._linger_and_go())

    async def _linger_and_go(self) -> None:
        await self._send_away()
        self._worker.handle_exit_signal()  # which its loop sees within a second, and then calls leave_first

    async def _send_away(self) -> None:
        """Tell open connections that this worker goes, if it goes alone; the stop of all has told them already.

        It serves meanwhile: its replacement, or others that go at the same time, may not be there yet.
        """
        if self._board.phase.is_stopping:
            return
        self._is_leaving = True
        self._in_flight.stop_state.enter(Phase.PROPAGATING, self._goes_at)
        await asyncio.sleep(self._linger)

    async def _accept_no_more(self) -> None:
        """Close the gate, and let the loop serve what it has accepted."""
        self._leave()
        self._in_flight.stop_state.enter(Phase.DRAINING, self._goes_at)
        loop = asyncio.get_running_loop()
        for listener in self._worker.sockets:
            # Not only the gate: the loop would look again and again. uvloop watches listeners in its own way.
            with suppress(RuntimeError, ValueError, OSError):
                loop.remove_reader(listener.fileno())
        await asyncio.sleep(_TURNS)

    def _install_uvicorn(self) -> None:
        """Prepare uvicorn's worker: it makes its server itself, so what it makes it of is changed, in this process."""
        from registry_drain.servers.uvicorn_server import request  # which imports what the worker class has imported

        worker = self._worker
        worker.wsgi = self._asgi_middleware(worker.wsgi, request.send_last, request.CycleRequest)
        server_class = sys.modules["uvicorn.server"].Server
        start_up, handle_exit, shut_down = server_class.startup, server_class.handle_exit, server_class.shutdown

        async def start_up_and_say(server: Any, sockets: Any = None) -> None:
            await start_up(server, sockets=sockets)
            self._slot.be_ready()

        def exit_if_meant(server: Any, number: int, frame: Any) -> None:
            if self._may_leave():
                handle_exit(server, number, frame)

        async def leave_first(server: Any, sockets: Any = None) -> None:
            await self._send_away()
            await self._accept_no_more()
            for listener in server.servers:
                listener.close()  # uvloop has accepted until now, whatever the gate says
            # What uvicorn finds idle it closes, a connection too whose first request is on its way.
            for _ in range(int(self._linger / _TURNS)):
                if not server.server_state.connections or server.force_exit:
                    break
                await asyncio.sleep(_TURNS)
            await shut_down(server, sockets=sockets)

        server_class.startup = start_up_and_say
        server_class.handle_exit = exit_if_meant
        server_class.shutdown = leave_first

    def _asgi_middleware(self, app: Any, farewell: Farewell, inside: type[InsideRequest] | None) -> ASGIMiddleware:
        return ASGIMiddleware(
            app,
            self._in_flight,
            health_check_paths=self._health_check_paths,
            readiness_path=self._readiness_path,
            farewell=farewell,
            inside=inside,
        )

    # --- going ------------------------------------------------------------------------------------------------------

    def _may_leave(self) -> bool:
        """Whether a stop signal is to be obeyed. In signal handlers: takes no lock."""
        if self._slot.is_told or self._is_alone:
            return True
        self._asked_at = self._asked_at or time.monotonic()
        return False

    def _leave(self) -> None:
        """Accept no more. In signal handlers, too."""
        self._is_leaving = True
        self._gate.is_closed = True
        self._slot.leave()

    @property
    def _goes_at(self) -> float:
        """When what is still in flight is cut off, once this worker goes, be it alone."""
        ends_at = time.monotonic() + float(self._worker.cfg.graceful_timeout)
        cut_off_at = self._board.cut_off_at
        return ends_at if cut_off_at is None else min(ends_at, cut_off_at)

    def _follow(self) -> None:
        """Tell the master of our requests, learn of its stop, and look whether a signal was meant for us alone."""
        stop_state = self._in_flight.stop_state
        while True:
            if stop_state.is_stopping:
                time.sleep(_LOOK_OFTEN)
            else:
                self._board.wait_for_stop(_LOOK_EVERY)
            self._in_flight.publish()
            if self._gate.is_closed and not stop_state.is_draining:
                stop_state.enter(Phase.DRAINING, self._goes_at)
            if not self._slot.is_ready and getattr(self._worker, "servers", None):
                self._slot.be_ready()  # gunicorn's ASGI worker: its start-up is over
            if self._worker.nr >= self._limit:
                self._limit = sys.maxsize
                with suppress(RuntimeError):  # its loop has ended
                    self._worker.loop.call_soon_threadsafe(self._begin_to_leave)
            if self._is_abandoned() and not self._is_alone:
                self._is_alone = True
                os.kill(os.getpid(), signal.SIGTERM)

    def _is_abandoned(self) -> bool:
        """Whether the master is gone (SIGKILL), or we were asked to go and no master is going to tell us."""
        if os.getppid() != self._worker.ppid:
            return True  # gunicorn's own workers look for themselves, uvicorn's do not, and would serve for ever
        if self._asked_at is None:
            return False
        return not self._board.phase.is_stopping and time.monotonic() - self._asked_at > ALONE_AFTER


def _kind_of(worker: Any) -> str:
    modules = {each.__module__.partition(".")[0] for each in type(worker).__mro__}
    if modules & {"uvicorn", "uvicorn_worker"}:
        return "uvicorn"
    is_asgi = hasattr(worker, "handle_exit_signal") and hasattr(worker, "loop")
    return "asgi" if is_asgi else "other"
