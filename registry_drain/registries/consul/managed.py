"""Who registers an entry again when it is missing: systems that compare the catalog with what they want, and repair it.

What they leave on their entries (looked up in their sources):

=====================  ===============================================================================================
system                 mark
=====================  ===============================================================================================
Consul's own servers   the id is ``consul``
Nomad                  the id begins with ``_nomad-``; Meta ``external-source=nomad``
consul-k8s, sync       Meta ``external-source=kubernetes``, ``external-k8s-ns``; the node is ``k8s-sync``
consul-k8s, mesh       Meta ``managed-by=consul-k8s-endpoints-controller``, ``pod-name``, ``k8s-namespace``
consul-aws (Cloud Map) Meta ``external-source=aws``, ``external-aws-id``
Terraform              Meta ``external-source=terraform`` (its ``consul_service``)
=====================  ===============================================================================================

``external-source`` is the one mark that Consul documents for this, so that its other values count as well. No mark, and
no manager therefore: registrator's ids (``host:container:port``) are a form that anybody may use, and consul-esm checks
the services of external nodes (node meta ``external-node``) without ever registering one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_SOURCE = "external-source"
_NOMAD_PREFIX = "_nomad-"
_OWN_ID = "consul"
"""Of each server's entry, which the leader writes: ConsulServiceID in agent/structs/structs.go of hashicorp/consul."""
_MESH_CONTROLLER = "consul-k8s-endpoints-controller"


@dataclass(frozen=True, slots=True)
class Manager:
    """A system that puts back what it misses.

    Attributes:
        name: as people call it.
        remedy: how the entry is stopped there, as the end of a sentence.
    """

    name: str
    remedy: str


_OF_SOURCE = {
    "nomad": Manager("Nomad", "stop its allocation: nomad alloc stop ALLOCATION, or stop the job"),
    "kubernetes": Manager(
        "Kubernetes",
        "delete the Kubernetes service, or annotate it with consul.hashicorp.com/service-sync=false",
    ),
    "aws": Manager("AWS Cloud Map", "remove it there: aws servicediscovery deregister-instance"),
    "terraform": Manager("Terraform", "remove its consul_service there, and apply"),
}


def manager_of(consul_id: str, meta: Mapping[str, str], node_meta: Mapping[str, str]) -> Manager | None:
    """Return who puts this entry back; None if nothing says that anybody does."""
    if consul_id == _OWN_ID:
        return Manager("Consul", "it is one of its own servers, which leaves by: consul leave")
    source = meta.get(_SOURCE, "").strip().lower() or node_meta.get(_SOURCE, "").strip().lower()
    if consul_id.startswith(_NOMAD_PREFIX):
        source = "nomad"
    elif meta.get("managed-by") == _MESH_CONTROLLER:
        pod, namespace = meta.get("pod-name") or "POD", meta.get("k8s-namespace") or "NAMESPACE"
        return Manager("Kubernetes", f"delete its pod: kubectl delete pod {pod} -n {namespace}")
    elif "external-k8s-ns" in meta:
        source = "kubernetes"
    elif "external-aws-id" in meta:
        source = "aws"
    if not source:
        return None
    return _OF_SOURCE.get(source) or Manager(source, f"remove it there ({_SOURCE} says so)")
