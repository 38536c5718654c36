"""A service of one kind that sends itself SIGTERM, with handlers of others before and after ours; says what happens.

    python -m tests.servers.signal_program KIND CASE

The handler from before is there in every case. CASE says what is installed when the service has started:

- ``before``: nothing.
- ``chaining``: by ``signal.signal``, and calls the handler that it found, as libraries do that are to be polite.
- ``chaining-at-once``, in a loop: the same, and the signal comes before anybody could notice.
- ``displacing``: by ``signal.signal``, and calls nobody.
- ``exiting``: the same, and raises SystemExit(7).
- ``loop``, in a loop: by ``loop.add_signal_handler``; so is the one from before, as in ``before``.
- ``uvicorn``, in a loop: by a bare uvicorn server that runs there as well, and has its own handlers.
- ``uvicorn-before``, in a loop: nothing; the bare uvicorn's is the one from before.

What happens is said in lines of standard output, by whichever process it happens in: ``displaced``, ``before`` and
``after`` for the others' handlers, ``requested REASON``, ``observer``, ``report`` when it is logged, ``returned``.
It has to lead a process group, since the whole group is signalled where a server has child processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator
from types import FrameType
from typing import Any

from registry_drain import AsyncService, ShutdownReport, StopBudget
from registry_drain.service import Service
from registry_drain.shutdown.events import Event, SignalHandlerDisplaced, StopRequested, logger
from tests.servers.signalled_servers import HOST, IN_LOOP, IN_PROCESSES, IN_THREADS, asgi_app

BUDGET = StopBudget(grace_period=60.0, floor=0.0, quiet_period=0.0, ceiling=0.0, closing=10.0)
PATIENCE = 30.0
displaced, after_called = threading.Event(), threading.Event()


def say(what: str) -> None:
    """Write a line, in one piece: from signal handlers, too."""
    os.write(1, f"{what}\n".encode())


def say_event(event: Event) -> None:
    """Say what a sink is told that belongs to signals."""
    if isinstance(event, StopRequested):
        say(f"requested {event.reason}")
    if isinstance(event, SignalHandlerDisplaced):
        assert event.signal_name == "SIGTERM"
        say("displaced")
        displaced.set()


class ReportLog(logging.Handler):
    """Says each report that is logged."""

    def emit(self, record: logging.LogRecord) -> None:
        """Look at a record."""
        if isinstance(record.args, tuple) and any(isinstance(each, ShutdownReport) for each in record.args):
            say("report")


def before(*_: Any) -> None:
    """Be the handler that stood there first."""
    say("before")


def install_by_signal(case: str) -> None:
    """Install the later handler, in the main thread."""
    found: Any = signal.getsignal(signal.SIGTERM)

    def after(number: int, frame: FrameType | None) -> None:
        say("after")
        after_called.set()
        if case.startswith("chaining"):
            found(number, frame)
        if case == "exiting":
            raise SystemExit(7)

    signal.signal(signal.SIGTERM, after)


def terminate(kind: str) -> None:
    """Send SIGTERM, as the supervisor of this service would."""
    if kind in IN_PROCESSES:
        os.killpg(os.getpid(), signal.SIGTERM)
    else:
        os.kill(os.getpid(), signal.SIGTERM)


def serve_in_threads(kind: str, case: str) -> ShutdownReport:
    """Serve as serve() does, which keeps the main thread: so a handler of SIGUSR1 installs what comes later."""
    installed = threading.Event()

    def install(*_: Any) -> None:
        if case != "before":
            install_by_signal(case)
        installed.set()

    signal.signal(signal.SIGTERM, before)
    signal.signal(signal.SIGUSR1, install)
    service = Service(IN_THREADS[kind](), budget=BUDGET, observers=[lambda: say("observer")], sinks=[say_event])

    def send_signals() -> None:
        assert service.started.wait(PATIENCE)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert installed.wait(PATIENCE)
        if case in {"displacing", "exiting"}:
            assert displaced.wait(PATIENCE)
        terminate(kind)
        if case == "displacing":
            assert after_called.wait(PATIENCE)
            os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=send_signals, daemon=True).start()
    return service.run()


@contextlib.asynccontextmanager
async def bare_uvicorn(name: str) -> AsyncIterator[None]:
    """Run a uvicorn server of the program's own, which handles signals, until it has ended by itself."""
    import uvicorn

    class SayingServer(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            say(name)
            super().handle_exit(sig, frame)

    server = SayingServer(uvicorn.Config(asgi_app, host=HOST, port=0, log_level="warning"))
    serving = asyncio.ensure_future(server.serve())
    while not server.started:  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0.01)
    yield
    await serving


async def ours_stand(ours: Any, loop: Any) -> None:
    """Wait until our handler has been put back."""
    while signal.getsignal(signal.SIGTERM) != ours or signal.SIGTERM in loop._signal_handlers:  # noqa: ASYNC110
        await asyncio.sleep(0.01)


async def serve_in_loop(kind: str, case: str) -> int:
    """Serve as serve_async() does, and install what comes later once it serves."""
    loop = asyncio.get_running_loop()
    async with contextlib.AsyncExitStack() as bare:
        if case == "uvicorn-before":
            await bare.enter_async_context(bare_uvicorn("before"))
        elif case in {"before", "loop"}:
            loop.add_signal_handler(signal.SIGTERM, before)
        else:
            signal.signal(signal.SIGTERM, before)
        service = AsyncService(IN_LOOP[kind](), budget=BUDGET, observers=[lambda: say("observer")], sinks=[say_event])
        running = asyncio.ensure_future(service.run())
        await service.wait_until_started()
        ours = signal.getsignal(signal.SIGTERM)
        if case == "loop":
            loop.add_signal_handler(signal.SIGTERM, say, "after")
        elif case == "uvicorn":
            await bare.enter_async_context(bare_uvicorn("after"))
        elif case not in {"before", "uvicorn-before"}:
            install_by_signal(case)
        if case != "chaining-at-once":
            await ours_stand(ours, loop)
        terminate(kind)
        report = await running
        say("returned")
    return report.exit_code


def main() -> int:
    """Run one case of one kind."""
    kind, case = sys.argv[1:]
    logger.addHandler(ReportLog())
    logger.setLevel(logging.INFO)
    if kind in IN_LOOP:
        return asyncio.run(serve_in_loop(kind, case))
    report = serve_in_threads(kind, case)
    say("returned")
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
