"""``registry-drain drain`` and ``undrain`` on a registry in memory that has such a state, and on one that has not."""

from __future__ import annotations

import dataclasses
import signal
from typing import Any

import pytest

from registry_drain.clock import Deadline
from registry_drain.errors import (
    InstanceNotFoundError,
    LiveOwnerError,
    PermissionRefusedError,
    RegistryDataError,
    RegistryDrainError,
    RegistryUnavailableError,
)
from registry_drain.registries.abilities import Rotation
from registry_drain.registries.base import RegistryEntry
from registry_drain.testing.faults import UNAVAILABLE, Step
from registry_drain.testing.faulty_registry import FaultyRegistry
from tests.cli.conftest import install
from tests.cli.running import Run

ONE = RegistryEntry("calculator", "one", "10.0.0.7", 9090, is_live=True, health="passing", locator="a/one")
TWO = dataclasses.replace(ONE, id="two", port=9091, locator="a/two")
THREE = dataclasses.replace(ONE, id="three", port=9092, locator="a/three")
WHICH = ("x://", "--service", "calculator", "--id", "one")
TWO_OF_THREE = ("x://", "--tag", "old", "--yes")


class _Rotating(FaultyRegistry):
    """Marks an instance as in maintenance, after doing what a test wants for some ids."""

    def __init__(self, *entries: RegistryEntry) -> None:
        super().__init__()
        self.reasons: dict[str, str] = {}
        self.script: dict[str, RegistryDrainError | type[KeyboardInterrupt] | bool] = {}
        for entry in entries or (ONE, TWO, THREE):
            tags = () if entry.id == "three" else ("old",)
            self.cluster.put(dataclasses.replace(entry, tags=tags))

    def drain(self, entry: RegistryEntry, deadline: Deadline, *, reason: str = "") -> Rotation:
        self.reasons[entry.id] = reason
        return self._rotate(entry, deadline, "maintenance", is_out=True)

    def undrain(self, entry: RegistryEntry, deadline: Deadline) -> Rotation:
        return self._rotate(entry, deadline, "passing", is_out=False)

    def _rotate(self, entry: RegistryEntry, deadline: Deadline, health: str, *, is_out: bool) -> Rotation:
        assert deadline.remaining() > 0
        special = self.script.get(entry.id)
        if isinstance(special, RegistryDrainError):
            raise special
        if special is KeyboardInterrupt:
            signal.raise_signal(signal.SIGINT)
        self.cluster.put(dataclasses.replace(entry, health=health))
        shown = special if isinstance(special, bool) else is_out
        return Rotation(str(entry), self.url, shown, "maintenance mode", "seen by a consistent read")

    def out(self) -> set[str]:
        return {entry.id for entry in self.cluster.entries() if entry.health == "maintenance"}


@pytest.fixture
def rotating(monkeypatch: pytest.MonkeyPatch) -> _Rotating:
    """Give a registry with such a state, that every URL opens: one and two are tagged, three is not."""
    registry = _Rotating()
    install(registry, monkeypatch)
    return registry


def test_out_and_back(registry_drain: Run, rotating: _Rotating) -> None:
    """Out of rotation with a reason, twice without an error, and back."""
    for _ in range(2):
        ran = registry_drain("drain", *WHICH, "--reason", "new disk")
        assert (ran.status, ran.err) == (0, "")
        assert (
            "one (10.0.0.7:9090) of service 'calculator' at faulty:// is out of rotation (maintenance mode" in ran.out
        )
    assert rotating.reasons == {"one": "new disk"}
    assert rotating.out() == {"one"}
    ran = registry_drain("undrain", *WHICH)
    assert (ran.status, ran.err) == (0, "")
    assert "is back in rotation" in ran.out
    assert rotating.out() == set()


def test_as_json(registry_drain: Run, rotating: _Rotating) -> None:
    """The members that are documented, on success and on failure."""
    document = registry_drain("drain", *WHICH, "--json", "--reason", "x").document
    members = {"schema_version", "command", "status", "outcome", "message", "registry", "service"}
    members |= {"is_dry_run", "is_forced", "reason", "candidates", "results"}
    assert set(document) == members
    assert (document["command"], document["outcome"], document["reason"]) == ("drain", "done", "x")
    assert (document["is_dry_run"], document["is_forced"]) == (False, False)
    [result] = document["results"]
    assert set(result) == {"instance", "status", "outcome", "message", "rotation"}
    assert result["rotation"] == {"is_out": True, "how": "maintenance mode", "detail": "seen by a consistent read"}
    assert result["instance"]["id"] == "one"
    document = registry_drain("undrain", "x://", "--id", "none", "--json").document
    assert set(document) == members
    assert (document["command"], document["status"], document["results"]) == ("undrain", 4, [])
    assert (document["is_forced"], document["reason"]) == (None, None)
    assert rotating.out() == {"one"}


def test_quietly(registry_drain: Run, rotating: _Rotating) -> None:
    """The status says it all."""
    ran = registry_drain("drain", *TWO_OF_THREE, "--quiet")
    assert (ran.status, ran.out, ran.err) == (0, "", "")
    assert rotating.out() == {"one", "two"}


def test_several_take_yes(registry_drain: Run, rotating: _Rotating) -> None:
    """As a removal does, in both directions."""
    for command in ("drain", "undrain"):
        ran = registry_drain(command, *TWO_OF_THREE[:-1])
        assert ran.status == 2
        assert "nothing was changed: 2 instances fit; add --yes" in ran.complaint
        assert "two" in ran.out
        assert registry_drain(command, *TWO_OF_THREE, "--max", "1").status == 2
    assert rotating.out() == set()
    ran = registry_drain("drain", *TWO_OF_THREE)
    assert ran.status == 0
    assert ran.out.endswith("2 of 2 instances at faulty:// are out of rotation\n")


def test_a_dry_run_changes_nothing(registry_drain: Run, rotating: _Rotating) -> None:
    """It says what would be, and what that takes."""
    ran = registry_drain("drain", *TWO_OF_THREE[:-1], "--dry-run")
    assert ran.status == 0
    assert "would take these 2 instances out of rotation" in ran.out
    assert "--yes" in ran.out
    assert "would take one (10.0.0.7:9090)" in registry_drain("undrain", *WHICH, "--dry-run").out
    assert rotating.out() == set()


def test_7_the_last_healthy_one(registry_drain: Run, rotating: _Rotating) -> None:
    """Draining a service's last instance takes it down as surely as removing it; undraining never does."""
    assert registry_drain("drain", *TWO_OF_THREE).status == 0
    last = ("x://", "--id", "three")
    ran = registry_drain("drain", *last)
    assert ran.status == 7
    assert "'calculator' would be left without a healthy instance; --force" in ran.complaint
    assert registry_drain("undrain", *last).status == 0
    assert registry_drain("drain", *last, "--force").status == 0
    assert rotating.out() == {"one", "two", "three"}


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (LiveOwnerError("registered anew"), 7, "nothing was changed: registered anew"),
        (PermissionRefusedError("no"), 7, "nothing was changed: no"),
        (InstanceNotFoundError("gone"), 4, "nothing was changed: gone"),
        (RegistryDataError("no such state; a ServerSet has"), 2, "nothing was changed: no such state"),
        (RegistryUnavailableError("away"), 3, "may have been changed or not"),
        (False, 1, "is still in rotation, as a consistent read shows"),
    ],
    ids=repr,
)
def test_what_goes_wrong(registry_drain: Run, rotating: _Rotating, error: Any, status: int, message: str) -> None:
    """Each has its status, alone and among others, which are drained all the same."""
    rotating.script["one"] = error
    ran = registry_drain("drain", *WHICH)
    assert ran.status == status
    assert message in ran.complaint
    ran = registry_drain("drain", *TWO_OF_THREE, "--json")
    assert ran.status == status
    assert "1 of 2 instances" in ran.complaint
    assert message in ran.complaint
    assert [result["status"] for result in ran.document["results"]] == [status, 0]
    assert "two" in rotating.out()


def test_130_says_how_far_it_came(registry_drain: Run, rotating: _Rotating) -> None:
    """Ctrl-C in the second: the first is done, and the same command again does the rest."""
    rotating.script["two"] = KeyboardInterrupt
    ran = registry_drain("drain", *TWO_OF_THREE, "--json")
    assert ran.status == 130
    assert "1 of 2 instances" in ran.complaint
    assert "the same command again" in ran.complaint
    assert [result["outcome"] for result in ran.document["results"]] == ["done", "interrupted"]
    rotating.script.clear()
    assert registry_drain("drain", *TWO_OF_THREE).status == 0


def test_2_a_registry_without_such_a_state(registry_drain: Run, local_url: str) -> None:
    """Said before anything is looked for, with what there is instead."""
    for command in ("drain", "undrain"):
        ran = registry_drain(command, local_url, "--id", "one")
        assert ran.status == 2
        assert "no state in which an instance is listed and not called" in ran.complaint
        assert "`deregister`" in ran.complaint


def test_3_out_of_reach(registry_drain: Run, rotating: _Rotating) -> None:
    """Nothing was changed, and it says so."""
    rotating.faults.add(Step.READ, UNAVAILABLE)
    ran = registry_drain("drain", *WHICH, "--timeout", "0.2")
    assert ran.status == 3
    assert "nothing was changed" in ran.complaint
