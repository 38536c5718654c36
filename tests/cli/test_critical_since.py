"""How long an instance has been critical: in doubt less, whatever clocks, files and other runs do."""

from __future__ import annotations

import dataclasses
import json
import stat
import threading
from pathlib import Path

import pytest

from registry_drain.cli.choosing.critical_since import CriticalSince
from registry_drain.cli.choosing.moment import Moment
from registry_drain.cli.choosing.observation import observed, too_young
from registry_drain.cli.choosing.state_file import StateFile
from registry_drain.cli.command.duration import duration
from registry_drain.cli.command.output import Output
from registry_drain.clock import SYSTEM_CLOCK
from registry_drain.errors import ConfigurationError
from registry_drain.registries.base import EntryCheck, RegistryEntry

CHECK = EntryCheck("service:one", "critical", version="7")
HTTP = EntryCheck("service:one", "critical", version="7", kind="http")
NODE = EntryCheck("serfHealth", "critical", is_own=False, version="9")
ONE = RegistryEntry(
    "calculator", "one", "10.0.0.7", 9090, health="critical", locator="a/one", version="3", checks=(CHECK,)
)
WELL = dataclasses.replace(ONE, health="passing", checks=(dataclasses.replace(CHECK, status="passing"),))


def changed(*checks: EntryCheck) -> RegistryEntry:
    """Return the same instance, critical by other checks."""
    return dataclasses.replace(ONE, checks=checks)


def at(seconds: float, *, boot: str = "boot", wall: float | None = None) -> Moment:
    """Return an instant of one boot; the wall clock agrees unless told otherwise."""
    return Moment(1_700_000_000.0 + (seconds if wall is None else wall), boot, 500.0 + seconds)


def look(since: CriticalSince, seconds: float, *entries: RegistryEntry) -> float | None:
    """Note a look that took no time; return the first entry's age."""
    since.note(entries, at(seconds), at(seconds))
    return since.age(entries[0])


@pytest.fixture
def file(tmp_path: Path) -> StateFile:
    """Give a place that no run has used."""
    return StateFile(tmp_path / "state" / "seen.json")


def test_what_stays_as_it_is_grows_older(file: StateFile) -> None:
    """The first look proves nothing yet; each later one counts from the first, in other runs, too."""
    assert look(CriticalSince(file), 0, ONE) == 0
    assert look(CriticalSince(file), 60, ONE) == 60
    again = CriticalSince(file)
    assert look(again, 600, ONE) == 600
    assert again.is_critical_for(ONE, 600)
    assert not again.is_critical_for(ONE, 600.1)


@pytest.mark.parametrize(
    "other",
    [
        changed(dataclasses.replace(CHECK, version="8")),
        changed(dataclasses.replace(CHECK, id="service:two")),
        changed(dataclasses.replace(CHECK, version="")),
        changed(),
        dataclasses.replace(ONE, version="4"),
        dataclasses.replace(ONE, locator="b/one"),
        dataclasses.replace(ONE, service="other"),
    ],
    ids=["changed", "another check", "no version", "no check", "registered anew", "elsewhere", "another service"],
)
def test_what_changed_starts_again(file: StateFile, other: RegistryEntry) -> None:
    """A check that changed may have passed in between; another registration is another instance."""
    look(CriticalSince(file), 0, ONE)
    assert look(CriticalSince(file), 600, other) == 0


def test_a_change_between_close_looks_does_not_count(file: StateFile) -> None:
    """No check passes and fails again within a second; seen from the first look's beginning to the second one's end."""
    for number in range(20):
        age = look(CriticalSince(file), number * 0.9, changed(dataclasses.replace(HTTP, version=str(number))))
    assert age == pytest.approx(19 * 0.9)
    another = changed(dataclasses.replace(HTTP, id="service:two"))
    assert look(CriticalSince(file), 19 * 0.9 + 0.5, another) == 0, "another check was not critical before"


@pytest.mark.parametrize("kind", ["ttl", "", "alias"])
def test_only_what_an_agent_runs_is_known_to_take_its_time(file: StateFile, kind: str) -> None:
    """A service that reports its own check may say passing and critical in one breath."""
    look(CriticalSince(file), 0, changed(dataclasses.replace(HTTP, kind=kind)))
    assert look(CriticalSince(file), 0.5, changed(dataclasses.replace(HTTP, kind=kind, version="8"))) == 0


@pytest.mark.parametrize(
    ("asked", "answered", "boot"),
    [(0.9, 1.2, "boot"), (1.1, 1.1, "boot"), (0.5, 0.5, "another boot"), (0.5, 0.5, "")],
    ids=["a slow look", "a late one", "after a reboot", "no boot is known"],
)
def test_a_change_between_looks_that_may_be_further_apart_counts(
    file: StateFile, asked: float, answered: float, boot: str
) -> None:
    """Whatever the wall clock says."""
    look(CriticalSince(file), 0, changed(HTTP))
    since = CriticalSince(file)
    other = changed(dataclasses.replace(HTTP, version="8"))
    since.note([other], at(asked, boot=boot), at(answered, boot=boot))
    assert since.age(other) == 0


def test_recovering_starts_again(file: StateFile) -> None:
    """Seen well in between: not even an index that is the same by chance makes it older."""
    look(CriticalSince(file), 0, ONE)
    assert look(CriticalSince(file), 30, WELL) is None
    assert look(CriticalSince(file), 60, ONE) == 0


def test_one_unbroken_check_is_enough(file: StateFile) -> None:
    """While one of two checks stays as it is, the instance cannot have been well; the checks may take turns."""
    two = dataclasses.replace(CHECK, version="8")
    look(CriticalSince(file), 0, changed(CHECK))
    assert look(CriticalSince(file), 10, changed(CHECK, NODE)) == 10
    assert look(CriticalSince(file), 20, changed(two, NODE)) == 20
    assert look(CriticalSince(file), 30, changed(two)) == 30


def test_reading_is_no_proof(file: StateFile) -> None:
    """What a read took does not count: it may have become critical at its end, and was seen again at its beginning."""
    since = CriticalSince(file)
    since.note([ONE], at(0), at(10))
    since.note([ONE], at(60), at(75))
    assert since.age(ONE) == 50


def test_others_are_left_alone(file: StateFile) -> None:
    """A look at one service makes nobody forget another one."""
    two = dataclasses.replace(ONE, service="two")
    look(CriticalSince(file), 0, ONE, two)
    look(CriticalSince(file), 60, two)
    assert look(CriticalSince(file), 100, ONE) == 100


def test_a_clock_that_is_set_makes_nothing_older(file: StateFile) -> None:
    """Within a boot the wall clock does not count at all."""
    since = CriticalSince(file)
    for seconds, wall in ((0, 0.0), (10, 86_400.0), (20, -86_400.0), (30, 0.0)):
        moment = at(seconds, wall=wall)
        since.note([ONE], moment, moment)
    assert since.age(ONE) == 30


def test_after_a_reboot_the_wall_clock_counts_forwards_only(file: StateFile) -> None:
    """Set back and then right again, the same hour is not counted twice."""
    ages = []
    for number, wall in enumerate((0.0, 100.0, -3600.0, 110.0)):
        moment = at(0, boot=f"boot {number}", wall=wall)
        since = CriticalSince(file)
        since.note([ONE], moment, moment)
        ages.append(since.age(ONE))
    assert ages == [0, 100, 100, 110]


def test_after_a_reboot_into_the_past_time_goes_on(file: StateFile) -> None:
    """A host without a clock of its own: what passes within the new boot counts, and nothing else."""
    look(CriticalSince(file), 100, ONE)
    since = CriticalSince(file)
    for seconds in (10.0, 60.0):
        moment = at(seconds, boot="without a battery", wall=-86_400.0 + seconds)
        since.note([ONE], moment, moment)
    assert since.age(ONE) == 50


def test_a_look_that_was_overtaken_does_no_harm(file: StateFile) -> None:
    """A slower run writes after a quicker one that looked later."""
    look(CriticalSince(file), 0, ONE)
    look(CriticalSince(file), 100, ONE)
    assert look(CriticalSince(file), 50, ONE) == 100
    assert look(CriticalSince(file), 110, ONE) == 110


RECORD = {"key": ["s", "i", "v"], "seconds": 5.0, "seen": [1.0, "b", 2.0], "checks": {}}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\x00\xff",
        "null",
        "[" * 100_000,
        '{"format": 2, "critical": []}',
        '{"format": 1, "critical": 7}',
        json.dumps({"format": 1, "critical": [7, {}, RECORD | {"key": ["s"]}, RECORD | {"checks": {"a": 1}}]}),
        json.dumps({"format": 1, "critical": [RECORD | {"seconds": float("inf")}, RECORD | {"seconds": -1}]}),
        json.dumps({"format": 1, "critical": [RECORD | {"seen": [float("nan"), "b", 1]}, RECORD | {"seen": 3}]}),
    ],
    ids=range(9),
)
def test_garbage_counts_as_nothing(file: StateFile, text: str) -> None:
    """It is replaced, and a whole record among it still counts."""
    file.path.parent.mkdir()
    file.path.write_text(text, encoding="latin-1")
    assert look(CriticalSince(file), 0, ONE) == 0
    assert look(CriticalSince(file), 5, ONE) == 5


def test_good_records_survive_bad_neighbours(file: StateFile) -> None:
    """One line that cannot be read loses one instance, not all."""
    look(CriticalSince(file), 0, ONE)
    content = json.loads(file.path.read_text())
    content["critical"].insert(0, "junk")
    file.path.write_text(json.dumps(content))
    assert look(CriticalSince(file), 5, ONE) == 5


def test_only_the_user_may_read_it(file: StateFile) -> None:
    """It tells what somebody operates."""
    look(CriticalSince(file), 0, ONE)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (file.path, file.path.parent)}
    assert modes == {"seen.json": 0o600, "state": 0o700}
    assert sorted(path.name for path in file.path.parent.iterdir()) == ["seen.json", "seen.lock"]


def test_runs_at_once_lose_nothing(file: StateFile) -> None:
    """Each of them adds its own instance to what the others have written."""
    begin = threading.Barrier(8)

    def run(number: int) -> None:
        begin.wait(10)
        look(CriticalSince(file), 0, dataclasses.replace(ONE, service=str(number)))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert look(CriticalSince(file), 10, *(dataclasses.replace(ONE, service=str(number)) for number in range(8))) == 10
    assert len(json.loads(file.path.read_text())["critical"]) == 8
    since = CriticalSince(file)
    assert {look(since, 20, dataclasses.replace(ONE, service=str(number))) for number in range(8)} == {20.0}


def test_what_was_not_seen_for_long_is_forgotten(file: StateFile) -> None:
    """The file does not grow for ever."""
    look(CriticalSince(file), 0, ONE)
    look(CriticalSince(file), 31 * 86_400, dataclasses.replace(ONE, service="other"))
    assert len(json.loads(file.path.read_text())["critical"]) == 1


def test_each_registry_has_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Below XDG_STATE_HOME, named by the URL, of which nothing can be read in the name."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    for url in ("consul://a:8500", "consul://b:8500"):
        look(CriticalSince.of(url), 0, ONE)
    files = sorted((tmp_path / "registry-drain" / "critical-since").glob("*.json"))
    assert len(files) == 2
    assert look(CriticalSince.of("consul://a:8500"), 5, ONE) == 5


def test_no_place_to_remember_is_a_clear_mistake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A file where a directory is needed: said with the place and the way out."""
    (tmp_path / "registry-drain").write_text("a file")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with pytest.raises(ConfigurationError, match="XDG_STATE_HOME"):
        look(CriticalSince.of("consul://a:8500"), 0, ONE)


def test_a_moment_is_of_this_boot() -> None:
    """Two moments of one process are of one boot, in order."""
    first = Moment.now()
    second = Moment.now()
    assert 0 <= second.elapsed_since(first) < 60
    assert first.elapsed_since(second) == 0


def test_waiting_ends_when_all_are_old_enough(file: StateFile) -> None:
    """It looks again until nothing critical is too young."""
    listed = [ONE, dataclasses.replace(WELL, service="well")]
    since = CriticalSince(file)
    found = observed(lambda: listed, since, 0.2, waits=True, output=Output("test"), clock=SYSTEM_CLOCK)
    assert found == listed
    assert since.is_critical_for(ONE, 0.2)
    assert too_young(found, since, 0.2) == ""


def test_not_waiting_says_how_long_to_wait(file: StateFile) -> None:
    """The first run proves nothing, and says when a second one will."""
    since = CriticalSince(file)
    found = observed(lambda: [ONE], since, 600.0, waits=False, output=Output("test"), clock=SYSTEM_CLOCK)
    assert too_young(found, since, 600.0) == (
        "one (10.0.0.7:9090) seen critical for 0s so far: run again in 10m1s, or with --observe"
    )


def test_what_cannot_be_proven_is_said(file: StateFile) -> None:
    """No index of a check: waiting would not help, so nobody waits."""
    blind = changed(dataclasses.replace(CHECK, version=""))
    since = CriticalSince(file)
    found = observed(lambda: [blind], since, 600.0, waits=True, output=Output("test"), clock=SYSTEM_CLOCK)
    assert "does not say whether it was so all the time" in too_young(found, since, 600.0)


def test_without_health_checks_it_has_no_meaning(file: StateFile) -> None:
    """ZooKeeper's nodes are never critical, be some of them in maintenance."""
    nodes = [RegistryEntry("calculator", "one"), RegistryEntry("calculator", "two", health="maintenance")]
    with pytest.raises(ConfigurationError, match="checks no health"):
        observed(lambda: nodes, CriticalSince(file), 600.0, waits=False, output=Output("test"), clock=SYSTEM_CLOCK)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("1.5s", 1.5), ("10m", 600), ("1h30m", 5400), ("2d", 172_800), ("1d2h3m4s", 93_784)],
)
def test_durations(text: str, seconds: float) -> None:
    """As people write them, and as this command does."""
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "0s", "-5", "10 m", "m", "10x", "1m1h", "1e3", "inf", "nan", "366d", "٣m"])
def test_no_durations(text: str) -> None:
    """Anything else is a mistake."""
    with pytest.raises(Exception, match="no duration"):
        duration(text)
