"""Switches and rules that take an instance out of rotation, as bytes and names: one value changes, and nothing else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from registry_drain.errors import RegistryDataError
from registry_drain.registries.zookeeper.layouts import LAYOUTS, CuratorLayout
from registry_drain.registries.zookeeper.layouts.base import SwitchableLayout, Switched
from registry_drain.registries.zookeeper.layouts.dubbo_override import (
    override_data,
    override_name,
    owner_in,
    read_override,
)
from registry_drain.registries.zookeeper.layouts.json_edit import with_member
from registry_drain.registries.zookeeper.layouts.url_named import Provider, read_provider
from tests.registries.planted_nodes import DUBBO_NODE, SPRING, SWITCHABLE, Planted
from tests.registries.zookeeper_bench import INSTANCE

PATIENT = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
MENU = "com.acme.Menu"
KEYS = st.sampled_from(["status", "a", "b", "payload", "ü", 'q"'])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=10,
)


@PATIENT
@given(
    document=st.dictionaries(KEYS, JSON, max_size=5),
    path=st.lists(KEYS, min_size=1, max_size=3),
    value=st.booleans() | st.text(max_size=5),
    indent=st.none() | st.integers(0, 3),
    is_ascii=st.booleans(),
)
def test_one_value_is_changed_and_nothing_else(
    document: dict[str, Any], path: list[str], value: object, indent: int | None, is_ascii: bool
) -> None:
    """As if it had been set in what was read; and set to what it was, every byte is as before."""
    data = json.dumps(document, indent=indent, ensure_ascii=is_ascii).encode()
    changed = with_member(data, path, value)
    expected = json.loads(data)
    inner = expected
    for key in path[:-1]:
        if not isinstance(inner.get(key), dict):
            inner[key] = {}
        inner = inner[key]
    was_there, before = path[-1] in inner, inner.get(path[-1])
    inner[path[-1]] = value
    assert json.loads(changed) == expected
    if was_there and before == value and type(before) is type(value) and not isinstance(value, str):
        assert changed == data


def test_what_readers_do_not_see_stays() -> None:
    """Spaces, the spelling of numbers and escapes, a key that stands twice: of that the last one counts."""
    data = b' { "a" : 1.50e3, "\\u0061b": "\\/", "enabled":true ,"enabled" :\ttrue }\n'
    assert with_member(data, ["enabled"], False) == data[:-7] + b"false }\n"
    assert with_member(b"{ }", ["a"], 1) == b'{"a":1 }'
    assert (
        with_member(b'{"payload": null}', ["payload", "metadata", "x"], "y") == b'{"payload": {"metadata":{"x":"y"}}}'
    )


@PATIENT
@given(st.binary(max_size=60) | st.sampled_from([b"[]", b'{"a":1} x', b'{"a":1,}', b"{", b'"a"', b"{" * 100_000]))
def test_no_object_is_no_instance(data: bytes) -> None:
    """Said, not broken."""
    try:
        is_object = isinstance(json.loads(data), dict)
    except (ValueError, RecursionError):
        is_object = False
    if not is_object:
        with pytest.raises(RegistryDataError, match="no JSON object"):
            with_member(data, ["a"], 1)


@pytest.mark.parametrize("planted", SWITCHABLE, ids=lambda each: f"{each.layout}-{each.node[:24]}")
def test_the_switch_is_what_decode_looks_at(planted: Planted) -> None:
    """Out, and back; a second time changes nothing; address and metadata but the switch stay."""
    layout = LAYOUTS[planted.layout]
    assert isinstance(layout, SwitchableLayout)
    out = layout.switched(planted.node, planted.data, is_out=True)
    assert layout.decode(planted.node, out.data).health == "maintenance"
    assert layout.switched(planted.node, out.data, is_out=True).data == out.data
    back = layout.switched(planted.node, out.data, is_out=False)
    content = layout.decode(planted.node, back.data)
    assert (content.health, content.address, content.port) == ("", planted.address, planted.port)
    assert layout.switched(planted.node, back.data, is_out=False).data == back.data
    switches = {"instance_status", "state"}
    expected = {key: value for key, value in planted.metadata.items() if key not in switches}
    assert {key: value for key, value in content.metadata.items() if key not in switches} == expected


def test_springs_switch_is_one_word() -> None:
    """Every other byte of the node is as Spring Cloud wrote it, and back again."""
    out = CuratorLayout().switched("4f1", SPRING, is_out=True)
    assert out.data == SPRING.replace(b'"UP"', b'"OUT_OF_SERVICE"')
    assert out.how == "instance_status"
    assert CuratorLayout().switched("4f1", out.data, is_out=False).data == SPRING


def test_curators_switch_is_added_where_it_is_missing() -> None:
    """As Curator writes it, at the end; back in rotation without it there is nothing to do."""
    layout = CuratorLayout()
    data = layout.encode(INSTANCE, 1.0)
    out = layout.switched(INSTANCE.id, data, is_out=True)
    assert out.data == data[:-1] + b',"enabled":false}'
    assert "CURATOR-275" in out.detail
    assert layout.switched(INSTANCE.id, data, is_out=False) == Switched(data, "enabled")


def test_a_rule_of_dubbos_names_one_provider() -> None:
    """By address, group and version, as its user guide writes it."""
    provider = read_provider(DUBBO_NODE)
    assert provider == Provider("192.168.56.1", 20880, "com.acme.MenuService", "red", "1.0")
    name = override_name(provider)
    assert name == (
        "override%3A%2F%2F192.168.56.1%3A20880%2Fcom.acme.MenuService%3Fcategory%3Dconfigurators%26disabled%3Dtrue"
        "%26dynamic%3Dfalse%26enabled%3Dtrue%26group%3Dred%26version%3D1.0"
    )
    rule = read_override(name)
    assert rule is not None
    assert rule.disables(provider)
    for other in (
        Provider("192.168.56.2", 20880, "com.acme.MenuService", "red", "1.0"),
        Provider("192.168.56.1", 20881, "com.acme.MenuService", "red", "1.0"),
        Provider("192.168.56.1", 20880, "com.acme.MenuService", "blue", "1.0"),
        Provider("192.168.56.1", 20880, "com.acme.MenuService", "red", "2.0"),
    ):
        assert not rule.disables(other)


@pytest.mark.parametrize(
    ("name", "is_rule"),
    [
        ("override://0.0.0.0/com.acme.Menu?disabled=true", True),
        ("override%3A%2F%2F10.0.0.7%3A80%2Fcom.acme.Menu%3Fdisabled%3Dtrue", True),
        ("override://10.0.0.8/com.acme.Menu?disabled=true", False),
        ("override://10.0.0.7:80/com.acme.Menu?disabled=true&enabled=false", False),
        ("override://10.0.0.7:80/com.acme.Menu?weight=0", False),
        ("override://", False),
        ("dubbo://10.0.0.7:80/com.acme.Menu?disabled=true", False),
        ("nonsense%%", False),
    ],
)
def test_which_rules_disable(name: str, is_rule: bool) -> None:
    """Everybody's and the provider's own; not those that are off, or that set something else."""
    rule = read_override(name)
    assert (rule is not None and rule.disables(Provider("10.0.0.7", 80, MENU, "", ""))) is is_rule


@PATIENT
@given(st.text(st.characters(codec="utf-8", exclude_characters="/"), max_size=60), st.binary(max_size=60))
def test_foreign_rules_make_nobody_raise(name: str, data: bytes) -> None:
    """Names and data of anybody."""
    read_override(name)
    read_override(f"override://{name}?disabled=true")
    assert owner_in(data) is None
    assert owner_in(override_data("0x1", "")) == "0x1"
