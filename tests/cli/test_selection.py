"""Which of the listed instances is meant."""

from __future__ import annotations

import pytest

from registry_drain.cli.selection import Selection, refuse_several, same_host
from registry_drain.errors import ConfigurationError, InstanceNotFoundError
from registry_drain.registries.base import RegistryEntry

ONE = RegistryEntry("calculator", "one", "10.0.0.7", 9090, locator="node-a/one-f00", health="critical")
OTHER = RegistryEntry("calculator", "one", "10.0.0.8", 9090, locator="node-b/one-ba5", health="passing")
UNREADABLE = RegistryEntry("calculator", "junk", problem="not JSON", locator="/services/calculator/junk")
ALL = [ONE, OTHER, UNREADABLE]


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (Selection(id="one"), [ONE, OTHER]),
        (Selection(id="node-a/one-f00"), [ONE]),
        (Selection(id="one-ba5"), [OTHER]),
        (Selection(endpoint=("10.0.0.8", 9090)), [OTHER]),
        (Selection(id="one", endpoint=("10.0.0.7", 9090)), [ONE]),
        (Selection(id="junk"), [UNREADABLE]),
        (Selection(id="/services/calculator/junk"), [UNREADABLE]),
    ],
    ids=str,
)
def test_finds_what_is_meant(selection: Selection, expected: list[RegistryEntry]) -> None:
    """By id, by place, by the last part of the place, by address, and by both."""
    assert selection.one_of(ALL, "calculator", "consul://x") == expected


@pytest.mark.parametrize("given", ["on", "ne", "f00", "a/one-f00x", "-f00"])
def test_part_of_a_name_finds_nothing(given: str) -> None:
    """Only whole parts of a place count, so that a short id never hits a longer one."""
    with pytest.raises(InstanceNotFoundError, match=r"one \(10\.0\.0\.7:9090\)"):
        Selection(id=given).one_of(ALL, "calculator", "consul://x")


def test_a_full_place_beats_an_equal_id() -> None:
    """Whoever gives the whole place means that one, even if another instance is named like it."""
    named_like_a_place = RegistryEntry("calculator", "node-a/one-f00", "10.0.0.9", 1, locator="node-c/x")
    found = Selection(id="node-a/one-f00").one_of([named_like_a_place, ONE], "calculator", "consul://x")
    assert found == [ONE]


def test_several_are_refused_with_the_places_to_choose_from() -> None:
    """The message holds what the next --id can be."""
    with pytest.raises(ConfigurationError, match=r"2 instances have id 'one'.*node-a/one-f00.*node-b/one-ba5"):
        refuse_several([ONE, OTHER], Selection(id="one"))
    refuse_several([ONE], Selection(id="one"))


def test_says_that_unreadable_entries_have_no_address() -> None:
    """An entry without an address is never found by one, so the message leads to --id."""
    with pytest.raises(InstanceNotFoundError, match="1 cannot be read in full: select by --id"):
        Selection(endpoint=("10.0.0.9", 1)).one_of(ALL, "calculator", "consul://x")


def test_names_at_most_five_of_many() -> None:
    """One line stays one line in a service of a thousand instances."""
    many = [RegistryEntry("s", f"i{number}", "10.0.0.1", number + 1) for number in range(1000)]
    with pytest.raises(InstanceNotFoundError) as raised:
        Selection(id="x").one_of(many, "s", "consul://x")
    assert "and 995 more" in str(raised.value)
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("10.0.0.1", "10.0.0.1", True),
        ("::1", "0:0:0:0:0:0:0:1", True),
        ("Host.Example", "host.example.", True),
        ("10.0.0.1", "10.0.0.10", False),
        ("host", "", False),
    ],
)
def test_hosts_are_compared_by_what_they_mean(one: str, other: str, is_same: bool) -> None:
    """Spelling does not matter; nothing is looked up."""
    assert same_host(one, other) is is_same
