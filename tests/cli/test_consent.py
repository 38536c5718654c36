"""What it takes before several, or a service's last healthy instance, are changed."""

from __future__ import annotations

import dataclasses

import pytest

from registry_drain.cli.choosing.consent import Consent, is_healthy, left_without
from registry_drain.cli.command.exit_status import ExitStatus
from registry_drain.registries.base import RegistryEntry

DEAD = RegistryEntry("calculator", "dead", "10.0.0.7", 9090, is_live=False, health="critical", locator="a/dead")
WELL = RegistryEntry("calculator", "well", "10.0.0.8", 9090, health="passing", locator="a/well")
OTHER = RegistryEntry("calculator", "other", "10.0.0.9", 9090, health="passing", locator="b/other")


@pytest.mark.parametrize(
    ("consent", "chosen", "status", "hint"),
    [
        (Consent(), [DEAD], None, ""),
        (Consent(), [DEAD, WELL], ExitStatus.BAD_USAGE, "--yes"),
        (Consent(has_agreed=True), [DEAD, WELL], None, ""),
        (Consent(has_agreed=True, most=1), [DEAD, WELL], ExitStatus.BAD_USAGE, "--max allows 1"),
        (Consent(has_agreed=True, most=2), [DEAD, WELL], None, ""),
        (Consent(most=1, is_forced=True), [DEAD, WELL], ExitStatus.BAD_USAGE, "--max"),
        (Consent(has_agreed=True, most=1, is_forced=True), [DEAD, WELL], ExitStatus.BAD_USAGE, "--max"),
        (Consent(), [WELL], None, ""),
        (Consent(has_agreed=True), [WELL, OTHER], ExitStatus.REFUSED, "'calculator'"),
        (Consent(has_agreed=True, is_forced=True), [WELL, OTHER], None, ""),
    ],
)
def test_what_is_missing(consent: Consent, chosen: list[RegistryEntry], status: ExitStatus | None, hint: str) -> None:
    """--yes for several, --max always, --force for the last healthy one; and the message says which."""
    missing = consent.missing(chosen, [DEAD, WELL, OTHER])
    assert (None if missing is None else missing[0]) == status
    assert missing is None or hint in missing[1]


def test_the_only_one_is_the_last_one() -> None:
    """One instance needs no --yes, and --force if nobody else is there to serve."""
    missing = Consent().missing([WELL], [DEAD, WELL])
    assert missing is not None
    assert missing[0] is ExitStatus.REFUSED
    assert "--force" in missing[1]
    # A registry that keeps it, whatever is asked, loses nobody.
    assert Consent().missing([WELL], [DEAD, WELL], leaves=lambda _: False) is None


@pytest.mark.parametrize(
    ("entry", "healthy"),
    [
        (WELL, True),
        (dataclasses.replace(WELL, health="warning"), True),
        (dataclasses.replace(WELL, health="critical"), False),
        (dataclasses.replace(WELL, health="maintenance", is_live=True), False),
        (dataclasses.replace(WELL, is_live=False), False),
        (dataclasses.replace(WELL, health="", is_live=True), True),
        (dataclasses.replace(WELL, health=""), False),
    ],
)
def test_who_counts_as_healthy(entry: RegistryEntry, healthy: bool) -> None:
    """Passing or warning and not dead; alive, where nothing is checked. What nobody can tell of does not count."""
    assert is_healthy(entry) is healthy
    assert left_without([entry], [entry]) == (["calculator"] if healthy else [])


def test_services_are_told_apart() -> None:
    """A healthy instance of one service does not stand in for another's."""
    elsewhere = dataclasses.replace(WELL, service="adder")
    assert left_without([WELL, elsewhere], [WELL, OTHER, elsewhere]) == ["adder"]
    assert left_without([WELL], [WELL, elsewhere]) == ["calculator"]


def test_equal_ids_on_two_nodes_are_two() -> None:
    """In Consul an id is unique on its node only."""
    twin = dataclasses.replace(WELL, locator="b/well")
    assert left_without([WELL], [WELL, twin]) == []
    assert left_without([WELL, twin], [WELL, twin]) == ["calculator"]
