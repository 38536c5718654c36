"""serve() and Service: a server, its registries and its stop, joined."""

from __future__ import annotations

import itertools
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import pytest

import registry_drain.service as service_module
from registry_drain.clock import SYSTEM_CLOCK, Clock, Deadline
from registry_drain.errors import (
    ConfigurationError,
    PermissionRefusedError,
    RegistryUnavailableError,
    ServerError,
)
from registry_drain.persistent_registration import LONGEST_RETRY, REGISTER_TIMEOUT, PersistentRegistration
from registry_drain.phases import Outcome, Phase
from registry_drain.registries.base import RemovalOutcome
from registry_drain.service import Service, serve
from registry_drain.shutdown import events
from registry_drain.shutdown.budget import StopBudget
from registry_drain.shutdown.report import ShutdownReport
from registry_drain.testing.faults import HANG, HANG_FOREVER, REFUSED, TIMEOUT, UNAVAILABLE, Step, late
from registry_drain.testing.faulty_registry import FaultyRegistry
from tests.shutdown.conftest import stage as stage  # noqa: PLC0414 - the fixture
from tests.shutdown.stage import Stage, Task
from tests.support.processes import eventually

NO_WAIT = StopBudget(floor=0, quiet_period=0)


class Run:
    """A service that runs in a thread of the test's, on the stage's clock."""

    def __init__(self, stage: Stage, service: Service) -> None:
        """Begin to run."""
        self.service = service
        self._stage = stage

        def run() -> ShutdownReport:
            try:
                return service.run()
            finally:
                stage.note("run returned")

        self.task: Task[ShutdownReport] = stage.spawn(run)

    def until_started(self) -> None:
        """Wait until it serves."""
        self._stage.clock.wait(self.service.started)

    def stop(self) -> ShutdownReport:
        """Stop it and return what run() returned."""
        self.service.stop("the test")
        return self.task.result()


@pytest.fixture
def run(stage: Stage) -> Iterator[Callable[..., Run]]:
    """Give a way to run a service that is stopped in the end."""
    runs: list[Run] = []

    def start(*registries: FaultyRegistry, **options: object) -> Run:
        options = {"service": "calculator", "budget": NO_WAIT, "sinks": [stage.events.append], **options}
        service = Service(stage.server, registries, clock=stage.clock, handle_signals=False, **options)  # type: ignore[arg-type] # passed on
        runs.append(Run(stage, service))
        return runs[-1]

    yield start
    for each in runs:
        each.service.routine.hurry("the test is over")
        stage.released.set()
        stage.registry.faults.clear()
        stage.registry.release()
        each.service.routine.wait()


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the warnings of the package's logger."""
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


# --- starting -------------------------------------------------------------------------------------------------------


def test_it_is_registered_only_once_the_server_listens(stage: Stage, run: Callable[..., Run]) -> None:
    """Whoever finds it in the registry can connect."""
    listening: list[bool] = []
    inner = stage.registry.cluster.put

    def put(entry: object) -> object:
        listening.append(stage.server.is_listening)
        return inner(entry)  # type: ignore[arg-type] # an entry, passed on

    stage.registry.cluster.put = put  # type: ignore[method-assign,assignment] # looked at from within
    running = run(stage.registry)
    eventually(stage.listed)
    assert listening == [True]
    assert stage.listed() == {"calculator-127.0.0.1-9090"}
    assert running.stop().is_clean
    assert stage.listed() == set()


def test_what_is_listed_is_what_was_asked_for(stage: Stage, run: Callable[..., Run]) -> None:
    """Address and port that callers use, when they differ from what is bound; id, tags and metadata."""
    stage.server.address = ("0.0.0.0", 4000)
    running = run(
        stage.registry,
        address="calc.example",
        port=443,
        instance_id="calc-7",
        tags=["blue"],
        metadata={"version": "2"},
    )
    eventually(stage.listed)
    (entry,) = stage.registry.cluster.entries()
    assert (entry.service, entry.id, entry.address, entry.port) == ("calculator", "calc-7", "calc.example", 443)
    assert entry.tags == ("blue",)
    assert dict(entry.metadata) == {"version": "2"}
    assert running.service.bound == ("0.0.0.0", 4000)


def test_several_registries_list_it_and_all_forget_it(stage: Stage, run: Callable[..., Run]) -> None:
    """Two clusters, one stop."""
    other = stage.another_registry()
    running = run(stage.registry, other)
    eventually(lambda: stage.registry.cluster.entries() and other.cluster.entries())
    report = running.stop()
    assert [removal.outcome for removal in report.removals] == [RemovalOutcome.CONFIRMED] * 2
    assert stage.listed() == set()


def test_without_a_registry_it_just_stops_gracefully(stage: Stage, run: Callable[..., Run]) -> None:
    """No name is needed then."""
    running = run(service="")
    running.until_started()
    report = running.stop()
    assert report.is_clean
    assert report.removals == ()
    assert stage.journal == ["start", "close_listener", "drain", "cut_off", "run returned"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"service": ""}, "no service= name"),
        ({"service": "x", "on_registration_failure": "ignore"}, "must be 'retry' or 'fail'"),
        ({"service": "x", "observers": [42]}, "42 is no observer"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_started(
    stage: Stage, options: dict[str, object], message: str
) -> None:
    """One line that says what to change; the server was not touched."""
    with pytest.raises(ConfigurationError, match=message) as caught:
        serve(stage.server, stage.registry, handle_signals=False, **options)  # type: ignore[arg-type] # passed on
    assert "\n" not in str(caught.value)
    assert stage.journal == []


@pytest.mark.parametrize("address", ["0.0.0.0", "::"])
def test_a_wildcard_address_is_refused_and_the_server_closed(stage: Stage, address: str) -> None:
    """Callers cannot connect to every interface; nothing listens and nothing is listed afterwards."""
    stage.server.address = (address, 9090)
    with pytest.raises(ConfigurationError, match="means every interface: say address="):
        serve(stage.server, stage.registry, service="calculator", handle_signals=False, clock=stage.clock)
    assert not stage.server.is_listening
    assert stage.journal == ["start", "close_listener", "drain", "cut_off"]
    assert stage.listed() == set()


def test_a_server_that_cannot_bind_is_the_callers_error(stage: Stage) -> None:
    """It comes out as it is, and nothing is listed."""

    def fail() -> None:
        raise OSError(98, "Address already in use")

    stage.server.before["start"] = fail
    with pytest.raises(OSError, match="Address already in use"):
        serve(stage.server, stage.registry, service="calculator", handle_signals=False, clock=stage.clock)
    assert stage.registry.requests == ()


# --- registration that fails ----------------------------------------------------------------------------------------


def test_a_registration_that_fails_is_retried_with_one_warning_per_reason(
    stage: Stage, run: Callable[..., Run], caplog: pytest.LogCaptureFixture
) -> None:
    """It serves meanwhile, says each reason once however they alternate, and says when it works."""
    for index in range(8):
        fault = (UNAVAILABLE, TIMEOUT)[index % 2]
        stage.registry.faults.add(Step.WRITE, fault, skip=index, times=1)
    with caplog.at_level(logging.INFO, logger="registry_drain"):
        running = run(stage.registry)
        running.until_started()
        assert stage.server.is_listening
        stage.clock.sleep(60.0)
        eventually(lambda: running.service.is_ready)
        running.stop()
    said = [line for line in warnings_of(caplog) if "calculator-" in line]
    assert len(said) == 3
    assert all(line.startswith("serving, but not registered: calculator-") for line in said[:2])
    assert "unavailable, as the test asked; trying again until it works" in said[0]
    assert "timeout, as the test asked" in said[1]
    assert said[2].startswith("registered calculator-")


def test_a_registration_that_works_at_once_is_no_warning(
    stage: Stage, run: Callable[..., Run], caplog: pytest.LogCaptureFixture
) -> None:
    """One line that it is registered."""
    with caplog.at_level(logging.INFO, logger="registry_drain"):
        running = run(stage.registry)
        eventually(lambda: "registered calculator-" in caplog.text)
        running.stop()
    assert warnings_of(caplog) == []


def test_a_backend_that_raises_what_it_should_not_is_retried_too(
    stage: Stage, run: Callable[..., Run], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that died of it would leave the service unlisted for ever, and silently."""
    calls: list[int] = []
    write = stage.registry.request

    def request(step: Step, *arguments: object) -> object:
        calls.append(1)
        if step is Step.WRITE and len(calls) < 3:
            raise KeyError("index")
        return write(step, *arguments)  # type: ignore[arg-type] # passed on

    monkeypatch.setattr(stage.registry, "request", request)
    running = run(stage.registry)
    running.until_started()
    stage.clock.sleep(30.0)
    eventually(lambda: running.service.is_ready)
    assert "KeyError: 'index'; trying again" in caplog.text


def test_the_pauses_between_tries_are_on_the_injected_clock_and_bounded(stage: Stage, run: Callable[..., Run]) -> None:
    """An hour of a dead registry is an hour of virtual time, with a try every 5 s at least."""
    stage.registry.faults.add(Step.WRITE, UNAVAILABLE)
    running = run(stage.registry)
    running.until_started()
    stage.clock.sleep(600.0)
    asked_at = [request.at for request in stage.registry.requests if request.step is Step.WRITE]
    pauses = [after - before for before, after in itertools.pairwise(asked_at)]
    assert max(pauses) <= LONGEST_RETRY
    assert len(asked_at) >= 600 / LONGEST_RETRY
    running.stop()


def test_when_asked_to_fail_it_fails_and_leaves_nothing_behind(stage: Stage) -> None:
    """After its time limit; the server is closed, and nothing is listed, not even what was written before."""
    stage.registry.faults.add(Step.WRITE, UNAVAILABLE)
    well = stage.another_registry()
    service = Service(
        stage.server,
        [well, stage.registry],
        service="calculator",
        on_registration_failure="fail",
        handle_signals=False,
        clock=stage.clock,
    )
    with pytest.raises(RegistryUnavailableError, match="unavailable"):
        service.run()
    assert stage.elapsed <= REGISTER_TIMEOUT + StopBudget().floor
    assert not stage.server.is_listening
    assert stage.listed() == set()
    assert service.routine.report.reason == "start failed"
    assert not service.is_ready


def test_when_asked_to_fail_what_a_retry_cannot_help_fails_at_once(stage: Stage) -> None:
    """A refused token is refused again. Who has connected meanwhile, to a shared socket, is served."""
    stage.registry.faults.add(Step.WRITE, REFUSED)
    stage.server.request("long", 3.0)
    with pytest.raises(PermissionRefusedError):
        serve(
            stage.server,
            stage.registry,
            service="calculator",
            on_registration_failure="fail",
            handle_signals=False,
            clock=stage.clock,
        )
    assert stage.server.served == ["long"]
    assert stage.elapsed == pytest.approx(3.0)


def test_when_asked_to_fail_a_blip_is_not_a_failure(stage: Stage, run: Callable[..., Run]) -> None:
    """It is retried inside the time limit."""
    stage.registry.faults.add(Step.WRITE, UNAVAILABLE, times=3)
    running = run(stage.registry, on_registration_failure="fail")
    running.until_started()
    assert running.service.is_ready
    assert running.stop().is_clean


# --- a stop while starting ------------------------------------------------------------------------------------------


def test_a_stop_while_registration_is_retried_ends_the_tries(stage: Stage, run: Callable[..., Run]) -> None:
    """The registry comes back a moment later, and nobody registers with it."""
    stage.registry.faults.add(Step.WRITE, UNAVAILABLE)
    running = run(stage.registry)
    running.until_started()
    stage.clock.sleep(7.0)
    report = running.stop()
    stage.registry.faults.clear()
    stage.clock.sleep(600.0)
    assert stage.listed() == set()
    assert report.is_complete
    assert stage.elapsed == pytest.approx(607.0)


@pytest.mark.parametrize("fault", [HANG, late(3.0), HANG_FOREVER], ids=repr)
def test_a_stop_while_registration_is_in_flight_is_never_listed_afterwards(
    stage: Stage, run: Callable[..., Run], fault: object
) -> None:
    """The write wakes up during the stop, after it, or when the registry closes: the fence stands."""
    stage.registry.faults.add(Step.WRITE, fault)  # type: ignore[arg-type] # a Fault
    running = run(stage.registry)
    running.until_started()
    stage.clock.sleep(1.0)
    report = running.stop()
    stage.clock.sleep(60.0)
    stage.registry.faults.clear()
    stage.registry.release()
    stage.clock.sleep(60.0)
    stage.clock.settle()
    assert stage.listed() == set()
    assert report.is_complete
    # The fence waits for a writer that does not listen, but not for ever, and the removal is still tried.
    assert report.elapsed <= 5.0
    assert Step.ON_SHUTDOWN in [request.step for request in stage.registry.requests]


def test_a_stop_before_run_is_a_stop(stage: Stage) -> None:
    """run() then returns the report; nothing is listed and nothing listens."""

    def refuse() -> None:
        if service.is_stopping:
            raise ServerError("stopped before")

    service = Service(stage.server, stage.registry, service="calculator", handle_signals=False, clock=stage.clock)
    stage.server.before["start"] = refuse
    service.stop("early")
    report = service.run()
    assert report.reason == "early"
    assert stage.listed() == set()
    assert not stage.server.is_listening


def test_a_stop_that_overtakes_the_servers_start_closes_it_afterwards(stage: Stage) -> None:
    """The stop ends while start() is still binding; what it then bound must not stay."""
    service = Service(stage.server, stage.registry, service="calculator", handle_signals=False, clock=stage.clock)
    stage.server.before["start"] = lambda: service.stop("in the middle")
    report = service.run()
    assert report.reason == "in the middle"
    assert not stage.server.is_listening
    assert stage.listed() == set()


def test_a_stop_between_start_and_registration_is_no_error(stage: Stage) -> None:
    """SIGTERM in the first second of a process: it stops, instead of complaining that it is too late to register."""
    service = Service(stage.server, stage.registry, service="calculator", handle_signals=False, clock=stage.clock)
    inner = stage.registry.registration

    def stop_first(instance: object) -> object:
        service.stop("in between")
        return inner(instance)  # type: ignore[arg-type] # an instance, passed on

    stage.registry.registration = stop_first  # type: ignore[method-assign,assignment] # in between, exactly
    report = service.run()
    assert report.reason == "in between"
    assert stage.listed() == set()


def test_a_stop_while_a_fatal_registration_is_tried_is_a_stop_not_a_failure(
    stage: Stage, run: Callable[..., Run]
) -> None:
    """Its registration is cancelled because of the stop: run() returns the report."""
    stage.registry.faults.add(Step.WRITE, HANG)
    running = run(stage.registry, on_registration_failure="fail")
    stage.clock.sleep(1.0)
    assert [request.step for request in stage.registry.requests] == [Step.WRITE]
    report = running.stop()
    assert report.reason == "the test"
    assert stage.listed() == set()


# --- running and stopping -------------------------------------------------------------------------------------------


def test_ready_means_listening_registered_and_not_stopping(stage: Stage, run: Callable[..., Run]) -> None:
    """What a readiness check should answer, from start to end."""
    stage.registry.faults.add(Step.WRITE, UNAVAILABLE)
    running = run(stage.registry, budget=StopBudget(floor=1))
    running.until_started()
    service = running.service
    assert (service.is_ready, service.is_stopping) == (False, False)
    stage.registry.faults.clear()
    stage.clock.sleep(20.0)
    eventually(lambda: service.is_ready)
    service.request_stop("the test")
    assert (service.is_ready, service.is_stopping) == (False, True)
    stage.clock.sleep(0.5)
    assert service.routine.phase is Phase.PROPAGATING
    assert stage.server.is_listening
    running.task.result()
    assert (service.is_ready, service.is_stopping) == (False, True)


def test_observers_and_their_time_limits_go_through_the_service(stage: Stage, run: Callable[..., Run]) -> None:
    """In order; the notifier takes limits, inside what the budget reserves."""
    running = run(
        stage.registry,
        observers=[stage.noting("first"), stage.noting("second")],
        budget=StopBudget(floor=0, quiet_period=0, notify=3.0),
    )
    notifier = running.service.notifier
    notifier.add(stage.hanging("pool"), name="pool", time_limit=2.0)
    with pytest.raises(ConfigurationError, match="add up to 4 s, but only 3 s are reserved"):
        notifier.add(lambda: None, name="cache", time_limit=2.0)
    running.until_started()
    report = running.stop()
    assert stage.journal[-4:] == ["first", "second", "pool", "run returned"]
    assert report.observers[-1].elapsed == pytest.approx(2.0)
    assert report.observers[-1].outcome is Outcome.TIMED_OUT
    with pytest.raises(ConfigurationError, match="too late"):
        notifier.add(lambda: None)


def test_stop_returns_the_report_that_run_returns(stage: Stage, run: Callable[..., Run]) -> None:
    """From any thread."""
    running = run(stage.registry)
    running.until_started()
    assert running.service.stop("me") == running.task.result()


def test_the_report_is_logged_as_a_warning_if_a_person_should_look(
    stage: Stage, run: Callable[..., Run], caplog: pytest.LogCaptureFixture
) -> None:
    """The whole of it, at the end."""
    running = run(stage.registry)
    eventually(stage.listed)
    stage.registry.faults.add(Step.DELETE, REFUSED)
    running.stop()
    assert any(line.startswith("stopped (the test) in") and "refused" in line for line in warnings_of(caplog))


def test_events_go_to_the_given_sinks(stage: Stage, run: Callable[..., Run]) -> None:
    """Instead of the log."""
    running = run(stage.registry)
    running.until_started()
    running.stop()
    assert isinstance(stage.events[0], events.StopRequested)


def test_repr_shows_name_state_and_registrations(stage: Stage, run: Callable[..., Run]) -> None:
    """For a debugger."""
    running = run(stage.registry)
    eventually(lambda: running.service.is_ready)
    assert repr(running.service) == (
        "<Service calculator <StopRoutine SERVING in_flight=0> [<PersistentRegistration"
        " calculator-127.0.0.1-9090 (127.0.0.1:9090) is_registered=True>]>"
    )


class ClosableRegistry(FaultyRegistry):
    """What a URL was opened to."""

    def __init__(self, stage: Stage, close: Callable[[], object]) -> None:
        """Close as told."""
        super().__init__(stage.clock)
        self._close = close

    def close(self) -> None:
        """Close, or not."""
        super().close()
        self._close()


@pytest.mark.parametrize("trouble", ["none", "raises", "hangs"])
def test_registries_opened_from_urls_are_closed_whatever_their_close_does(
    stage: Stage,
    run: Callable[..., Run],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    trouble: str,
) -> None:
    """One that fails or hangs keeps neither the others open nor run() from returning."""
    closed: list[str] = []

    def fail() -> None:
        raise OSError("connection lost")

    troubles: dict[str, Callable[[], object]] = {"none": lambda: None, "raises": fail, "hangs": stage.hang}
    opened = {
        "faulty://a": ClosableRegistry(stage, troubles[trouble]),
        "faulty://b": ClosableRegistry(stage, lambda: closed.append("b")),
    }

    def open_registry(url: str, clock: Clock) -> FaultyRegistry:
        assert clock is stage.clock
        return opened[url]

    monkeypatch.setattr(service_module, "open_registry", open_registry)
    running = run(*opened)
    eventually(lambda: all(registry.cluster.entries() for registry in opened.values()))
    report = running.stop()
    assert report.is_clean
    assert closed == ["b"]
    assert ("close faulty://" in caplog.text) == (trouble != "none")


# --- signals, in this process ---------------------------------------------------------------------------------------


class SignalError(Exception):
    """What somebody's signal handler raises."""


@pytest.fixture
def handlers() -> Iterator[None]:
    """Put the signal handlers back, whatever the test did."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def when_started(service: Service, call: Callable[[], object]) -> threading.Thread:
    """Call something once the service serves, from another thread; join it in the end."""

    def later() -> None:
        service.started.wait(30)
        call()

    thread = threading.Thread(target=later)
    thread.start()
    return thread


@pytest.mark.usefixtures("handlers")
def test_with_signals_left_alone_handlers_stay_and_no_watchdog_is_set(stage: Stage) -> None:
    """handle_signals=False touches nothing of the process."""
    before = signal.getsignal(signal.SIGTERM)
    service = Service(stage.server, handle_signals=False)
    seen: list[object] = []

    def look_and_stop() -> None:
        seen.append(signal.getsignal(signal.SIGTERM))
        seen.append([thread.name for thread in threading.enumerate() if "signals" in thread.name])
        service.stop("me")

    thread = when_started(service, look_and_stop)
    service.run()
    thread.join()
    assert seen == [before, []]


@pytest.mark.usefixtures("handlers")
def test_handlers_stand_while_it_runs_and_are_put_back_afterwards(stage: Stage) -> None:
    """After a stop by a call, too; the watchdog is disarmed then, since the process may go on."""

    def handle(_number: int, _frame: FrameType | None) -> None:
        raise AssertionError("no signal came")

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGQUIT, signal.SIG_IGN)
    service = Service(stage.server)
    seen: list[object] = []

    def look_and_stop() -> None:
        seen.append(signal.getsignal(signal.SIGTERM))
        service.stop("me")

    thread = when_started(service, look_and_stop)
    service.run()
    thread.join()
    assert seen != [handle]
    assert signal.getsignal(signal.SIGTERM) is handle
    assert signal.getsignal(signal.SIGQUIT) is signal.SIG_IGN
    eventually(lambda: not any("watchdog" in thread.name for thread in threading.enumerate()))


@pytest.mark.usefixtures("handlers")
def test_after_a_start_that_failed_handlers_are_put_back(stage: Stage) -> None:
    """Nothing is left behind."""
    stage.server.address = ("0.0.0.0", 1)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ConfigurationError):
        serve(stage.server, FaultyRegistry(), service="calculator")
    assert signal.getsignal(signal.SIGTERM) == before
    eventually(lambda: not any("watchdog" in thread.name for thread in threading.enumerate()))


def test_outside_the_main_thread_signals_are_refused_and_nothing_is_started(stage: Stage) -> None:
    """With what to do instead."""
    task = stage.spawn(lambda: serve(stage.server, clock=SYSTEM_CLOCK))
    with pytest.raises(ConfigurationError, match="handle_signals=False"):
        task.result()
    assert "start" not in stage.journal


@pytest.mark.usefixtures("handlers")
def test_an_interrupt_that_is_not_ours_stops_gracefully_and_goes_on(stage: Stage) -> None:
    """KeyboardInterrupt out of the wait: the instance is removed and the server drained before it propagates."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    registry = FaultyRegistry()
    service = Service(stage.server, registry, service="calculator", budget=NO_WAIT, handle_signals=False)

    def interrupt() -> None:
        eventually(registry.cluster.entries)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    thread = when_started(service, interrupt)
    with pytest.raises(KeyboardInterrupt):
        service.run()
    thread.join()
    report = service.routine.report
    assert report.reason == "interrupted"
    assert report.is_clean
    assert registry.cluster.entries() == ()
    assert not stage.server.is_listening


class Interrupting(threading.Event):
    """An event in whose setting Ctrl-C is pressed."""

    def set(self) -> None:
        """Be set, and interrupted."""
        super().set()
        raise KeyboardInterrupt


def test_an_interrupt_between_the_start_and_the_wait_stops_gracefully_too(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has started, so there is something to leave: the instance is not left listed."""
    registry = FaultyRegistry()
    service = Service(stage.server, registry, service="calculator", budget=NO_WAIT, handle_signals=False)
    monkeypatch.setattr(service, "_started", Interrupting())
    with pytest.raises(KeyboardInterrupt):
        service.run()
    assert service.routine.report.reason == "interrupted"
    assert registry.cluster.entries() == ()
    assert not stage.server.is_listening


@pytest.mark.usefixtures("handlers")
def test_a_second_interrupt_hurries(stage: Stage) -> None:
    """Ctrl-C twice, with signals left alone: the request that never ends is cut off, and the registry still left."""
    count: list[int] = []

    def handle(_number: int, _frame: FrameType | None) -> None:
        count.append(1)
        raise SignalError(len(count))

    signal.signal(signal.SIGUSR1, handle)
    registry = FaultyRegistry()
    budget = StopBudget(grace_period=600, floor=0, quiet_period=0)
    service = Service(stage.server, registry, service="calculator", budget=budget, handle_signals=False)
    endless = stage.server.in_flight.begin("endless")

    def interrupt_twice() -> None:
        eventually(registry.cluster.entries)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
        eventually(lambda: service.routine.phase is Phase.DRAINING)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    thread = when_started(service, interrupt_twice)
    with pytest.raises(SignalError) as caught:
        service.run()
    thread.join()
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    stage.server.in_flight.end(endless)
    assert caught.value.args == (2,)
    report = service.routine.report
    assert report.is_hurried
    assert [cut.name for cut in report.cut_off] == ["endless"]
    assert registry.cluster.entries() == ()


def test_a_deadline_is_kept_by_register_itself(stage: Stage) -> None:
    """The registration that the service makes tries until its deadline and raises the last failure."""
    stage.registry.faults.add(Step.WRITE, UNAVAILABLE)
    registration = PersistentRegistration(
        stage.registry.registration(stage.instance()), stage.registry.url, stage.clock
    )
    with pytest.raises(RegistryUnavailableError):
        registration.register(Deadline.after(2.0, stage.clock))
    assert stage.elapsed <= 2.0
