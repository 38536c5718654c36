"""Removing several at once: consent, one outcome for each, and an end at any point that a second run completes."""

from __future__ import annotations

import dataclasses
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from registry_drain.clock import Deadline
from registry_drain.errors import (
    ConfigurationError,
    InstanceNotFoundError,
    LiveOwnerError,
    PermissionRefusedError,
    RegistryDrainError,
    RegistryUnavailableError,
)
from registry_drain.registries.abilities import RemovalResult
from registry_drain.registries.base import RegistryEntry, Removal, RemovalOutcome
from registry_drain.testing.faulty_registry import FaultyRegistry
from tests.cli.conftest import install
from tests.cli.running import Ran, Run

GHOST = RegistryEntry(
    "calculator", "ghost-0", "10.0.0.7", 9000, owner="host-a", is_live=False, health="critical", locator="a/ghost-0"
)
GHOSTS = [
    dataclasses.replace(GHOST, id=f"ghost-{number}", port=9000 + number, locator=f"a/ghost-{number}")
    for number in range(4)
]
WELL = RegistryEntry("calculator", "well", "10.0.0.8", 9000, is_live=True, health="passing", locator="a/well")
ALL_GHOSTS = ("x://", "--service", "calculator", "--all-unhealthy")
YES = (*ALL_GHOSTS, "--yes")


def _left(registry: FaultyRegistry) -> set[str]:
    return {entry.id for entry in registry.cluster.entries()}


@pytest.fixture
def ghosts(faulty: FaultyRegistry) -> FaultyRegistry:
    """Give a registry that lists four ghosts and one that is well."""
    for entry in (*GHOSTS, WELL):
        faulty.cluster.put(entry)
    return faulty


def test_2_without_yes_they_are_shown(deregister: Run, ghosts: FaultyRegistry) -> None:
    """A table of what is meant, with what it takes; nothing is removed."""
    ran = deregister(*ALL_GHOSTS)
    assert ran.status == 2
    assert "nothing was removed: 4 instances fit; add --yes" in ran.complaint
    heading, *rows = ran.out.splitlines()
    assert heading.split() == ["id", "address", "owner", "live", "health", "locator"]
    assert [row.split()[0] for row in rows] == [entry.id for entry in GHOSTS]
    assert len(_left(ghosts)) == 5


def test_2_without_yes_and_quietly(deregister: Run, ghosts: FaultyRegistry) -> None:
    """No table for --quiet, and no word beside the object of --json."""
    ran = deregister(*ALL_GHOSTS, "--quiet")
    assert (ran.status, ran.out) == (2, "")
    document = deregister(*ALL_GHOSTS, "--json").document
    assert document["outcome"] == "bad_usage"
    assert [entry["id"] for entry in document["candidates"]] == [entry.id for entry in GHOSTS]
    assert document["results"] == []
    assert len(_left(ghosts)) == 5


def test_2_more_than_the_most(deregister: Run, ghosts: FaultyRegistry) -> None:
    """--max is a belt beside --yes: what fits more than was expected is a mistake somewhere."""
    ran = deregister(*YES, "--max", "3")
    assert ran.status == 2
    assert "4 instances fit, and --max allows 3" in ran.complaint
    assert len(_left(ghosts)) == 5
    assert deregister(*YES, "--max", "4").status == 0


def test_0_all_of_them(deregister: Run, ghosts: FaultyRegistry) -> None:
    """A line for each, and one for all."""
    ran = deregister(*YES)
    assert (ran.status, ran.err) == (0, "")
    assert [line.split()[1] for line in ran.out.splitlines()[1:-1]] == [entry.id for entry in GHOSTS]
    assert ran.out.splitlines()[-1].startswith(
        "removed 4 of 4 instances from faulty://, and they are proven to be gone"
    )
    assert _left(ghosts) == {"well"}


def test_0_across_services(deregister: Run, ghosts: FaultyRegistry) -> None:
    """Without --service every service is searched: one process may be listed in many."""
    ghosts.cluster.put(dataclasses.replace(GHOST, service="adder", id="x", port=1, endpoints=(("10.0.0.7", 9000),)))
    ran = deregister("x://", "--address", "10.0.0.7:9000", "--yes", "--json")
    assert ran.status == 0
    assert [result["instance"]["service"] for result in ran.document["results"]] == ["adder", "calculator"]
    assert len(_left(ghosts)) == 4


def test_results_in_json(deregister: Run, ghosts: FaultyRegistry) -> None:
    """As documented; what is for one instance only is null."""
    document = deregister(*YES, "--json", "--watch-back", "0.1").document
    assert (document["instance"], document["removal"], document["watched_back"]) == (None, None, None)
    assert len(document["results"]) == 4
    for result, ghost in zip(document["results"], GHOSTS, strict=True):
        assert set(result) == {"instance", "status", "outcome", "message", "removal", "watched_back"}
        assert (result["instance"]["id"], result["status"], result["outcome"]) == (ghost.id, 0, "done")
        assert result["removal"]["outcome"] == "confirmed"
        assert result["watched_back"]["returned"] is None
    assert not _left(ghosts) & {entry.id for entry in GHOSTS}


def test_a_dry_run_of_several(deregister: Run, ghosts: FaultyRegistry) -> None:
    """Status 0, the table, and what it would take."""
    ran = deregister(*ALL_GHOSTS, "--dry-run")
    assert ran.status == 0
    assert "would remove these 4 instances" in ran.out
    assert "--yes" in ran.out
    assert "ghost-3" in ran.out
    agreed = deregister(*YES, "--dry-run").out
    assert "--yes" not in agreed
    assert "ghost-3" in agreed
    assert len(_left(ghosts)) == 5


def test_a_whole_service_takes_three_words(deregister: Run, ghosts: FaultyRegistry) -> None:
    """--all, --yes and, for the live ones, --force; what is alive is refused one by one."""
    words = ("x://", "--service", "calculator")
    assert deregister(*words, "--yes", "--force").status == 2
    assert deregister(*words, "--all", "--force").status == 2
    assert len(_left(ghosts)) == 5
    ran = deregister(*words, "--all", "--yes")
    assert ran.status == 7
    assert "removed 4 of 5" in ran.complaint
    assert "1 refused" in ran.complaint
    assert "--force" in ran.complaint
    assert _left(ghosts) == {"well"}
    assert deregister(*words, "--all", "--yes", "--force").status == 0
    assert _left(ghosts) == set()


def test_7_the_last_healthy_one(deregister: Run, faulty: FaultyRegistry) -> None:
    """Where nobody keeps it alive for the registry to see, the service itself is what a mistake would cost."""
    faulty.cluster.put(GHOST)
    faulty.cluster.put(dataclasses.replace(WELL, is_live=None))
    words = ("x://", "--id", "well")
    ran = deregister(*words)
    assert ran.status == 7
    assert "'calculator' would be left without a healthy instance; --force" in ran.complaint
    assert len(_left(faulty)) == 2
    assert "healthy" in deregister(*words, "--dry-run").out
    assert deregister(*words, "--force").status == 0
    assert _left(faulty) == {"ghost-0"}


# --- what becomes of each ---------------------------------------------------------------------------------------------


class _Scripted(FaultyRegistry):
    """Raises or answers for some ids what the test says, and removes the others."""

    def __init__(self, script: dict[str, RegistryDrainError | RemovalOutcome | Callable[[], Any]]) -> None:
        super().__init__()
        self.script = script
        for entry in (*GHOSTS, WELL):
            self.cluster.put(entry)

    def remove(self, entry: RegistryEntry, deadline: Deadline, *, force: bool = False) -> Removal:
        special = self.script.get(entry.id)
        if isinstance(special, RegistryDrainError):
            raise special
        if callable(special):
            special()
        removal = super().remove(entry, deadline, force=force)
        return Removal(str(entry), self.url, special, "", 1) if isinstance(special, RemovalOutcome) else removal


@pytest.mark.parametrize(
    ("script", "status"),
    [
        ({"ghost-1": InstanceNotFoundError("gone")}, 4),
        ({"ghost-1": InstanceNotFoundError("gone"), "ghost-2": RemovalOutcome.UNVERIFIABLE}, 6),
        ({"ghost-1": RemovalOutcome.SUCCESSOR, "ghost-2": RemovalOutcome.UNVERIFIABLE}, 5),
        ({"ghost-1": LiveOwnerError("alive"), "ghost-2": RemovalOutcome.SUCCESSOR}, 7),
        ({"ghost-1": PermissionRefusedError("no"), "ghost-2": RegistryUnavailableError("away")}, 3),
        ({"ghost-1": RemovalOutcome.UNCONFIRMED, "ghost-2": RemovalOutcome.REFUSED}, 3),
        ({"ghost-1": ConfigurationError("odd"), "ghost-2": RegistryUnavailableError("away")}, 2),
    ],
)
def test_the_worst_is_the_status(
    deregister: Run, monkeypatch: pytest.MonkeyPatch, script: dict[str, Any], status: int
) -> None:
    """A failure in the middle spares none of the others, and the worst one is what a script sees."""
    registry = _Scripted(script)
    install(registry, monkeypatch)
    ran = deregister(*YES, "--json")
    assert ran.status == status
    outcomes = {result["instance"]["id"]: result["outcome"] for result in ran.document["results"]}
    assert outcomes["ghost-0"] == outcomes["ghost-3"] == "done"
    assert "did not come back" not in ran.out  # nobody looked
    assert not {"ghost-0", "ghost-3"} & _left(registry)


def test_5_says_who_came_back(deregister: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """All are watched; the one that returns is told with its owner, the others as gone."""

    class Returning(_Scripted):
        looks = 0

        def entries(self, service: str | None, deadline: Deadline) -> Sequence[RegistryEntry]:
            self.looks += 1
            if self.looks == 3:
                self.cluster.put(dataclasses.replace(GHOSTS[2], owner="host-z"))
            return super().entries(service, deadline)

    install(Returning({}), monkeypatch)
    ran = deregister(*YES, "--watch-back", "0.6", "--json")
    assert ran.status == 5
    assert "host-z (before: host-a)" in ran.complaint
    results = ran.document["results"]
    assert [result["outcome"] for result in results] == ["done", "done", "came_back", "done"]
    assert results[2]["watched_back"]["brought_back_by"]["is_same_owner"] is False
    assert results[2]["watched_back"]["returned"]["owner"] == "host-z"
    assert "did not come back within 0.6 s" in results[0]["message"]


def _interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def test_130_tells_what_is_done_and_a_second_run_finishes(deregister: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the third of four: two are gone, two are there, each is told, and nothing is unknown."""
    registry = _Scripted({"ghost-2": _interrupt})
    install(registry, monkeypatch)
    ran = deregister(*YES, "--json")
    assert ran.status == 130
    assert "interrupted: removed 2 of 4" in ran.complaint
    results = ran.document["results"]
    assert [result["outcome"] for result in results] == ["done", "done", "interrupted", "interrupted"]
    assert all("was not removed, and is still listed" in result["message"] for result in results[2:])
    assert _left(registry) == {"ghost-2", "ghost-3", "well"}
    registry.script.clear()
    assert deregister(*YES).status == 0
    assert _left(registry) == {"well"}


def test_130_while_watching(deregister: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was removed is told, and that nobody looked to the end."""

    class Interrupted(_Scripted):
        looks = 0

        def entries(self, service: str | None, deadline: Deadline) -> Sequence[RegistryEntry]:
            self.looks += 1
            if self.looks == 3:
                _interrupt()
            return super().entries(service, deadline)

    install(Interrupted({}), monkeypatch)
    ran = deregister(*YES, "--watch-back", "20")
    assert ran.status == 130
    assert "removed 4 of 4" in ran.complaint
    assert "not watched to the end" in ran.complaint


# --- a registry that removes in bulk ----------------------------------------------------------------------------------


class _Bulk(_Scripted):
    """Removes many by a call of its own, in reverse order, and may stop on the way."""

    def __init__(self, *, stops_before: str = "", error: BaseException | None = None) -> None:
        super().__init__({})
        self.calls: list[tuple[int, bool]] = []
        self._stops_before, self._error = stops_before, error

    def remove_many(
        self,
        entries: Sequence[RegistryEntry],
        deadline: Deadline,
        on_result: Callable[[RegistryEntry, RemovalResult], None],
        *,
        force: bool = False,
    ) -> None:
        self.calls.append((len(entries), force))
        for entry in reversed(entries):
            if entry.id == self._stops_before and self._error is not None:
                raise self._error
            on_result(entry, self.remove(entry, deadline, force=force))


def _run_bulk(registry: _Bulk, deregister: Run, monkeypatch: pytest.MonkeyPatch) -> Ran:
    install(registry, monkeypatch)
    return deregister(*YES, "--force", "--json")


def test_in_bulk_where_the_registry_can(deregister: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """One call for all of them, told in the order in which they were found."""
    registry = _Bulk()
    ran = _run_bulk(registry, deregister, monkeypatch)
    assert ran.status == 0
    assert registry.calls == [(4, True)]
    assert [result["instance"]["id"] for result in ran.document["results"]] == [entry.id for entry in GHOSTS]


@pytest.mark.parametrize(
    ("error", "status"),
    [(KeyboardInterrupt(), 130), (RegistryUnavailableError("the server went away"), 3)],
    ids=["Ctrl-C", "outage"],
)
def test_bulk_ends_half_way(
    deregister: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int
) -> None:
    """Those without a result are looked for once more, and told as they are."""
    registry = _Bulk(stops_before="ghost-1", error=error)
    ran = _run_bulk(registry, deregister, monkeypatch)
    assert ran.status == status
    messages = [result["message"] for result in ran.document["results"]]
    assert all("was not removed, and is still listed" in message for message in messages[:2])
    assert [result["outcome"] for result in ran.document["results"]][2:] == ["done", "done"]
    assert all(("the server went away" in message) == (status == 3) for message in messages[:2])


def test_what_cannot_be_looked_for_is_unknown(deregister: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither "removed" nor "not removed" is claimed of what nobody could see."""

    class Gone(_Bulk):
        def entries(self, service: str | None, deadline: Deadline) -> Sequence[RegistryEntry]:
            if self.calls:
                raise RegistryUnavailableError("still away")
            return super().entries(service, deadline)

    registry = Gone(stops_before="ghost-1", error=RegistryUnavailableError("the server went away"))
    ran = _run_bulk(registry, deregister, monkeypatch)
    assert ran.status == 3
    assert "may have been removed or not" in ran.document["results"][0]["message"]


def test_what_else_goes_is_shown_first(deregister: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sidecar that goes with its service is named before anything is done."""

    class WithSidecars(_Scripted):
        def companions(self, entries: Sequence[RegistryEntry], _deadline: Deadline) -> Sequence[Sequence[str]]:
            return [[f"sidecar of {entry.id}"] if entry.id == "ghost-1" else [] for entry in entries]

    install(WithSidecars({}), monkeypatch)
    assert "with ghost-1 (10.0.0.7:9001): sidecar of ghost-1" in deregister(*ALL_GHOSTS).out
    document = deregister(*ALL_GHOSTS, "--dry-run", "--json").document
    assert document["companions"] == [[], ["sidecar of ghost-1"], [], []]


@pytest.mark.parametrize("has_rich", [True, False], ids=["rich", "plain"])
def test_a_person_sees_how_far_it_is(
    deregister: Run, ghosts: FaultyRegistry, monkeypatch: pytest.MonkeyPatch, has_rich: bool
) -> None:
    """A bar on standard error where rich can draw one; the removal goes on without."""
    monkeypatch.setattr("registry_drain.cli.command.output.Output.is_watched", True)
    advanced: list[int] = []
    if has_rich:
        progress = pytest.importorskip("rich.progress").Progress
        monkeypatch.setattr(progress, "advance", lambda _self, task: advanced.append(task))
    else:
        monkeypatch.setitem(sys.modules, "rich", None)
    assert deregister(*YES).status == 0
    assert len(advanced) == (4 if has_rich else 0)
    assert _left(ghosts) == {"well"}
