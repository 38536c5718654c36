"""``layout=auto``: each node is recognised by its own layout, and nothing else is taken for an instance."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kazoo.security import make_acl, make_digest_acl

from registry_drain.cli.choosing.selection import Selection
from registry_drain.clock import Deadline
from registry_drain.errors import (
    ConfigurationError,
    InstanceNotFoundError,
    PermissionRefusedError,
    RegistryDataError,
    RegistryTimeoutError,
)
from registry_drain.instance import ServiceInstance
from registry_drain.registries.base import RegistryEntry, RemovalOutcome
from registry_drain.registries.url import open_registry
from registry_drain.registries.zookeeper import ZooKeeperRegistry, tree_walk
from registry_drain.registries.zookeeper.layouts import AUTO, LAYOUTS
from registry_drain.registries.zookeeper.layouts.base import Recognition
from registry_drain.registries.zookeeper.node_stat import owner_of
from tests.registries.planted_nodes import ALL_PLANTED, SPRING, Planted
from tests.registries.zookeeper_bench import Background, Stage, within
from tests.support.processes import eventually
from tests.support.zookeeper_process import ZooKeeperServer

PATIENT = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
RECOGNISED = [planted for planted in ALL_PLANTED if planted.is_recognised]
URL = "dubbo%3A%2F%2F10.0.0.7%3A20880%2Fcom.acme."


# --- recognising, no server needed ------------------------------------------------------------------------------------


@pytest.mark.parametrize("planted", RECOGNISED, ids=lambda each: f"{each.layout}-{each.node[:24]}")
def test_what_a_system_writes_is_recognised_by_its_layout_alone(planted: Planted) -> None:
    """No two layouts are as sure of the same node."""
    sureness = {layout.name: layout.recognises(planted.node, planted.data) for layout in LAYOUTS.values()}
    best = sureness.pop(planted.layout)
    assert best > max(sureness.values())
    chosen = AUTO.layout_of(planted.node, planted.data)
    assert chosen is not None
    assert chosen.name == planted.layout
    assert AUTO.decode(planted.node, planted.data) == chosen.decode(planted.node, planted.data)


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_what_we_write_is_recognised(name: str) -> None:
    """By the layout that wrote it, with metadata and without."""
    for metadata in ({}, {"zone": "eu", "weight": "7"}):
        instance = ServiceInstance("com.acme.Menu", "10.0.0.7", 9090, "one", metadata)
        layout = LAYOUTS[name]
        node = layout.node_name(instance) + ("0000000001" if layout.is_sequential else "")
        chosen = AUTO.layout_of(node, layout.encode(instance, 1700000000.0))
        assert chosen is layout


@pytest.mark.parametrize(
    ("node", "data"),
    [
        # Dubbo's and SOFA's other nodes.
        ("override%3A%2F%2F10.0.0.7%3A20880%2Fcom.acme.Menu%3Fcategory%3Dconfigurators%26disabled%3Dtrue", b""),
        ("override%3A%2F%2F10.0.0.7%3A20880%2Fcom.acme.Menu%3Fdisabled%3Dtrue", b""),
        ("consumer%3A%2F%2F10.0.0.8%2Fcom.acme.Menu%3Fside%3Dconsumer", b""),
        ("consumer%3A%2F%2F10.0.0.8%3A20880%2Fcom.acme.Menu%3Fversion%3D1.0", b""),
        ("condition%3A%2F%2F0.0.0.0%3A1%2Fcom.acme.Menu%3Fcategory%3Drouters", b""),
        ("dubbo%3A%2F%2F10.0.0.7%3A20880%2Fcom.acme.Menu%3Fside%3Dconsumer", b""),
        ("dubbo%3A%2F%2F10.0.0.7%3A20880%2Fcom.acme.Menu%3Fcategory%3Drouters", b""),
        ("dubbo://10.0.0.7:20880/com.acme.Menu", b""),
        # Settings.
        ("primary", b"db1.example.com:5432"),
        ("smtp", b"mail.example.com:25:3"),
        ("opening-hours", b"12:30"),
        ("12:30", b""),
        ("timeout:30", b""),
        ("database", b'{"host":"db1","port":5432}'),
        ("database", b'{"name":"db","address":"db1","port":5432}'),
        ("endpoints", b'{"endpoints":["http://10.0.0.7:80"]}'),
        # Other systems' nodes.
        ("1", b'{"endpoints":["PLAINTEXT://10.0.0.7:9092"],"host":"10.0.0.7","port":9092,"version":4,"timestamp":"1"}'),
        ("10.0.0.7:8983_solr", b""),
        ("_c_4f1d6e3b-lock-0000000003", b"10.0.0.7"),
        (
            "json.info_0000000001",
            b'{"address":{"hostname":"m1","ip":"10.0.0.7","port":5050},"hostname":"m1","port":5050}',
        ),
        ("10.0.0.7:8083", b'{"name":"10.0.0.7:8083","host":"10.0.0.7:8083","type":"historical"}'),
        ("rs1.example.com,16020,1700000000000", b"\xff\x00PBUF"),
        ("user@example.com", b""),
        ("big", b"{" + b" " * 70_000 + SPRING[1:]),
    ],
)
def test_what_is_no_instance_is_nobodys(node: str, data: bytes) -> None:
    """What is recognised may be removed: settings, rules and other systems' nodes must not be."""
    assert AUTO.layout_of(node, data) is None


@PATIENT
@given(node=st.text(st.characters(codec="utf-8", exclude_characters="/"), min_size=1), data=st.binary(max_size=300))
def test_random_names_and_bytes_are_nobodys(node: str, data: bytes) -> None:
    """They may be anything but an instance."""
    assert AUTO.recognises(node, data) is Recognition.NONE
    assert AUTO.decode(node, data).problem


KEYS = [
    "name",
    "id",
    "address",
    "port",
    "payload",
    "registrationTimeUTC",
    "serviceType",
    "version",
    "endpoints",
    "host",
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10) | st.just("http://a:1"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)


@PATIENT
@given(
    node=st.sampled_from(["one", "member_0000000001", "base64_4_e30=_0000000001"]),
    document=st.dictionaries(st.sampled_from([*KEYS, "serviceEndpoint", "status"]), JSON),
)
def test_whoever_is_sure_can_read_it(node: str, document: dict[str, object]) -> None:
    """Wrong types in any field make nobody raise."""
    data = json.dumps(document).encode()
    for layout in LAYOUTS.values():
        if layout.recognises(node, data):
            content = layout.decode(node, data)
            assert content.id
            assert content.address or content.problem


def test_auto_registers_nothing() -> None:
    """Somebody has to choose how."""
    registry = open_registry("zookeeper://h/?layout=auto")
    with pytest.raises(ConfigurationError, match="one of armeria, curator"):
        registry.registration(ServiceInstance("s", "h", 1))


def test_auto_looks_from_the_root() -> None:
    """Everywhere, unless a path is given; a chosen layout keeps its default."""
    for url, base in (("", "/"), ("/", "/"), ("/services", "/services")):
        registry = open_registry(f"zookeeper://h{url}?layout=auto")
        assert isinstance(registry, ZooKeeperRegistry)
        assert registry._tree.base == base


def test_container_nodes_belong_to_nobody() -> None:
    """Their mark in the owner's place is no session."""
    assert owner_of(SimpleNamespace(ephemeralOwner=-(1 << 63))) == 0
    assert owner_of(SimpleNamespace(ephemeralOwner=-(1 << 62))) == -(1 << 62)


# --- a whole tree -----------------------------------------------------------------------------------------------------


@pytest.fixture
def stage(zookeeper_server: ZooKeeperServer, unique: str) -> Iterator[Stage]:
    """Give a base path of the test's own on the shared server."""
    stage = Stage(zookeeper_server, f"/{unique}")
    yield stage
    stage.close()


@pytest.fixture
def auto(stage: Stage) -> ZooKeeperRegistry:
    """Give a registry that recognises."""
    return stage.registry(options="&layout=auto")


def folder_of(planted: Planted, service: str = "svc") -> str:
    """Return where a planted node lies below the base, if that holds all layouts."""
    return LAYOUTS[planted.layout].folder(f"{planted.layout}/{service}")


@pytest.mark.parametrize("planted", RECOGNISED, ids=lambda each: f"{each.layout}-{each.node[:24]}")
def test_a_planted_instance_is_found_removed_and_proven_gone(stage: Stage, planted: Planted) -> None:
    """By the layout of its system: listed by an ephemeral owner or none, removed, and not there any more."""
    registry = stage.registry(options=f"&layout={planted.layout}")
    path = f"{stage.base}/{LAYOUTS[planted.layout].folder('svc')}/{planted.node}"
    with stage.eyes() as client:
        client.create(path, planted.data, makepath=True)
        [entry] = registry.entries(None, within())
        assert (entry.service, entry.id) == ("svc", planted.id or planted.node)
        assert (entry.address, entry.port, entry.layout) == (planted.address, planted.port, planted.layout)
        assert (entry.is_ephemeral, entry.is_live, entry.owner) == (False, None, "")
        removal = registry.remove(entry, within())
        assert removal.outcome is RemovalOutcome.CONFIRMED
        assert "it was persistent" in removal.detail
        assert client.exists(path) is None
        with pytest.raises(InstanceNotFoundError):
            registry.remove(entry, within())
    assert list(registry.entries(None, within())) == []


def test_a_tree_of_many_layouts_is_found_and_removed(stage: Stage, auto: ZooKeeperRegistry) -> None:
    """Each by its layout, in its service; none is left."""
    with stage.eyes() as client:
        for number, planted in enumerate(RECOGNISED):
            folder = f"{stage.base}/{folder_of(planted, f'svc{number}')}"
            client.create(f"{folder}/{planted.node}", planted.data, makepath=True, ephemeral=True)
        entries = auto.entries(None, within(30.0))
        expected = {
            (planted.layout, f"{planted.layout}/svc{number}", planted.id or planted.node, planted.address, planted.port)
            for number, planted in enumerate(RECOGNISED)
        }
        assert {(each.layout, each.service, each.id, each.address, each.port) for each in entries} == expected
        assert all(each.is_live and not each.problem for each in entries)
        results: list[object] = []
        auto.remove_many(entries, within(30.0), lambda _, result: results.append(result), force=True)
        assert len(results) == len(RECOGNISED)
        assert all(getattr(result, "outcome", result) is RemovalOutcome.CONFIRMED for result in results)
    assert list(auto.entries(None, within())) == []


def test_what_looks_like_an_instance_is_never_hidden_and_the_rest_is(stage: Stage, auto: ZooKeeperRegistry) -> None:
    """A stranger beside instances has a problem; settings, locks, consumers and empty folders are left out."""
    menu = f"{stage.base}/dubbo/com.acme.Menu"
    nodes = {
        f"{stage.base}/services/shop/10.0.0.7:80": b"",
        f"{stage.base}/services/shop/stranger": b"\xff\x00",
        f"{stage.base}/services/shop/.empty": b"",
        f"{stage.base}/config/primary": b"db1.example.com:5432",
        f"{stage.base}/config/lock/_c_1-lock-0000000001": b"10.0.0.7",
        f"{menu}/providers/{URL}Menu": b"",
        f"{menu}/consumers/consumer%3A%2F%2F10.0.0.8%2Fcom.acme.Menu": b"",
        f"{menu}/configurators/override%3A%2F%2F10.0.0.9%3A1%2Fcom.acme.Menu%3Fdisabled%3Dtrue": b"",
        f"{stage.base}/folder-{SPRING[:4].decode()}": b"",
        f"{stage.base}/services/app/4f1": SPRING,
        f"{stage.base}/services/app/4f1/child": b"",
    }
    with stage.eyes() as client:
        for path, data in nodes.items():
            client.ensure_path(path.rpartition("/")[0])
            client.create(path, data) if client.exists(path) is None else client.set(path, data)
    found = {each.locator.removeprefix(stage.base): each.problem for each in auto.entries(None, within())}
    assert found == {
        "/services/shop/10.0.0.7:80": "",
        "/services/shop/stranger": "no layout recognises it",
        f"/dubbo/com.acme.Menu/providers/{URL}Menu": "",
        "/services/app/4f1": "it has 1 children, as no instance has",
    }


def test_services_are_named_by_their_path(stage: Stage, auto: ZooKeeperRegistry) -> None:
    """However deep; below the base itself it is the base's name. One service alone is listed by that name."""
    with stage.eyes() as client:
        for folder in ("", "/aurora/role/prod/job", "/aurora/role/prod/job/canary"):
            client.create(f"{stage.base}{folder}/10.0.0.7:80", b"", makepath=True)
    own = stage.base.strip("/")
    assert [each.service for each in auto.entries(None, within())] == sorted(
        ["aurora/role/prod/job", "aurora/role/prod/job/canary", own]
    )
    for name in ("aurora/role/prod/job", own):
        assert [each.service for each in auto.entries(name, within())] == [name]
    assert list(auto.entries("job", within())) == []
    with pytest.raises(ConfigurationError):
        auto.entries("a/../b", within())


def test_the_root_leaves_zookeepers_own_nodes_out(zookeeper_server: ZooKeeperServer) -> None:
    """``zookeeper://host/?layout=auto`` walks everything but /zookeeper."""
    registry = open_registry(f"{zookeeper_server.url}/?layout=auto")
    with zookeeper_server.client() as client:
        client.create("/zookeeper/10.0.0.7:80", b"")
        client.create("/10.0.0.7:81", b"")
        try:
            places = [each.locator for each in registry.entries(None, within(30.0))]
            assert "/zookeeper/10.0.0.7:80" not in places
            assert "/10.0.0.7:81" in places
        finally:
            client.delete("/zookeeper/10.0.0.7:80")
            client.delete("/10.0.0.7:81")
            registry.close()


def test_what_may_not_be_read_is_shown(stage: Stage, auto: ZooKeeperRegistry) -> None:
    """A closed folder, and closed nodes wherever they stand: by their names where those tell."""
    closed = [make_digest_acl("x", "y", all=True)]
    with stage.eyes() as client:
        client.create(f"{stage.base}/open/10.0.0.7:80", b"", makepath=True)
        client.create(f"{stage.base}/open/secret", b"x", acl=closed)
        client.create(f"{stage.base}/open/tcp@10.0.0.7:81", b"", acl=closed)
        client.ensure_path(f"{stage.base}/config")
        client.create(f"{stage.base}/config/secret", b"x", acl=closed)
        client.create(f"{stage.base}/mine", b"x", ephemeral=True, acl=closed)
        client.create(f"{stage.base}/closed", b"", acl=[make_acl("world", "anyone", create=True)])
        client.create(f"{stage.base}/closed/10.0.0.7:82", b"")
        entries = auto.entries(None, within())
    unread = "the credentials may not read it"
    assert {each.locator.removeprefix(stage.base): each.problem for each in entries} == {
        "/open/10.0.0.7:80": "",
        "/open/secret": unread,
        "/config/secret": unread,
        "/open/tcp@10.0.0.7:81": unread,
        "/mine": unread,
        "/closed": "the credentials may not look into it",
    }
    by_name = next(each for each in entries if each.id.startswith("tcp@"))
    assert (by_name.layout, by_name.port) == ("rpcx", 81)
    refused = {each.locator.removeprefix(stage.base): each.refused for each in entries}
    assert (refused["/open/10.0.0.7:80"], refused["/mine"], refused["/closed"]) == ("", "data", "children")


def test_a_base_that_may_not_be_listed_is_an_error(stage: Stage, auto: ZooKeeperRegistry) -> None:
    """An empty list would prove nothing."""
    with stage.eyes() as client:
        client.create(stage.base, b"", acl=[make_acl("world", "anyone", create=True)])
    with pytest.raises(PermissionRefusedError):
        auto.entries(None, within())


def test_bounds_are_told(stage: Stage, auto: ZooKeeperRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many nodes and too little time are errors that say what to do; too deep is an entry with a problem."""
    deep = "/".join(f"level{number}" for number in range(30))
    with stage.eyes() as client:
        client.create(f"{stage.base}/{deep}/10.0.0.7:80", b"", makepath=True)
        client.create(f"{stage.base}/shop/10.0.0.7:81", b"", makepath=True)
    note, instance = sorted(auto.entries(None, within()), key=lambda each: each.port)
    assert "more than 20 levels below" in note.problem
    assert (instance.port, instance.problem) == (81, "")
    monkeypatch.setattr(tree_walk, "MOST_NODES", 10)
    with pytest.raises(RegistryDataError, match=r"more than 10 nodes below .*: name a path further down"):
        auto.entries(None, within())
    monkeypatch.undo()

    def until_the_deadline(_session: object, _paths: object, deadline: Deadline) -> list[object]:
        object.__setattr__(deadline, "at", 0.0)
        raise RegistryTimeoutError("no answer")

    monkeypatch.setattr(tree_walk, "read_nodes", until_the_deadline)
    with pytest.raises(RegistryTimeoutError, match=r"2 nodes below .* in the time allowed, and there are more"):
        auto.entries(None, within())


def test_nodes_and_folders_that_vanish_were_never_there(stage: Stage, auto: ZooKeeperRegistry) -> None:
    """While it is being walked, half of the tree goes; the other half is always shown."""
    with stage.eyes() as client:
        client.ensure_path(stage.base)
        for folder in range(40):
            transaction = client.transaction()
            transaction.create(f"{stage.base}/{folder}", b"")
            for port in range(1, 11):
                transaction.create(f"{stage.base}/{folder}/10.0.0.7:{port}", b"")
            transaction.commit()
        vanish = Background(lambda: [client.delete(f"{stage.base}/{folder}", recursive=True) for folder in range(20)])
        seen: list[Sequence[RegistryEntry]] = []
        while vanish.is_running or not seen:
            seen.append(auto.entries(None, within(30.0)))
        vanish.result()
    stays = {str(folder) for folder in range(20, 40)}
    for entries in seen:
        assert sum(each.service in stays for each in entries) == 200
        assert not any(each.problem for each in entries)
    assert len(auto.entries(None, within())) == 200


@pytest.mark.slow
def test_ten_thousand_instances_are_found(stage: Stage, auto: ZooKeeperRegistry) -> None:
    """In many folders and one big one, beside as many other nodes."""
    with stage.eyes() as client:
        client.ensure_path(stage.base)
        for folder in range(40):
            transaction = client.transaction()
            transaction.create(f"{stage.base}/{folder:02}", b"")
            for port in range(1, 251):
                transaction.create(f"{stage.base}/{folder:02}/10.0.0.7:{port}", b"")
            transaction.commit()
        for folder in range(10):
            transaction = client.transaction()
            transaction.create(f"{stage.base}/config{folder}", b"")
            for number in range(200):
                transaction.create(f"{stage.base}/config{folder}/{number}", b"\xff\x00 random")
            transaction.commit()
    entries = auto.entries(None, within(120.0))
    assert len(entries) == 10_000
    assert not any(each.problem for each in entries)


def test_one_address_finds_everything_that_a_process_has(stage: Stage, auto: ZooKeeperRegistry) -> None:
    """Dubbo's three interfaces, a member with further endpoints, and Spring's second port."""
    member = (
        b'{"serviceEndpoint":{"host":"10.0.0.7","port":1},"additionalEndpoints":{"admin":{"host":"web7","port":8443}},'
    )
    with stage.eyes() as client:
        for interface in ("Menu", "Users", "Orders"):
            client.create(f"{stage.base}/dubbo/com.acme.{interface}/providers/{URL}{interface}", b"", makepath=True)
        client.create(f"{stage.base}/twitter/web/member_0000000001", member + b'"status":"ALIVE"}', makepath=True)
        client.create(f"{stage.base}/services/app/4f1", SPRING, makepath=True)
        entries = auto.entries(None, within())

    def found(address: str, port: int) -> list[str]:
        return [each.service for each in entries if Selection(endpoint=(address, port)).fits(each)]

    assert found("10.0.0.7", 20880) == ["dubbo/com.acme.Menu", "dubbo/com.acme.Orders", "dubbo/com.acme.Users"]
    assert found("web7", 8443) == ["services/app", "twitter/web"]
    assert found("web7", 8080) == ["services/app"]
    dubbo = stage.registry(options="&layout=dubbo")
    with stage.eyes() as client:
        client.create(f"{stage.base}/com.acme.Menu/providers/{URL}Menu", b"", makepath=True)
    chosen = [each for each in dubbo.entries(None, within()) if Selection(endpoint=("10.0.0.7", 20880)).fits(each)]
    assert [each.service for each in chosen] == ["com.acme.Menu"]


def test_a_service_is_watched_where_it_is_found(stage: Stage, auto: ZooKeeperRegistry) -> None:
    """Dubbo's too; one that does not exist yet is awaited in its folder."""
    with stage.eyes() as client:
        client.create(f"{stage.base}/dubbo/com.acme.Menu/providers/{URL}Menu", b"", makepath=True)
        menu = auto.watch("dubbo/com.acme.Menu", within())
        shop = auto.watch("shop", within())
        assert [(each.service, each.port) for each in menu.instances] == [("com.acme.Menu", 20880)]
        assert shop.instances == ()
        client.create(f"{stage.base}/shop/10.0.0.7:80", b"", makepath=True)
        client.delete(f"{stage.base}/dubbo/com.acme.Menu/providers/{URL}Menu")
        eventually(lambda: [each.port for each in shop.instances] == [80], timeout=10)
        eventually(lambda: not menu.instances, timeout=10)


def test_entries_have_the_layout_that_was_chosen(stage: Stage) -> None:
    """So that what is done next knows how they are written."""
    stage.registered()
    [entry] = stage.registry().entries(None, within())
    assert isinstance(entry, RegistryEntry)
    assert entry.layout == "curator"
