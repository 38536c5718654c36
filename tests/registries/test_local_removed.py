"""An operator's removal from the local registry: a file that is gone although its lock is held."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry_drain.clock import Deadline
from registry_drain.errors import LiveOwnerError, RemovedByOperatorError
from registry_drain.instance import ServiceInstance
from registry_drain.registries.base import RemovalOutcome
from registry_drain.registries.local import LocalRegistration, LocalRegistry
from registry_drain.registries.url import open_registry

INSTANCE = ServiceInstance("calculator", "192.0.2.7", 9090, id="one")


def soon() -> Deadline:
    """Return a deadline that nothing here reaches."""
    return Deadline.after(10)


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[LocalRegistry]:
    """Give a directory of the test's own."""
    registry = open_registry(f"local://{tmp_path / 'registry'}")
    assert isinstance(registry, LocalRegistry)
    yield registry
    registry.close()


@pytest.fixture
def registration(registry: LocalRegistry) -> Iterator[LocalRegistration]:
    """Give a registered instance."""
    registration = registry.registration(INSTANCE)
    registration.register(soon())
    yield registration
    registration.on_shutdown(soon())


def file_of(registry: LocalRegistry) -> Path:
    """Return the instance's file."""
    (entry,) = registry.entries(INSTANCE.service, soon())
    return Path(entry.locator)


def unlink(path: Path) -> None:
    """Remove the file."""
    path.unlink()


def rename(path: Path) -> None:
    """Put it elsewhere."""
    path.rename(path.with_suffix(".away"))


def remove_directory(path: Path) -> None:
    """Remove the whole registry."""
    shutil.rmtree(path.parent)


@pytest.mark.parametrize("how", [unlink, rename, remove_directory])
def test_a_file_that_somebody_takes_away_stays_away(
    registry: LocalRegistry, registration: LocalRegistration, how: object, caplog: pytest.LogCaptureFixture
) -> None:
    """Found out when asked, said once, refused by register(), put back by rejoin(), and proven gone by the stop."""
    assert callable(how)
    how(file_of(registry))
    told: list[str] = []
    registration.on_removed(told.append)
    with caplog.at_level(logging.WARNING, "registry_drain"):
        assert not registration.is_registered
        assert not registration.is_registered
    assert told == [registration.removed_by_operator]
    assert caplog.text.count("stays out of") == 1
    assert ("another name" in told[0]) is (how is rename)
    with pytest.raises(RemovedByOperatorError):
        registration.register(soon())
    assert not [entry for entry in registry.entries(INSTANCE.service, soon()) if not entry.problem]
    registration.rejoin(soon())
    assert (registration.is_registered, registration.removed_by_operator) == (True, "")
    file_of(registry).unlink()
    removal = registration.on_shutdown(soon())
    assert removal.outcome is RemovalOutcome.CONFIRMED
    assert "removed by an operator" in removal.detail


def test_a_successors_file_is_no_removal(registry: LocalRegistry, registration: LocalRegistration) -> None:
    """Its file stands under our name: it took over, nobody removed us."""
    successor = registry.registration(INSTANCE)
    successor.register(soon())
    assert registration.removed_by_operator == ""
    successor.on_shutdown(soon())


def test_what_is_registering_is_not_removed(registry: LocalRegistry, registration: LocalRegistration) -> None:
    """A take-back has another file for an instant, before it has its name."""
    registration.offer(soon())
    file_of(registry).unlink()
    registration.take_back(soon())
    assert registration.is_registered
    assert registration.removed_by_operator == ""


def test_a_forked_child_finds_nothing_out(registry: LocalRegistry, registration: LocalRegistration) -> None:
    """In a child the parent's registration says nothing, and cannot rejoin."""
    file_of(registry).unlink()
    pid = os.fork()
    if pid == 0:
        try:
            said = registration.removed_by_operator
            try:
                registration.rejoin(soon())
            except LiveOwnerError:
                os._exit(0 if said == "" else 1)
            os._exit(2)
        finally:
            os._exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert registration.removed_by_operator
