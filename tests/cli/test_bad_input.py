"""Mistakes: each ends with one line on standard error that says what to do, status 2, and nothing done."""

from __future__ import annotations

import argparse
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from registry_drain.cli.command.arguments import LONGEST_WAIT, count_from, positive_seconds, some_seconds
from registry_drain.cli.command.output import printable
from tests.cli.running import Ran, Run

GOOD = ("local:///tmp/nobody-registers-here", "--service", "calculator", "--id", "one")


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ((), "--help"),
        (GOOD[:3], "--all for every instance of 'calculator'"),
        (GOOD[:1], "--id ID, --address HOST:PORT"),
        ((*GOOD, "--max", "0"), "--max"),
        ((*GOOD, "--meta", "zone"), "KEY=VALUE"),
        ((*GOOD, "--critical-for", "soon"), "10m"),
        ((*GOOD, "--agent", "10.0.0.7:8500"), "--agent is for Consul"),
        ((*GOOD, "--address", "10.0.0.7"), "HOST:PORT"),
        ((*GOOD, "--address", "10.0.0.7:0"), "port 0"),
        ((*GOOD, "--address", "10.0.0.7:70000"), "70000"),
        ((*GOOD, "--address", "::1:9090"), "[::1]:9090"),
        ((*GOOD, "--timeout", "0"), "no time"),
        ((*GOOD, "--timeout", "-1"), "--timeout"),
        ((*GOOD, "--timeout", "nan"), "nan"),
        ((*GOOD, "--timeout", "inf"), "inf"),
        ((*GOOD, "--timeout", "soon"), "soon"),
        ((*GOOD, "--watch-back", "-3"), "--watch-back"),
        ((*GOOD, "--dry"), "--dry"),  # no abbreviations
        ((*GOOD, "another"), "another"),
        (("--service", "", "--id", "one", GOOD[0]), "--service is empty"),
        (("--service", "s", "--id", "", GOOD[0]), "--id is empty"),
        (("nonsense", *GOOD[1:]), "consul://127.0.0.1:8500"),
        (("etcd://127.0.0.1", *GOOD[1:]), "installed are"),
        (("local://", *GOOD[1:]), "local:///directory"),
        (("local:///x?poll_s=never", *GOOD[1:]), "poll_s"),
        (("consul://127.0.0.1:8500?nope=1", *GOOD[1:]), "nope"),
        (("consul://127.0.0.1:99999", *GOOD[1:]), "99999"),
        (("consul://a b", *GOOD[1:]), "%20"),
        (("zookeeper://", *GOOD[1:]), "zookeeper://"),
        (("line\nfeed", *GOOD[1:]), "consul://"),
    ],
    ids=repr,
)
def test_deregister_refuses_in_one_line(deregister: Run, words: tuple[str, ...], hint: str) -> None:
    """Status 2, and a line that holds the way out."""
    ran = deregister(*words)
    assert ran.status == 2
    assert hint in ran.complaint
    assert not ran.out


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("frobnicate",),
        ("--frobnicate",),
        ("list",),
        ("list", GOOD[0], "--service", ""),
        ("list", "nonsense"),
        ("list", GOOD[0], "--service", "\udcff"),
        ("sweep", GOOD[0], "--service", "\udcff"),
        ("drain", *GOOD, "--reason", "\udcff"),
        ("drain", GOOD[0]),
        ("drain", *GOOD[:3]),
        ("undrain", *GOOD[:3]),
        ("undrain", *GOOD, "--reason", "none"),
        ("deregister",),
        ("demo", "--instances", "1"),
        ("demo", "--instances", "many"),
        ("demo", "--instances", "9" * 30),
        ("demo", "--restarts", "0"),
        ("demo", "--seconds", "0"),
        ("demo", "--seconds", "5", "--restarts", "2"),
        ("demo", "--registry", "nonsense"),
        ("demo", "surplus"),
    ],
    ids=repr,
)
def test_registry_drain_refuses_in_one_line(registry_drain: Run, words: tuple[str, ...]) -> None:
    """Status 2 and one line, for every command."""
    ran = registry_drain(*words)
    assert ran.status == 2
    assert ran.complaint.startswith("registry-drain")
    assert not ran.out


@pytest.mark.parametrize("secret", ["consul://user:hunter2@127.0.0.1", "consul://127.0.0.1?token=hunter2"])
@pytest.mark.parametrize("json", [(), ("--json",)])
def test_a_secret_in_a_url_is_not_repeated(deregister: Run, secret: str, json: tuple[str, ...]) -> None:
    """It is refused, and stands in neither stream."""
    ran = deregister(secret, *GOOD[1:], *json)
    assert ran.status == 2
    assert "hunter2" not in ran.out + ran.err


@pytest.mark.parametrize(
    ("library", "words", "extra"),
    [
        ("kazoo", ("zookeeper://127.0.0.1", *GOOD[1:]), "zookeeper"),
        ("thrift", ("demo",), "thrift"),
    ],
)
def test_a_missing_extra_is_named(library: str, words: tuple[str, ...], extra: str) -> None:
    """The line can be pasted into a shell."""
    program = (
        "import sys\n"
        "sys.modules[sys.argv[1]] = None\n"
        "from registry_drain.cli import main\nfrom registry_drain.cli.deregister import command as deregister\n"
        "words = sys.argv[2:]\n"
        "sys.exit(main.main(words) if words == ['demo'] else deregister.main(words))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, library, *words], capture_output=True, text=True, check=False, timeout=60
    )
    ran = Ran(ended.returncode, ended.stdout, ended.stderr)
    assert ran.status == 2
    assert f"pip install 'registry-drain[{extra}]'" in ran.complaint


def test_consul_is_asked_without_its_client(monkeypatch: pytest.MonkeyPatch, deregister: Run) -> None:
    """python-consul registers and watches; an operator's host does without."""
    monkeypatch.setitem(sys.modules, "consul", None)
    monkeypatch.delitem(sys.modules, "registry_drain.registries.consul.native", raising=False)
    ran = deregister("consul://127.0.0.1:1", *GOOD[1:], "--timeout", "0.2")
    assert ran.status == 3
    assert "nothing was removed" in ran.complaint


def test_json_and_quiet_exclude_each_other(deregister: Run) -> None:
    """Told in both ways, since JSON was asked for."""
    ran = deregister(*GOOD, "--quiet", "--json")
    assert ran.document["outcome"] == "bad_usage"
    assert "not allowed with" in ran.complaint


@given(st.text())
def test_seconds_are_seconds_or_refused(text: str) -> None:
    """Whatever is typed, the result can be waited for."""
    try:
        value = some_seconds(text)
    except argparse.ArgumentTypeError:
        return
    assert 0 <= value <= LONGEST_WAIT


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_every_float_is_understood_or_refused(number: float) -> None:
    """Not a number, infinity and negative numbers are refused, zero where time is needed too."""
    if 0 < number <= LONGEST_WAIT:
        assert positive_seconds(repr(number)) == number
    else:
        with pytest.raises(argparse.ArgumentTypeError):
            positive_seconds(repr(number))


@given(st.text() | st.integers().map(str))
def test_counts_are_in_their_limits_or_refused(text: str) -> None:
    """A count is a plain decimal number."""
    try:
        value = count_from(2, 20)(text)
    except argparse.ArgumentTypeError:
        return
    assert 2 <= value <= 20


@settings(max_examples=300)
@given(st.text())
def test_whatever_is_printed_is_one_printable_line(text: str) -> None:
    """Any text of others, surrogates and all, becomes a line that shows as it is."""
    line = printable(text)
    assert line.isprintable()
    assert line == text or not text.isprintable()
