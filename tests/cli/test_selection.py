"""Which of the listed instances is meant."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import pytest

from registry_drain.cli.choosing.options import add_consent, add_observe, add_selection
from registry_drain.cli.choosing.selection import Selection, same_host
from registry_drain.errors import ConfigurationError
from registry_drain.registries.base import RegistryEntry

ONE = RegistryEntry("calculator", "one", "10.0.0.7", 9090, locator="node-a/one-f00", health="critical", node="node-a")
ONE = replace(ONE, tags=("blue",), metadata={"zone": "a"}, endpoints=(("10.0.0.7", 9091),))
OTHER = RegistryEntry(
    "calculator", "one", "10.0.0.8", 9090, locator="node-b/one-ba5", health="passing", tags=("blue", "canary")
)
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
        (Selection(service="calculator", node="NODE-A."), [ONE]),
        (Selection(service="other", id="one"), []),
        (Selection(node="10.0.0.8"), [OTHER]),
        (Selection(tags=("blue",)), [ONE, OTHER]),
        (Selection(tags=("blue", "canary")), [OTHER]),
        (Selection(metadata=(("zone", "a"),)), [ONE]),
        (Selection(metadata=(("zone", "a"), ("rack", "2"))), []),
        (Selection(metadata=(("zone", ""),)), []),
        (Selection(is_unhealthy=True), [ONE]),
        (Selection(is_unhealthy=True, node="10.0.0.8"), []),
        (Selection(endpoint=("10.0.0.7", 9091)), [ONE]),
        (Selection(endpoint=("10.0.0.7", 9092)), []),
        (Selection(service="calculator", is_all=True), ALL),
        (Selection(critical_for=600.0), [ONE]),
    ],
    ids=str,
)
def test_finds_what_is_meant(selection: Selection, expected: list[RegistryEntry]) -> None:
    """By id, by place, by the last part of the place, by address, and by both."""
    assert selection.select(ALL) == expected


@pytest.mark.parametrize("given", ["on", "ne", "f00", "a/one-f00x", "-f00"])
def test_part_of_a_name_finds_nothing(given: str) -> None:
    """Only whole parts of a place count, so that a short id never hits a longer one."""
    assert Selection(id=given).select(ALL) == []
    assert "one (10.0.0.7:9090)" in str(Selection(id=given).not_found(ALL, "consul://x"))


def test_a_full_place_beats_an_equal_id() -> None:
    """Whoever gives the whole place means that one, even if another instance is named like it."""
    named_like_a_place = RegistryEntry("calculator", "node-a/one-f00", "10.0.0.9", 1, locator="node-c/x")
    assert Selection(id="node-a/one-f00").select([named_like_a_place, ONE]) == [ONE]


def test_says_that_unreadable_entries_have_no_address() -> None:
    """An entry without an address is never found by one, so the message leads to --id."""
    error = Selection(endpoint=("10.0.0.9", 1)).not_found(ALL, "consul://x")
    assert "1 cannot be read in full: select by --id" in str(error)


def _hidden(**fields: Any) -> RegistryEntry:
    """Return an entry whose data may not be read: its name says the id."""
    return RegistryEntry("calculator", "secret", locator="/services/calculator/secret", refused="data", **fields)


@pytest.mark.parametrize(
    ("selection", "entry", "may"),
    [
        (Selection(endpoint=("10.0.0.7", 1)), _hidden(), True),
        (Selection(node="10.0.0.7"), _hidden(), True),
        (Selection(tags=("blue",)), _hidden(), True),
        (Selection(service="calculator", metadata=(("a", "b"),)), _hidden(), True),
        (Selection(service="other", endpoint=("10.0.0.7", 1)), _hidden(), False),
        (Selection(endpoint=("10.0.0.7", 1)), _hidden(address="10.0.0.8", port=1), False),
        (Selection(id="another"), _hidden(), False),
        (Selection(id="another"), replace(_hidden(), refused="children"), True),
        (Selection(id="secret"), _hidden(), False),  # it is chosen: not in doubt
        (Selection(is_unhealthy=True), _hidden(is_live=True), False),
        (Selection(is_unhealthy=True), _hidden(), True),
        (Selection(endpoint=("10.0.0.7", 1)), replace(_hidden(), refused=""), False),
    ],
)
def test_tells_what_may_be_meant_though_it_cannot_be_read(
    selection: Selection, entry: RegistryEntry, *, may: bool
) -> None:
    """What its name tells is believed, and nothing else is assumed."""
    assert selection.may_mean(entry) is may
    assert selection.unread([entry], []) == ([entry] if may else [])


def test_nothing_is_in_doubt_once_a_single_one_was_named_and_found() -> None:
    """``--id`` means one."""
    folder = replace(_hidden(), refused="children")
    assert Selection(id="one").unread([ONE, folder], [ONE]) == []


def test_names_at_most_five_of_many() -> None:
    """One line stays one line in a service of a thousand instances."""
    many = [RegistryEntry("s", f"i{number}", "10.0.0.1", number + 1) for number in range(1000)]
    message = str(Selection(id="x").not_found(many, "consul://x"))
    assert "and 995 more" in message
    assert len(message) < 300


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


def _selection(*words: str) -> Selection:
    parser = argparse.ArgumentParser()
    add_selection(parser)
    add_observe(parser)
    add_consent(parser)
    return Selection.of(parser.parse_args(words))


def test_every_option_is_read() -> None:
    """From words to what is asked for."""
    words = ["--service", "s", "--id", "i", "--address", "[::1]:80", "--node", "n", "--tag", "a", "--tag", "b"]
    words += ["--meta", "k=v=w", "--meta", "empty=", "--all-unhealthy", "--critical-for", "10m"]
    assert _selection(*words) == Selection(
        id="i",
        endpoint=("::1", 80),
        service="s",
        node="n",
        tags=("a", "b"),
        metadata=(("k", "v=w"), ("empty", "")),
        is_unhealthy=True,
        critical_for=600.0,
    )


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("--meta", "zone"), "KEY=VALUE"),
        (("--meta", "=a"), "KEY=VALUE"),
        (("--tag", ""), "--tag is empty"),
        (("--node", ""), "--node is empty"),
        (("--all",), "--service NAME"),
        (("--all", "--service", "s", "--tag", "a"), "leave it out"),
        (("--observe", "--id", "i"), "--critical-for TIME"),
    ],
    ids=repr,
)
def test_what_makes_no_sense_is_refused(words: tuple[str, ...], hint: str) -> None:
    """With the way out."""
    with pytest.raises(ConfigurationError, match=hint):
        _selection(*words)


def test_a_service_alone_is_no_selection() -> None:
    """A whole service is removed by --all only, which the refusal says; and each selector alone is enough."""
    with pytest.raises(ConfigurationError, match="--all for every instance of 's'"):
        _selection("--service", "s").require()
    with pytest.raises(ConfigurationError, match="say which instance"):
        _selection().require()
    for words in (["--all-unhealthy"], ["--node", "n"], ["--tag", "a"], ["--meta", "a="], ["--service", "s", "--all"]):
        _selection(*words).require()
