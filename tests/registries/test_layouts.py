"""Every layout but Curator's: what its system writes is understood, ours is what it expects, and nothing raises."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from registry_drain.clock import Deadline
from registry_drain.errors import ConfigurationError
from registry_drain.instance import ServiceInstance
from registry_drain.registries.base import RemovalOutcome
from registry_drain.registries.url import open_registry
from registry_drain.registries.zookeeper.layouts import LAYOUTS, Layout, NodeTree
from tests.registries.planted_nodes import ALL_PLANTED, PLANTED, Planted
from tests.support.processes import eventually
from tests.support.zookeeper_process import ZooKeeperServer

OTHERS = sorted(name for name in LAYOUTS if name != "curator")
PATIENT = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize("planted", ALL_PLANTED, ids=lambda each: f"{each.layout}-{each.node[:24]}")
def test_what_its_system_writes_is_understood(planted: Planted) -> None:
    """Address, port, id, metadata, health and time of birth."""
    content = LAYOUTS[planted.layout].decode(planted.node, planted.data)
    assert content.problem == ""
    assert (content.address, content.port) == (planted.address, planted.port)
    assert content.id == (planted.id or planted.node)
    assert dict(content.metadata) == planted.metadata
    assert (content.health, content.registered_at) == (planted.health, planted.registered_at)
    assert content.endpoints == planted.endpoints


def test_every_layout_has_a_planted_node() -> None:
    """A new one brings its fixture."""
    assert {each.layout for each in PLANTED} == set(OTHERS)


def expected_nodes() -> dict[str, tuple[str, bytes]]:
    """Return what each layout writes for one instance: name (before any number) and data."""
    return {
        "serverset": (
            "member_",
            (
                b'{"serviceEndpoint":{"host":"10.0.0.7","port":9090},"additionalEndpoints":{},"status":"ALIVE",'
                b'"metadata":{"zone":"eu"}}'
            ),
        ),
        "dubbo": (
            (
                "dubbo%3A%2F%2F10.0.0.7%3A9090%2Fcom.acme.Menu%3Fdynamic%3Dtrue%26interface%3Dcom.acme.Menu"
                "%26side%3Dprovider%26zone%3Deu"
            ),
            b"10.0.0.7",
        ),
        "sofa": (
            "bolt%3A%2F%2F10.0.0.7%3A9090%3Fdynamic%3Dtrue%26interface%3Dcom.acme.Menu%26zone%3Deu",
            b"10.0.0.7",
        ),
        "nerve": ("one_", b'{"host":"10.0.0.7","port":9090,"name":"one","labels":{"zone":"eu"}}'),
        "kratos": (
            "one",
            (
                b'{"id":"one","name":"com.acme.Menu","version":"","metadata":{"zone":"eu"},'
                b'"endpoints":["grpc://10.0.0.7:9090?isSecure=false"]}'
            ),
        ),
        "rpcx": ("tcp@10.0.0.7:9090", b"zone=eu"),
        "armeria": ("10.0.0.7_9090", b"10.0.0.7:9090"),
        "kingpin": ("f2c2f9e1", b""),
        "plain": ("10.0.0.7:9090", b""),
    }


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_written(name: str) -> None:
    """To the byte: other software parses it."""
    layout = LAYOUTS[name]
    instance = ServiceInstance("com.acme.Menu", "10.0.0.7", 9090, "one", {"zone": "eu"})
    node, data = expected_nodes()[name]
    if name == "kingpin":
        number, _, endpoint = layout.node_name(instance).partition("-")
        assert (len(number), int(number, 16) > 0, endpoint) == (32, True, "10.0.0.7:9090")
    else:
        assert layout.node_name(instance) == node
    assert layout.encode(instance, 1700000000.0) == data


def test_a_serversets_further_endpoints_are_written() -> None:
    """From the metadata as which they are read; what else is said stays what it was."""
    layout = LAYOUTS["serverset"]
    metadata = {"endpoint.admin": "10.0.0.7:9091", "endpoint.v6": "[2001:db8::7]:9092", "zone": "eu", "shard": "3"}
    data = layout.encode(ServiceInstance("calculator", "10.0.0.7", 9090, "one", metadata), 1.0)
    assert json.loads(data) == {
        "serviceEndpoint": {"host": "10.0.0.7", "port": 9090},
        "additionalEndpoints": {
            "admin": {"host": "10.0.0.7", "port": 9091},
            "v6": {"host": "2001:db8::7", "port": 9092},
        },
        "status": "ALIVE",
        "shard": 3,
        "metadata": {"zone": "eu"},
    }
    content = layout.decode("member_0000000001", data)
    assert dict(content.metadata) == metadata
    assert content.endpoints == (("10.0.0.7", 9091), ("2001:db8::7", 9092))


@pytest.mark.parametrize(
    ("name", "metadata", "reason"),
    [
        ("serverset", {"endpoint.admin": "9091"}, "'9091' is not HOST:PORT"),
        ("serverset", {"endpoint.": "10.0.0.7:9091"}, "names no endpoint"),
        ("curator", {"curator-enabled": "yes"}, "write true or false"),
        ("curator", {"curator-ssl-port": "0"}, "write a port"),
        ("curator", {"curator-service-type": "STATIC"}, "its node would stay"),
        ("curator", {"curator-service-type": "PERMANENT"}, "its node would stay"),
        ("curator", {"curator-service-type": "DYNAMIC_SEQUENTIAL"}, "would never replace"),
        ("curator", {"curator-service-type": "dynamic"}, "no such type"),
    ],
)
def test_what_cannot_be_written_is_refused(name: str, metadata: dict[str, str], reason: str) -> None:
    """In one line, when the registration is made: before anything is sent."""
    registry = open_registry(f"zookeeper://127.0.0.1:1/services?layout={name}")
    with pytest.raises(ConfigurationError, match=reason):
        registry.registration(ServiceInstance("calculator", "10.0.0.7", 9090, "one", metadata))
    registry.close()


@PATIENT
@pytest.mark.parametrize("name", OTHERS)
@given(
    address=st.ip_addresses().filter(lambda ip: not ip.is_unspecified).map(str),
    port=st.integers(1, 65535),
    metadata=st.dictionaries(
        st.sampled_from(["zone", "weight", "shard", "a b", "ü&=%"]), st.text(min_size=1, max_size=9)
    ),
)
def test_what_is_written_is_read_back(name: str, address: str, port: int, metadata: dict[str, str]) -> None:
    """The address always, and the metadata where the layout has a place for them."""
    layout = LAYOUTS[name]
    instance = ServiceInstance("com.acme.Menu", address, port, "one", metadata)
    node = NodeTree.at("/base", layout).node(instance).rpartition("/")[2]
    content = layout.decode(f"{node}0000000001" if layout.is_sequential else node, layout.encode(instance, 1.0))
    assert (content.problem, content.address, content.port) == ("", address, port)
    if name in {"serverset", "nerve", "kratos", "dubbo", "sofa", "rpcx"}:
        assert metadata.items() <= content.metadata.items()


@PATIENT
@pytest.mark.parametrize("name", OTHERS)
@given(
    node=st.text(st.characters(codec="utf-8", exclude_characters="/"), min_size=1, max_size=60),
    data=st.binary(max_size=200),
)
def test_garbage_becomes_a_problem(name: str, node: str, data: bytes) -> None:
    """No name and no bytes make it raise, or show what no terminal takes."""
    _check(LAYOUTS[name], node, data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
FIELDS = ["serviceEndpoint", "additionalEndpoints", "status", "shard", "metadata", "host", "port", "labels", "weight"]


@PATIENT
@pytest.mark.parametrize("name", ["serverset", "nerve", "kratos"])
@given(document=st.dictionaries(st.sampled_from([*FIELDS, "endpoints", "version", "name"]), JSON))
def test_foreign_json_is_read_as_far_as_it_goes(name: str, document: dict[str, object]) -> None:
    """Wrong types in any field."""
    _check(LAYOUTS[name], "node", json.dumps(document).encode())


def _check(layout: Layout, node: str, data: bytes) -> None:
    content = layout.decode(node, data)
    for text in (content.id, content.address, content.problem, *content.metadata, *content.metadata.values()):
        text.encode("utf-8")
    assert 0 <= content.port <= 65535
    assert content.problem or (content.address and content.port)


@pytest.mark.zookeeper
@pytest.mark.parametrize("name", OTHERS)
def test_a_service_registers_is_found_and_leaves(name: str, zookeeper_server: ZooKeeperServer, unique: str) -> None:
    """In a real ZooKeeper: listed, watched, removed by us alone, and proven gone."""
    registry = open_registry(f"{zookeeper_server.url}/{unique}?layout={name}")
    instance = ServiceInstance("com.acme.Menu", "10.0.0.7", 9090, "one", {"zone": "eu"})
    registration = registry.registration(instance)
    try:
        registration.register(Deadline.after(10))
        watch = registry.watch(instance.service, Deadline.after(10))
        [entry] = registry.entries(None, Deadline.after(10))
        assert (entry.service, entry.address, entry.port, entry.problem) == (instance.service, "10.0.0.7", 9090, "")
        assert entry.is_ephemeral
        assert [each.endpoint for each in watch.instances] == ["10.0.0.7:9090"]
        assert registration.on_shutdown(Deadline.after(10)).outcome is RemovalOutcome.CONFIRMED
        assert list(registry.entries(None, Deadline.after(10))) == []
        eventually(lambda: not watch.instances, because="the watch sees it go")
    finally:
        registration.on_shutdown(Deadline.after(5))
        registry.close()
