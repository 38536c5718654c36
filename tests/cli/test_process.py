"""The installed commands as processes: help, start-up, and streams that are closed, full or gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from registry_drain import __version__
from tests.cli.conftest import RegisterAt
from tests.cli.running import Ran, run_script, script
from tests.support.processes import eventually

BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
"""What is buffered is written once more when the interpreter exits, which is where a failure would be loud."""
BACKENDS = {"consul", "kazoo", "requests", "thrift", "tenacity", "rich"}


@pytest.mark.parametrize(
    "words",
    [
        ("deregister", "--help"),
        ("registry-drain", "--help"),
        ("registry-drain", "list", "--help"),
        ("registry-drain", "demo", "--help"),
        ("registry-drain", "deregister", "--help"),
    ],
    ids=" ".join,
)
def test_help_loads_no_backend(words: tuple[str, ...]) -> None:
    """Help is for people in a hurry: no client library, no server library, nothing that takes time."""
    program = (
        "import sys, runpy; sys.argv = sys.argv[1:]\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as error: assert not error.code, error.code\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, script(words[0]), *words[1:]], capture_output=True, text=True, check=True
    )
    assert "usage: " in ended.stdout
    assert not BACKENDS & set(ended.stderr.split())


@pytest.mark.parametrize("url", ["local:///tmp/nobody-registers-here", "zookeeper://", "consul://"])
def test_only_the_backend_that_is_named_is_loaded(url: str) -> None:
    """A local registry needs no client, ZooKeeper no requests, Consul no kazoo."""
    program = (
        "import sys\n"
        "from registry_drain.cli.deregister.command import main\n"
        "main([sys.argv[1], '--service', 's', '--id', 'i', '--timeout', '0.1'])\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    ended = subprocess.run([sys.executable, "-c", program, url], capture_output=True, text=True, check=True)
    loaded = BACKENDS & set(ended.stdout.split()) - {"tenacity"}
    allowed = {"local": set(), "zookeeper": {"kazoo"}, "consul": {"consul", "requests"}}[url.partition(":")[0]]
    assert loaded <= allowed


def test_version() -> None:
    """The one of the package."""
    assert run_script("registry-drain", "--version") == Ran(0, f"registry-drain {__version__}\n", "")


def test_the_module_is_the_command() -> None:
    """``python -m registry_drain`` is there where no script directory is on the path."""
    ended = subprocess.run(
        [sys.executable, "-m", "registry_drain", "--version"], capture_output=True, text=True, check=True
    )
    assert ended.stdout == f"registry-drain {__version__}\n"


def test_deregister_is_two_commands(registered: RegisterAt, local_url: str, unique: str) -> None:
    """As its own command and as registry-drain's it does the same."""
    registered(local_url, unique, instance_id="one")
    registered(local_url, unique, instance_id="two", port=9091)
    words = (local_url, "--service", unique, "--force", "--id")
    assert run_script("deregister", *words, "one").status == 0
    assert run_script("registry-drain", "deregister", *words, "two").status == 0
    assert run_script("registry-drain", "deregister", *words, "two").status == 4


def test_nobody_listens_there() -> None:
    """A real refusal of a connection, one line, for both kinds of server."""
    for url in ("consul://127.0.0.1:1", "zookeeper://127.0.0.1:1"):
        ran = run_script("deregister", url, "--service", "s", "--id", "i", "--timeout", "0.5")
        assert ran.status == 3
        assert url in ran.complaint
        assert "nothing was removed" in ran.complaint


def _run_with_stdout(redirection: str, *words: str) -> Ran:
    ended = subprocess.run(
        ["/bin/sh", "-c", f'"$0" "$@" {redirection}', *words],
        capture_output=True,
        text=True,
        env=BUFFERED,
        check=False,
    )
    return Ran(ended.returncode, ended.stdout, ended.stderr)


def test_standard_output_is_closed(registered: RegisterAt, local_url: str, unique: str) -> None:
    """A job without standard output still removes, and says how it went by its status."""
    registered(local_url, unique, instance_id="one")
    deregister = script("deregister")
    ran = _run_with_stdout(">&-", deregister, local_url, "--service", unique, "--id", "one", "--force")
    assert ran == Ran(0, "", "")
    assert _run_with_stdout(">&- 2>&-", deregister, local_url, "--service", unique, "--id", "one").status == 4
    assert _run_with_stdout(">&-", script("registry-drain"), "list", local_url) == Ran(0, "", "")


def test_standard_output_is_full(registered: RegisterAt, local_url: str, unique: str) -> None:
    """A result that could not be written is told on standard error, with the result."""
    registered(local_url, unique, instance_id="one")
    words = (local_url, "--service", unique, "--id", "one", "--force", "--json")
    ran = _run_with_stdout(">/dev/full", script("deregister"), *words)
    assert ran.status == 1
    assert "No space left" in ran.complaint
    assert "proven to be gone" in ran.complaint


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_a_help_that_cannot_be_written(option: str) -> None:
    """It is a failure, as of any result."""
    ran = _run_with_stdout(">/dev/full", script("registry-drain"), option)
    assert ran.status == 1
    assert "No space left" in ran.complaint


def test_the_reader_goes_away(registered: RegisterAt, local_url: str, unique: str) -> None:
    """``| head`` and the like are no error."""
    for number in range(3):
        registered(local_url, unique, instance_id=f"i{number}", port=9090 + number)
    reading, writing = os.pipe()
    os.close(reading)
    ended = subprocess.run(
        [script("registry-drain"), "list", local_url],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        env=BUFFERED,
        check=False,
    )
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_an_ascii_terminal(registered: RegisterAt, local_url: str) -> None:
    """Names that the terminal cannot show are escaped, not a crash."""
    registered(local_url, "büro", instance_id="eins")
    env = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    ran = run_script("registry-drain", "list", local_url, env=env)
    assert ran.status == 0
    assert "b\\xfcro" in ran.out
    assert "b\\xfcro" in run_script("deregister", local_url, "--service", "büro", "--id", "x", env=env).complaint


def test_ctrl_c_is_one_line(registered: RegisterAt, local_url: str, unique: str) -> None:
    """SIGINT while it looks whether the instance comes back: 130, what was done, no traceback."""
    registered(local_url, unique, instance_id="one")
    with subprocess.Popen(
        [script("deregister"), local_url, "--service", unique, "--id", "one", "--force", "--watch-back", "60"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            eventually(
                lambda: run_script("registry-drain", "list", local_url).out.count("\n") == 1, because="it is removed"
            )
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)
        finally:
            process.kill()
    ran = Ran(process.returncode, out, err)
    assert ran.status == 130
    assert "proven to be gone" in ran.complaint
    assert "not watched to the end" in ran.complaint
