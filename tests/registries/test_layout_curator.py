"""The Curator layout: what it writes can be read back, and nothing that others write makes it raise."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from registry_drain.errors import ConfigurationError
from registry_drain.instance import ServiceInstance
from registry_drain.registries.zookeeper.layouts import DEFAULT_LAYOUT, LAYOUTS, CuratorLayout, NodeTree
from registry_drain.registries.zookeeper.layouts.base import parents

LAYOUT = CuratorLayout()
NAMES = st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=1, max_size=20)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=30)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
# The machine is shared, and drawing the first example alone may take seconds on it.
PATIENT = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
FIELDS = st.sampled_from(
    ["address", "port", "sslPort", "payload", "registrationTimeUTC", "enabled", "name", "id", "metadata", "tags"]
)


@PATIENT
@given(
    service=NAMES,
    instance_id=NAMES,
    address=st.ip_addresses().filter(lambda ip: not ip.is_unspecified).map(str) | NAMES,
    port=st.integers(1, 65535),
    metadata=st.dictionaries(TEXTS.filter(bool), TEXTS, max_size=5),
    tags=st.lists(TEXTS.filter(bool), max_size=4),
    registered_at=st.integers(1, 4_000_000_000_000).map(lambda milliseconds: milliseconds / 1000),
)
def test_what_is_written_is_read_back(
    service: str,
    instance_id: str,
    address: str,
    port: int,
    metadata: dict[str, str],
    tags: list[str],
    registered_at: float,
) -> None:
    """Every field survives the round trip, and the data is ASCII JSON."""
    instance = ServiceInstance(service, address, port, id=instance_id, metadata=metadata, tags=tuple(tags))
    data = LAYOUT.encode(instance, registered_at)
    data.decode("ascii")
    content = LAYOUT.decode(LAYOUT.node_name(instance), data)
    assert content.problem == ""
    assert ServiceInstance(service, content.address, content.port, content.id, content.metadata, content.tags) == (
        instance
    )
    assert content.registered_at == pytest.approx(registered_at, abs=0.0006)
    assert content.health == ""


def test_what_curators_builder_takes_is_written_when_asked_for() -> None:
    """As fields of its own, and not as metadata: a payload would keep clients of other payload classes away."""
    asked = {"curator-enabled": "false", "curator-ssl-port": "9443", "curator-service-type": "DYNAMIC"}
    data = LAYOUT.encode(ServiceInstance("calculator", "10.0.0.7", 9090, "one", asked), 1.0)
    document = json.loads(data)
    assert (document["enabled"], document["sslPort"], document["serviceType"]) == (False, 9443, "DYNAMIC")
    assert document["payload"] is None
    content = LAYOUT.decode("one", data)
    assert (content.health, content.endpoints, content.metadata) == ("maintenance", (("10.0.0.7", 9443),), {})
    rich = ServiceInstance("calculator", "10.0.0.7", 9090, "one", asked | {"zone": "a", "curator-enabled": "true"})
    content = LAYOUT.decode("one", LAYOUT.encode(rich, 1.0))
    assert (content.health, content.metadata) == ("", {"zone": "a"})
    assert b"enabled" not in LAYOUT.encode(ServiceInstance("calculator", "10.0.0.7", 9090), 1.0)


@PATIENT
@given(st.binary(max_size=200))
def test_garbage_becomes_a_problem(data: bytes) -> None:
    """No bytes make it raise."""
    content = LAYOUT.decode("node", data)
    assert content.id == "node"
    assert content.problem or (content.address and content.port)


@PATIENT
@given(st.dictionaries(FIELDS, JSON))
def test_foreign_json_is_read_as_far_as_it_goes(document: dict[str, object]) -> None:
    """Wrong types in any field make it neither raise nor show what no terminal takes."""
    content = LAYOUT.decode("node", json.dumps(document).encode())
    for text in (content.address, content.problem, *content.tags, *content.metadata, *content.metadata.values()):
        text.encode("utf-8")
    assert 0 <= content.port <= 65535
    assert content.problem or (content.address and content.port)


def test_deep_nesting_is_a_problem_and_no_crash() -> None:
    """A hostile document cannot exhaust the stack."""
    assert "not JSON" in LAYOUT.decode("node", b"[" * 100_000).problem


def test_the_fields_are_curators() -> None:
    """Names, order and types are those of Curator's own serializer; no payload where there is nothing to say."""
    data = LAYOUT.encode(ServiceInstance("calculator", "10.0.0.7", 9090, id="one"), 1700000000.123)
    assert data == (
        b'{"name":"calculator","id":"one","address":"10.0.0.7","port":9090,"sslPort":null,"payload":null,'
        b'"registrationTimeUTC":1700000000123,"serviceType":"DYNAMIC","uriSpec":null}'
    )


def test_metadata_and_tags_are_the_payload() -> None:
    """As one JSON object, which Curator reads as a map."""
    instance = ServiceInstance("s", "h", 1, metadata={"version": "2"}, tags=("canary",))
    assert json.loads(LAYOUT.encode(instance, 1.0))["payload"] == {"metadata": {"version": "2"}, "tags": ["canary"]}


@pytest.mark.parametrize(
    ("fields", "health"),
    [
        ({}, ""),
        ({"enabled": True}, ""),
        ({"enabled": False}, "maintenance"),
        ({"payload": {"@class": "ZookeeperInstance", "metadata": {"instance_status": "UP"}}}, ""),
        (
            {"payload": {"@class": "ZookeeperInstance", "metadata": {"instance_status": "OUT_OF_SERVICE"}}},
            "maintenance",
        ),
    ],
)
def test_instances_that_are_switched_off_are_in_maintenance(fields: dict[str, object], health: str) -> None:
    """Both Curator's switch and Spring Cloud's are understood."""
    document = {"address": "h", "port": 1, **fields}
    assert LAYOUT.decode("node", json.dumps(document).encode()).health == health


def test_foreign_payloads_are_metadata() -> None:
    """Somebody's own payload class is shown by its fields, a string as it is."""
    own = LAYOUT.decode("node", b'{"address":"h","port":"80","payload":{"@class":"a.B","zone":"eu","weight":3}}')
    assert own.metadata == {"@class": "a.B", "zone": "eu", "weight": "3"}
    assert own.port == 80
    text = LAYOUT.decode("node", b'{"address":"h","port":null,"sslPort":443,"payload":"x"}')
    assert (text.metadata, text.port) == ({"payload": "x"}, 443)


def test_every_layout_is_found_by_its_name() -> None:
    """The names in URLs are the layouts' own."""
    assert DEFAULT_LAYOUT in LAYOUTS
    assert all(LAYOUTS[name].name == name for name in LAYOUTS)


def test_paths_are_joined_and_taken_apart() -> None:
    """A slash at the base's end does not count, and the root is a base."""
    instance = ServiceInstance("calculator", "h", 1, id="one")
    assert NodeTree.at("/a/b/", LAYOUT).node(instance) == "/a/b/calculator/one"
    assert NodeTree.at("/", LAYOUT).node(instance) == "/calculator/one"
    assert parents("/a/b/calculator/one") == ["/a", "/a/b", "/a/b/calculator"]
    assert parents("/one") == []


@pytest.mark.parametrize("path", ["/a//b", "/a/./b", "/..", "/a\x00", "/a\ud800", "/\ue000", "/🚀"])
def test_paths_that_zookeeper_refuses_are_refused(path: str) -> None:
    """The server would answer BadArguments to every request."""
    with pytest.raises(ConfigurationError):
        NodeTree.at(path, LAYOUT)
