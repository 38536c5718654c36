"""``registry-drain demo``: small, on every registry; it leaves nothing behind, however it ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from registry_drain.cli.demo.course import verdict
from registry_drain.cli.demo.fleet import report_in
from registry_drain.cli.demo.load import Sample
from registry_drain.cli.demo.tally import Stop, Tally, percentile
from tests.cli.running import Ran, Run, run_script, script
from tests.support.consul_process import ConsulAgent
from tests.support.processes import eventually
from tests.support.zookeeper_process import ZooKeeperServer

pytest.importorskip("thrift")

SMALL = ("demo", "--instances", "2", "--restarts", "2")


def _check(ran: Ran, restarts: int = 4) -> None:
    assert ran.status == 0, ran
    naive, drained = ran.document["naive"], ran.document["drained"]
    for side in (naive, drained):
        assert side["restarts"] == restarts
        assert side["requests"] > 100
        assert side["stop_longest"] >= side["stop_median"] > 0
        assert side["p99"] > 0
    assert naive["failed"] == sum(naive["failures"].values()) > 0
    assert (drained["failed"], drained["failures"], drained["unclean_reports"]) == (0, {}, [])


@pytest.mark.slow
def test_on_the_embedded_registry() -> None:
    """The naive side fails some requests, the drained side none; the table says so."""
    ran = run_script("registry-drain", *SMALL)
    assert (ran.status, ran.err) == (0, "")
    naive, drained = (
        [int(word) for word in re.findall(rf"^{side} +(\d+) +(\d+) +(\d+)", ran.out, re.MULTILINE)[0]]
        for side in ("naive", "drained")
    )
    assert naive[2] > 0
    assert drained[0] == 4
    assert drained[2] == 0
    assert "not one of them failed" in ran.out


def test_on_consul(consul_agent: ConsulAgent) -> None:
    """The same, and nothing is left in the catalog."""
    _check(run_script("registry-drain", *SMALL, "--registry", consul_agent.url, "--json"))
    assert not [name for name in consul_agent.get("/v1/catalog/services") if "demo" in name]


def test_on_zookeeper(zookeeper_server: ZooKeeperServer, unique: str) -> None:
    """The same, and not even an empty folder is left."""
    url = f"{zookeeper_server.url}/{unique}"
    _check(run_script("registry-drain", *SMALL, "--registry", url, "--json"))
    with zookeeper_server.client() as client:
        assert client.get_children(f"/{unique}") == []


@pytest.mark.slow
def test_for_some_seconds() -> None:
    """Restarts go on for as long as asked, on each side."""
    ran = run_script("registry-drain", "demo", "--instances", "2", "--seconds", "1", "--json")
    assert ran.status == 0
    assert ran.document["naive"]["restarts"] >= 1
    assert ran.document["drained"]["restarts"] >= 1


def test_3_no_registry_there(registry_drain: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, and no process is started (the watch for leaks would see one)."""
    monkeypatch.setattr("registry_drain.cli.demo.fleet.REACH_TIMEOUT", 0.5)
    ran = registry_drain(*SMALL, "--registry", "zookeeper://127.0.0.1:1")
    assert ran.status == 3
    assert "127.0.0.1:1" in ran.complaint


def test_an_instance_that_is_not_listed_says_why(
    registry_drain: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its log, which goes with the demo's directory, tells what keeps it from being registered."""
    monkeypatch.setattr("registry_drain.cli.demo.fleet.START_TIMEOUT", 0.0)
    monkeypatch.setattr("registry_drain.cli.demo.fleet._Process.last_words", lambda _process: "no right to do that")
    ran = registry_drain(*SMALL, "--registry", f"local://{tmp_path}/registry")
    assert ran.status == 1
    assert ran.complaint.endswith("is not listed after 0 s: no right to do that")


def _instances_of(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children]


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # Orphans of a killed demo are the machine's to reap; a zombie is not alive.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)],
    ids=str,
)
def test_no_process_outlives_it(number: int, status: int, tmp_path: Path) -> None:
    """Ctrl-C, SIGTERM and even SIGKILL end every server process, and the temporary directory goes where it can."""
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [script("registry-drain"), "demo", "--seconds", "60"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
    ) as demo:
        try:
            assert demo.stdout is not None
            while "restart 1" not in demo.stdout.readline():
                assert demo.poll() is None
            instances = eventually(lambda: len(found := _instances_of(demo.pid)) >= 2 and found)
            assert isinstance(instances, list)
            demo.send_signal(number)
            _, err = demo.communicate(timeout=60)
        finally:
            demo.kill()
    assert demo.returncode == status
    assert "Traceback" not in err
    eventually(lambda: not any(_is_alive(pid) for pid in instances), because="the server processes are gone")
    if number != signal.SIGKILL:
        assert not list(tmp_path.iterdir())


def _tally(**changes: Any) -> Tally:
    samples = [Sample(float(number), 0.01, "") for number in range(100)]
    tally = Tally.of(samples, [Stop(10.0, 12.0, 0)])
    return Tally(**{**{name: getattr(tally, name) for name in Tally.__slots__}, **changes})


@pytest.mark.parametrize(
    ("drained", "status", "words"),
    [
        (_tally(), 0, "not one of them failed"),
        (_tally(failed=1), 1, "lost 1 of 100"),
        (_tally(requests=0), 1, "nothing is proven"),
        (_tally(unclean_stops=1), 1, "did not stop cleanly"),
    ],
)
def test_the_verdict(drained: Tally, status: int, words: str) -> None:
    """Nothing but a drained side that served, lost nothing and stopped cleanly is a success."""
    assert verdict(drained)[0] == status
    assert words in verdict(drained)[1]


def test_a_tally() -> None:
    """Failures count by kind, latencies of answers only, and those during a stop apart."""
    samples = [
        Sample(0.0, 0.5, ""),
        Sample(1.0, 0.1, ""),
        Sample(9.9, 0.2, ""),  # still under way when the stop begins
        Sample(11.0, 0.3, "refused"),
        Sample(11.5, 9.0, "cut off"),
        Sample(12.5, 0.4, ""),
    ]
    tally = Tally.of(samples, [Stop(10.0, 12.0, 0), Stop(20.0, 23.0, 1, "cut off"), Stop(30.0, 31.0, 0)])
    assert tally == Tally(
        restarts=3,
        requests=6,
        failed=2,
        failures={"refused": 1, "cut off": 1},
        p99=0.5,
        p99_during_stops=0.2,
        stop_median=2.0,
        stop_longest=3.0,
        unclean_stops=1,
        unclean_reports=("cut off",),
    )


def test_what_an_unclean_instance_said() -> None:
    """Its report, from the first line to the last; an instance that was killed made none."""
    report = ["99 ms MainThread: stopped (SIGTERM) in 3 s of 30 s: INCOMPLETE", "  draining 2 s", "  cut off  work()"]
    assert report_in(["1 ms registered", *report]) == "\n".join(report)
    assert report_in([f"line {number}" for number in range(20)]).splitlines() == [
        f"line {number}" for number in range(10, 20)
    ]


def test_an_empty_tally() -> None:
    """Nothing measured is nothing, not zero."""
    tally = Tally.of([], [])
    assert (tally.p99, tally.p99_during_stops, tally.stop_median, tally.stop_longest) == (None, None, None, None)


@pytest.mark.parametrize(
    ("percent", "expected"), [(0, 1), (1, 1), (50, 50), (99, 99), (99.5, 100), (100, 100)], ids=str
)
def test_percentiles_are_nearest_ranks(percent: float, expected: float) -> None:
    """Of 1 to 100, the 99th percentile is 99."""
    assert percentile(range(1, 101), percent) == expected
