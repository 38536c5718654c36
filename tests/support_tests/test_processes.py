"""Child processes, polling, and the watch for leaks."""

import os
import signal
import sys
import threading
from pathlib import Path

import pytest

from tests.support.leaks import child_processes, guarded_threads
from tests.support.processes import ManagedProcess, eventually, free_port

_SLEEPER = ("-c", "import time; print('up'); time.sleep(600)")


def _is_alive(pid: int) -> bool:
    # A zombie is dead: where nobody reaps orphans, it stays listed.
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_eventually_returns_the_first_truthy_result() -> None:
    """The probe is asked until it says something."""
    answers = iter([None, "", "yes"])
    assert eventually(lambda: next(answers), interval=0.001) == "yes"


def test_eventually_says_what_it_saw_last() -> None:
    """A condition that never comes true ends in an error that names it and the last error of the probe."""

    def probe() -> bool:
        raise ConnectionRefusedError("nobody there")

    with pytest.raises(AssertionError, match=r"the server answers: not within 0\.01 s.*nobody there"):
        eventually(probe, timeout=0.01, interval=0.001, because="the server answers")


def test_free_ports_are_distinct() -> None:
    """No port is given away twice."""
    ports = [free_port() for _ in range(20)]
    assert len(set(ports)) == 20


def test_a_process_is_stopped_by_its_with_block(tmp_path: Path) -> None:
    """SIGTERM ends it, and its status says so."""
    with ManagedProcess.python(*_SLEEPER, log=tmp_path / "log") as process:
        process.wait_output("up")
        assert process.is_running
    assert process.returncode == -signal.SIGTERM


def test_a_frozen_process_can_be_stopped(tmp_path: Path) -> None:
    """Stopping thaws first, so that SIGTERM is seen."""
    with ManagedProcess.python(*_SLEEPER, log=tmp_path / "log") as process:
        process.wait_output("up")
        process.freeze()
    assert process.returncode == -signal.SIGTERM


def test_a_process_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    """After its time-out, `stop` does not ask any more."""
    ignore = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up'); time.sleep(600)"
    process = ManagedProcess.python("-c", ignore, log=tmp_path / "log")
    process.wait_output("up")
    assert process.stop(timeout=0.1) == -signal.SIGKILL


def test_waiting_for_the_output_of_a_process_that_has_died_shows_its_last_words(tmp_path: Path) -> None:
    """There is no point in waiting until the deadline for somebody dead."""
    with (
        ManagedProcess.python("-c", "print('no such file')", log=tmp_path / "log") as process,
        pytest.raises(RuntimeError, match="no such file"),
    ):
        process.wait_output("ready")


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_killed_parent_leaves_no_process(tmp_path: Path) -> None:
    """The undertaker ends what the parent, killed with SIGKILL, could not, even if it is frozen."""
    program = f"""
from pathlib import Path
from tests.support.processes import ManagedProcess
child = ManagedProcess.python("-c", "import time; time.sleep(600)", log=Path({str(tmp_path / "child")!r}))
child.freeze()
print("child", child.pid, ".")
import time; time.sleep(600)
"""
    with ManagedProcess.python("-c", program, log=tmp_path / "parent") as parent:
        child = int(parent.wait_output(" .").split()[1])
        assert _is_alive(child)
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
        eventually(lambda: not _is_alive(child), because="the orphan is gone")


def test_leak_watch_sees_threads() -> None:
    """Non-daemon threads are seen, and daemons of this package; other daemons are not."""
    end = threading.Event()
    before = guarded_threads()
    threads = {
        name: threading.Thread(target=end.wait, name=name, daemon=daemon)
        for name, daemon in [("worker", False), ("registry-drain-heartbeat", True), ("somebody-else", True)]
    }
    for thread in threads.values():
        thread.start()
    try:
        assert guarded_threads() - before == {threads["worker"], threads["registry-drain-heartbeat"]}
    finally:
        end.set()
        for thread in threads.values():
            thread.join()
    assert guarded_threads() == before


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_leak_watch_sees_child_processes(tmp_path: Path) -> None:
    """A child that was started and not waited for is seen; the undertaker is not."""
    before = child_processes()
    with ManagedProcess.python(*_SLEEPER, log=tmp_path / "log") as process:
        assert child_processes().keys() - before.keys() == {process.pid}
    assert child_processes() == before
