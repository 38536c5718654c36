"""The example of the page on writing a registry keeps every promise of the contract."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.sqlite_registry import SqliteRegistration, SqliteRegistry, SqliteWatch, open_sqlite
from registry_drain.clock import SYSTEM_CLOCK
from registry_drain.registries.base import Registration, Registry, Watch
from registry_drain.registries.url import parse_registry_url
from registry_drain.testing.registry_contract import RegistryContract

# A type checker agrees, too, although the example inherits from nothing.
_PROTOCOLS: tuple[type[Registry], type[Registration], type[Watch]] = (SqliteRegistry, SqliteRegistration, SqliteWatch)


class TestSqliteRegistry(RegistryContract):
    """The contract, on a file of each test's own."""

    @pytest.fixture(autouse=True)
    def _file(self, tmp_path: Path) -> None:
        self.url = f"sqlite://{tmp_path}/registry.db"

    def new_registry(self) -> Registry:
        """Return one more object on this test's file."""
        return open_sqlite(parse_registry_url(self.url), SYSTEM_CLOCK)
