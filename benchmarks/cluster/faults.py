"""What breaks in a real cluster while an instance stops: each fault is a function that returns what was seen.

Theory of operation: a fault begins, an instance is sent SIGTERM, the fault ends, the instance is started again, and
the load client is asked how many of the calls that it made meanwhile have failed. The services are healthy all the
time; what breaks is the registry, the agent, or the network between them. A registry that comes back only when the
instance has ended can tell nobody in time: what fails then has found nobody at the address, and was served by nobody.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

from benchmarks.cluster.compose import Cluster, Container, DockerError, docker
from benchmarks.cluster.stopping import Stopped, Stopping
from registry_drain.clock import Deadline
from registry_drain.registries.base import RegistryEntry
from registry_drain.registries.url import open_registry
from tests.support.processes import eventually

_LOST_S = 4.0
"""Seconds that a quorum is lost while an instance stops."""
_STAYS_LOST_S = 3.0
"""Seconds that it stays lost after the instance has ended, where it outlasts the stop."""


@dataclass(frozen=True)
class Fault:
    """One line of the table.

    Attributes:
        name: what was done.
        which: the registry.
        calls: made by the load client meanwhile.
        failed: of them.
        unconnected: of those that failed: nobody listened, so that a client which tries another instance loses nothing.
        stopped: what was seen of the instance's stop; None where none was stopped.
        note: what else was seen.
    """

    name: str
    which: str
    calls: int
    failed: int
    unconnected: int
    stopped: Stopped | None
    note: str = ""


def _measured(cluster: Cluster, name: str, which: str, course: Callable[[], tuple[Stopped | None, str]]) -> Fault:
    before = cluster.tally(which)
    stopped, note = course()
    counted = cluster.tally(which).since(before)
    return Fault(name, which, counted.calls, counted.failed, counted.unconnected, stopped, note)


def _instance(cluster: Cluster, which: str) -> Container:
    return cluster.containers(f"calculator-{which}")[0]


def _leader_killed(cluster: Cluster, which: str, leader_of: Callable[[Cluster], str]) -> Fault:
    def course() -> tuple[Stopped, str]:
        leader = cluster.container(leader_of(cluster))
        stopping = Stopping(cluster, which, _instance(cluster, which))
        leader.kill()
        stopping.begin()
        seen = stopping.seen()
        leader.start()
        stopping.start_again()
        leader.await_healthy()
        return seen, ""

    return _measured(cluster, "leader killed during a deregistration", which, course)


def _quorum_lost(cluster: Cluster, which: str, lost: AbstractContextManager[None], *, outlasts_the_stop: bool) -> Fault:
    def course() -> tuple[Stopped, str]:
        stopping = Stopping(cluster, which, _instance(cluster, which))
        with lost:
            stopping.begin()
            if outlasts_the_stop:
                stopping.await_exit()
                time.sleep(_STAYS_LOST_S)
            else:
                time.sleep(_LOST_S)
        restored_at = time.time()
        seen = stopping.seen()
        note = f"not listed {time.time() - restored_at:.0f} s after its members were back"
        stopping.start_again()
        return seen, note

    how_long = "until after the exit" if outlasts_the_stop else f"for {_LOST_S:g} s"
    return _measured(cluster, f"quorum lost {how_long}", which, course)


@contextlib.contextmanager
def _frozen(cluster: Cluster, services: Iterable[str]) -> Iterator[None]:
    with contextlib.ExitStack() as frozen:
        for service in services:
            frozen.enter_context(cluster.container(service).paused())
        yield


# --- ZooKeeper --------------------------------------------------------------------------------------------------------

_ENSEMBLE = ("zookeeper-1", "zookeeper-2", "zookeeper-3")


def zookeeper_leader(cluster: Cluster) -> str:
    """Return which member of the ensemble leads it."""

    def leader() -> str:
        for service in _ENSEMBLE:
            if _mode(cluster.container(service)) == "leader":
                return service
        return ""

    return eventually(leader, timeout=60.0, interval=0.2)


def _mode(container: Container) -> str:
    script = "exec 3<>/dev/tcp/127.0.0.1/2181 && echo srvr >&3 && cat <&3"
    with contextlib.suppress(DockerError):  # it is down, or does not answer
        for line in docker("exec", container.name, "bash", "-c", script).splitlines():
            if line.startswith("Mode: "):
                return line.removeprefix("Mode: ")
    return ""


def leader_of_the_ensemble_killed(cluster: Cluster) -> Fault:
    """The leader dies while an instance deregisters."""
    return _leader_killed(cluster, "zookeeper", zookeeper_leader)


def member_partitioned(cluster: Cluster) -> Fault:
    """One member of the ensemble is cut off, whichever the instance is connected to."""

    def course() -> tuple[Stopped, str]:
        stopping = Stopping(cluster, "zookeeper", _instance(cluster, "zookeeper"))
        with cluster.container("zookeeper-1").disconnected(cluster.network, "zookeeper-1"):
            stopping.begin()
            seen = stopping.seen()
        cluster.container("zookeeper-1").await_healthy()
        stopping.start_again()
        return seen, ""

    return _measured(cluster, "one member partitioned", "zookeeper", course)


@contextlib.contextmanager
def _two_members_dead(cluster: Cluster) -> Iterator[None]:
    members = [cluster.container(service) for service in _ENSEMBLE[:2]]
    _at_once(*(member.kill for member in members))
    try:
        yield
    finally:
        _at_once(*(member.start for member in members))


def quorum_of_the_ensemble_lost_for_a_while(cluster: Cluster) -> Fault:
    """Two of three members freeze, an instance stops, and they go on before it gives up."""
    return _quorum_lost(cluster, "zookeeper", _frozen(cluster, _ENSEMBLE[:2]), outlasts_the_stop=False)


def quorum_of_the_ensemble_lost_for_long(cluster: Cluster) -> Fault:
    """Two of three members die, and come back when the instance has ended."""
    return _quorum_lost(cluster, "zookeeper", _two_members_dead(cluster), outlasts_the_stop=True)


def ensemble_restarted(cluster: Cluster) -> Fault:
    """Every member is restarted, one after the other, and an instance stops in between."""

    def course() -> tuple[Stopped | None, str]:
        seen = None
        for service in _ENSEMBLE:
            member = cluster.container(service)
            member.stop()
            if service == _ENSEMBLE[1]:
                stopping = Stopping(cluster, "zookeeper", _instance(cluster, "zookeeper"))
                stopping.begin()
                seen = stopping.seen()
            member.start()
            member.await_healthy()
        stopping.start_again()
        cluster.await_size("zookeeper")
        return seen, ""

    return _measured(cluster, "rolling restart of the ensemble", "zookeeper", course)


# --- Consul -----------------------------------------------------------------------------------------------------------

_SERVERS = ("consul-server-1", "consul-server-2", "consul-server-3")


def consul_leader(cluster: Cluster) -> str:
    """Return which server leads."""

    def leader() -> str:
        url = f"http://127.0.0.1:{cluster.port('CONSUL_PORT')}/v1/status/leader"
        with urllib.request.urlopen(url, timeout=5) as answer:
            address = str(json.load(answer)).rpartition(":")[0]
        return next((service for service in _SERVERS if cluster.container(service).address == address), "")

    return eventually(leader, timeout=60.0, interval=0.2)


def leader_of_consul_killed(cluster: Cluster) -> Fault:
    """The leader dies while an instance deregisters."""
    return _leader_killed(cluster, "consul", consul_leader)


def agent_killed_before_the_service(cluster: Cluster) -> Fault:
    """The order of a host that shuts down: the agent first. Then it comes back, with its data, and with the ghost.

    Callers learn it from their own agent: the servers notice that this one is gone.
    """

    def course() -> tuple[Stopped, str]:
        agent = cluster.container("consul-agent")
        instance = _instance(cluster, "consul")
        address = instance.address
        stopping = Stopping(cluster, "consul", instance)
        agent.kill()
        stopping.begin()
        stopping.await_exit()
        agent.start()
        agent.await_healthy()
        # The other instances register again, or were persisted; the ghost was persisted as well.
        ghosts = eventually(lambda: _at(cluster, address), timeout=30.0, interval=0.2)
        with contextlib.closing(open_registry(cluster.registry_url("consul", "CONSUL_PORT"))) as registry:
            removal = registry.remove(ghosts[0], Deadline.after(30.0), force=True)
        seen = stopping.seen()
        stopping.start_again()
        cluster.await_size("consul")
        return seen, f"the agent brought the ghost back; deregister: {removal.outcome.value}"

    return _measured(cluster, "agent killed before the service, then back", "consul", course)


def agent_cut_off(cluster: Cluster) -> Fault:
    """The agent lives and reaches no other: it acknowledges a removal that nobody has heard of."""

    def course() -> tuple[Stopped, str]:
        stopping = Stopping(cluster, "consul", _instance(cluster, "consul"))
        agent = cluster.container("consul-agent")
        with agent.cut_off_from(cluster.container(service) for service in (*_SERVERS, "consul-agent-callers")):
            stopping.begin()
            stopping.await_exit()
        agent.await_healthy()
        seen = stopping.seen()
        stopping.start_again()
        return seen, ""

    return _measured(cluster, "the agent's servers unreachable", "consul", course)


def servers_frozen_for_a_while(cluster: Cluster) -> Fault:
    """All servers freeze, an instance stops, and they go on before it gives up."""
    return _quorum_lost(cluster, "consul", _frozen(cluster, _SERVERS), outlasts_the_stop=False)


def servers_frozen_for_long(cluster: Cluster) -> Fault:
    """The same, and they go on when it has ended."""
    return _quorum_lost(cluster, "consul", _frozen(cluster, _SERVERS), outlasts_the_stop=True)


def _at(cluster: Cluster, address: str) -> list[RegistryEntry]:
    return [entry for entry in cluster.listed("consul") if entry.address == address]


def _at_once(*calls: Callable[[], None]) -> None:
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


FAULTS: dict[str, tuple[Callable[[Cluster], Fault], ...]] = {
    "zookeeper": (
        leader_of_the_ensemble_killed,
        member_partitioned,
        quorum_of_the_ensemble_lost_for_a_while,
        quorum_of_the_ensemble_lost_for_long,
        ensemble_restarted,
    ),
    "consul": (
        leader_of_consul_killed,
        agent_killed_before_the_service,
        agent_cut_off,
        servers_frozen_for_a_while,
        servers_frozen_for_long,
    ),
}
"""Those of each registry, in the order of the table."""


def all_faults(cluster: Cluster, which: str) -> Iterator[Fault]:
    """Run them one after the other; the cluster is whole again after each."""
    for fault in FAULTS[which]:
        yield fault(cluster)
        cluster.await_size(which)
