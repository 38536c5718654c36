"""Fixtures of the commands' tests."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from registry_drain.cli import main as main_command
from registry_drain.cli.deregister import command as deregister_command
from registry_drain.clock import Deadline
from registry_drain.instance import ServiceInstance
from registry_drain.registries.base import Registration, Registry
from registry_drain.registries.url import open_registry
from registry_drain.testing.faulty_registry import FaultyRegistry
from tests.cli.running import Ran, Run


@pytest.fixture
def deregister(capfd: pytest.CaptureFixture[str]) -> Run:
    """Give ``deregister``, run in this process."""

    def run(*words: str) -> Ran:
        capfd.readouterr()
        status = deregister_command.main(words)
        captured = capfd.readouterr()
        return Ran(status, captured.out, captured.err)

    return run


@pytest.fixture
def registry_drain(capfd: pytest.CaptureFixture[str]) -> Run:
    """Give ``registry-drain``, run in this process."""

    def run(*words: str) -> Ran:
        capfd.readouterr()
        status = main_command.main(words)
        captured = capfd.readouterr()
        return Ran(status, captured.out, captured.err)

    return run


@pytest.fixture
def local_url(tmp_path: Path) -> str:
    """Give the URL of a local registry of the test's own."""
    return f"local://{tmp_path / 'registry'}"


RegisterAt = Callable[..., Registration]


@pytest.fixture
def registered() -> Iterator[RegisterAt]:
    """Give ``registered(url, service, port=…, instance_id=…)``: a live instance of ours, gone when the test ends."""
    with contextlib.ExitStack() as stack:

        def register(url: str, service: str, *, port: int = 9090, instance_id: str = "") -> Registration:
            registry = stack.enter_context(contextlib.closing(open_registry(url)))
            registration = registry.registration(ServiceInstance(service, "127.0.0.1", port, id=instance_id))
            stack.callback(lambda: registration.on_shutdown(Deadline.after(10.0)))
            registration.register(Deadline.after(20.0))
            return registration

        yield register


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> FaultyRegistry:
    """Give a registry that fails on request, and that every URL opens."""
    registry = FaultyRegistry()
    install(registry, monkeypatch)
    return registry


def install(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every registry URL open ``registry``."""
    monkeypatch.setattr("registry_drain.registries.url.open_registry", lambda *_: registry)
