"""Signal handlers of others, before and after ours: for each kind of server the stop always happens, and once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.processes import ManagedProcess

PATIENCE = 30.0
IN_THREADS = ["http_server", "socketserver"]
IN_LOOP = ["aiohttp", "uvicorn", "hypercorn"]


def calls_of(kind: str, *arguments: str, directory: Path) -> dict[str, int]:
    """Run one service until it has signalled itself and stopped; return how often each handler was called."""
    log = directory / "log"
    with ManagedProcess.python("-m", "tests.servers.signal_program", kind, *arguments, log=log) as process:
        assert process.wait(timeout=PATIENCE) == 0, process.output_tail()
        answer: dict[str, int] = json.loads(process.output().splitlines()[-1])
        return answer


@pytest.mark.parametrize("kind", IN_THREADS + IN_LOOP)
def test_a_handler_from_before_is_called_when_the_stop_has_ended(kind: str, tmp_path: Path) -> None:
    """The program's own, be it signal's or the loop's."""
    assert calls_of(kind, directory=tmp_path) == {"stops": 1, "before": 1, "after": 0}


@pytest.mark.parametrize("kind", IN_THREADS)
def test_a_handler_from_after_that_calls_the_one_before_it(kind: str, tmp_path: Path) -> None:
    """As libraries do that are to be polite: every handler is called once."""
    assert calls_of(kind, "after", directory=tmp_path) == {"stops": 1, "before": 1, "after": 1}


@pytest.mark.parametrize("kind", IN_LOOP)
def test_a_handler_that_the_loop_gets_later(kind: str, tmp_path: Path) -> None:
    """It is found, and called when the stop has ended; a loop has one for each signal, so the first one is gone."""
    assert calls_of(kind, "after", directory=tmp_path) == {"stops": 1, "before": 0, "after": 1}
