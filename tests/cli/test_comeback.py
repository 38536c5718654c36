"""Who brought an instance back, and what stops that."""

from __future__ import annotations

import dataclasses

import pytest

from registry_drain.cli.deregister.comeback import who_brought_back
from registry_drain.registries.base import RegistryEntry

ALLOCATION = "0a1b2c3d-1111-2222-3333-444455556666"
NODE = RegistryEntry("s", "one", "10.0.0.7", 80, owner="0x1a", is_live=True, is_ephemeral=True, locator="/s/one")
GHOST = RegistryEntry(
    "s", "one", "10.0.0.7", 80, owner="web-7", node="web-7", is_live=False, health="critical", locator="web-7/one"
)


@pytest.mark.parametrize(
    ("removed", "returned", "url", "is_same", "who", "advice"),
    [
        (NODE, NODE, "zookeeper://h/b", True, "the same process (session 0x1a)", "stop that process"),
        (
            NODE,
            dataclasses.replace(NODE, owner="0x1b"),
            "zookeeper://h/b",
            False,
            "session 0x1b, before: 0x1a",
            "after a reconnect",
        ),
        (
            dataclasses.replace(NODE, owner=""),
            dataclasses.replace(NODE, owner=""),
            "zookeeper://h/b",
            None,
            "persistent",
            "dynamic=false",
        ),
        (GHOST, GHOST, "consul://h", None, "own copy", "on web-7: consul services deregister -id=one"),
        (
            GHOST,
            dataclasses.replace(GHOST, is_live=True, health="passing"),
            "consul+https://h",
            None,
            "the same one or another",
            "stop that process",
        ),
        (
            GHOST,
            dataclasses.replace(GHOST, node="web-8", owner="web-8", locator="web-8/one"),
            "consul://h",
            False,
            "on web-8 (before: web-7)",
            "run on web-8",
        ),
        (
            GHOST,
            dataclasses.replace(GHOST, managed_by="Nomad", locator=f"web-7/_nomad-task-{ALLOCATION}-group-web-s-http"),
            "consul://h",
            None,
            "Nomad",
            f"nomad alloc stop {ALLOCATION}",
        ),
        (GHOST, dataclasses.replace(GHOST, managed_by="Nomad"), "consul://h", None, "Nomad", "alloc stop ALLOCATION"),
        (GHOST, dataclasses.replace(GHOST, managed_by="Kubernetes"), "consul://h", None, "Kubernetes", "pod"),
        (
            GHOST,
            dataclasses.replace(
                GHOST,
                managed_by="Kubernetes",
                metadata={
                    "managed-by": "consul-k8s-endpoints-controller",
                    "pod-name": "web-0",
                    "k8s-namespace": "shop",
                },
            ),
            "consul://h",
            None,
            "Kubernetes",
            "kubectl delete pod web-0 -n shop",
        ),
        (GHOST, dataclasses.replace(GHOST, managed_by="acme"), "consul://h", None, "acme", "remove it in acme"),
        (GHOST, GHOST, "local:///d", True, "the same owner as before", "stop that owner"),
        (GHOST, dataclasses.replace(GHOST, owner="p2"), "local:///d", False, "p2 (before: web-7)", "stop that owner"),
        (GHOST, dataclasses.replace(GHOST, owner=""), "etcd://h", None, "does not name", "find and stop it"),
    ],
)
def test_who_it_was(
    removed: RegistryEntry, returned: RegistryEntry, url: str, is_same: bool | None, who: str, advice: str
) -> None:
    """Each registry shows something else; what it does not show is not guessed."""
    comeback = who_brought_back(removed, returned, url)
    assert comeback.is_same_owner is is_same
    assert who in comeback.who
    assert advice in comeback.advice
    assert comeback.document() == {"who": comeback.who, "is_same_owner": is_same, "advice": comeback.advice}
