"""Instances and endpoints: what no registry could hold is refused, in one line that names it."""

from __future__ import annotations

import copy
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry_drain.errors import ConfigurationError
from registry_drain.instance import ServiceInstance, check_name, check_port, format_endpoint, parse_endpoint

texts = st.text() | st.text(st.sampled_from("a1.-_:@/%?#\\ \n\t\x00\x7f\x85\u2028\udc80é"), max_size=6)


@given(texts)
def test_a_name_is_fit_or_refused_in_one_line(text: str) -> None:
    """Any text is returned as it is, fit for URLs, paths and log lines, or refused in one printable line."""
    try:
        name = check_name("service name", text)
    except ConfigurationError as refused:
        message = str(refused)
        assert message.isprintable()
        assert "service name" in message
        assert ":" in message
    else:
        assert name == text
        assert name.encode().decode() == name
        assert len(name.splitlines()) == 1
        assert not set(name) & set("/\\?#% \t\n\x00")
        assert ".." not in name
        assert not name.startswith(".")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "empty"),
        ("x" * 256, "256 characters"),
        (".hidden", "dot"),
        ("a..b", "'..'"),
        ("a/b", "'/'"),
        ("a b", "' '"),
        ("a%2f", "'%'"),
        ("a\u2028b", "unprintable"),
        ("a\udc80", "no text in UTF-8"),
        (None, "no text"),
        (7, "no text"),
    ],
)
def test_bad_names_say_why(name: str, reason: str) -> None:
    """Each kind of bad name has its own reason."""
    with pytest.raises(ConfigurationError, match=reason.replace(".", r"\.")):
        check_name("instance id", name)


@given(st.text() | st.text(st.sampled_from("[]:%/.@ \n0123456789abcf"), max_size=12))
def test_an_endpoint_is_parsed_or_refused_in_one_line(text: str) -> None:
    """Any text is an endpoint that can be written again, or refused in one printable line."""
    try:
        address, port = parse_endpoint(text)
    except ConfigurationError as refused:
        message = str(refused)
    else:
        message = format_endpoint(address, port)
        assert parse_endpoint(message) == (address, port)
        assert 1 <= port <= 65535
    assert message.isprintable()


@given(st.ip_addresses(v=6) | st.ip_addresses(v=4), st.integers(1, 65535))
def test_every_ip_address_round_trips(address: object, port: int) -> None:
    """Every address and port is parsed as it is written."""
    assert parse_endpoint(format_endpoint(str(address), port)) == (str(address), port)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "host",
        "host:",
        ":80",
        "::1:80",
        "[::1]",
        "[host]:80",
        "host:0",
        "host:65536",
        "host:-1",
        "host:\uff18\uff10",
        "a:b:1",
    ],
)
def test_what_is_no_endpoint(text: str) -> None:
    """Near misses are refused, and the message shows what was given or the port."""
    with pytest.raises(ConfigurationError) as caught:
        parse_endpoint(text)
    assert repr(text) in str(caught.value) or "port" in str(caught.value)


@pytest.mark.parametrize("port", [0, -1, 65536, True, "80", 80.0, None])
def test_what_is_no_port(port: int) -> None:
    """Ports that callers cannot connect to are refused, whatever their type."""
    with pytest.raises(ConfigurationError, match="between 1 and 65535"):
        check_port(port)


@given(st.data())
def test_an_instance_is_sound_or_refused(data: st.DataObject) -> None:
    """Whatever the fields: an instance that can be pickled and hashed, or one line."""
    try:
        instance = ServiceInstance(
            data.draw(texts),
            data.draw(texts | st.ip_addresses().map(str)),
            data.draw(st.integers(-1, 70000)),
            data.draw(texts),
            data.draw(st.dictionaries(texts, texts, max_size=2)),
            data.draw(st.lists(texts, max_size=2).map(tuple)),
        )
    except ConfigurationError as refused:
        message = str(refused)
    else:
        message = str(instance)
        assert pickle.loads(pickle.dumps(instance)) == instance  # noqa: S301 -- our own
        assert len({instance, copy.deepcopy(instance)}) == 1
    assert message.isprintable()


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("0.0.0.0", "every interface"),
        ("::", "every interface"),
        ("host:80", "give the port separately"),
        ("", "not a host name"),
        ("http://host", "not a host name"),
        ("[::1]", "not a host name"),
        ("a b", "not a host name"),
        ("a\nb", "not a host name"),
        (None, "not a host name"),
    ],
)
def test_bad_addresses_say_why(address: str, reason: str) -> None:
    """What callers cannot connect to is refused with its reason."""
    with pytest.raises(ConfigurationError, match=reason) as caught:
        ServiceInstance("calculator", address, 9090)
    assert repr(address) in str(caught.value)


@pytest.mark.parametrize("metadata", [{"": "x"}, {"a": 1}, {1: "a"}, {"a": None}, {"a": "\udc80"}, ["a"], None])
def test_bad_metadata_is_refused(metadata: dict[str, str]) -> None:
    """Metadata is strings that can be sent; anything else names the instance."""
    with pytest.raises(ConfigurationError, match=r"metadata .*calculator-h-9090"):
        ServiceInstance("calculator", "h", 9090, metadata=metadata)


@pytest.mark.parametrize("tags", ["canary", ("",), (1,), ("\udc80",), None])
def test_bad_tags_are_refused(tags: tuple[str, ...]) -> None:
    """A string instead of a tuple of strings is the usual mistake: it is not taken apart into letters."""
    with pytest.raises(ConfigurationError, match=r"tag.*calculator-h-9090"):
        ServiceInstance("calculator", "h", 9090, tags=tags)


def test_the_default_id_is_the_same_after_a_restart() -> None:
    """Service, address and port make the id, an IPv6 address without its colons."""
    assert ServiceInstance("calculator", "10.0.0.7", 9090).id == "calculator-10.0.0.7-9090"
    assert ServiceInstance("calculator", "2001:db8::7", 9090).id == "calculator-2001_db8__7-9090"


def test_an_instance_cannot_be_changed() -> None:
    """Neither the fields nor the metadata can be changed, not even through the mapping that was given."""
    metadata = {"a": "b"}
    instance = ServiceInstance("calculator", "10.0.0.7", 9090, metadata=metadata, tags=("x",))
    metadata["a"] = "c"
    assert instance.metadata == {"a": "b"}
    with pytest.raises(TypeError):
        instance.metadata["a"] = "d"  # type: ignore[index]
    with pytest.raises(AttributeError):
        instance.port = 1  # type: ignore[misc]


def test_instances_are_named_with_their_endpoint() -> None:
    """Log lines show the id and where it is."""
    assert str(ServiceInstance("s", "::1", 80, "one")) == "one ([::1]:80)"
    assert ServiceInstance("s", "h", 80).endpoint == "h:80"
