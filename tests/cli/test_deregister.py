"""``deregister`` on the embedded registry, and on one that fails on request, for what no real one does when asked."""

from __future__ import annotations

import dataclasses
import fcntl
import signal
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from registry_drain.clock import Deadline
from registry_drain.errors import LiveOwnerError, PermissionRefusedError
from registry_drain.registries.base import RegistryEntry, Removal, RemovalOutcome
from registry_drain.registries.url import open_registry
from registry_drain.testing.faults import HANG, LIE, REFUSED, REPLY_LOST, UNAVAILABLE, Step
from registry_drain.testing.faulty_registry import FaultyRegistry
from tests.cli.conftest import RegisterAt, install
from tests.cli.running import Run
from tests.support.processes import eventually

GHOST = RegistryEntry("calculator", "ghost", "10.0.0.7", 9090, owner="host-a", is_live=False, locator="a/ghost")
LIVE = dataclasses.replace(GHOST, id="live", port=9091, is_live=True, locator="a/live")
WHICH = ("x://", "--service", "calculator", "--id", "ghost")


def _listed(url: str, service: str) -> list[str]:
    return [entry.id for entry in open_registry(url).entries(service, Deadline.after(10.0))]


# --- the embedded registry --------------------------------------------------------------------------------------------


def test_0_removes_proves_and_watches(deregister: Run, registered: RegisterAt, local_url: str, unique: str) -> None:
    """Gone, looked for again, and said in one line."""
    registered(local_url, unique, instance_id="one")
    registered(local_url, unique, instance_id="two", port=9091)
    ran = deregister(local_url, "--service", unique, "--id", "one", "--force", "--watch-back", "0.3")
    assert ran.status == 0
    assert ran.err == ""
    assert ran.out.count("\n") == 1
    assert "one (127.0.0.1:9090)" in ran.out
    assert "did not come back within 0.3 s" in ran.out
    assert _listed(local_url, unique) == ["two"]


def test_0_by_address(deregister: Run, registered: RegisterAt, local_url: str, unique: str) -> None:
    """The address alone is enough."""
    registered(local_url, unique, instance_id="one")
    assert deregister(local_url, "--service", unique, "--address", "127.0.0.1:9090", "--force").status == 0
    assert _listed(local_url, unique) == []


def test_quiet_writes_nothing(deregister: Run, registered: RegisterAt, local_url: str, unique: str) -> None:
    """The status says it all."""
    registered(local_url, unique, instance_id="one")
    ran = deregister(local_url, "--service", unique, "--id", "one", "--force", "--quiet")
    assert (ran.status, ran.out, ran.err) == (0, "", "")


def test_ctrl_c_while_it_hangs_up(deregister: Run, faulty: FaultyRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was done is told, and its status, although somebody could not wait for the end any more."""
    faulty.cluster.put(GHOST)
    hung_up = []

    def close() -> None:
        hung_up.append(True)
        raise KeyboardInterrupt

    monkeypatch.setattr(faulty, "close", close)
    ran = deregister(*WHICH)
    assert hung_up
    assert ran.status == 0
    assert "proven to be gone" in ran.out


def test_a_dry_run_removes_nothing(deregister: Run, registered: RegisterAt, local_url: str, unique: str) -> None:
    """It says what would go, and what that would take; the instance stays."""
    registered(local_url, unique, instance_id="one")
    ran = deregister(local_url, "--service", unique, "--id", "one", "--dry-run")
    assert ran.status == 0
    assert ran.out.startswith("would remove one (127.0.0.1:9090)")
    assert "--force" in ran.out
    assert _listed(local_url, unique) == ["one"]


def test_a_dry_run_that_finds_nothing(deregister: Run, local_url: str) -> None:
    """Status 4, as without it."""
    assert deregister(local_url, "--service", "x", "--id", "y", "--dry-run").status == 4


def test_3_the_directory_is_locked(deregister: Run, registered: RegisterAt, local_url: str, unique: str) -> None:
    """Who cannot get at the registry in time says so, and that nothing was removed."""
    registered(local_url, unique, instance_id="one")
    lock = Path(local_url.removeprefix("local://")) / ".lock"
    with lock.open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        ran = deregister(local_url, "--service", unique, "--id", "one", "--force", "--timeout", "0.3")
    assert ran.status == 3
    assert "nothing was removed" in ran.complaint
    assert _listed(local_url, unique) == ["one"]


def test_4_names_what_there_is(deregister: Run, registered: RegisterAt, local_url: str, unique: str) -> None:
    """A typing error is seen at a glance."""
    registered(local_url, unique, instance_id="calculator-1")
    ran = deregister(local_url, "--service", unique, "--id", "calculator-l", "--force")
    assert ran.status == 4
    assert "listed: calculator-1 (127.0.0.1:9090)" in ran.complaint


def test_5_says_who_brought_it_back(deregister: Run, registered: RegisterAt, local_url: str, unique: str) -> None:
    """An owner that registers again whenever it is missing is caught and named."""
    registered(local_url, unique, instance_id="one")
    stopped = threading.Event()

    def bring_back() -> None:
        while not stopped.wait(0.02):
            if not _listed(local_url, unique):
                registered(local_url, unique, instance_id="one")
                return

    owner = threading.Thread(target=bring_back)
    owner.start()
    try:
        ran = deregister(local_url, "--service", unique, "--id", "one", "--force", "--watch-back", "20")
    finally:
        stopped.set()
        owner.join()
    assert ran.status == 5
    assert "process" in ran.complaint
    assert "stop that owner" in ran.complaint


def test_7_a_live_owner_is_left_alone(deregister: Run, registered: RegisterAt, local_url: str, unique: str) -> None:
    """Refused, with the owner's name and the way to do it all the same."""
    registered(local_url, unique, instance_id="one")
    ran = deregister(local_url, "--service", unique, "--id", "one")
    assert ran.status == 7
    assert "nothing was removed" in ran.complaint
    assert "process" in ran.complaint
    assert "--force" in ran.complaint
    assert _listed(local_url, unique) == ["one"]


# --- a registry that fails on request ---------------------------------------------------------------------------------


def test_2_several_fit(deregister: Run, faulty: FaultyRegistry) -> None:
    """Which one is meant is for the operator to say; nothing is removed, and all are named."""
    faulty.cluster.put(GHOST)
    faulty.cluster.put(dataclasses.replace(GHOST, id="twin", locator="a/twin"))
    ran = deregister("x://", "--service", "calculator", "--address", "10.0.0.7:9090")
    assert ran.status == 2
    assert "a/ghost" in ran.complaint
    assert "a/twin" in ran.complaint
    assert len(faulty.cluster.entries()) == 2


def test_the_first_read_is_tried_again(deregister: Run, faulty: FaultyRegistry) -> None:
    """A leader election in the wrong moment costs some milliseconds, not the command."""
    faulty.cluster.put(GHOST)
    faulty.faults.add(Step.READ, UNAVAILABLE, times=3)
    assert deregister(*WHICH).status == 0


@pytest.mark.parametrize("fault", [UNAVAILABLE, HANG], ids=repr)
def test_3_unreachable(deregister: Run, faulty: FaultyRegistry, fault: object) -> None:
    """Out of reach or silent for the whole time: nothing was removed, and the message says so."""
    faulty.cluster.put(GHOST)
    faulty.faults.add(Step.READ, fault)  # type: ignore[arg-type]
    ran = deregister(*WHICH, "--timeout", "0.3")
    assert ran.status == 3
    assert "nothing was removed" in ran.complaint
    assert "--timeout" in ran.complaint
    assert faulty.cluster.entries()


def test_3_acknowledged_and_not_done(deregister: Run, faulty: FaultyRegistry) -> None:
    """A registry that answers "removed" and goes on listing is not believed."""
    faulty.cluster.put(GHOST)
    faulty.faults.add(Step.DELETE, LIE)
    ran = deregister(*WHICH, "--timeout", "0.5")
    assert ran.status == 3
    assert "may have been removed or not" in ran.complaint


def test_0_the_answer_was_lost(deregister: Run, faulty: FaultyRegistry) -> None:
    """A removal that took effect is a success, whatever became of its answer."""
    faulty.cluster.put(GHOST)
    faulty.faults.add(Step.DELETE, REPLY_LOST, times=1)
    assert deregister(*WHICH).status == 0
    assert not faulty.cluster.entries()


def test_7_not_allowed_to_look(deregister: Run, faulty: FaultyRegistry) -> None:
    """An empty list that proves nothing is a refusal, not "no such instance"."""
    faulty.faults.add(Step.READ, REFUSED)
    ran = deregister(*WHICH)
    assert ran.status == 7
    assert "nothing was removed" in ran.complaint


def test_7_not_allowed_to_remove(deregister: Run, faulty: FaultyRegistry) -> None:
    """It is still there."""
    faulty.cluster.put(GHOST)
    faulty.faults.add(Step.DELETE, REFUSED)
    assert deregister(*WHICH).status == 7
    assert faulty.cluster.entries()


class _Scripted(FaultyRegistry):
    """Answers a removal with what the test says, after doing what the test says."""

    def __init__(self, removal: RemovalOutcome | BaseException, successor: RegistryEntry | None = None) -> None:
        super().__init__()
        self.cluster.put(GHOST)
        self._removal, self._successor = removal, successor

    def remove(self, entry: RegistryEntry, deadline: Deadline, *, force: bool = False) -> Removal:
        if isinstance(self._removal, BaseException):
            raise self._removal
        super().remove(entry, deadline, force=force)
        if self._successor is not None:
            self.cluster.put(self._successor)
        return Removal(str(entry), self.url, self._removal, "as the test asked", 1)


def test_6_unverifiable(deregister: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A removal that nobody may look at is neither a success nor a failure."""
    install(_Scripted(RemovalOutcome.UNVERIFIABLE), monkeypatch)
    ran = deregister(*WHICH)
    assert ran.status == 6
    assert "as the test asked" in ran.complaint


def test_6_stays_6_when_nobody_may_watch_either(deregister: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not being allowed to look afterwards does not turn an accepted removal into a refused one."""
    registry = _Scripted(RemovalOutcome.UNVERIFIABLE)
    registry.faults.add(Step.READ, REFUSED, skip=3)  # find; look and prove; watch back
    install(registry, monkeypatch)
    ran = deregister(*WHICH, "--watch-back", "1")
    assert ran.status == 6
    assert "cannot be seen" in ran.complaint


def test_3_gone_and_then_blind(deregister: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asked for a look afterwards and did not get it is told, and told that the removal itself was proven."""
    registry = _Scripted(RemovalOutcome.CONFIRMED)
    registry.faults.add(Step.READ, UNAVAILABLE, skip=3)
    install(registry, monkeypatch)
    ran = deregister(*WHICH, "--watch-back", "0.3")
    assert ran.status == 3
    assert "proven to be gone" in ran.complaint
    assert "cannot be seen" in ran.complaint


def test_5_replaced_in_the_same_moment(deregister: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A successor that the proof itself runs into is named, without --watch-back."""
    back = dataclasses.replace(GHOST, owner="host-z")
    install(_Scripted(RemovalOutcome.SUCCESSOR, back), monkeypatch)
    ran = deregister(*WHICH)
    assert ran.status == 5
    assert "host-z" in ran.complaint


def test_5_replaced_and_gone_again(deregister: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A successor that nobody finds any more is told all the same."""
    install(_Scripted(RemovalOutcome.SUCCESSOR), monkeypatch)
    ran = deregister(*WHICH)
    assert ran.status == 5
    assert "came back at once" in ran.complaint
    assert "did not come back" not in ran.complaint


def test_7_refused_half_way(deregister: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Accepted first and refused then: still there."""
    install(_Scripted(RemovalOutcome.REFUSED), monkeypatch)
    ran = deregister(*WHICH)
    assert ran.status == 7
    assert "was not removed" in ran.complaint


def test_70_a_bug_is_one_line(deregister: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a plug-in raises, the operator reads a line, and a developer can ask for the rest."""
    install(_Scripted(ZeroDivisionError("broken\nplug-in")), monkeypatch)
    ran = deregister(*WHICH)
    assert ran.status == 70
    assert "ZeroDivisionError: broken\\nplug-in" in ran.complaint
    assert "--debug" in ran.complaint
    assert "Traceback (most recent call last)" in deregister(*WHICH, "--debug").err


@pytest.mark.parametrize(
    ("moment", "message"),
    [("find", "nothing was removed"), ("remove", "may have been removed or not"), ("watch", "not watched to the end")],
)
def test_130_says_what_was_done(deregister: Run, monkeypatch: pytest.MonkeyPatch, moment: str, message: str) -> None:
    """After Ctrl-C nobody has to wonder how far it came."""

    class Interrupted(FaultyRegistry):
        looks = 0

        def entries(self, service: str | None, deadline: Deadline) -> Sequence[RegistryEntry]:
            self.looks += 1
            if (moment, self.looks) in {("find", 1), ("watch", 2)}:
                signal.raise_signal(signal.SIGINT)
            return super().entries(service, deadline)

        def remove(self, entry: RegistryEntry, deadline: Deadline, *, force: bool = False) -> Removal:
            if moment == "remove":
                signal.raise_signal(signal.SIGINT)
            return super().remove(entry, deadline, force=force)

    registry = Interrupted()
    registry.cluster.put(GHOST)
    install(registry, monkeypatch)
    ran = deregister(*WHICH, "--watch-back", "5")
    assert ran.status == 130
    assert message in ran.complaint


def test_a_hostile_name_stays_on_its_line(deregister: Run, faulty: FaultyRegistry) -> None:
    """What others wrote into the registry moves no cursor and forges no line."""
    faulty.cluster.put(dataclasses.replace(GHOST, id="\x1b[2J\nremoved everything\u202e"))
    ran = deregister("x://", "--service", "calculator", "--id", "other")
    assert ran.status == 4
    assert "\x1b" not in ran.complaint
    assert "\\x1b[2J\\nremoved everything\\u202e" in ran.complaint


def test_the_registry_is_closed(deregister: Run, faulty: FaultyRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """On success and on failure."""
    closed: list[str] = []
    monkeypatch.setattr(faulty, "close", lambda: closed.append("closed"))
    deregister(*WHICH)
    faulty.faults.add(Step.READ, REFUSED)
    deregister(*WHICH)
    assert closed == ["closed", "closed"]


def test_a_live_entry_is_removed_by_force(deregister: Run, faulty: FaultyRegistry) -> None:
    """--force is handed to the registry, and only then."""
    faulty.cluster.put(LIVE)
    words = ("x://", "--service", "calculator", "--id", "live")
    assert deregister(*words).status == 7
    assert deregister(*words, "--force").status == 0
    eventually(lambda: not faulty.cluster.entries())


def test_7_force_is_offered_where_it_helps(deregister: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was registered anew is not removed by force either, so that nobody is sent there."""
    install(_Scripted(LiveOwnerError("registered anew since it was shown")), monkeypatch)
    assert "--force" not in deregister(*WHICH).complaint
    install(_Scripted(LiveOwnerError("it lives", yields_to_force=True)), monkeypatch)
    assert "it lives; or use --force" in deregister(*WHICH).complaint


def test_permission_lost_while_watching(deregister: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gone and proven, but then not allowed to look: unverifiable."""

    class Revoked(FaultyRegistry):
        looks = 0

        def entries(self, service: str | None, deadline: Deadline) -> Sequence[RegistryEntry]:
            self.looks += 1
            if self.looks > 1:
                raise PermissionRefusedError("the token was revoked")
            return super().entries(service, deadline)

    registry = Revoked()
    registry.cluster.put(GHOST)
    install(registry, monkeypatch)
    ran = deregister(*WHICH, "--watch-back", "5")
    assert ran.status == 6
    assert "the token was revoked" in ran.complaint
