"""The JSON Schemas: what every command really writes fits them, failures included, and they leave nothing out."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from registry_drain.cli import main
from registry_drain.cli.demo.tally import Tally
from registry_drain.cli.schema.documents import COMMANDS, schema_of
from registry_drain.registries.base import EntryCheck, RegistryEntry
from registry_drain.testing.faults import REFUSED, UNAVAILABLE, Step
from registry_drain.testing.faulty_registry import FaultyRegistry
from tests.cli.running import Run
from tests.support.processes import REPOSITORY

WITHOUT_JSON = {"schema", "completion"}
AGENT = EntryCheck("serfHealth", "critical", is_own=False, output="gone", version="5")
GHOST = RegistryEntry(
    "calculator",
    "one",
    "127.0.0.1",
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
    endpoints=(("127.0.0.1", 9091),),
    node="host-a",
    checks=(AGENT,),
    layout="curator",
)
BARE = RegistryEntry("calculator", "bare")
ALIVE = dataclasses.replace(GHOST, id="live", locator="a/live", is_live=True, health="passing", checks=())
CALCULATOR = ("x://", "--service", "calculator")


@pytest.fixture(autouse=True)
def _state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def strict(schema: Any) -> Any:
    """Return the schema with nothing allowed that it does not describe."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: strict(value) for name, value in schema.items()}
    if "properties" in made:
        made["additionalProperties"] = False
    return made


def check(command: str, document: Any) -> None:
    """Raise unless ``document`` is exactly what the schema describes."""
    jsonschema.Draft202012Validator(strict(schema_of(command))).validate(document)


@pytest.fixture
def listed(faulty: FaultyRegistry) -> FaultyRegistry:
    """Give a registry with a ghost, an instance of which nothing is known, and one that lives."""
    for entry in (GHOST, BARE, ALIVE):
        faulty.cluster.put(entry)
    return faulty


@pytest.mark.parametrize(
    "words",
    [
        ("deregister", *CALCULATOR, "--id", "one"),
        ("deregister", *CALCULATOR, "--id", "one", "--watch-back", "0.1"),
        ("deregister", *CALCULATOR, "--id", "live"),
        ("deregister", *CALCULATOR, "--id", "live", "--dry-run"),
        ("deregister", *CALCULATOR, "--id", "nobody"),
        ("deregister", *CALCULATOR, "--all"),
        ("deregister", *CALCULATOR, "--all", "--yes", "--force", "--watch-back", "0.1"),
        ("deregister", "--nonsense"),
        ("deregister",),
        ("list", "x://"),
        ("list", "x://", "--service", "other"),
        ("list", "--nonsense"),
        ("sweep", "x://", "--dead-agents"),
        ("sweep", "x://", "--dead-agents", "--yes", "--watch-back", "0.1"),
        ("sweep", "x://", "--unreachable", "--tries", "1", "--loopback"),
        ("sweep", "x://", "--critical-for", "1s"),
        ("sweep", "--nonsense"),
        ("drain", *CALCULATOR, "--id", "one"),
        ("drain", "--nonsense"),
        ("undrain", *CALCULATOR, "--id", "one"),
        ("demo", "--nonsense"),
    ],
    ids=" ".join,
)
def test_what_is_written_fits(registry_drain: Run, listed: FaultyRegistry, words: tuple[str, ...]) -> None:
    """Every member is described, and there."""
    assert listed.cluster.records
    check(words[0], registry_drain(*words, "--json").document)


@pytest.mark.parametrize("fault", [UNAVAILABLE, REFUSED], ids=repr)
@pytest.mark.parametrize("step", [Step.READ, Step.DELETE], ids=lambda step: step.value)
@pytest.mark.parametrize("command", ["deregister", "list", "sweep", "drain", "undrain"])
def test_failures_fit(registry_drain: Run, listed: FaultyRegistry, command: str, fault: Any, step: Step) -> None:
    """Whatever the registry does."""
    listed.faults.add(step, fault)
    words = {"sweep": ("--yes", "--dead-agents"), "list": ()}.get(command, ("--id", "one"))
    check(command, registry_drain(command, *CALCULATOR, "--timeout", "0.2", *words, "--json").document)


def test_the_demo_fits() -> None:
    """Its two sides, whatever was measured."""
    tally = Tally(3, 100, 1, {"refused": 1}, 0.1, None, 0.2, None, 1, ("said",))
    document = {
        "schema_version": 1,
        "command": "demo",
        "status": 1,
        "outcome": "failed",
        "message": "",
        "registry": None,
        "naive": dataclasses.asdict(tally),
        "drained": None,
    }
    check("demo", json.loads(json.dumps(document)))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_schema_is_one(registry_drain: Run, command: str) -> None:
    """It is valid, is what the command prints, and is what the documentation has."""
    printed = json.loads(registry_drain("schema", command).out)
    jsonschema.Draft202012Validator.check_schema(printed)
    assert printed == schema_of(command)
    file = REPOSITORY / "docs" / "schemas" / f"{command}.schema.json"
    assert json.loads(file.read_text()) == printed, f"registry-drain schema {command} > {file}"


def test_every_command_has_one() -> None:
    """None is forgotten."""
    assert set(COMMANDS) == (set(main.COMMANDS) - WITHOUT_JSON) | {"list-watch"}


def test_no_such_schema(registry_drain: Run) -> None:
    """The line names those that there are."""
    ran = registry_drain("schema", "schema")
    assert ran.status == 2
    assert "deregister" in ran.complaint


def test_the_check_itself_notices(registry_drain: Run, listed: FaultyRegistry) -> None:
    """A member too many, one too few, one of another type: at the top and inside an entry."""
    assert listed.cluster.records
    good = registry_drain("list", "x://", "--json").document
    check("list", good)
    spoils: list[Callable[[Any], object]] = [
        lambda document: document.update(more=1),
        lambda document: document.pop("registry"),
        lambda document: document.update(status=99),
        lambda document: document["instances"][0].update(more=1),
        lambda document: document["instances"][0].pop("layout"),
        lambda document: document["instances"][0].update(port="9090"),
    ]
    for spoil in spoils:
        bad = copy.deepcopy(good)
        spoil(bad)
        with pytest.raises(jsonschema.ValidationError):
            check("list", bad)
