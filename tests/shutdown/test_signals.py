"""Signals: in this process with raise_signal, and to real processes."""

from __future__ import annotations

import functools
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, SimpleNamespace

import pytest

from registry_drain.errors import ConfigurationError
from registry_drain.shutdown import signals
from registry_drain.shutdown.signals import COALESCE, StopSignals
from tests.support.processes import REPOSITORY, ManagedProcess, eventually

PROGRAM = "tests.shutdown.signal_program"


class Recorder:
    """A target that writes down what it is told."""

    def __init__(self) -> None:
        """Told nothing yet."""
        self.told: list[str] = []
        self.blocked = threading.Event()
        self.blocks = False

    def request_stop(self, reason: str) -> None:
        """Note."""
        self.told.append(f"stop {reason}")

    def hurry(self, reason: str) -> None:
        """Note, and block if asked."""
        self.told.append(f"hurry {reason}")
        if self.blocks:
            self.blocked.wait()

    def report_displaced(self, signal_name: str, handler: str) -> None:
        """Note."""
        self.told.append(f"displaced {signal_name} by {handler}")


class Stand:
    """Handlers of ours in this process, on a clock that the test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Not installed."""
        self._now = 100.0
        monkeypatch.setattr(signals, "time", SimpleNamespace(monotonic=lambda: self._now))
        monkeypatch.setattr(signals, "_LOOK_EVERY", 0.01)
        self.target = Recorder()
        self.signals = StopSignals(self.target)

    def receive(self, number: signal.Signals, *, after: float = 2 * COALESCE) -> None:
        """Get a signal, ``after`` seconds."""
        self._now += after
        signal.raise_signal(number)

    def told(self, count: int) -> list[str]:
        """Return what the target was told, once there are so many."""
        eventually(lambda: len(self.target.told) >= count, because=f"{count} of {self.target.told}")
        return self.target.told


@pytest.fixture
def stand(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stand]:
    """Give handlers; what stood there before stands there afterwards, whatever the test did."""
    before = {number: signal.getsignal(number) for number in signals.STOP_SIGNALS}
    stand = Stand(monkeypatch)
    yield stand
    stand.target.blocked.set()
    stand.signals.uninstall(chain=False)
    for number, handler in before.items():
        signal.signal(number, handler)


def ignore(_number: int, _frame: FrameType | None) -> None:
    """Somebody's handler."""


@pytest.mark.parametrize("number", signals.STOP_SIGNALS)
def test_the_first_signal_stops(stand: Stand, number: signal.Signals) -> None:
    """Each of the three; its name is the reason."""
    stand.signals.install()
    stand.receive(number)
    assert stand.told(1) == [f"stop {number.name}"]
    assert stand.signals.received == (number,)


def test_the_second_signal_hurries_whichever_it_is(stand: Stand) -> None:
    """INT, then TERM: the person at the terminal, then the orchestrator."""
    stand.signals.install()
    stand.receive(signal.SIGINT)
    stand.receive(signal.SIGTERM)
    assert stand.told(2) == ["stop SIGINT", "hurry SIGTERM"]


def test_a_different_signal_is_never_a_duplicate(stand: Stand) -> None:
    """Only the same signal is forwarded twice."""
    stand.signals.install()
    stand.receive(signal.SIGINT)
    stand.receive(signal.SIGTERM, after=0.0)
    assert stand.told(2) == ["stop SIGINT", "hurry SIGTERM"]


def test_duplicates_inside_the_window_count_once(stand: Stand) -> None:
    """A supervisor forwards what the whole process group has got already; four copies are no third signal."""
    stand.signals.install()
    stand.receive(signal.SIGTERM)
    for _ in range(4):
        stand.receive(signal.SIGTERM, after=COALESCE / 5)
    assert stand.signals.received == (signal.SIGTERM,)
    stand.receive(signal.SIGTERM, after=COALESCE)
    assert stand.told(2) == ["stop SIGTERM", "hurry SIGTERM"]


def test_the_window_counts_from_the_first_not_from_the_last_duplicate(stand: Stand) -> None:
    """A stream of signals cannot be ignored for ever."""
    stand.signals.install()
    stand.receive(signal.SIGTERM)
    stand.receive(signal.SIGTERM, after=COALESCE * 0.75)
    stand.receive(signal.SIGTERM, after=COALESCE * 0.75)
    assert stand.signals.received == (signal.SIGTERM, signal.SIGTERM)


@pytest.mark.parametrize("previous", [signal.SIG_IGN, signal.SIG_DFL, ignore])
def test_what_stood_there_before_stands_there_afterwards(
    stand: Stand, previous: signal.Handlers | signals.Handler
) -> None:
    """Also what is no function."""
    signal.signal(signal.SIGTERM, previous)
    stand.signals.install()
    assert signal.getsignal(signal.SIGTERM) != previous
    stand.signals.uninstall()
    assert signal.getsignal(signal.SIGTERM) == previous


def test_uninstalling_twice_or_without_installing_does_nothing(stand: Stand) -> None:
    """The handlers that others have installed since are theirs."""
    stand.signals.uninstall()
    stand.signals.install()
    stand.signals.uninstall()
    signal.signal(signal.SIGTERM, ignore)
    stand.signals.uninstall()
    assert signal.getsignal(signal.SIGTERM) is ignore


def test_handlers_from_before_are_called_afterwards_once_for_each_signal_received(stand: Stand) -> None:
    """In the order of the signals, when ours stand there no more; those of signals that never came are not called."""
    called: list[tuple[int, bool]] = []

    def handle(number: int, _frame: FrameType | None) -> None:
        called.append((number, signal.getsignal(number) is handle))

    for number in signals.STOP_SIGNALS:
        signal.signal(number, handle)
    stand.signals.install()
    stand.receive(signal.SIGQUIT)
    stand.receive(signal.SIGTERM)
    stand.told(2)
    assert called == []
    stand.signals.uninstall()
    assert called == [(signal.SIGQUIT, True), (signal.SIGTERM, True)]


def test_pythons_own_interrupt_handler_is_not_called_afterwards(stand: Stand) -> None:
    """Ctrl-C was answered by the stop: no KeyboardInterrupt after a graceful end."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    stand.signals.install()
    stand.receive(signal.SIGINT)
    stand.told(1)
    stand.signals.uninstall()


def test_what_a_previous_handler_raises_comes_out(stand: Stand) -> None:
    """A handler of somebody's that ends the process by an exception still does."""

    def leave(_number: int, _frame: FrameType | None) -> None:
        raise SystemExit(7)

    signal.signal(signal.SIGTERM, leave)
    stand.signals.install()
    stand.receive(signal.SIGTERM)
    stand.told(1)
    with pytest.raises(SystemExit) as caught:
        stand.signals.uninstall()
    assert caught.value.code == 7


def test_a_displaced_handler_is_found_said_once_and_left_alone(stand: Stand) -> None:
    """Somebody installed his own after ours: the stop will not be asked for."""
    stand.signals.install()
    signal.signal(signal.SIGTERM, ignore)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    said = stand.told(2)
    stand.receive(signal.SIGINT)
    assert stand.told(3) == [
        f"displaced SIGTERM by {__name__}.ignore",
        "displaced SIGQUIT by SIG_DFL",
        "stop SIGINT",
    ]
    assert len(said) == 3
    stand.signals.uninstall()
    assert signal.getsignal(signal.SIGTERM) is ignore


def test_ignored_keyboard_signals_stay_ignored(stand: Stand) -> None:
    """A shell's background job: Ctrl-C is meant for somebody else, while SIGTERM stops the service all the same."""
    for number in signals.STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    stand.signals.install()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    assert signal.getsignal(signal.SIGQUIT) is signal.SIG_IGN
    stand.receive(signal.SIGTERM)
    assert stand.told(1) == ["stop SIGTERM"]
    stand.signals.uninstall()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN


def test_a_handler_that_calls_ours_is_served(stand: Stand) -> None:
    """Frameworks that chain are fine, though said to be in the way."""
    stand.signals.install()
    ours = signal.getsignal(signal.SIGTERM)
    assert callable(ours)

    def chain(number: int, frame: FrameType | None) -> None:
        ours(number, frame)

    signal.signal(signal.SIGTERM, chain)
    stand.receive(signal.SIGTERM)
    eventually(lambda: "stop SIGTERM" in stand.target.told)


def test_outside_the_main_thread_installing_is_refused(stand: Stand) -> None:
    """With what to do instead; nothing has changed."""
    before = signal.getsignal(signal.SIGTERM)
    errors: list[Exception] = []

    def install() -> None:
        try:
            stand.signals.install()
        except ConfigurationError as error:
            errors.append(error)

    thread = threading.Thread(target=install)
    thread.start()
    thread.join()
    (error,) = errors
    assert "main thread" in str(error)
    assert "handle_signals=False" in str(error)
    assert "\n" not in str(error)
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_target_that_blocks_does_not_keep_uninstall(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """An event sink may block in our thread; the main thread goes on without it."""
    monkeypatch.setattr(signals, "_JOIN_LIMIT", 0.01)
    stand.target.blocks = True
    stand.signals.install()
    stand.receive(signal.SIGINT)
    stand.receive(signal.SIGINT)
    stand.told(2)
    stand.signals.uninstall(chain=False)
    stand.target.blocked.set()


# --- real processes -------------------------------------------------------------------------------------------------


def started(tmp_path: Path, *options: str) -> ManagedProcess:
    """Return the program, ready."""
    process = ManagedProcess.python("-m", PROGRAM, *options, log=tmp_path / "log")
    try:
        process.wait_output("ready")
    except BaseException:
        process.kill()
        raise
    return process


@pytest.mark.parametrize("number", signals.STOP_SIGNALS)
def test_one_signal_stops_gracefully_and_exits_with_0(tmp_path: Path, number: signal.Signals) -> None:
    """Removed, told, reported."""
    with started(tmp_path) as process:
        process.signal(number)
        assert process.wait() == 0
        output = process.output()
    assert f"stop requested ({number.name})" in output
    steps = ["deregistering calculator-", "CLOSING: completed", "observer told", "NOTIFYING: completed", "run returned"]
    assert sorted(steps, key=output.index) == steps


def test_a_second_signal_skips_the_wait_for_requests(tmp_path: Path) -> None:
    """The request is cut off and named, the observers are told, and the exit status says that something was lost."""
    # The floor keeps the line that is waited for well apart from the first signal.
    with started(tmp_path, "--request", "--floor=0.4") as process:
        process.signal(signal.SIGTERM)
        process.wait_output("DRAINING: at most")
        process.signal(signal.SIGTERM)
        assert process.wait() == 1
        output = process.output()
    assert "stop hurried (SIGTERM)" in output
    assert "cut off 1 in flight: endless from 10.0.0.9:5000" in output
    assert "observer told" in output


def test_an_interrupt_then_a_termination_hurries(tmp_path: Path) -> None:
    """Any two signals."""
    with started(tmp_path, "--request", "--floor=0.4") as process:
        process.signal(signal.SIGINT)
        process.wait_output("DRAINING: at most")
        process.signal(signal.SIGTERM)
        assert process.wait() == 1
        assert "stop hurried (SIGTERM)" in process.output()


def third_signal(process: ManagedProcess) -> None:
    """Send three, each well after the one before."""
    process.signal(signal.SIGTERM)
    process.wait_output("DRAINING: at most")
    process.signal(signal.SIGTERM)
    process.wait_output("lingering")
    process.signal(signal.SIGTERM)


def test_a_third_signal_exits_at_once(tmp_path: Path) -> None:
    """With the status of a process that the signal killed, whatever still hangs."""
    with started(tmp_path, "--request", "--floor=0.4", "--linger") as process:
        third_signal(process)
        assert process.wait() == 128 + signal.SIGTERM
        output = process.output()
    assert "third signal, exiting at once" in output
    assert "run returned" not in output


def contains(log: Path, line: str) -> bool:
    """Return whether the log has this line."""
    return line in log.read_text()


@pytest.mark.parametrize("option", ["--closed-stderr", "--fill-stderr=0"])
def test_a_third_signal_exits_whatever_stderr_is(tmp_path: Path, option: str) -> None:
    """Closed, or a full pipe that nobody reads: no exception and no write may keep it."""
    log = tmp_path / "log"
    read_end, write_end = os.pipe()
    with log.open("wb") as output:
        program = [sys.executable, "-u", "-m", PROGRAM, "--request", "--floor=0.4", "--linger", option]
        popen = subprocess.Popen(program, stdout=output, stderr=write_end, cwd=REPOSITORY, start_new_session=True)
    try:
        os.close(write_end)
        for line in ("ready", "DRAINING: at most", "lingering"):
            eventually(functools.partial(contains, log, line), because=line)
            popen.send_signal(signal.SIGTERM)
        assert popen.wait(30) == 128 + signal.SIGTERM
    finally:
        popen.kill()
        popen.wait()
        os.close(read_end)


def test_two_copies_of_one_signal_are_one(tmp_path: Path) -> None:
    """Frozen, then sent twice, then thawed: the kernel merges them, or the window does; nobody is hurried."""
    with started(tmp_path) as process:
        process.freeze()
        process.signal(signal.SIGTERM)
        process.signal(signal.SIGTERM)
        process.thaw()
        assert process.wait() == 0
        assert "hurried" not in process.output()


def test_handlers_from_before_run_after_the_stop_and_before_serve_returns(tmp_path: Path) -> None:
    """A handler that ended the process any earlier would have cut the drain short."""
    with started(tmp_path, "--chain") as process:
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
        output = process.output()
    steps = ["observer told", "NOTIFYING: completed", "previous handler: SIGTERM", "run returned"]
    assert sorted(steps, key=output.index) == steps


def test_ctrl_c_in_a_terminal_stops_gracefully(tmp_path: Path) -> None:
    """The terminal sends SIGINT; no KeyboardInterrupt, no traceback, status 0."""
    master, slave = pty.openpty()
    seen = tmp_path / "seen"
    seen.touch()

    def copy() -> None:
        with seen.open("ab", buffering=0) as file:
            try:
                while data := os.read(master, 4096):
                    file.write(data)
            except OSError:
                return  # EIO: the other side is closed

    popen = subprocess.Popen(
        [sys.executable, "-u", "-m", PROGRAM, "--terminal"],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        cwd=REPOSITORY,
        start_new_session=True,
    )
    os.close(slave)
    copier = threading.Thread(target=copy)
    copier.start()
    try:
        eventually(lambda: "ready" in seen.read_text(), because="ready")
        os.write(master, b"\x03")
        assert popen.wait(30) == 0
    finally:
        popen.kill()
        popen.wait()
        copier.join()
        os.close(master)
    output = seen.read_text()
    assert "stop requested (SIGINT)" in output
    assert "Traceback" not in output
    assert "run returned" in output


@pytest.mark.skipif(
    (3, 12, 0) <= sys.version_info < (3, 12, 2), reason="these start no threads once main has ended (gh-113964)"
)
def test_a_main_thread_that_ends_early_does_not_cut_the_stop_short(tmp_path: Path) -> None:
    """The stop's thread keeps the process until it is done."""
    with ManagedProcess.python("-m", PROGRAM, "--early", log=tmp_path / "log") as process:
        assert process.wait() == 0
        output = process.output()
    assert "NOTIFYING: completed" in output
