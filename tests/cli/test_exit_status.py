"""The statuses are an interface: their numbers, and what leads to each."""

from __future__ import annotations

import pytest

from registry_drain import errors
from registry_drain.cli.command.exit_status import ExitStatus, status_of_error, status_of_removal
from registry_drain.registries.base import RemovalOutcome


def test_numbers_and_words_never_change() -> None:
    """Scripts branch on the number, and read the word in JSON."""
    assert {status.word: int(status) for status in ExitStatus} == {
        "done": 0,
        "failed": 1,
        "bad_usage": 2,
        "unreachable": 3,
        "not_found": 4,
        "came_back": 5,
        "unverifiable": 6,
        "refused": 7,
        "internal_error": 70,
        "interrupted": 130,
    }


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.ConfigurationError("x"), 2),
        (errors.MissingExtraError("x", "y", "z"), 2),
        (errors.RegistryUnavailableError("x"), 3),
        (errors.RegistryTimeoutError("x"), 3),
        (errors.RegistryDataError("x"), 3),
        (errors.InstanceNotFoundError("x"), 4),
        (errors.PermissionRefusedError("x"), 7),
        (errors.LiveOwnerError("x"), 7),
        (errors.ServerError("x"), 1),
        (errors.RegistryDrainError("x"), 70),
    ],
)
def test_every_error_has_a_status(error: errors.RegistryDrainError, status: int) -> None:
    """Each class of the error tree leads to the status that its meaning asks for."""
    assert status_of_error(error) == status


def test_every_outcome_of_a_removal_has_a_status() -> None:
    """Only proof of absence is 0."""
    assert {outcome.name: int(status_of_removal(outcome)) for outcome in RemovalOutcome} == {
        "CONFIRMED": 0,
        "UNVERIFIABLE": 6,
        "UNCONFIRMED": 3,
        "SUCCESSOR": 5,
        "NOT_REGISTERED": 4,
        "REFUSED": 7,
        "HANDED_OVER": 5,
    }
