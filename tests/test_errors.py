"""The error tree: one root, retryability in the type, and the table in the module's docstring is true."""

from __future__ import annotations

import inspect
import re

from registry_drain import errors
from registry_drain.errors import ConfigurationError, MissingExtraError, RegistryDrainError, RegistryUnavailableError

DEFINED = [value for value in vars(errors).values() if inspect.isclass(value) and value.__module__ == errors.__name__]
ALL = [value for value in DEFINED if issubclass(value, RegistryDrainError)]


def test_every_error_has_the_root() -> None:
    """One except clause catches them all."""
    assert DEFINED == ALL


def test_retryable_errors_are_outages() -> None:
    """What may be retried is what passes by itself, and nothing else."""
    for kind in ALL:
        assert kind.retryable is issubclass(kind, RegistryUnavailableError)


def test_the_table_is_true() -> None:
    """The docstring lists every class that is raised, with its retryability."""
    rows = dict(re.findall(r"^:class:`(\w+)`\s+(yes|no)\b", errors.__doc__ or "", re.MULTILINE))
    bases = {"RegistryDrainError", "RegistryError"}
    assert rows == {kind.__name__: "yes" if kind.retryable else "no" for kind in ALL if kind.__name__ not in bases}


def test_bad_input_is_a_value_error() -> None:
    """Callers who know nothing of this package catch ValueError."""
    assert issubclass(ConfigurationError, ValueError)


def test_missing_extra_is_the_command_to_type() -> None:
    """The message can be pasted into a shell."""
    error = MissingExtraError("zookeeper://", "kazoo", "zookeeper")
    assert error.extra == "zookeeper"
    assert str(error) == "zookeeper:// needs kazoo: install it with: pip install 'registry-drain[zookeeper]'"
