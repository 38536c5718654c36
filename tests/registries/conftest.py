"""Fixtures of the registries' tests."""

from __future__ import annotations

import pytest

from registry_drain.registries.consul.registration.own import Lifetimes
from tests.registries.consul_tools import FAST_PAUSE, FAST_TTL


@pytest.fixture(autouse=True)
def fast_heartbeats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let registrations with the URL options FAST, and no others, beat often although their TTL is long."""
    usual = vars(Lifetimes)["heartbeat_pause"]  # the property itself

    def pause(lifetimes: Lifetimes) -> float:
        return FAST_PAUSE if lifetimes.ttl == FAST_TTL else float(usual.__get__(lifetimes))

    monkeypatch.setattr(Lifetimes, "heartbeat_pause", property(pause))
