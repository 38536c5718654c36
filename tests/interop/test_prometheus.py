"""Prometheus finds instances that we register in ZooKeeper, and loses them when they are removed."""

from __future__ import annotations

from pathlib import Path

from registry_drain.clock import Deadline
from registry_drain.instance import ServiceInstance
from registry_drain.registries.base import RemovalOutcome
from registry_drain.registries.url import open_registry
from tests.interop.neighbours import PrometheusNeighbour
from tests.support.zookeeper_process import ZooKeeperServer


def _within() -> Deadline:
    return Deadline.after(30.0)


DISCOVERY = {"serverset": "serverset_sd_configs", "nerve": "nerve_sd_configs"}
"""By our name for the layout."""


def test_prometheus_sees_ours_come_and_go(zookeeper_server: ZooKeeperServer, unique: str, tmp_path: Path) -> None:
    """Some are there before it, one comes, one leaves by its own stop, one is removed by an operator."""
    registries = {
        layout: open_registry(f"{zookeeper_server.url}/{unique}-{layout}?session_timeout_s=4&layout={layout}")
        for layout in DISCOVERY
    }

    def instance(number: int) -> ServiceInstance:
        metadata = {"endpoint.admin": f"192.0.2.{number}:9091"}
        return ServiceInstance("calculator", f"192.0.2.{number}", 9090, id=f"i{number}", metadata=metadata)

    ours = {
        (layout, number): registry.registration(instance(number))
        for layout, registry in registries.items()
        for number in (1, 2, 3)
    }
    paths = {layout: [f"/{unique}-{layout}/calculator"] for layout in DISCOVERY}
    discoveries = {
        layout: {kind: [{"servers": [zookeeper_server.hosts], "paths": paths[layout]}]}
        for layout, kind in DISCOVERY.items()
    }

    def targets(*numbers: int) -> set[tuple[str, str]]:
        return {(layout, f"192.0.2.{number}:9090") for layout in DISCOVERY for number in numbers}

    try:
        for layout in DISCOVERY:
            for number in (1, 2):
                ours[layout, number].register(_within())
        with PrometheusNeighbour(tmp_path, discoveries) as prometheus:
            prometheus.sees(targets(1, 2))
            assert {each["__meta_serverset_status"] for each in prometheus.labels("serverset")} == {"ALIVE"}
            assert {
                (each["__meta_serverset_endpoint_host_admin"], each["__meta_serverset_endpoint_port_admin"])
                for each in prometheus.labels("serverset")
            } == {("192.0.2.1", "9091"), ("192.0.2.2", "9091")}
            assert {each["__meta_nerve_endpoint_port"] for each in prometheus.labels("nerve")} == {"9090"}
            for layout, registry in registries.items():
                ours[layout, 3].register(_within())
                assert ours[layout, 1].on_shutdown(_within()).outcome is RemovalOutcome.CONFIRMED
                entry = next(e for e in registry.entries("calculator", _within()) if e.address == "192.0.2.2")
                assert registry.remove(entry, _within(), force=True).outcome is RemovalOutcome.CONFIRMED
            prometheus.sees(targets(3))
            for layout in DISCOVERY:
                assert ours[layout, 3].on_shutdown(_within()).outcome is RemovalOutcome.CONFIRMED
            prometheus.sees(targets())
    finally:
        for each in ours.values():
            each.on_shutdown(_within())
        for registry in registries.values():
            registry.close()
