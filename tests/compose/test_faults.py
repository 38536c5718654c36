"""Faults that only a cluster shows. What is measured stands in docs/cluster-faults.md; here, what must hold."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks.cluster.compose import Cluster
from benchmarks.cluster.faults import FAULTS, Fault

GRACE_S = 30.0
STALE = 3
"""Calls to nobody that are no fault of the stop: of a client that has lost the registry, too, and that a busy machine
kept from calling for as long as the instance waited for it."""
CASES = [(which, fault) for which, faults in FAULTS.items() for fault in faults]


@pytest.mark.parametrize(
    ("which", "fault"), CASES, ids=lambda each: getattr(each, "__name__", each), indirect=["which"], scope="session"
)
def test_a_fault_fails_nobody_whom_waiting_can_save(
    cluster: Cluster, which: str, fault: Callable[[Cluster], Fault]
) -> None:
    """The stop ends within its grace period, no ghost stays, and only who was never told finds nobody afterwards."""
    seen = fault(cluster)
    cluster.await_size(which)
    assert seen.calls > 0
    assert seen.stopped is not None
    assert seen.stopped.seconds < GRACE_S
    assert seen.stopped.listed_for is not None, "it is listed although it has ended"
    log = cluster.container(f"load-{which}").log()
    if not seen.stopped.was_called or seen.stopped.outcome == "confirmed":
        assert seen.failed <= STALE, log
    # The client keeps one connection to each instance: at most that one was still in use when it was hung up.
    assert seen.failed - seen.unconnected <= 1, log
