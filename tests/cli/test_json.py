"""The JSON objects: their members, on success and on every kind of failure. What is added here must be documented."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from registry_drain.registries.base import EntryCheck, RegistryEntry
from registry_drain.testing.faults import REFUSED, UNAVAILABLE, Step
from registry_drain.testing.faulty_registry import FaultyRegistry
from tests.cli.running import Run

COMMON = {"schema_version", "command", "status", "outcome", "message"}
DEREGISTER = COMMON | {
    "registry",
    "service",
    "is_dry_run",
    "is_forced",
    "instance",
    "candidates",
    "removal",
    "watched_back",
    "companions",
    "results",
}
LIST = COMMON | {"registry", "service", "instances"}
ENTRY = {
    "service": str,
    "id": str,
    "address": str,
    "port": int,
    "tags": list,
    "metadata": dict,
    "owner": str,
    "is_live": bool,
    "health": str,
    "is_ephemeral": bool,
    "registered_at": float,
    "problem": str,
    "locator": str,
    "version": str,
    "endpoints": list,
    "node": str,
    "managed_by": str,
    "checks": list,
    "layout": str,
}
FULL = RegistryEntry(
    "calculator",
    "one",
    "10.0.0.7",
    9090,
    tags=("blue",),
    metadata={"zone": "a"},
    owner="host-a",
    is_live=False,
    health="critical",
    registered_at=1_700_000_000.0,
    is_ephemeral=True,
    problem="the port is a guess",
    locator="a/one",
    endpoints=(("10.0.0.7", 9091),),
    node="host-a",
    managed_by="Nomad",
    checks=(EntryCheck("c", "critical", output="refused", version="7"),),
    layout="curator",
)
BARE = RegistryEntry("calculator", "bare")
WORDS = ("x://", "--service", "calculator", "--id", "one", "--json")


def _check_entry(document: Any) -> None:
    assert set(document) == set(ENTRY)
    for name, kind in ENTRY.items():
        assert document[name] is None or isinstance(document[name], kind), name


def test_removed_and_watched(deregister: Run, faulty: FaultyRegistry) -> None:
    """Everything is told, typed as documented."""
    faulty.cluster.put(FULL)
    document = deregister(*WORDS, "--watch-back", "0.1").document
    assert set(document) == DEREGISTER
    assert document["schema_version"] == 1
    assert (document["command"], document["status"], document["outcome"]) == ("deregister", 0, "done")
    assert (document["registry"], document["service"]) == ("faulty://", "calculator")
    assert (document["is_dry_run"], document["is_forced"]) == (False, False)
    _check_entry(document["instance"])
    assert None not in document["instance"].values()
    assert document["candidates"] == [document["instance"]]
    assert set(document["removal"]) == {"outcome", "detail", "attempts"}
    assert (document["removal"]["outcome"], document["removal"]["attempts"]) == ("confirmed", 1)
    assert set(document["watched_back"]) == {"seconds", "returned", "brought_back_by"}
    assert document["watched_back"]["brought_back_by"] is None
    [result] = document["results"]
    assert set(result) == {"instance", "status", "outcome", "message", "removal", "watched_back"}
    assert {name: result[name] for name in ("instance", "removal", "watched_back")} == {
        name: document[name] for name in ("instance", "removal", "watched_back")
    }
    assert document["instance"]["checks"] == [
        {"id": "c", "status": "critical", "is_own": True, "output": "refused", "version": "7"}
    ]
    assert document["instance"]["endpoints"] == [{"address": "10.0.0.7", "port": 9091}]
    assert document["watched_back"]["seconds"] >= 0.1
    assert document["watched_back"]["returned"] is None


def test_what_is_unknown_is_null(registry_drain: Run, faulty: FaultyRegistry) -> None:
    """Not an empty string, not a zero."""
    faulty.cluster.put(BARE)
    [entry] = registry_drain("list", "x://", "--json").document["instances"]
    _check_entry(entry)
    known = {name: value for name, value in entry.items() if value is not None}
    known.pop("version")
    assert known == {
        "service": "calculator",
        "id": "bare",
        "tags": [],
        "metadata": {},
        "endpoints": [],
        "checks": [],
    }


def test_a_list(registry_drain: Run, faulty: FaultyRegistry) -> None:
    """Sorted by the registry, whole, and asked for by service."""
    faulty.cluster.put(FULL)
    faulty.cluster.put(dataclasses.replace(FULL, service="other"))
    document = registry_drain("list", "x://", "--service", "calculator", "--json").document
    assert set(document) == LIST
    assert (document["command"], document["outcome"], document["service"]) == ("list", "done", "calculator")
    [entry] = document["instances"]
    _check_entry(entry)
    assert (entry["id"], entry["metadata"], entry["tags"]) == ("one", {"zone": "a"}, ["blue"])


@pytest.mark.parametrize(
    ("words", "status", "outcome"),
    [
        (("--json",), 2, "bad_usage"),
        ((*WORDS, "--nonsense"), 2, "bad_usage"),
        (("x://", "--service", "calculator", "--address", "10.0.0.7:9090", "--json"), 2, "bad_usage"),
        (("x://", "--service", "calculator", "--id", "none", "--json"), 4, "not_found"),
        (("x://", "--service", "calculator", "--id", "live", "--json"), 7, "refused"),
    ],
    ids=["nothing", "unknown option", "several", "not found", "alive"],
)
def test_failures_are_told_in_json_too(
    deregister: Run, faulty: FaultyRegistry, words: tuple[str, ...], status: int, outcome: str
) -> None:
    """The same members as ever, the message of standard error among them."""
    faulty.cluster.put(FULL)
    faulty.cluster.put(dataclasses.replace(FULL, id="live", is_live=True, locator="a/live"))
    ran = deregister(*words)
    assert set(ran.document) == DEREGISTER
    assert (ran.status, ran.document["outcome"]) == (status, outcome)
    assert ran.complaint == f"deregister: {ran.document['message']}"
    assert ran.document["removal"] is None


def test_candidates_are_listed_when_several_fit(deregister: Run, faulty: FaultyRegistry) -> None:
    """A script can choose and ask again."""
    faulty.cluster.put(FULL)
    faulty.cluster.put(dataclasses.replace(FULL, id="two", locator="a/two"))
    document = deregister("x://", "--service", "calculator", "--address", "10.0.0.7:9090", "--json").document
    assert document["instance"] is None
    assert [entry["locator"] for entry in document["candidates"]] == ["a/one", "a/two"]


@pytest.mark.parametrize(("fault", "status"), [(UNAVAILABLE, 3), (REFUSED, 7)], ids=repr)
def test_a_list_that_fails(registry_drain: Run, faulty: FaultyRegistry, fault: Any, status: int) -> None:
    """No instances, and the reason."""
    faulty.faults.add(Step.READ, fault)
    ran = registry_drain("list", "x://", "--json", "--timeout", "0.2")
    assert set(ran.document) == LIST
    assert ran.status == status
    assert ran.document["instances"] == []
    assert ran.complaint.startswith("registry-drain list: ")


def test_a_dry_run(deregister: Run, faulty: FaultyRegistry) -> None:
    """The instance is there, the removal is not."""
    faulty.cluster.put(FULL)
    document = deregister(*WORDS, "--dry-run").document
    assert document["is_dry_run"] is True
    assert document["instance"]["id"] == "one"
    assert document["removal"] is None
    assert faulty.cluster.entries()


def test_an_internal_error(deregister: Run, faulty: FaultyRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even a bug leaves an object to parse."""

    def fail(*_: object) -> None:
        raise AssertionError("impossible")

    monkeypatch.setattr(faulty, "entries", fail)
    document = deregister(*WORDS).document
    assert set(document) == DEREGISTER
    assert (document["status"], document["outcome"]) == (70, "internal_error")
