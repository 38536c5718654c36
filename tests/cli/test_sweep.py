"""``registry-drain sweep``: what counts as dead, what is left alone, and what is reported."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from registry_drain.clock import Deadline
from registry_drain.registries.base import EntryCheck, RegistryEntry
from registry_drain.testing.faults import REFUSED, UNAVAILABLE, Step
from registry_drain.testing.faulty_registry import FaultyRegistry
from tests.cli.conftest import install
from tests.cli.running import Ran, Run
from tests.support.processes import free_port

AGENT = EntryCheck("serfHealth", "critical", is_own=False, version="5")
DISK = EntryCheck("disk", "critical", is_own=False, version="6")
OWN = EntryCheck("service:one", "critical", version="7")
ONE = RegistryEntry("calculator", "one", "10.0.0.7", 9090, owner="host-a", node="host-a", locator="host-a/one")
DEAD_AGENT = dataclasses.replace(ONE, is_live=False, health="critical", checks=(AGENT,))
NODE = RegistryEntry("calculator", "node", "127.0.0.1", 1, is_ephemeral=False, locator="/services/calculator/node")
QUICK = ("--try-every", "0", "--loopback", "--connect-timeout", "5")


@pytest.fixture(autouse=True)
def _state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def refusing() -> int:
    """Give a port of 127.0.0.1 on which nobody listens."""
    return free_port()


@contextlib.contextmanager
def listener() -> Iterator[int]:
    """Give a port of 127.0.0.1 on which somebody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@contextlib.contextmanager
def silent() -> Iterator[int]:
    """Give a port that answers nothing: its backlog is full, so the kernel drops what else comes."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.socket())
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        address = server.getsockname()
        for _ in range(4):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(address)
        yield address[1]


def kinds(ran: Ran) -> dict[str, list[str]]:
    """Return which evidence was found, by id."""
    return {ghost["instance"]["id"]: [each["kind"] for each in ghost["evidence"]] for ghost in ran.document["ghosts"]}


def one_ghost(ran: Ran) -> dict[str, Any]:
    """Return the only ghost."""
    [ghost] = ran.document["ghosts"]
    assert isinstance(ghost, dict)
    return ghost


def test_it_shows_and_removes_nothing(registry_drain: Run, faulty: FaultyRegistry) -> None:
    """Without --yes it is a dry run; the table says which evidence there is."""
    faulty.cluster.put(DEAD_AGENT)
    ran = registry_drain("sweep", "x://", "--dead-agents")
    assert (ran.status, ran.err) == (0, "")
    heading, row, verdict = ran.out.splitlines()
    assert heading.split("\t") == ["service", "id", "address", "evidence", "result", "locator"]
    assert row.split("\t") == [
        "calculator", "one", "10.0.0.7:9090", "the agent of host-a is dead", "would be removed", "host-a/one",
    ]  # fmt: skip
    assert verdict == "1 ghost among 1 instance; --yes removes it"
    assert len(faulty.cluster.entries()) == 1


def test_yes_removes_and_says_why(registry_drain: Run, faulty: FaultyRegistry) -> None:
    """The report joins evidence and removal."""
    faulty.cluster.put(DEAD_AGENT)
    faulty.cluster.put(dataclasses.replace(ONE, id="two", locator="host-b/two", is_live=True, health="passing"))
    ran = registry_drain("sweep", "x://", "--dead-agents", "--yes", "--json")
    ghost = one_ghost(ran)
    assert ran.status == 0
    assert ghost["evidence"] == [
        {"kind": "dead_agent", "detail": "the agent of host-a is dead", "seconds": None, "tries": None}
    ]
    assert (ghost["outcome"], ghost["removal"]["outcome"], ghost["spared"]) == ("done", "confirmed", None)
    assert "removed 1 of 1 ghost" in ran.document["message"]
    assert [entry.id for entry in faulty.cluster.entries()] == ["two"]


def test_what_will_undo_it_is_said_below_the_table(
    registry_drain: Run, faulty: FaultyRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The registry's word on each removal; of many, for the first ones only."""
    for number in range(5):
        faulty.cluster.put(dataclasses.replace(DEAD_AGENT, id=str(number), locator=f"host-a/{number}"))
    remove = faulty.remove
    monkeypatch.setattr(
        faulty, "remove", lambda *given, **more: dataclasses.replace(remove(*given, **more), detail="x")
    )
    lines = registry_drain("sweep", "x://", "--dead-agents", "--yes").out.splitlines()
    assert lines[6:] == [
        *(f"{number} (10.0.0.7:9090): x" for number in range(3)),
        "... and 2 more: --json tells of each",
        "removed 5 of 5 ghosts among 5 instances",
    ]


def test_nothing_found_is_an_answer(registry_drain: Run, faulty: FaultyRegistry) -> None:
    """Status 0, with --yes, too."""
    faulty.cluster.put(dataclasses.replace(ONE, is_live=True, health="passing"))
    for words in ((), ("--yes",)):
        ran = registry_drain("sweep", "x://", *words)
        assert (ran.status, ran.out) == (0, "0 ghosts among 1 instance\n")


@pytest.mark.parametrize(
    "changes",
    [
        {"checks": (dataclasses.replace(AGENT, status="passing"),)},
        {"checks": (DISK,)},
        {"checks": (dataclasses.replace(AGENT, is_own=True),)},
        {"checks": (OWN,)},
    ],
    ids=["alive", "another check of the node", "a service's check of that name", "its own check"],
)
def test_a_critical_check_is_no_dead_agent(registry_drain: Run, faulty: FaultyRegistry, changes: Any) -> None:
    """Only the agent's own check says that the agent is gone."""
    faulty.cluster.put(dataclasses.replace(DEAD_AGENT, **changes))
    assert kinds(registry_drain("sweep", "x://", "--dead-agents", "--json")) == {}


def test_a_dead_owner_counts_where_nothing_is_checked(registry_drain: Run, faulty: FaultyRegistry) -> None:
    """The registry itself says that nobody keeps it."""
    faulty.cluster.put(dataclasses.replace(ONE, is_live=False))
    assert kinds(registry_drain("sweep", "x://", "--dead-agents", "--json")) == {"one": ["dead_owner"]}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"managed_by": "Nomad"}, "Nomad manages it"),
        ({"is_live": True}, "its owner host-a is alive"),
        ({"service": "consul"}, "consul force-leave host-a"),
    ],
    ids=["managed", "alive", "server"],
)
def test_what_is_left_alone_is_named(registry_drain: Run, faulty: FaultyRegistry, changes: Any, reason: str) -> None:
    """Whatever speaks against it: with the reason, and without being touched."""
    faulty.cluster.put(dataclasses.replace(DEAD_AGENT, **changes))
    ran = registry_drain("sweep", "x://", "--dead-agents", "--yes", "--json")
    ghost = one_ghost(ran)
    assert reason in ghost["spared"]
    assert (ran.status, ghost["outcome"]) == (0, None)
    assert "1 more left alone" in ran.document["message"]
    assert len(faulty.cluster.entries()) == 1


def test_an_address_that_refuses(registry_drain: Run, faulty: FaultyRegistry, refusing: int) -> None:
    """Every try of it, from this host, and both are said."""
    faulty.cluster.put(dataclasses.replace(NODE, port=refusing))
    ran = registry_drain("sweep", "x://", "--unreachable", "--yes", "--json", *QUICK)
    ghost = one_ghost(ran)
    assert ghost["outcome"] == "done"
    [evidence] = ghost["evidence"]
    assert (evidence["kind"], evidence["tries"]) == ("refused", 3)
    assert evidence["detail"].startswith(f"127.0.0.1:{refusing} refused 3 of 3 connections within ")
    assert ran.document["probed"] == {
        "from_host": socket.gethostname(), "addresses": 1, "tries": 3, "connect_timeout": 5.0,
    }  # fmt: skip
    assert socket.gethostname() in ran.document["message"]


def test_an_address_that_accepts(registry_drain: Run, faulty: FaultyRegistry) -> None:
    """It lives, whoever keeps it."""
    with listener() as port:
        faulty.cluster.put(dataclasses.replace(NODE, port=port))
        assert kinds(registry_drain("sweep", "x://", "--unreachable", "--json", *QUICK)) == {}


def test_a_process_that_comes_up_between_two_tries(
    registry_drain: Run, faulty: FaultyRegistry, refusing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was being restarted: the first tries were refused, the last was not."""
    from registry_drain.cli.command.output import Output

    faulty.cluster.put(dataclasses.replace(NODE, port=refusing))
    with socket.socket() as late:
        late.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)

        def remark(_output: Output, line: str) -> None:
            if "3 of 3" in line:
                late.bind(("127.0.0.1", refusing))
                late.listen()

        monkeypatch.setattr(Output, "remark", remark)
        assert kinds(registry_drain("sweep", "x://", "--unreachable", "--json", *QUICK)) == {}


def test_a_further_endpoint_that_accepts(registry_drain: Run, faulty: FaultyRegistry, refusing: int) -> None:
    """One process, several ports: one that answers is enough."""
    with listener() as port:
        faulty.cluster.put(dataclasses.replace(NODE, port=refusing, endpoints=(("127.0.0.1", port),)))
        assert kinds(registry_drain("sweep", "x://", "--unreachable", "--json", *QUICK)) == {}


@pytest.mark.parametrize("changes", [{"is_live": True}, {"is_ephemeral": True}, {"address": ""}, {"port": 0}])
def test_what_is_not_tried(registry_drain: Run, faulty: FaultyRegistry, refusing: int, changes: dict[str, Any]) -> None:
    """A live owner is proof enough, and an unknown address proves nothing."""
    faulty.cluster.put(dataclasses.replace(NODE, port=refusing))
    faulty.cluster.put(dataclasses.replace(NODE, id="other", **{"port": refusing, **changes}))
    ran = registry_drain("sweep", "x://", "--unreachable", "--json", *QUICK)
    assert kinds(ran) == {"node": ["refused"]}


def test_silence_is_weaker(registry_drain: Run, faulty: FaultyRegistry) -> None:
    """It is shown under a name of its own, and removed only by one of its own."""
    with silent() as port:
        faulty.cluster.put(dataclasses.replace(NODE, port=port))
        words = ("x://", "--tries", "2", "--try-every", "0", "--loopback", "--connect-timeout", "0.2", "--json")
        ghost = one_ghost(registry_drain("sweep", *words, "--unreachable", "--yes"))
        assert [each["kind"] for each in ghost["evidence"]] == ["no_answer"]
        assert "did not answer 2 of 2 connections" in ghost["evidence"][0]["detail"]
        assert ghost["spared"] == "this alone is not enough without --no-answer"
        assert len(faulty.cluster.entries()) == 1
        assert one_ghost(registry_drain("sweep", *words, "--no-answer", "--yes"))["outcome"] == "done"
        assert not faulty.cluster.entries()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", "::1", "::ffff:127.0.0.1"])
def test_loopback_is_another_host_elsewhere(
    registry_drain: Run, faulty: FaultyRegistry, refusing: int, host: str
) -> None:
    """Such an address says nothing about an instance on another host, so it is not tried, which is said."""
    faulty.cluster.put(dataclasses.replace(NODE, address=host, port=refusing))
    ran = registry_drain("sweep", "x://", "--unreachable", "--json")
    assert kinds(ran) == {}
    assert "1 loopback address not tried: --loopback does" in ran.document["message"]


def test_a_name_that_nobody_knows_proves_little(registry_drain: Run, faulty: FaultyRegistry) -> None:
    """Other hosts may know it."""
    faulty.cluster.put(dataclasses.replace(NODE, address="no-such-host.invalid", port=9090))
    ran = registry_drain("sweep", "x://", "--unreachable", "--json", *QUICK)
    assert kinds(ran) == {"node": ["no_answer"]}


def test_what_changed_while_addresses_were_tried_lives(
    registry_drain: Run, faulty: FaultyRegistry, refusing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Registered anew during the tries: no ghost any more."""
    from registry_drain.cli.command.output import Output

    entry = dataclasses.replace(NODE, port=refusing)
    faulty.cluster.put(entry)
    monkeypatch.setattr(Output, "remark", lambda *_: faulty.cluster.put(entry))
    assert kinds(registry_drain("sweep", "x://", "--unreachable", "--yes", "--json", *QUICK)) == {}
    assert len(faulty.cluster.entries()) == 1


def test_critical_for_needs_a_second_run_or_patience(registry_drain: Run, faulty: FaultyRegistry) -> None:
    """The first run knows nothing, and says so; --observe looks for as long as it takes."""
    faulty.cluster.put(dataclasses.replace(ONE, is_live=False, health="critical", checks=(OWN,)))
    ran = registry_drain("sweep", "x://", "--critical-for", "0.3", "--yes", "--json")
    assert (ran.status, ran.document["ghosts"]) == (0, [])
    assert "seen critical for 0s so far: run again in 1s, or with --observe" in ran.document["message"]
    ghost = one_ghost(registry_drain("sweep", "x://", "--critical-for", "0.3", "--observe", "--yes", "--json"))
    [evidence] = ghost["evidence"]
    assert evidence["kind"] == "critical"
    assert evidence["seconds"] >= 0.3
    assert evidence["detail"].endswith(" by service:one")
    assert ghost["outcome"] == "done"


def test_without_a_choice_it_looks_for_dead_agents_and_closed_ports(
    registry_drain: Run, faulty: FaultyRegistry, refusing: int
) -> None:
    """What needs no memory of earlier runs, and proves enough."""
    faulty.cluster.put(dataclasses.replace(DEAD_AGENT, address="127.0.0.1"))
    faulty.cluster.put(dataclasses.replace(NODE, port=refusing))
    ran = registry_drain("sweep", "x://", "--json", *QUICK, "--tries", "1")
    assert {ghost["instance"]["id"]: ghost["spared"] for ghost in ran.document["ghosts"]} == {"node": None, "one": None}


def test_evidence_adds_up(registry_drain: Run, faulty: FaultyRegistry, refusing: int) -> None:
    """Everything that was found is reported, be one of it enough."""
    faulty.cluster.put(dataclasses.replace(DEAD_AGENT, address="127.0.0.1", port=refusing))
    ran = registry_drain("sweep", "x://", "--dead-agents", "--unreachable", "--json", *QUICK)
    assert kinds(ran) == {"one": ["dead_agent", "refused"]}


def test_no_more_than_max(registry_drain: Run, faulty: FaultyRegistry) -> None:
    """More than expected: nothing is removed; a dry run says it too."""
    for number in range(3):
        faulty.cluster.put(dataclasses.replace(DEAD_AGENT, id=str(number), locator=f"host-a/{number}"))
    ran = registry_drain("sweep", "x://", "--dead-agents", "--max", "2", "--yes", "--json")
    assert (ran.status, ran.document["outcome"]) == (2, "bad_usage")
    assert "nothing was removed: 3 instances fit, and --max allows 2" in ran.complaint
    assert len(faulty.cluster.entries()) == 3
    assert "more than the 2 of --max" in registry_drain("sweep", "x://", "--dead-agents", "--max", "2").out
    assert registry_drain("sweep", "x://", "--dead-agents", "--max", "3", "--yes", "--quiet").status == 0
    assert not faulty.cluster.entries()


def test_the_last_that_looks_healthy_needs_force(registry_drain: Run, faulty: FaultyRegistry, refusing: int) -> None:
    """The registry says it is well, and this host cannot reach it: that may be this host's fault."""
    faulty.cluster.put(dataclasses.replace(NODE, port=refusing, health="passing"))
    words = ("sweep", "x://", "--unreachable", "--yes", *QUICK)
    ran = registry_drain(*words)
    assert ran.status == 7
    assert "without a healthy instance" in ran.complaint
    assert registry_drain(*words, "--force").status == 0


def test_one_that_is_refused_spares_no_other(registry_drain: Run, faulty: FaultyRegistry) -> None:
    """The worst outcome is the status, and the line names whose it was."""
    for number in range(3):
        faulty.cluster.put(dataclasses.replace(DEAD_AGENT, id=str(number), locator=f"host-a/{number}"))
    faulty.faults.add(Step.DELETE, REFUSED, skip=1, times=1)
    ran = registry_drain("sweep", "x://", "--dead-agents", "--yes", "--json")
    assert ran.status == 7
    outcomes = [ghost["outcome"] for ghost in ran.document["ghosts"]]
    assert outcomes == ["done", "refused", "done"]
    assert "removed 2 of 3 ghosts; " in ran.complaint
    assert "1 (10.0.0.7:9090)" in ran.complaint


def test_out_of_reach(registry_drain: Run, faulty: FaultyRegistry) -> None:
    """One line, nothing removed, the members of the document all the same."""
    faulty.faults.add(None, UNAVAILABLE)
    ran = registry_drain("sweep", "x://", "--timeout", "0.2", "--json")
    assert (ran.status, ran.document["ghosts"]) == (3, [])
    assert ran.complaint.startswith("registry-drain sweep: nothing was removed: ")


def test_gone_already_is_what_was_wanted(
    registry_drain: Run, faulty: FaultyRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else was faster."""
    from registry_drain.errors import InstanceNotFoundError

    def remove(entry: RegistryEntry, _deadline: Deadline, *, force: bool = False) -> None:
        raise InstanceNotFoundError(f"{entry} is gone {force}")

    faulty.cluster.put(DEAD_AGENT)
    monkeypatch.setattr(faulty, "remove", remove)
    ran = registry_drain("sweep", "x://", "--dead-agents", "--yes", "--json")
    assert (ran.status, one_ghost(ran)["outcome"]) == (0, "not_found")


def test_it_says_who_brought_one_back(registry_drain: Run, faulty: FaultyRegistry) -> None:
    """--watch-back looks on."""
    faulty.cluster.put(DEAD_AGENT)
    done = threading.Event()

    def bring_back() -> None:
        deadline = Deadline.after(30.0)
        with faulty.cluster.changed:
            while faulty.cluster.records and not deadline.is_past:
                faulty.cluster.changed.wait(0.05)
        faulty.cluster.put(dataclasses.replace(DEAD_AGENT, owner="host-b"))
        done.set()

    thread = threading.Thread(target=bring_back)
    thread.start()
    ran = registry_drain("sweep", "x://", "--dead-agents", "--yes", "--watch-back", "20", "--json")
    thread.join()
    assert done.is_set()
    ghost = one_ghost(ran)
    assert (ran.status, ghost["status"], ghost["outcome"]) == (5, 5, "came_back")
    assert ghost["watched_back"]["returned"]["owner"] == "host-b"
    assert "host-b" in ghost["watched_back"]["brought_back_by"]["who"]


def test_an_interruption_says_how_far_it_came(
    registry_drain: Run, faulty: FaultyRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the third removal, after it took effect: looked at once more, and a second run finishes."""
    for number in range(5):
        faulty.cluster.put(dataclasses.replace(DEAD_AGENT, id=str(number), locator=f"host-a/{number}"))
    remove, removed = faulty.remove, []

    def interrupted(entry: RegistryEntry, deadline: Deadline, *, force: bool = False) -> Any:
        result = remove(entry, deadline, force=force)
        removed.append(entry.id)
        if len(removed) == 3:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(faulty, "remove", interrupted)
    ran = registry_drain("sweep", "x://", "--dead-agents", "--yes", "--json")
    assert ran.status == 130
    assert [ghost["outcome"] for ghost in ran.document["ghosts"]] == ["done"] * 3 + ["interrupted"] * 2
    assert "interrupted: removed 3 of 5 ghosts; sweep again to finish" in ran.complaint
    assert len(faulty.cluster.entries()) == 2
    assert registry_drain("sweep", "x://", "--dead-agents", "--yes").status == 0
    assert not faulty.cluster.entries()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--service", ""), "--service is empty"),
        (("--observe",), "--observe is for --critical-for"),
        (("--critical-for", "soon"), "'soon' is no duration"),
        (("--tries", "0"), "'0' is not a whole number"),
        (("--connect-timeout", "0"), "no time at all"),
        (("--json", "--quiet"), "not allowed with"),
    ],
)
def test_bad_arguments(registry_drain: Run, faulty: FaultyRegistry, words: tuple[str, ...], complaint: str) -> None:
    """One line, and the registry is not asked."""
    ran = registry_drain("sweep", "x://", *words)
    assert ran.status == 2
    assert complaint in ran.complaint
    assert not faulty.requests


def test_an_unused_registry_is_swept_of_nothing(registry_drain: Run, local_url: str) -> None:
    """Nothing registered is no error."""
    assert registry_drain("sweep", local_url).out == "0 ghosts among 0 instances\n"


def test_its_document_has_all_members_always(
    registry_drain: Run, faulty: FaultyRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On failures too."""
    install(faulty, monkeypatch)
    members = set(registry_drain("sweep", "x://", "--json").document)
    assert members == set(json.loads(registry_drain("sweep", "--json").out))
