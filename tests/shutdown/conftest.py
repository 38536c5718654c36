"""The stage of the tests of the stop."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.shutdown.stage import Stage


@pytest.fixture
def stage() -> Iterator[Stage]:
    """Give a clock, a server and a registry; whatever still hangs in the end is let go."""
    stage = Stage()
    yield stage
    stage.close()
