"""Entries that another system registers again: recognised by its marks, shown, and left to it."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from registry_drain.errors import LiveOwnerError
from registry_drain.registries.base import RemovalOutcome
from registry_drain.registries.consul.managed import manager_of
from tests.registries.consul_tools import Members, entry_of, put_ghost, put_service, soon
from tests.support.consul_process import ConsulAgent
from tests.support.processes import eventually


@pytest.mark.parametrize(
    ("consul_id", "meta", "node_meta", "name", "remedy"),
    [
        ("_nomad-task-6f0c-group-api-web-8080", {"external-source": "nomad"}, {}, "Nomad", "nomad alloc stop"),
        ("_nomad-task-6f0c-group-api-web-8080", {}, {}, "Nomad", "nomad alloc stop"),
        ("web-1", {"external-source": "nomad"}, {}, "Nomad", "nomad alloc stop"),
        (
            "web-6f0c",
            {"external-source": "kubernetes", "external-k8s-ns": "shop"},
            {"external-source": "kubernetes"},
            "Kubernetes",
            "service-sync=false",
        ),
        ("web-6f0c", {}, {"external-source": "kubernetes"}, "Kubernetes", "service-sync=false"),
        ("web-6f0c", {"external-source": "k8s", "external-k8s-ns": "shop"}, {}, "Kubernetes", "service-sync=false"),
        (
            "web-7d9f-web",
            {"managed-by": "consul-k8s-endpoints-controller", "pod-name": "web-7d9f", "k8s-namespace": "shop"},
            {"synthetic-node": "true"},
            "Kubernetes",
            "kubectl delete pod web-7d9f -n shop",
        ),
        ("web", {"external-source": "aws", "external-aws-id": "srv-1"}, {}, "AWS Cloud Map", "servicediscovery"),
        ("web", {"external-source": "terraform"}, {}, "Terraform", "consul_service"),
        ("web", {"external-source": "Something-New"}, {}, "something-new", "external-source says so"),
    ],
)
def test_who_manages_it(
    consul_id: str, meta: Mapping[str, str], node_meta: Mapping[str, str], name: str, remedy: str
) -> None:
    """The marks that each system leaves name it, and how to stop the entry there."""
    manager = manager_of(consul_id, meta, node_meta)
    assert manager is not None
    assert manager.name == name
    assert remedy in manager.remedy


@pytest.mark.parametrize(
    ("consul_id", "meta", "node_meta"),
    [
        ("web-1", {}, {}),
        ("host-1:web_container:8080", {}, {}),  # registrator's form, which anybody may use
        ("web", {}, {"external-node": "true", "external-probe": "true"}),  # consul-esm checks, and registers nothing
        ("web", {"managed-by": "us", "external-source": ""}, {"external-source": " "}),
        ("x_nomad-task", {}, {}),
    ],
)
def test_nobody_manages_it(consul_id: str, meta: Mapping[str, str], node_meta: Mapping[str, str]) -> None:
    """What is no mark of a system that registers again is none."""
    assert manager_of(consul_id, meta, node_meta) is None


def test_nomads_services_are_left_to_nomad(consul_agent: ConsulAgent, unique: str) -> None:
    """What Nomad would put back within seconds is refused without force; the refusal says how to stop it there."""
    put_service(consul_agent, unique, f"_nomad-task-{unique}")
    with Members() as members:
        registry = members.registry(consul_agent.url)
        entry = entry_of(registry, unique)
        assert entry.managed_by == "Nomad"
        with pytest.raises(LiveOwnerError, match="belongs to Nomad, which puts it back: stop its alloc") as refused:
            registry.remove(entry, soon())
        assert refused.value.yields_to_force
        assert registry.remove(entry, soon(), force=True).outcome is RemovalOutcome.CONFIRMED


def test_marks_of_the_node_count(consul_agent: ConsulAgent, unique: str) -> None:
    """A service that Kubernetes' sync wrote is known by its node's mark, too."""
    node = f"k8s-sync-{unique[-8:]}"
    put_ghost(consul_agent, unique, "x", node)
    body = {"Node": node, "Address": "127.0.0.1", "NodeMeta": {"external-source": "kubernetes"}}
    consul_agent.put("/v1/catalog/register", body)
    with Members() as members:
        registry = members.registry(consul_agent.url)
        entry = entry_of(registry, unique)
        assert (entry.managed_by, entry.node) == ("Kubernetes", node)
        with pytest.raises(LiveOwnerError, match="belongs to Kubernetes"):
            registry.remove(entry, soon())
        assert registry.remove(entry, soon(), force=True).outcome is RemovalOutcome.CONFIRMED
    consul_agent.put("/v1/catalog/deregister", {"Node": node})


def test_checks_are_shown_with_what_they_said_and_a_version(consul_agent: ConsulAgent, unique: str) -> None:
    """Own checks and the node's are told apart; a check's version changes with its state, and with nothing else."""
    check_id = f"c-{unique}"
    put_service(consul_agent, unique, "x", Check={"CheckID": check_id, "TTL": "60s", "Status": "passing"})
    with Members() as members:
        registry = members.registry(consul_agent.url)

        def seen() -> dict[str, tuple[str, bool, str, str]]:
            checks = entry_of(registry, unique).checks
            return {each.id: (each.status, each.is_own, each.output, each.version) for each in checks}

        first = seen()
        assert first["serfHealth"][:2] == ("passing", False)
        assert first[check_id][:3] == ("passing", True, "")
        consul_agent.put("/v1/agent/check/fail/" + check_id + "?note=disk%20full")
        eventually(lambda: seen()[check_id][0] == "critical", because="the check has changed")
        second = seen()
        assert second[check_id][2] == "disk full"
        assert second[check_id][3] != first[check_id][3]
        consul_agent.put("/v1/agent/check/fail/" + check_id + "?note=disk%20full")
        consul_agent.put("/v1/agent/service/maintenance/x?enable=true&reason=moving")
        maintenance = f"_service_maintenance:{'x'}"
        eventually(lambda: maintenance in seen(), because="maintenance mode is listed")
        third = seen()
        assert third[check_id] == second[check_id], "nothing about it has changed"
        assert third[maintenance][:3] == ("maintenance", True, "moving")
    consul_agent.put("/v1/agent/service/deregister/x")
