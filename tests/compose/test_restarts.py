"""A fleet is restarted under load, by the commands that a person would type, and no request fails."""

from __future__ import annotations

import time

from benchmarks.cluster.compose import SIZE, Cluster
from benchmarks.cluster.restarts import one_node_down, restart_one_by_one

RESTARTS = 10


def test_restarting_one_by_one_fails_no_request(cluster: Cluster, which: str) -> None:
    """Each stop is clean, and its entry is gone when the process is."""
    counted, stops = restart_one_by_one(cluster, which, RESTARTS)
    assert counted.calls > 0
    assert counted.failed == 0, cluster.container(f"load-{which}").log()
    assert [stop.outcome for stop in stops] == ["confirmed"] * RESTARTS
    assert [stop.verdict for stop in stops] == ["clean"] * RESTARTS


def test_while_one_registry_node_is_down(cluster: Cluster, which: str) -> None:
    """The rest of the registry has a quorum: nobody notices."""
    with one_node_down(cluster, which):
        counted, stops = restart_one_by_one(cluster, which, RESTARTS)
    assert counted.calls > 0
    assert counted.failed == 0, cluster.container(f"load-{which}").log()
    assert {stop.outcome for stop in stops} == {"confirmed"}


def test_compose_restart_of_the_whole_fleet(cluster: Cluster, which: str) -> None:
    """All at once: for a while nobody is listed and nobody is called, and nothing that was called has failed."""
    before = cluster.tally(which)
    cluster.compose("restart", f"calculator-{which}")
    cluster.await_size(which)
    assert cluster.tally(which).since(before).failed == 0


def test_up_again_with_new_containers(cluster: Cluster, which: str) -> None:
    """The same, with other addresses afterwards; the old ones leave nothing behind."""
    before = cluster.tally(which)
    service = f"calculator-{which}"
    cluster.compose("up", "--detach", "--wait", "--no-deps", "--force-recreate", service)
    cluster.await_size(which)
    assert {entry.address for entry in cluster.listed(which)} == {each.address for each in cluster.containers(service)}
    assert cluster.tally(which).since(before).failed == 0


def test_scaling_down_and_up(cluster: Cluster, which: str) -> None:
    """``--scale`` stops the surplus like any other stop."""
    before = cluster.tally(which)
    service = f"calculator-{which}"
    cluster.compose("up", "--detach", "--wait", "--no-deps", "--scale", f"{service}=1", service)
    cluster.await_size(which, 1)
    cluster.compose("up", "--detach", "--wait", "--no-deps", "--scale", f"{service}={SIZE}", service)
    cluster.await_size(which)
    assert cluster.tally(which).since(before).failed == 0


def test_a_killed_instance_is_out_of_the_lists_soon(cluster: Cluster, which: str) -> None:
    """Nobody can deregister it: its session, or its time to live, ends."""
    [killed, *_] = cluster.containers(f"calculator-{which}")
    address = killed.address
    killed.kill()
    deadline = time.monotonic() + 60.0
    while any(entry.address == address and entry.is_live is not False for entry in cluster.listed(which)):
        assert time.monotonic() < deadline, f"{address} is still listed as alive"
        time.sleep(0.2)
    killed.start()
    cluster.await_size(which)


def test_an_instance_that_was_frozen_is_registered_again(cluster: Cluster, which: str) -> None:
    """It lost its session, or its time to live ran out, and nobody took it out on purpose."""
    [frozen, *_] = cluster.containers(f"calculator-{which}")
    with frozen.paused():
        cluster.await_size(which, SIZE - 1)
    cluster.await_size(which)
