"""``registry-drain list --watch``: what changes, as lines, as JSON and at a terminal, through outages, until Ctrl-C."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pty
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from registry_drain.cli.choosing.selection import Selection
from registry_drain.cli.command.exit_status import ExitStatus
from registry_drain.cli.command.output import Output
from registry_drain.cli.listing.watch import ListWatch
from registry_drain.cli.schema.documents import schema_of
from registry_drain.clock import Deadline
from registry_drain.registries.base import Registration, RegistryEntry, Watch, WatchCallback
from registry_drain.testing.clock import FakeClock
from registry_drain.testing.faulty_registry import FaultyRegistry
from tests.cli.conftest import RegisterAt
from tests.cli.running import Run, script
from tests.support.consul_process import ConsulAgent
from tests.support.processes import eventually
from tests.support.tcp_proxy import TcpProxy
from tests.support.zookeeper_process import ZooKeeperServer


class Following:
    """``registry-drain list --watch`` in a process of its own, and what it has written so far."""

    def __init__(self, process: subprocess.Popen[bytes], out: int, err: int) -> None:
        self.process = process
        self._ends = {"out": out, "err": err}
        self._read = {"out": b"", "err": b""}
        for end in self._ends.values():
            os.set_blocking(end, False)

    def text(self, name: str = "out") -> str:
        """Return what it has written so far."""
        with contextlib.suppress(BlockingIOError, OSError):  # OSError: a terminal that nobody has open any more
            while chunk := os.read(self._ends[name], 65_536):
                self._read[name] += chunk
        return self._read[name].decode()

    def lines(self, name: str = "out") -> list[str]:
        """Return the whole lines."""
        return self.text(name).split("\n")[:-1]

    def changes(self) -> list[tuple[str, str]]:
        """Return signs and ids."""
        return [(line.split("\t")[0], line.split("\t")[3]) for line in self.lines()[1:]]

    def events(self) -> list[dict[str, Any]]:
        """Return the JSON objects."""
        return [json.loads(line) for line in self.lines()]

    def interrupt(self) -> int:
        """Press Ctrl-C; return the exit status."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(30)


Follow = Callable[..., Following]


@pytest.fixture
def follow() -> Iterator[Follow]:
    """Give ``follow(*words, at_terminal=False)``; keywords are environment variables."""
    with contextlib.ExitStack() as stack:

        def start(*words: str, at_terminal: bool = False, **more: str) -> Following:
            out, child_out = pty.openpty() if at_terminal else os.pipe()
            err, child_err = os.pipe()
            for end in (out, err):
                stack.callback(os.close, end)
            environment = {**os.environ, "TERM": "xterm", "COLUMNS": "200", "LINES": "50", **more}
            process = subprocess.Popen(
                [script("registry-drain"), "list", *words, "--watch"],
                stdin=subprocess.DEVNULL,
                stdout=child_out,
                stderr=child_err,
                env=environment,
            )
            os.close(child_out)
            os.close(child_err)
            stack.callback(process.wait, 30)
            stack.callback(process.kill)
            return Following(process, out, err)

        yield start


def gone(registration: Registration) -> None:
    """Deregister."""
    registration.on_shutdown(Deadline.after(20))


@pytest.mark.parametrize("of_one_service", [True, False], ids=["service", "all"])
def test_a_line_for_each_change(follow: Follow, registered: RegisterAt, local_url: str, of_one_service: bool) -> None:
    """What is there already, what comes, what goes; then Ctrl-C, which is said in one line."""
    first = registered(local_url, "calculator", instance_id="one")
    registered(local_url, "other", instance_id="other")
    following = follow(local_url, *(("--service", "calculator") if of_one_service else ()))
    others = [] if of_one_service else [("+", "other")]
    eventually(lambda: following.changes() == [("+", "one"), *others])
    registered(local_url, "calculator", port=9091, instance_id="two")
    eventually(lambda: following.changes()[-1] == ("+", "two"))
    gone(first)
    eventually(lambda: following.changes()[-1] == ("-", "one"))
    heading = following.lines()[0].split("\t")
    assert heading[:4] == ["change", "time", "service", "id"]
    assert all(len(line.split("\t")) == len(heading) for line in following.lines())
    assert following.interrupt() == 130
    assert re.fullmatch(r"registry-drain list: followed for \d+ s, \d changes", following.lines("err")[-1])
    assert len(following.changes()) == 3 + len(others)


def test_json_is_an_object_for_each_change(follow: Follow, registered: RegisterAt, local_url: str) -> None:
    """Each fits the schema; the last line is the command's own document, with what was listed last."""
    one = registered(local_url, "calculator", instance_id="one")
    following = follow(local_url, "--json")
    eventually(lambda: len(following.events()) == 1)
    gone(one)
    eventually(lambda: len(following.events()) == 2)
    registered(local_url, "calculator", port=9091, instance_id="two")
    eventually(lambda: len(following.events()) == 3)
    assert following.interrupt() == 130
    *events, last = following.events()
    assert [(each["event"], each["instance"]["id"]) for each in events] == [
        ("added", "one"),
        ("removed", "one"),
        ("added", "two"),
    ]
    assert (last["status"], [each["id"] for each in last["instances"]]) == (130, ["two"])
    validator = jsonschema.Draft202012Validator(schema_of("list-watch"))
    for each in (*events, last):
        validator.validate(each)


def test_a_terminal_gets_a_table_that_is_drawn_anew(follow: Follow, registered: RegisterAt, local_url: str) -> None:
    """With rich: the same table, in the same place."""
    pytest.importorskip("rich")
    registered(local_url, "calculator", instance_id="one")
    following = follow(local_url, at_terminal=True)
    eventually(lambda: "1 instances" in following.text())
    registered(local_url, "calculator", port=9091, instance_id="two")
    eventually(lambda: "2 instances" in following.text())
    assert "\x1b[2K" in following.text()
    assert following.interrupt() == 130


def test_a_terminal_that_knows_ascii_only(follow: Follow, registered: RegisterAt, local_url: str) -> None:
    """What it cannot show is escaped, and no crash."""
    pytest.importorskip("rich")
    registered(local_url, "büro", instance_id="eins")
    following = follow(local_url, at_terminal=True, PYTHONIOENCODING="ascii")
    eventually(lambda: "b\\xfcro" in following.text())
    assert following.interrupt() == 130


def test_a_reader_that_goes_away_ends_it(registered: RegisterAt, local_url: str) -> None:
    """As ``| head`` does: it ends with the first change that nobody reads."""
    registered(local_url, "calculator", instance_id="one")
    command = f"'{script('registry-drain')}' list {local_url} --watch"
    with subprocess.Popen(["bash", "-c", f"{command} | head -n 1; exit ${{PIPESTATUS[0]}}"], text=True) as process:
        try:
            assert process.wait(60) == 0
        finally:
            process.kill()


@pytest.mark.parametrize("option", ["--timeout=10", "--json"], ids=["lines", "json"])
def test_a_full_disk_ends_it(registered: RegisterAt, local_url: str, option: str) -> None:
    """Nobody would ever see what it goes on to find: it says so, once, and fails."""
    registered(local_url, "calculator", instance_id="one")
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run(
            [script("registry-drain"), "list", local_url, "--watch", option],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1
    assert "No space left" in ended.stderr


@pytest.mark.consul
def test_an_outage_is_told_once(follow: Follow, registered: RegisterAt, consul_agent: ConsulAgent, unique: str) -> None:
    """The last list stands; when the registry is back, what changed meanwhile is told."""
    registered(consul_agent.url, unique, instance_id="one")
    with TcpProxy(consul_agent.http_address) as link:
        url = f"consul://{link.address}"
        following = follow(url, "--service", unique, "--json", "--timeout", "5")
        eventually(lambda: [each["event"] for each in following.events()] == ["added"])
        link.reset()
        eventually(lambda: [each["event"] for each in following.events()] == ["added", "unreachable"])
        # More attempts than one look makes: nothing is said of the next look.
        told_at = link.accepted_connections
        eventually(lambda: link.accepted_connections > told_at + 15, timeout=60)
        assert [each["event"] for each in following.events()] == ["added", "unreachable"]
        registered(consul_agent.url, unique, port=9091, instance_id="two")
        link.pass_through()
        expected = ["added", "unreachable", "reachable", "added"]
        eventually(lambda: [each["event"] for each in following.events()] == expected)
        assert following.interrupt() == 130
    assert "still looking" in following.lines("err")[0]
    validator = jsonschema.Draft202012Validator(schema_of("list-watch"))
    for each in following.events():
        validator.validate(each)


@pytest.mark.zookeeper
def test_a_changed_node_is_a_change(follow: Follow, zookeeper_server: ZooKeeperServer, unique: str) -> None:
    """Somebody writes into it: a tilde, and what it is now."""
    with zookeeper_server.client() as client:
        client.ensure_path(f"/{unique}/calculator")
        path = f"/{unique}/calculator/one"
        data = {"name": "calculator", "id": "one", "address": "10.0.0.7", "port": 9090}
        client.create(path, json.dumps(data).encode())
        following = follow(f"{zookeeper_server.url}/{unique}", "--service", "calculator")
        eventually(lambda: following.changes() == [("+", "one")])
        client.set(path, json.dumps({**data, "port": 9091}).encode())
        eventually(lambda: following.changes() == [("+", "one"), ("~", "one")])
    assert "10.0.0.7:9091" in following.lines()[-1]
    assert following.interrupt() == 130


def test_a_burst_of_changes_is_read_at_a_measured_pace() -> None:
    """However many changes the registry tells of: ten reads a second at most."""
    clock = FakeClock()
    registry = FaultyRegistry(clock)
    reads: list[float] = []
    told: list[WatchCallback] = []

    def entries(_service: str | None, _deadline: Deadline) -> list[RegistryEntry]:
        reads.append(clock.now())
        for tell in told:
            tell(())
        if len(reads) == 10:
            raise KeyboardInterrupt
        return []

    def follow(service: str, deadline: Deadline, on_change: WatchCallback) -> Watch:
        told.append(on_change)
        return FaultyRegistry(clock).watch(service, deadline)

    registry.entries, registry.watch = entries, follow  # type: ignore[method-assign,assignment]
    output = Output("registry-drain list", is_quiet=True)
    ended = ListWatch(registry, Selection(service="calculator"), 10.0, output, {}, clock).run()
    assert ended[0] is ExitStatus.INTERRUPTED
    assert len(reads) == 10
    assert all(later - earlier >= 0.1 - 1e-6 for earlier, later in itertools.pairwise(reads))


def test_a_registry_that_was_never_there(registry_drain: Run) -> None:
    """As without --watch: one line, and status 3."""
    pytest.importorskip("consul")
    ran = registry_drain("list", "consul://127.0.0.1:1", "--watch", "--timeout", "0.3", "--json")
    assert (ran.status, ran.document["instances"]) == (3, [])


def test_waiting_and_watching_do_not_go_together(registry_drain: Run) -> None:
    """One line."""
    ran = registry_drain("list", "local:///tmp", "--watch", "--observe", "--critical-for", "1s")
    assert ran.status == 2
    assert "choose one" in ran.complaint
