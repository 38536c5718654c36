"""The watchdog, in real processes that do not end by themselves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from registry_drain.shutdown.report import EXIT_WATCHDOG
from registry_drain.shutdown.watchdog import Watchdog
from tests.shutdown.test_signals import PROGRAM, started
from tests.support.processes import REPOSITORY, eventually

# The wait that is tested: long enough for a slow machine to get to the point, short enough for the suite.
SHORT = ("--grace=3", "--margin=1")
# Where it matters who ends the process: it has 4 s more to get to the point, or the C timer is 1.9 s behind our thread.
LATE = ("--grace=7.5", "--margin=2")
LATE_TIMER = ("--grace=8.5", "--margin=5", "--ceiling=0")


def test_a_deadlocked_thread_does_not_keep_the_process(tmp_path: Path) -> None:
    """The stop itself is over; the interpreter waits for the thread, and is ended with every stack on stderr."""
    with started(tmp_path, "--deadlock", *LATE_TIMER) as process:
        process.signal(signal.SIGTERM)
        assert process.wait() == EXIT_WATCHDOG
        output = process.output()
    assert "run returned" in output
    assert "registry_drain watchdog: <StopRoutine STOPPED in_flight=0> overdue; every thread's stack follows" in output
    assert "Thread deadlocked (0x" in output
    assert "in lock_twice" in output
    assert "Thread MainThread (0x" in output


def test_a_thread_that_keeps_the_interpreters_lock_is_ended_by_the_c_timer(tmp_path: Path) -> None:
    """No Python code can run any more, ours included; the timer dumps and exits with its own status."""
    with started(tmp_path, "--gil", *LATE) as process:
        process.signal(signal.SIGTERM)
        assert process.wait() == 1
        output = process.output()
    assert "holding" in output
    assert "Timeout (0:00:0" in output
    assert "hold_the_interpreter" in output


@pytest.mark.parametrize("trouble", ["--deadlock", "--gil"])
@pytest.mark.parametrize("free_pages", [0, 1])
def test_a_full_stderr_that_nobody_reads_does_not_prevent_the_exit(
    tmp_path: Path, trouble: str, free_pages: int
) -> None:
    """Neither full from the start, nor with room for a part of the dump only."""
    log = tmp_path / "log"
    read_end, write_end = os.pipe()
    with log.open("wb") as output:
        popen = subprocess.Popen(
            [sys.executable, "-u", "-m", PROGRAM, trouble, "--threads", f"--fill-stderr={free_pages}", *SHORT],
            stdout=output,
            stderr=write_end,
            cwd=REPOSITORY,
            start_new_session=True,
        )
    try:
        os.close(write_end)
        eventually(lambda: "ready" in log.read_text(), because="ready")
        popen.send_signal(signal.SIGTERM)
        # Whoever of the two comes first: without them it would never end.
        assert popen.wait(30) in {EXIT_WATCHDOG, 1}
    finally:
        popen.kill()
        popen.wait()
        os.close(read_end)


def test_a_process_that_ends_in_time_never_hears_of_it(tmp_path: Path) -> None:
    """Armed by the signal and left armed, it has nothing to end."""
    with started(tmp_path, *LATE) as process:
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
        assert "watchdog" not in process.output()


def test_disarming_before_arming_does_nothing() -> None:
    """And again, too."""
    watchdog = Watchdog()
    watchdog.disarm()
    watchdog.disarm()
