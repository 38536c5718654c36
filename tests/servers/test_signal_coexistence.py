"""Signal handlers of others, before and after ours: for each kind of server the stop always happens, and once.

The whole course is compared, in its order, and of all processes of a service: one line too many is a stop too many.

Command lines whose own handlers stay, uvicorn's and gunicorn's among them, are in tests/hosted. What asyncio.run does,
SIGINT, and a second signal are in tests/integration/test_signals_to_an_async_service.py.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.servers.signalled_servers import IN_LOOP, IN_THREADS
from tests.support.processes import ManagedProcess

PATIENCE = 60.0
STOP = ["requested SIGTERM", "observer", "report"]


def course_of(kind: str, case: str, directory: Path, *, status: int = 0) -> list[str]:
    """Run one service until it has signalled itself and ended with this status; return what happened."""
    with ManagedProcess.python("-m", "tests.servers.signal_program", kind, case, log=directory / "log") as process:
        assert process.wait(timeout=PATIENCE) == status, process.output_tail()
        lines = process.output().splitlines()
    said = {"displaced", "before", "after", "observer", "report", "returned"}
    return [line for line in lines if line in said or line.startswith("requested ")]


# --- serve() --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", IN_THREADS)
def test_a_handler_from_before_is_called_when_the_stop_has_ended(kind: str, tmp_path: Path) -> None:
    """In the main thread, and before serve() returns; with child processes the whole group gets the signal."""
    assert course_of(kind, "before", tmp_path) == [*STOP, "before", "returned"]


@pytest.mark.parametrize("kind", IN_THREADS)
def test_a_handler_from_after_that_calls_the_one_it_found(kind: str, tmp_path: Path) -> None:
    """It is called by the signal, ours by it, and the one from before when the stop has ended: each once."""
    assert course_of(kind, "chaining", tmp_path) == ["after", *STOP, "before", "returned"]


def test_a_handler_from_after_that_calls_nobody_keeps_its_signal_and_that_is_said(tmp_path: Path) -> None:
    """The warning comes once, and before any signal; another signal stops as ever, and nobody's handler is called."""
    course = ["displaced", "after", "requested SIGINT", "observer", "report", "returned"]
    assert course_of("http_server", "displacing", tmp_path) == course


def test_a_handler_from_after_that_exits_stops_all_the_same(tmp_path: Path) -> None:
    """What it raises in the main thread is a reason to stop, and goes on when that is done: the status is its own."""
    course = ["displaced", "after", "requested interrupted", "observer", "report"]
    assert course_of("http_server", "exiting", tmp_path, status=7) == course


# --- serve_async() --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", IN_LOOP)
def test_a_handler_that_the_loop_had_before(kind: str, tmp_path: Path) -> None:
    """It is out of the loop during the stop, and called afterwards."""
    assert course_of(kind, "before", tmp_path) == [*STOP, "before", "returned"]


@pytest.mark.parametrize("kind", IN_LOOP)
def test_a_handler_that_the_loop_gets_later(kind: str, tmp_path: Path) -> None:
    """It is found, and called when the stop has ended; a loop has one for each signal, so the first one is gone."""
    assert course_of(kind, "loop", tmp_path) == [*STOP, "after", "returned"]


def test_in_a_loop_a_handler_from_after_that_calls_nobody_does_not_keep_its_signal(tmp_path: Path) -> None:
    """Ours are put back; it is called when the stop has ended. The one that it displaced is not, as it has it."""
    assert course_of("asyncio-streams", "displacing", tmp_path) == [*STOP, "after", "returned"]


def test_in_a_loop_a_handler_from_after_that_calls_the_one_it_found(tmp_path: Path) -> None:
    """Called when the stop has ended, it calls ours, and so the one from before that."""
    assert course_of("asyncio-streams", "chaining", tmp_path) == [*STOP, "after", "before", "returned"]


def test_in_a_loop_a_handler_that_calls_ours_before_it_was_found(tmp_path: Path) -> None:
    """As with serve(): the signal has called it already, so it is not called once more."""
    course = ["after", *STOP, "before", "returned"]
    assert course_of("asyncio-streams", "chaining-at-once", tmp_path) == course


# --- beside a server of the program's own that handles signals ------------------------------------------------------


@pytest.mark.parametrize("kind", ["uvicorn", "asyncio-streams"])
def test_a_bare_uvicorn_that_was_there_before_ends_behind_the_stop(kind: str, tmp_path: Path) -> None:
    """Its handler is one from before; at its end it raises the signal again, which ends the process, as it does alone.

    Also when the server that we drain is uvicorn, too: the adapter installs none of uvicorn's handlers.
    """
    course = [*STOP, "before", "returned"]
    assert course_of(kind, "uvicorn-before", tmp_path, status=-signal.SIGTERM) == course


@pytest.mark.parametrize("kind", ["uvicorn", "asyncio-streams"])
def test_a_bare_uvicorn_that_comes_later_ends_behind_the_stop(kind: str, tmp_path: Path) -> None:
    """At its end it puts back what it found, ours, and raises the signal again: no second stop, and nobody is skipped.

    The one from before is called then; that is uvicorn's doing, so it is later than what we promise.
    """
    assert course_of(kind, "uvicorn", tmp_path) == [*STOP, "after", "returned", "before"]
