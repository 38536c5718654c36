"""Consul URLs, their options, metadata and tokens: one clear line for what cannot work. Needs no server."""

from __future__ import annotations

from pathlib import Path

import pytest

from registry_drain.errors import ConfigurationError
from registry_drain.instance import ServiceInstance
from registry_drain.registries.consul import OPTIONS, ConsulRegistry
from registry_drain.registries.consul.token import TokenSource
from registry_drain.registries.url import open_registry, parse_registry_url


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("consul://127.0.0.1:8500?ttl=5", "unknown option 'ttl'"),
        ("consul://127.0.0.1:8500?verify=false", "unknown option 'verify'"),
        ("consul://127.0.0.1:8500?token=abc", "secret"),
        ("consul://one:8500,two:8500", "name one agent"),
        ("consul://127.0.0.1:8500/v1", "no path"),
        ("consul://127.0.0.1:8500?ttl_s=0.5", "at least 1 seconds"),
        ("consul://127.0.0.1:8500?ttl_s=soon", "ttl_s='soon'"),
        ("consul://127.0.0.1:8500?ttl_s=nan", "positive number"),
        ("consul://127.0.0.1:8500?deregister_critical_after_s=59", "at least 60 seconds"),
        ("consul://127.0.0.1:8500?timeout_s=0", "positive number"),
        ("consul://127.0.0.1:8500?token_file=/no/such/file", "/no/such/file cannot be read"),
        ("consul+https://127.0.0.1:8501?ca_file=/no/such/file", "No such file"),
        ("consul+https://127.0.0.1:8501?cert_file={file}", "belong together"),
        ("consul+https://127.0.0.1:8501?key_file={file}", "belong together"),
        ("consul://127.0.0.1:8500?ca_file={file}", r"need consul\+https"),
    ],
)
def test_urls_that_cannot_work(url: str, expected: str, tmp_path: Path) -> None:
    """Each is a ConfigurationError in one line that names the part."""
    file = tmp_path / "file"
    file.write_text("content")
    with pytest.raises(ConfigurationError, match=expected) as caught:
        open_registry(url.format(file=file))
    assert "\n" not in str(caught.value)


def test_the_defaults() -> None:
    """No port means Consul's own, no host the local agent; opening connects to nothing."""
    for url, host, port in (
        ("consul://", "127.0.0.1", 8500),
        ("consul://10.0.0.1", "10.0.0.1", 8500),
        ("consul+https://[::1]", "::1", 8501),
        ("consul://h:1?dc=dc2", "h", 1),
    ):
        registry = ConsulRegistry(parse_registry_url(url))
        assert (registry._address.host, registry._address.port) == (host, port)
        assert registry.url == url
        assert repr(registry) == f"<ConsulRegistry {url} watches=0>"
        registry.close()


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"with space": "x"}, "as a key"),
        ({"\u00fc": "x"}, "as a key"),
        ({"k" * 129: "x"}, "as a key"),
        ({"key": "v" * 513}, "has 513"),
        ({"key": "\u00fc" * 257}, "has 514"),
        ({"consul-x": "x"}, "reserved"),
        ({"registry-drain-id": "x"}, "reserved"),
        ({f"k{number}": "" for number in range(62)}, "62 keys"),
    ],
)
def test_metadata_that_consul_would_refuse(metadata: dict[str, str], expected: str) -> None:
    """It is refused before anything is sent, naming the key."""
    registry = ConsulRegistry(parse_registry_url("consul://127.0.0.1:1"))
    with pytest.raises(ConfigurationError, match=expected):
        registry.registration(ServiceInstance("s", "192.0.2.1", 1, metadata=metadata))


def test_every_option_is_documented() -> None:
    """The page has a row for each option that the backend knows."""
    page = (Path(__file__).parents[2] / "docs" / "consul.md").read_text(encoding="utf-8")
    for option in OPTIONS:
        assert f"| `{option}` |" in page


def test_token_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A missing, empty or unfit file is a ConfigurationError that shows nothing; a file that vanishes later is not."""
    file = tmp_path / "token"
    for content in (None, "", "  \n", "two words", "line\nbreak", "uml\u00e4ut"):
        if content is not None:
            file.write_text(content)
        with pytest.raises(ConfigurationError) as caught:
            TokenSource(file=file)
        assert not content or not content.strip() or content not in str(caught.value)
    file.write_text("first")
    source = TokenSource(file=file)
    file.unlink()
    for _ in range(3):
        assert source.current() == "first"
    assert caplog.text.count("cannot be read again") == 1, "each heartbeat asks several times"
    file.write_text("second-token")
    assert source.current() == "second-token"
    assert "second" not in repr(source) + caplog.text


def test_the_order_of_token_sources(tmp_path: Path) -> None:
    """The program's argument wins over the option, the option over the file variable, that over the token variable."""
    for name in ("option", "variable"):
        (tmp_path / name).write_text(f"from-{name}")
    environ = {"CONSUL_HTTP_TOKEN_FILE": str(tmp_path / "variable"), "CONSUL_HTTP_TOKEN": "from-environment"}
    option = str(tmp_path / "option")
    assert TokenSource.choose("given", option, environ).current() == "given"
    assert TokenSource.choose("", option, environ).current() == ""
    assert TokenSource.choose(None, option, environ).current() == "from-option"
    assert TokenSource.choose(None, None, environ).current() == "from-variable"
    del environ["CONSUL_HTTP_TOKEN_FILE"]
    assert TokenSource.choose(None, None, environ).current() == "from-environment"
    assert TokenSource.choose(None, None, {}).current() == ""
