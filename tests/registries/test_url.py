"""Registry URLs: what is parsed is what was meant, nothing else is raised, no secret is accepted or repeated."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from registry_drain.clock import Clock
from registry_drain.errors import ConfigurationError, MissingExtraError
from registry_drain.registries.url import (
    ENTRY_POINT_GROUP,
    RegistryURL,
    boolean,
    open_registry,
    parse_registry_url,
    seconds,
)
from registry_drain.testing.clock import FakeClock

SECRETS = ["token", "TOKEN", "password", "passwd", "secret", "auth"]

schemes = st.from_regex(r"[a-z][a-z0-9+.-]{0,10}", fullmatch=True)
names = st.from_regex(r"[a-zA-Z0-9_.-]{1,20}", fullmatch=True)
ipv6 = st.ip_addresses(v=6).map(str)
ports = st.none() | st.integers(1, 65535)
printable = st.text(st.characters(exclude_categories=["Cs"]).filter(str.isprintable), max_size=20)
paths = st.just("") | printable.map(lambda text: "/" + text)
option_names = printable.filter(lambda name: name != "" and name.lower() not in {secret.lower() for secret in SECRETS})
options = st.dictionaries(option_names, printable, max_size=3)
urls = st.builds(RegistryURL, schemes, st.lists(st.tuples(names | ipv6, ports), max_size=3).map(tuple), paths, options)


@given(urls)
def test_what_is_written_is_parsed_again(url: RegistryURL) -> None:
    """A URL's text, parsed, gives an equal URL."""
    again = parse_registry_url(str(url))
    assert again == url
    assert str(again) == str(url)


PIECES = r"consul :// : / // ? # & = % %2 %zz %ff %0a @ [ ] [::1] , .. x 8500 99999 -1 token local"
pieces = st.sampled_from([*PIECES.split(" "), " ", "\n", "\x00", "\x85", "\u2028", "\xe9", "\udc80"])


@given(st.text() | st.lists(pieces, max_size=12).map("".join))
@example("consul://[::1")
@example("consul://host:")
@example("consul://host:\uff18\uff15")
@example("consul://a?%ff=\udc80")
def test_any_text_is_parsed_or_refused_in_one_line(text: str) -> None:
    """Whatever is typed: a URL that can be written down again, or one line of ConfigurationError."""
    try:
        url = parse_registry_url(text)
    except ConfigurationError as refused:
        message = str(refused)
    else:
        message = str(url)
        assert parse_registry_url(message) == url
    assert len(message.splitlines()) == 1
    assert message.isprintable()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("consul://127.0.0.1:8500", RegistryURL("consul", (("127.0.0.1", 8500),))),
        ("CONSUL+HTTPS://c.example", RegistryURL("consul+https", (("c.example", None),))),
        (
            "zookeeper://a:1,b,[::1]:3/base/path?x=1&y=",
            RegistryURL("zookeeper", (("a", 1), ("b", None), ("::1", 3)), "/base/path", {"x": "1", "y": ""}),
        ),
        ("local:///var/lib/my%20dir", RegistryURL("local", (), "/var/lib/my dir")),
        ("local:///a?b=c%26d+e", RegistryURL("local", (), "/a", {"b": "c&d e"})),
    ],
)
def test_parts(text: str, expected: RegistryURL) -> None:
    """The parts of a URL are where the documentation says."""
    assert parse_registry_url(text) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "looks like"),
        ("consul", "looks like"),
        ("consul:127.0.0.1", "looks like"),
        ("127.0.0.1:8500", "looks like"),
        ("://host", "looks like"),
        ("con sul://host", "looks like"),
        ("consul://ho st", "space"),
        ("consul://host\n", "space or control"),
        ("consul://host:0", "not between 1 and 65535"),
        ("consul://host:65536", "not between 1 and 65535"),
        ("consul://host:00000000000001", "not between 1 and 65535|HOST:PORT"),
        ("consul://host:http", "'host:http' is not HOST"),
        ("consul://host:", "'host:' is not HOST"),
        ("consul://::1:8500", "is not HOST"),
        ("consul://[::1", "is not HOST"),
        ("consul://[::1]8500", "is not HOST"),
        ("consul://a,,b", "'' is not HOST"),
        ("consul://host/path#x", "%23"),
        ("consul://host?a=1&a=2", "twice"),
        ("local:///a%0ab", "control"),
        ("local:///a?x=%E2%80%A8", "unprintable"),
        ("local:///a%ff", "UTF-8"),
        ("local:///a\udcff", "UTF-8"),
        ("zookeeper://host/a@b", "%40"),
    ],
)
def test_bad_urls_say_what_is_wrong(text: str, reason: str) -> None:
    """Each mistake has a message of its own, that names the part."""
    with pytest.raises(ConfigurationError, match=reason):
        parse_registry_url(text)


@pytest.mark.parametrize(
    "text",
    [
        "consul://user:hunter2@host:8500",
        "consul://hunter2@host",
        "zookeeper://a:1,user:hunter2@b:2",
        "consul://user:hunter2@host:bad",
        "consul://user:hunter2@[::1",
        "consul://user:hunter2@ho st",
        "consul://user:hunter2@host#x",
        *[f"consul://host?{name}=hunter2" for name in SECRETS],
        "consul://host?x=1&To%6ben=hunter2",
        "consul://host:bad?token=hunter2",
        "consul://user:hunter2/3@host",
        "consul://user:hunter2#@host",
        "consul://user:hunter2?@host",
        "//user:hunter2@host",
        "nonsense hunter2",
    ],
)
def test_secrets_are_refused_and_never_repeated(text: str) -> None:
    """A URL with a secret in it, or that might have one, is refused without repeating it."""
    with pytest.raises(ConfigurationError) as caught:
        open_registry(text)
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in repr(caught.value)
    assert "hunter2" not in str(caught.value.__cause__)
    assert "hunter2" not in str(caught.value.__context__)


def test_options_are_converted() -> None:
    """An option goes through its converter; what is missing has its default."""
    url = parse_registry_url("local:///x?poll_s=0.5&flag=Yes&empty=")
    assert url.option("poll_s", seconds, 1.0) == 0.5
    assert url.option("missing", seconds, 1.0) == 1.0
    assert url.option("flag", boolean, False) is True
    assert url.option("empty", str, "default") == ""


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "", "soon", "1e999"])
def test_seconds_are_positive_and_finite(value: str) -> None:
    """A number that cannot be a time is refused, with option, value and reason in one line."""
    url = RegistryURL("local", (), "/x", {"poll_s": value})
    with pytest.raises(ConfigurationError, match=r"poll_s.*positive number of seconds") as caught:
        url.option("poll_s", seconds, 1.0)
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize(
    ("value", "expected"), [("true", True), ("ON", True), ("1", True), ("no", False), ("0", False)]
)
def test_booleans(value: str, expected: bool) -> None:
    """The usual words count, in any case."""
    assert boolean(value) is expected


def test_other_words_are_no_booleans() -> None:
    """Anything else is refused: a typo must not mean False."""
    with pytest.raises(ConfigurationError, match="flag='ture': must be true or false"):
        RegistryURL("local", (), "/x", {"flag": "ture"}).option("flag", boolean, False)


def test_unknown_options_are_named() -> None:
    """A typo is refused, with what the backend knows, and without its value, which may be a secret."""
    with pytest.raises(ConfigurationError, match="local:///x: unknown option 'pol_s'; local knows: poll_s") as caught:
        RegistryURL("local", (), "/x", {"pol_s": "hunter2"}).check_options(frozenset({"poll_s"}))
    assert "hunter2" not in str(caught.value)


def test_unknown_scheme() -> None:
    """An unknown scheme is named, with those that are installed."""
    with pytest.raises(ConfigurationError, match=r"unknown registry etcd://: installed are consul, .*local, zookeeper"):
        open_registry("etcd://host")


WITHOUT = """
import sys
sys.modules[sys.argv[1]] = None  # what import does then is what it does for a library that is not installed
from registry_drain.errors import MissingExtraError
from registry_drain.registries.url import open_registry
try:
    open_registry(sys.argv[2])
except MissingExtraError as error:
    print(error.extra, error, sep="|")
"""


@pytest.mark.parametrize(
    ("library", "url", "extra", "package"),
    [
        ("consul", "consul://127.0.0.1:1", "consul", "python-consul"),
        ("consul", "consul+https://127.0.0.1:1", "consul", "python-consul"),
        ("kazoo", "zookeeper://127.0.0.1:1", "zookeeper", "kazoo"),
    ],
)
def test_missing_library_names_the_extra(library: str, url: str, extra: str, package: str) -> None:
    """Without the client library the message is the command that installs it."""
    out = subprocess.run(
        [sys.executable, "-c", WITHOUT, library, url], stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    scheme = url.partition(":")[0]
    assert out == f"{extra}|{scheme}:// needs {package}: install it with: pip install 'registry-drain[{extra}]'\n"


def test_missing_extra_is_a_mistake_of_the_caller() -> None:
    """It is a ConfigurationError: nobody retries it."""
    assert issubclass(MissingExtraError, ConfigurationError)


@pytest.fixture
def third_party(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install a distribution with a registry of its own, for this test."""
    (tmp_path / "acme_registry.py").write_text("def open_acme(url, clock):\n    return ('acme', url, clock)\n")
    info = tmp_path / "acme_registry-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-registry\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        f"[{ENTRY_POINT_GROUP}]\nacme = acme_registry:open_acme\nlost = acme_registry:nothing_there\n"
        "gone = acme_gone:open_gone\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("third_party")
def test_third_party_registry_is_found() -> None:
    """A scheme that another distribution declares is opened by it, with the URL taken apart and the clock."""
    clock = FakeClock()
    opened = cast("tuple[str, RegistryURL, Clock]", open_registry("acme://host:1/path?x=1", clock))
    assert opened == ("acme", parse_registry_url("acme://host:1/path?x=1"), clock)


@pytest.mark.usefixtures("third_party")
def test_third_party_registry_is_listed() -> None:
    """The message about an unknown scheme shows the installed one too."""
    with pytest.raises(ConfigurationError, match="acme, consul"):
        open_registry("etcd://host")


@pytest.mark.usefixtures("third_party")
@pytest.mark.parametrize("scheme", ["lost", "gone"])
def test_third_party_registry_that_is_broken(scheme: str) -> None:
    """An entry point that names what is not there is one clear line about that entry point."""
    with pytest.raises(ConfigurationError, match=f"{scheme}:// .*acme_"):
        open_registry(f"{scheme}://host")
