"""A live service whose entry an operator removes stays out, serves on, and stops well; what is lost comes back."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.running import run_script
from tests.integration.fleet import ServiceProcess, ended, listed
from tests.integration.test_rolling_restart import REGISTRIES, registry_url
from tests.support.calculator_load import call_once

WATCH_BACK = "4"
"""Seconds; longer than the pause between two heartbeats."""


@pytest.mark.parametrize("kind", REGISTRIES)
def test_deregister_takes_a_live_instance_out_for_good(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, unique: str
) -> None:
    """``deregister --force --watch-back`` ends with 0; the process serves whoever still calls, and stops well."""
    url = registry_url(kind, request, tmp_path)
    service = ServiceProcess(url, unique, tmp_path / "log")
    with ended(service):
        service.wait_listed()
        which = ("--service", unique, "--address", service.endpoint)
        ran = run_script("deregister", url, *which, "--force", "--yes", "--watch-back", WATCH_BACK)
        assert ran.status == 0, ran
        if kind != "local":  # where nothing is renewed nothing is found out before somebody asks
            service.process.wait_output("until rejoin() or a restart", timeout=30)
        assert call_once(service.endpoint, "add", 1, 2) == 3
        assert service.endpoint not in listed(url, unique)
        report = service.stop()
    assert report["is_clean"], report
    assert "removed by an operator" in report["removals"][0]["detail"]
    assert service.process.output().count("stays out of") == 1
