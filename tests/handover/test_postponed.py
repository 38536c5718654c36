"""A SIGHUP to a new process that does not know yet that everything is its own."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from registry_drain import Deadline, Service
from registry_drain.handover.channel import Channel
from registry_drain.handover.successor import PREDECESSOR_VARIABLE
from registry_drain.shutdown.events import HandoverFailed
from registry_drain.testing.bench import Call
from tests.shutdown.conftest import stage as stage  # noqa: PLC0414 - the fixture
from tests.shutdown.stage import Stage
from tests.support.processes import eventually

LIMIT = 30.0


class NewProcess:
    """A service that was started by a hand-over; this test is its predecessor, at the other end of ``channel``."""

    def __init__(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        """Run it until it has said that it is ready."""
        self.channel, theirs = Channel.pair()
        monkeypatch.setenv(PREDECESSOR_VARIABLE, f"{os.getpid()}:{theirs.detach()}")
        self.events: list[object] = []
        self.service = Service(stage.server, handle_signals=False, sinks=[self.events.append])
        self.running = Call(self.service.run)
        self.hear("listening")
        self.channel.send({"offers": {}})
        self.hear("ready")

    def hear(self, what: str) -> None:
        """Wait until it says so."""
        assert what in (self.channel.receive(Deadline.after(LIMIT)) or {})

    def stop(self) -> None:
        """Stop it, as the last thing."""
        self.service.request_stop("the test is over")
        self.channel.close()
        self.running.result(LIMIT, "the service")


@pytest.fixture
def new(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Iterator[NewProcess]:
    """Give a service that is ready, and waits for its predecessor's word."""
    process = NewProcess(stage, monkeypatch)
    yield process
    process.stop()


def test_a_sighup_that_is_faster_than_the_predecessors_word_begins_after_it(new: NewProcess) -> None:
    """A supervisor knows the new process before that one knows that everything is its own: nothing is lost."""
    new.service.request_hand_over("SIGHUP")
    assert new.events == []
    new.channel.send({"yours": True})
    # Nothing of this server can be handed on, which is what whoever tries finds out.
    eventually(lambda: any(isinstance(each, HandoverFailed) for each in new.events), because="it was begun")


def test_a_sighup_that_never_can_begin_is_told(new: NewProcess, caplog: pytest.LogCaptureFixture) -> None:
    """The process is stopped, and never was handed over to: one line, and nothing is begun."""
    new.service.request_hand_over("SIGHUP")
    new.stop()
    assert "hand-over requested (SIGHUP): ignored, this process was never handed over to" in caplog.text
    assert not any(isinstance(each, HandoverFailed) for each in new.events)


def test_a_call_that_waits_for_its_hand_over_is_not_postponed(
    new: NewProcess, caplog: pytest.LogCaptureFixture
) -> None:
    """It says that nothing was handed over, so nothing may begin later."""
    assert new.service.hand_over() is False
    assert "ignored, this process is not ready itself" in caplog.text
    new.channel.send({"yours": True})
    eventually(lambda: new.service._handover._is_allowed, because="the word has come")
    assert new.events == []
