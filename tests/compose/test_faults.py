"""Faults that only a cluster shows. What is measured stands in docs/cluster-faults.md; here, what must hold."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks.cluster.compose import Cluster
from benchmarks.cluster.faults import FAULTS, Fault

GRACE_S = 30.0


@pytest.mark.parametrize(
    "fault", [fault for of_one in FAULTS.values() for fault in of_one], ids=lambda each: each.__name__
)
def test_a_fault_never_lengthens_a_stop_and_leaves_nothing_listed(
    cluster: Cluster, fault: Callable[[Cluster], Fault]
) -> None:
    """The stop ends within its grace period, the rest of the fleet is called all the time, and no ghost stays."""
    seen = fault(cluster)
    cluster.await_size(seen.which)
    assert seen.calls > 0
    assert seen.stopped is not None
    assert seen.stopped.seconds < GRACE_S
    assert seen.stopped.listed_for is not None, "it is listed although it has ended"
    if seen.stopped.outcome == "confirmed":
        assert seen.failed == 0, cluster.container(f"load-{seen.which}").log()
