"""An HTTP fleet behind HAProxy, which finds it by Consul's DNS: for clients that know no registry."""

from __future__ import annotations

import pytest

from benchmarks.cluster.compose import Cluster
from benchmarks.cluster.restarts import restart_behind_the_proxy

RESTARTS = 6


@pytest.mark.parametrize("which", ["consul"], indirect=True, scope="session")
def test_restarting_behind_the_proxy_fails_no_request(cluster: Cluster, which: str) -> None:
    """It goes on sending requests until it has asked again, and the instance waits for that."""
    cluster.await_size(which, service="hello")
    outcomes, stops = restart_behind_the_proxy(cluster, RESTARTS)
    assert outcomes["ok"] > 0
    assert set(outcomes) == {"ok"}, outcomes
    assert [stop.outcome for stop in stops] == ["confirmed"] * RESTARTS
