"""serve_async() and AsyncService: the same stop in an asyncio application, whose loop goes on serving."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from registry_drain import AsyncService, ShutdownReport, StopBudget, When, serve_async
from registry_drain.clock import SYSTEM_CLOCK, Deadline
from registry_drain.errors import ConfigurationError, PermissionRefusedError
from registry_drain.phases import Outcome, Phase
from registry_drain.servers.asyncio_streams import AsyncioServer
from registry_drain.servers.group import ServerGroup
from registry_drain.service import Service
from registry_drain.shutdown.observers import ObserverResult
from registry_drain.testing.faults import REFUSED, Step
from registry_drain.testing.faulty_registry import FaultyRegistry

PATIENCE = 30.0
BUDGET = StopBudget(grace_period=20.0, floor=0.0, quiet_period=0.0, notify=8.0)


class Echo:
    """A server of lines, each of which waits until the gate opens."""

    def __init__(self) -> None:
        """Make it; the service starts it."""
        self.gate = asyncio.Event()
        self.on_line: Callable[[bytes], Awaitable[bytes]] = self.wait_for_gate
        self.entered = 0
        self.adapter = AsyncioServer(self.echo, "127.0.0.1", 0)

    async def wait_for_gate(self, line: bytes) -> bytes:
        """Answer when the gate opens."""
        await self.gate.wait()
        return line

    async def echo(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        async for line in reader:
            self.entered += 1
            writer.write(await self.on_line(line))
        writer.close()


class Play:
    """A service that runs in a task of the test's."""

    def __init__(self, echo: Echo, *registries: FaultyRegistry, **options: Any) -> None:
        """Run it."""
        options = {"service": "echo", "budget": BUDGET, "handle_signals": False, **options}
        self.echo = echo
        self.service = AsyncService(echo.adapter, registries, **options)
        self.task = asyncio.get_running_loop().create_task(self.service.run())

    async def started(self) -> Play:
        """Wait until it serves."""
        await self.service.wait_until_started()
        return self

    async def client(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Return a client whose request is being served."""
        assert self.service.bound is not None
        reader, writer = await asyncio.open_connection(*self.service.bound)
        writer.write(b"line\n")
        await until(lambda: self.echo.entered > 0)
        return reader, writer

    async def report(self) -> ShutdownReport:
        """Return its report."""
        return await asyncio.wait_for(self.task, PATIENCE)


async def until(condition: Callable[[], object]) -> None:
    """Wait until it holds."""
    ends_at = SYSTEM_CLOCK.now() + PATIENCE
    while not condition():
        assert SYSTEM_CLOCK.now() < ends_at, "waited in vain"
        await asyncio.sleep(0.005)


def play(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    """Run a coroutine as a test, in time."""

    @functools.wraps(test)
    def run() -> None:
        asyncio.run(asyncio.wait_for(test(), 2 * PATIENCE))

    return run


def result(report: ShutdownReport, name: str) -> ObserverResult:
    """Return what became of an observer."""
    (found,) = (each for each in report.observers if each.name.endswith(name))
    return found


def phase_outcome(report: ShutdownReport, phase: Phase) -> Outcome:
    """Return how a phase ended."""
    (found,) = (each for each in report.phases if each.phase is phase)
    return found.outcome


# --- running and stopping -------------------------------------------------------------------------------------------


@play
async def test_it_registers_serves_leaves_and_drains_while_the_loop_goes_on() -> None:
    """The request in flight is answered during the stop, in the loop that awaits the stop."""
    registry = FaultyRegistry(SYSTEM_CLOCK)
    playing = await Play(Echo(), registry).started()
    await until(lambda: playing.service.is_ready)
    assert [entry.service for entry in registry.cluster.entries()] == ["echo"]
    reader, writer = await playing.client()
    assert [request.name for request in playing.echo.adapter.in_flight.snapshot()] == ["echo"]
    playing.service.request_stop("the test")
    await until(lambda: playing.service.routine.phase is Phase.DRAINING)
    assert not playing.service.is_ready
    assert not registry.cluster.entries()
    playing.echo.gate.set()
    assert await reader.read() == b"line\n"
    writer.close()
    report = await playing.report()
    assert report.is_clean
    assert report.reason == "the test"


@play
async def test_serve_async_is_that_in_one_call() -> None:
    """As serve() is."""
    echo = Echo()
    task = asyncio.create_task(serve_async(echo.adapter, budget=BUDGET, handle_signals=False))
    await until(lambda: "the application's" in repr(echo.adapter))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert echo.adapter.in_flight.stop_state.phase is Phase.STOPPED


@play
async def test_cancelling_is_a_graceful_stop() -> None:
    """The request in flight is answered; the CancelledError comes when everything is done."""
    playing = await Play(Echo()).started()
    reader, writer = await playing.client()
    playing.task.cancel()
    await until(lambda: playing.service.routine.phase is Phase.DRAINING)
    assert not playing.task.done()
    playing.echo.gate.set()
    assert await reader.read() == b"line\n"
    writer.close()
    with pytest.raises(asyncio.CancelledError):
        await playing.report()
    assert playing.task.cancelled()
    report = playing.service.routine.report
    assert report.is_clean
    assert report.reason == "cancelled"


@play
async def test_cancelling_again_hurries() -> None:
    """What is in flight is cut off: its task is cancelled and awaited, and named in the report."""
    playing = await Play(Echo()).started()
    cleaned_up: list[str] = []

    async def wait(line: bytes) -> bytes:
        try:
            await playing.echo.gate.wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0.01)
            cleaned_up.append("handler")
            raise
        return line

    playing.echo.on_line = wait
    reader, writer = await playing.client()
    playing.task.cancel()
    await until(lambda: playing.service.routine.phase is Phase.DRAINING)
    playing.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await playing.report()
    report = playing.service.routine.report
    assert report.is_hurried
    assert [request.name for request in report.cut_off] == ["echo"]
    assert cleaned_up == ["handler"]
    assert await reader.read() == b""
    writer.close()


@play
async def test_a_timeout_around_it_is_a_graceful_stop() -> None:
    """wait_for cancels once, and gets its TimeoutError when the stop has ended."""
    service = AsyncService(Echo().adapter, budget=BUDGET, handle_signals=False)
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(service.run(), 0.2)
    assert service.routine.report.is_clean
    assert service.routine.phase is Phase.STOPPED


@play
async def test_stop_async_waits_for_the_report_and_may_be_called_by_several() -> None:
    """All get the same one."""
    playing = await Play(Echo()).started()
    reports = await asyncio.gather(*(playing.service.stop_async(f"caller {number}") for number in range(3)))
    assert reports == [await playing.report()] * 3
    assert reports[0].reason == "caller 0"


@play
async def test_stop_in_the_loops_thread_returns_at_once() -> None:
    """It cannot wait there; by whatever way it is called."""
    playing = await Play(Echo()).started()
    _, writer = await playing.client()
    assert playing.service.stop("sync").phase is not Phase.STOPPED
    assert playing.service.routine.stop("again").phase is not Phase.STOPPED
    playing.echo.gate.set()
    assert (await playing.report()).is_clean
    writer.close()


@play
async def test_stop_in_a_thread_waits() -> None:
    """As Service.stop does."""
    playing = await Play(Echo()).started()
    report = await asyncio.to_thread(playing.service.stop, "a thread")
    assert report == await playing.report()


@play
async def test_a_handler_may_stop_the_service_it_serves_in() -> None:
    """It does not wait for itself: in the loop, by await, and in a thread that it awaits."""
    playing = await Play(Echo()).started()
    phases: list[Phase] = []

    async def stop(line: bytes) -> bytes:
        phases.append(playing.service.stop("a handler").phase)
        phases.append((await playing.service.stop_async()).phase)
        phases.append((await asyncio.to_thread(playing.service.stop)).phase)
        return line

    playing.echo.on_line = stop
    reader, writer = await playing.client()
    assert await reader.read() == b"line\n"
    writer.close()
    assert (await playing.report()).is_clean
    assert len(phases) == 3
    assert Phase.STOPPED not in phases


@play
async def test_a_start_that_fails_raises_and_leaves_nothing_registered() -> None:
    """The error of the registration, as from serve()."""
    registry = FaultyRegistry(SYSTEM_CLOCK)
    registry.faults.add(Step.WRITE, REFUSED)
    playing = Play(Echo(), registry, on_registration_failure="fail")
    with pytest.raises(PermissionRefusedError):
        await playing.report()
    assert not registry.cluster.entries()
    assert playing.service.bound is not None
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(*playing.service.bound)


@play
async def test_an_address_in_use_is_an_os_error() -> None:
    """And a second run of the same service is refused."""
    first = await Play(Echo()).started()
    assert first.service.bound is not None
    second = AsyncService(AsyncioServer(Echo().echo, *first.service.bound), budget=BUDGET, handle_signals=False)
    with pytest.raises(OSError, match="in use"):
        await second.run()
    with pytest.raises(ConfigurationError, match="has run already"):
        await first.service.run()
    await first.service.stop_async()


def test_outside_the_main_thread_signals_are_refused() -> None:
    """As by serve()."""
    errors: list[Exception] = []

    def run() -> None:
        try:
            asyncio.run(serve_async(Echo().adapter, budget=BUDGET))
        except ConfigurationError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(PATIENCE)
    assert "handle_signals=False" in str(errors[0])


@play
async def test_a_service_may_be_made_before_the_loop_runs_and_a_group_shares_it() -> None:
    """Two servers in the application's loop, one stop."""
    rpc, admin = Echo(), Echo()
    service = AsyncService(
        ServerGroup({"rpc": rpc.adapter, "admin": admin.adapter}), budget=BUDGET, handle_signals=False
    )
    task = asyncio.create_task(service.run())
    await service.wait_until_started()
    assert "the application's" in repr(rpc.adapter)
    assert "the application's" in repr(admin.adapter)
    assert service.stop("in the loop's thread").phase is not Phase.STOPPED
    report = await task
    assert report.is_clean
    assert report.listener.startswith("rpc: ")


# --- observers ------------------------------------------------------------------------------------------------------


class Flusher:
    """An observer object with a coroutine."""

    def __init__(self) -> None:
        """Told nothing yet."""
        self.told: list[tuple[float, int]] = []

    async def on_shutdown(self, deadline: Deadline) -> None:
        """Note what is left, and where this runs."""
        await asyncio.sleep(0)
        self.told.append((deadline.remaining(), threading.get_ident()))


@play
async def test_coroutines_are_told_in_the_loop_in_order() -> None:
    """Functions, objects, partials, and functions that return a coroutine, between plain functions in threads."""
    told: list[tuple[str, bool]] = []
    me = threading.get_ident()

    async def observe(name: str = "coroutine") -> None:
        await asyncio.sleep(0)
        told.append((name, threading.get_ident() == me))

    def plain() -> None:
        told.append(("plain", threading.get_ident() == me))

    flusher = Flusher()
    observers: list[Any] = [observe, plain, functools.partial(observe, "partial"), lambda: observe("lambda"), flusher]
    playing = await Play(Echo(), observers=observers).started()
    report = await playing.service.stop_async()
    assert report.is_clean
    assert told == [("coroutine", True), ("plain", False), ("partial", True), ("lambda", True)]
    assert flusher.told[0][1] == me
    assert 0 < flusher.told[0][0] < BUDGET.grace_period


@play
async def test_a_coroutine_is_told_when_draining_starts() -> None:
    """Beside the drain, while requests are in flight."""
    playing = await Play(Echo()).started()

    async def open_gate() -> None:
        assert playing.echo.adapter.in_flight.count == 1
        playing.echo.gate.set()

    playing.service.notifier.add(open_gate, when=When.DRAINING_STARTS)
    reader, writer = await playing.client()
    playing.service.request_stop("the test")
    assert await reader.read() == b"line\n"
    writer.close()
    assert (await playing.report()).is_clean


@play
async def test_at_its_time_limit_a_coroutine_is_cancelled_awaited_and_named() -> None:
    """The report says where it was; the next one is told all the same."""
    journal: list[str] = []

    async def hang() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            journal.append("cleaned up")
            raise

    async def next_one() -> None:
        journal.append("next")

    playing = await Play(Echo()).started()
    playing.service.notifier.add(hang, time_limit=3.0)
    playing.service.notifier.add(next_one)
    report = await playing.service.stop_async()
    assert journal == ["cleaned up", "next"]
    hung = result(report, "hang")
    assert hung.outcome is Outcome.TIMED_OUT
    assert hung.detail.startswith(f"cancelled in hang() at {__file__}:")
    assert phase_outcome(report, Phase.NOTIFYING) is Outcome.FAILED


@play
async def test_a_coroutine_that_swallows_its_cancellation_is_left_behind() -> None:
    """It is named; the stop does not wait for it."""
    gate = asyncio.Event()

    async def stubborn() -> None:
        while not gate.is_set():
            try:
                await gate.wait()
            except asyncio.CancelledError:  # noqa: PERF203 - that is the mistake
                continue

    playing = await Play(Echo()).started()
    playing.service.notifier.add(stubborn, time_limit=3.0)
    report = await playing.service.stop_async()
    assert result(report, "stubborn").outcome is Outcome.TIMED_OUT
    assert result(report, "stubborn").detail.startswith("cancelled, and still in stubborn() at ")
    gate.set()
    await playing.report()


@play
async def test_a_coroutine_that_raises_is_a_line_of_the_report() -> None:
    """As a function's exception is."""

    async def fail() -> None:
        await asyncio.sleep(0)
        raise RuntimeError("disk full")

    playing = await Play(Echo(), observers=[fail]).started()
    report = await playing.service.stop_async()
    assert result(report, "fail").outcome is Outcome.FAILED
    assert result(report, "fail").detail == "RuntimeError: disk full"


@play
async def test_an_observer_may_await_the_stop() -> None:
    """It does not wait for itself."""
    phases: list[Phase] = []

    async def stop() -> None:
        phases.append((await playing.service.stop_async()).phase)

    playing = await Play(Echo()).started()
    playing.service.notifier.add(stop)
    assert (await playing.service.stop_async()).is_clean
    assert phases == [Phase.NOTIFYING]


@play
async def test_a_hurried_stop_cancels_the_observer_it_does_not_wait_for() -> None:
    """It is not left to the end of asyncio.run."""
    ended = asyncio.Event()
    began = asyncio.Event()

    async def hang() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    budget = StopBudget(grace_period=20.0, floor=0.0, quiet_period=0.0, notify=8.0, hurried_notify=0.2)
    playing = await Play(Echo(), budget=budget, observers=[hang]).started()
    playing.service.request_stop("the test")
    await began.wait()
    playing.service.hurry("enough")
    report = await playing.report()
    assert result(report, "hang").outcome is Outcome.TIMED_OUT
    assert ended.is_set()


def test_without_a_loop_coroutines_are_refused() -> None:
    """One line that says what to do; a function that returns one fails when it is told."""

    async def observe() -> None:
        """Never run."""

    with pytest.raises(ConfigurationError, match=r"observe is a coroutine function, .* use serve_async\(\)"):
        Service(AsyncioServer(Echo().echo, "127.0.0.1", 0), observers=[observe], handle_signals=False)
    service = Service(
        AsyncioServer(Echo().echo, "127.0.0.1", 0),
        observers=[lambda: observe()],  # noqa: PLW0108 - that is the mistake
        budget=BUDGET,
        handle_signals=False,
    )
    report = service.stop()
    assert "it returned an awaitable" in report.observers[0].detail
