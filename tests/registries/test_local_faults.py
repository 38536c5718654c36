"""What can happen to a directory of instances: kills, forks, foreign files, locks that are held, disks that fail."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from registry_drain.clock import Deadline
from registry_drain.errors import (
    ConfigurationError,
    InstanceNotFoundError,
    LiveOwnerError,
    PermissionRefusedError,
    RegistryDataError,
    RegistryTimeoutError,
    RegistryUnavailableError,
)
from registry_drain.instance import ServiceInstance
from registry_drain.registries.abilities import HandoverRegistration
from registry_drain.registries.base import Registry, RemovalOutcome
from registry_drain.registries.local import directory as local_directory
from registry_drain.registries.local.file import file_name
from registry_drain.registries.local.lock import HeldFile
from registry_drain.registries.url import open_registry
from registry_drain.testing.bench import Call, until
from tests.registries.test_local import start_owner

ONE = ServiceInstance("calculator", "192.0.2.7", 9090, "one")


def soon() -> Deadline:
    """Return a deadline that no test should need."""
    return Deadline.after(10)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Return the registry's directory."""
    path = tmp_path / "instances"
    path.mkdir()
    return path


@pytest.fixture
def registry(directory: Path) -> Iterator[Registry]:
    """Return a registry on it."""
    registry = open_registry(f"local://{directory}?poll_s=0.01")
    yield registry
    registry.close()


def files(directory: Path) -> list[str]:
    """Return the names in the directory, the lock's left out."""
    return sorted(path.name for path in directory.iterdir() if path.name != ".lock")


def listed(registry: Registry, service: str | None = "calculator") -> list[str]:
    """Return the ids that are listed."""
    return [entry.id for entry in registry.entries(service, soon())]


def descriptors() -> int:
    """Return how many files this process has open; without /proc always 0."""
    return len(list(Path("/proc/self/fd").glob("*")))


def hold_lock(directory: Path) -> int:
    """Hold the directory's lock, as a process that is frozen at the wrong moment would; return the descriptor."""
    fd = os.open(directory / ".lock", os.O_RDONLY | os.O_CREAT)
    fcntl.flock(fd, fcntl.LOCK_EX)
    return fd


# Processes


def test_killed_owner_is_gone_when_it_is_dead(registry: Registry, directory: Path) -> None:
    """SIGKILL: listed before, not listed after the wait for the process; the next registration sweeps the file."""
    owner = start_owner(registry.url, ONE)
    assert listed(registry) == ["one"]
    owner.kill()
    owner.communicate()
    assert listed(registry) == []
    assert files(directory) == [file_name("calculator", "one")]
    other = registry.registration(ServiceInstance("calculator", "192.0.2.8", 9090, "two"))
    other.register(soon())
    assert files(directory) == [file_name("calculator", "two")]
    other.on_shutdown(soon())


def test_stopped_owner_stays_listed(registry: Registry) -> None:
    """SIGSTOP: a frozen process is alive; when it goes on it deregisters as ever."""
    owner = start_owner(registry.url, ONE)
    owner.send_signal(signal.SIGSTOP)
    assert listed(registry) == ["one"]
    owner.send_signal(signal.SIGCONT)
    out, _ = owner.communicate()
    assert out == "CONFIRMED\n"
    assert listed(registry) == []


FORKING_OWNER = """
import os, signal, sys, time
from registry_drain.clock import Deadline
from registry_drain.instance import ServiceInstance
from registry_drain.registries.url import open_registry
registry = open_registry(sys.argv[1])
registration = registry.registration(ServiceInstance("calculator", "192.0.2.7", 9090, "one"))
registration.register(Deadline.after(10))
child = os.fork()
if child == 0:
    removal = registration.on_shutdown(Deadline.after(10))
    print(registration.is_registered, removal.outcome.name, flush=True)
    sys.stdin.read()
    os._exit(0)
signal.pause()
"""


def test_forked_child_neither_ends_nor_prolongs_its_parent(registry: Registry) -> None:
    """A child's on_shutdown leaves the parent listed; a killed parent is gone although the child lives on."""
    command = [sys.executable, "-W", "ignore", "-c", FORKING_OWNER, registry.url]
    owner = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    try:
        assert owner.stdout.readline() == "False NOT_REGISTERED\n"
        assert listed(registry) == ["one"]
    finally:
        owner.kill()
        owner.wait()
    assert listed(registry) == []
    assert owner.stdin is not None
    owner.stdin.close()  # ends the child
    assert owner.stdout.read() == ""
    owner.stdout.close()


def test_child_program_does_not_prolong_its_parent(registry: Registry) -> None:
    """A program started by the owner inherits no descriptor, even where all are passed on."""
    registration = registry.registration(ONE)
    registration.register(soon())
    count = "import os; print([os.readlink(f'/proc/self/fd/{n}') for n in os.listdir('/proc/self/fd') if int(n) > 2])"
    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc")
    seen = subprocess.run(
        [sys.executable, "-c", count.replace("os.readlink(", "os.path.realpath(")],
        close_fds=False,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    assert "calculator" not in seen
    registration.on_shutdown(soon())


CHURN = """
import random, sys
from registry_drain.clock import Deadline
from registry_drain.errors import RegistryDrainError
from registry_drain.instance import ServiceInstance
from registry_drain.registries.url import open_registry
registry, outcomes = open_registry(sys.argv[1]), set()
for round in range(40):
    registration = registry.registration(ServiceInstance("calculator", "192.0.2.7", 9090, random.choice("abc")))
    registration.register(Deadline.after(30))
    registry.entries("calculator", Deadline.after(30))
    outcomes.add(registration.on_shutdown(Deadline.after(30)).outcome.name)
print(*sorted(outcomes))
"""


def test_processes_that_fight_for_ids_end_clean(registry: Registry, directory: Path) -> None:
    """Four processes register and remove three ids in a hurry: no error, no false proof, nothing left behind."""
    command = [sys.executable, "-c", CHURN, registry.url]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    for process in processes:
        out, _ = process.communicate()
        assert process.returncode == 0
        assert set(out.split()) <= {"CONFIRMED", "SUCCESSOR"}
    assert listed(registry, None) == []
    assert files(directory) == []


def test_take_over_is_seamless(registry: Registry) -> None:
    """While successors replace each other, no look ever finds the id unlisted."""
    current = registry.registration(ONE)
    current.register(soon())
    stop, looks, misses = threading.Event(), [0], []

    def look() -> None:
        while not stop.is_set():
            found = listed(registry)
            looks[0] += 1
            if found != ["one"]:
                misses.append(found)

    lookers = [Call(look) for _ in range(2)]
    outcomes = set()
    for _ in range(300):
        successor = registry.registration(ONE)
        successor.register(soon())
        outcomes.add(current.on_shutdown(soon()).outcome)
        current = successor
    stop.set()
    for looker in lookers:
        looker.result(10, "a looker")
    assert outcomes == {RemovalOutcome.SUCCESSOR}
    assert looks[0] > 50
    assert misses == []
    current.on_shutdown(soon())


def test_take_over_of_a_live_owner_is_logged(registry: Registry, caplog: pytest.LogCaptureFixture) -> None:
    """Two processes with one id is a mistake to be found: the warning names the other one."""
    owner = start_owner(registry.url, ONE)
    successor = registry.registration(ONE)
    with caplog.at_level(logging.WARNING):
        successor.register(soon())
    assert f"process {owner.pid} on " in caplog.text
    assert "\n" not in caplog.messages[0]
    out, _ = owner.communicate()
    assert out == "SUCCESSOR\n"
    assert listed(registry) == ["one"]
    assert successor.on_shutdown(soon()).outcome is RemovalOutcome.CONFIRMED


# The directory's lock


def test_register_waits_for_the_lock_until_its_deadline(registry: Registry, directory: Path) -> None:
    """A frozen process holds the directory's lock: register ends with a retryable error that says how to find it."""
    fd = hold_lock(directory)
    registration = registry.registration(ONE)
    with pytest.raises(RegistryTimeoutError, match="lslocks"):
        registration.register(Deadline.after(0.05))
    os.close(fd)
    assert files(directory) == []
    registration.register(soon())
    assert listed(registry) == ["one"]
    registration.on_shutdown(soon())


def test_fence_cancels_a_register_that_waits_for_the_lock(registry: Registry, directory: Path) -> None:
    """The stop does not wait for a lock that a frozen process holds: register is cancelled."""
    fd = hold_lock(directory)
    registration = registry.registration(ONE)
    call = Call(lambda: registration.register(Deadline.after(60)))
    until(lambda: not registration._fence._quiet.is_set(), 10, "register() has begun")  # type: ignore[attr-defined]
    registration.fence(soon())
    assert isinstance(call.ended(5, "register()").error, LiveOwnerError)
    assert registration.on_shutdown(soon()).outcome is RemovalOutcome.NOT_REGISTERED
    os.close(fd)
    assert files(directory) == []


def test_stop_needs_no_lock(registry: Registry, directory: Path) -> None:
    """With the directory's lock held by a frozen process, the instance is gone and proven all the same."""
    registration = registry.registration(ONE)
    registration.register(soon())
    fd = hold_lock(directory)
    removal = registration.on_shutdown(Deadline.after(0.05))
    assert removal.outcome is RemovalOutcome.CONFIRMED
    assert listed(registry) == []
    assert files(directory) == [file_name("calculator", "one")]
    os.close(fd)


def test_register_whose_stop_did_not_wait_lists_nothing(
    registry: Registry, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stop gives up on a register that hangs before its rename: the file is born dead, and swept by the next."""
    is_reached, go_on = threading.Event(), threading.Event()
    rename = local_directory.InstanceDirectory.publish

    def hang(self: local_directory.InstanceDirectory, name: str, incarnation: str) -> None:
        is_reached.set()
        go_on.wait(10)
        rename(self, name, incarnation)

    monkeypatch.setattr(local_directory.InstanceDirectory, "publish", hang)
    registration = registry.registration(ONE)
    call = Call(lambda: registration.register(soon()))
    assert is_reached.wait(10)
    removal = registration.on_shutdown(Deadline.after(0.02))
    assert removal.outcome is RemovalOutcome.CONFIRMED
    go_on.set()
    call.result(10, "register()")
    assert not registration.is_registered
    assert listed(registry) == []
    monkeypatch.undo()
    other = registry.registration(ServiceInstance("calculator", "192.0.2.8", 9090, "two"))
    other.register(soon())
    assert files(directory) == [file_name("calculator", "two")]
    other.on_shutdown(soon())


@pytest.fixture
def hanging_create(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Let register hang under the directory's lock, before it writes: (has got there, may go on)."""
    is_reached, go_on = threading.Event(), threading.Event()
    create = local_directory.InstanceDirectory.create

    def hang(
        self: local_directory.InstanceDirectory, instance: ServiceInstance, incarnation: str, owner: str, at: float
    ) -> HeldFile:
        is_reached.set()
        go_on.wait(10)
        return create(self, instance, incarnation, owner, at)

    monkeypatch.setattr(local_directory.InstanceDirectory, "create", hang)
    return is_reached, go_on


def test_register_that_wakes_after_the_stop_writes_nothing(
    registry: Registry, directory: Path, hanging_create: tuple[threading.Event, threading.Event]
) -> None:
    """The stop has ended when register goes on: it finds the fence, and never resurrects the instance."""
    is_reached, go_on = hanging_create
    registration = registry.registration(ONE)
    call = Call(lambda: registration.register(soon()))
    assert is_reached.wait(10)
    assert registration.on_shutdown(Deadline.after(0.02)).outcome is RemovalOutcome.NOT_REGISTERED
    go_on.set()
    assert isinstance(call.ended(10, "register()").error, LiveOwnerError)
    assert listed(registry) == []
    assert files(directory) == []


def test_fence_waits_for_register(registry: Registry, hanging_create: tuple[threading.Event, threading.Event]) -> None:
    """A register past its wait for the lock cannot be cancelled: the fence waits for it."""
    is_reached, go_on = hanging_create
    registration = registry.registration(ONE)
    register = Call(lambda: registration.register(soon()))
    assert is_reached.wait(10)
    fence = Call(lambda: registration.fence(soon()))
    fence.join(0.1)
    assert fence.is_alive()
    go_on.set()
    fence.result(10, "fence()")
    assert isinstance(register.ended(10, "register()").error, LiveOwnerError)


def test_stop_ends_the_lock_that_others_share(registry: Registry) -> None:
    """Somebody has a copy of the descriptor, as after a fork in C: the stop unlocks for them too."""
    registration = registry.registration(ONE)
    registration.register(soon())
    held = registration._held  # type: ignore[attr-defined]
    copy = os.dup(held.fd)
    assert registration.on_shutdown(soon()).outcome is RemovalOutcome.CONFIRMED
    assert listed(registry) == []
    os.close(copy)


def test_a_take_back_that_fails_loses_no_lock(
    registry: Registry, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full just then: what this process holds is still known, and ends with the stop."""
    registration = registry.registration(ONE)
    registration.register(soon())
    held = registration._held  # type: ignore[attr-defined]
    assert isinstance(registration, HandoverRegistration)
    registration.offer(soon())
    (directory / file_name("calculator", "one")).unlink()  # the next process came, and died

    def fail(*_: object) -> None:
        raise RegistryUnavailableError("No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(local_directory.InstanceDirectory, "publish", fail)
        with pytest.raises(RegistryUnavailableError, match="No space"):
            registration.take_back(soon())
    assert held.is_held
    assert registration.on_shutdown(soon()).outcome is RemovalOutcome.CONFIRMED
    assert not held.is_held


def test_lookers_do_not_disturb_each_other(registry: Registry, directory: Path) -> None:
    """A dead file that another process is just looking at is dead."""
    owner = start_owner(registry.url, ONE)
    owner.kill()
    owner.communicate()
    with (directory / file_name("calculator", "one")).open("rb") as looked_at:
        fcntl.flock(looked_at, fcntl.LOCK_SH)
        assert listed(registry) == []
        registration = registry.registration(ONE)
        registration.register(soon())
        assert listed(registry) == ["one"]
        registration.on_shutdown(soon())


# Files that are not ours


def make_directory(path: Path) -> None:
    """Make a directory where a file should be."""
    path.mkdir()


def make_link(path: Path) -> None:
    """Make a symbolic link, to somewhere it should not be followed to."""
    path.symlink_to("/etc/passwd")


@pytest.mark.parametrize("name", ["README", "instance.json", file_name("calculator", "one")])
@pytest.mark.parametrize(
    "make",
    [make_directory, make_link, os.mkfifo, Path.touch, lambda path: path.write_text('{"id": "one"}')],
    ids=["directory", "link", "fifo", "empty", "json"],
)
def test_foreign_file_is_shown_and_does_not_disturb(
    registry: Registry, directory: Path, make: Callable[[Path], None], name: str
) -> None:
    """Whatever stands in the directory: what is ours is listed and followed, what is not has a problem."""
    make(directory / name)
    registration = registry.registration(ServiceInstance("calculator", "192.0.2.8", 9090, "two"))
    registration.register(soon())
    watch = registry.watch("calculator", soon())
    assert [instance.id for instance in watch.instances] == ["two"]
    strange = [entry for entry in registry.entries(None, soon()) if entry.id != "two"]
    # An unlocked file of our own naming is a dead owner's, whatever is in it. Nothing else is ever swept.
    is_swept = name == file_name("calculator", "one") and make not in {make_directory, make_link, os.mkfifo}
    assert (name in files(directory)) is not is_swept
    assert [entry.problem != "" for entry in strange] == ([] if is_swept else [True])
    for entry in strange:
        assert "\n" not in entry.problem
        with pytest.raises(LiveOwnerError, match="no file of ours"):
            registry.remove(entry, soon())
        assert name in files(directory)
        if make is make_directory:
            with pytest.raises(RegistryDataError, match="by hand"):
                registry.remove(entry, soon(), force=True)
        else:
            assert registry.remove(entry, soon(), force=True).outcome is RemovalOutcome.CONFIRMED
            assert name not in files(directory)
    assert registration.on_shutdown(soon()).outcome is RemovalOutcome.CONFIRMED


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        '"text"',
        "[" * 100_000,
        '{"service": 1}',
        b"\xff\xfe",
        '{"service": "calculator", "id": 7}',
    ],
)
def test_live_file_that_cannot_be_read_is_shown(registry: Registry, directory: Path, content: str | bytes) -> None:
    """A locked file with another content, a later version's perhaps, has a problem, is in no watch, and removable."""
    path = directory / file_name("calculator", "one")
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        (entry,) = registry.entries("calculator", soon())
        assert (entry.service, entry.id, entry.is_live) == ("calculator", "one", True)
        assert "no instance in JSON" in entry.problem
        assert "\n" not in entry.problem
        assert registry.watch("calculator", soon()).instances == ()
        assert registry.remove(entry, soon(), force=True).outcome is RemovalOutcome.CONFIRMED


def test_copy_of_an_instance_is_no_instance(registry: Registry, directory: Path) -> None:
    """A copied file, were it locked, would list the instance twice: it has a problem instead."""
    registration = registry.registration(ONE)
    registration.register(soon())
    copy = directory / file_name("calculator", "two")
    shutil.copy(directory / file_name("calculator", "one"), copy)
    assert listed(registry) == ["one"]
    with copy.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        problems = {entry.id: entry.problem for entry in registry.entries("calculator", soon())}
        assert problems["one"] == ""
        assert "copy" in problems["two"]
    registration.on_shutdown(soon())


def test_entry_of_another_directory_is_not_removed(registry: Registry, tmp_path: Path) -> None:
    """A locator that points elsewhere is refused before anything is touched."""
    other = open_registry(f"local://{tmp_path}/elsewhere")
    registration = other.registration(ONE)
    registration.register(soon())
    (entry,) = other.entries("calculator", soon())
    with pytest.raises(InstanceNotFoundError, match="elsewhere"):
        registry.remove(entry, soon(), force=True)
    assert listed(other) == ["one"]
    registration.on_shutdown(soon())


# The directory itself


def test_directory_is_deleted_under_us(registry: Registry, directory: Path) -> None:
    """Somebody deletes everything: watches are empty, the stop ends proven, and others can register anew."""
    registration = registry.registration(ONE)
    registration.register(soon())
    watch = registry.watch("calculator", soon())
    shutil.rmtree(directory)
    until(lambda: watch.instances == (), 10, "the watch is empty")
    other = registry.registration(ServiceInstance("calculator", "192.0.2.8", 9090, "two"))
    other.register(soon())
    assert listed(registry) == ["two"]
    assert registration.on_shutdown(soon()).outcome is RemovalOutcome.CONFIRMED
    assert other.on_shutdown(soon()).outcome is RemovalOutcome.CONFIRMED


def test_lock_file_is_deleted_under_us(registry: Registry, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The directory is deleted between opening the lock file and locking it: that is a lock on nothing, try again."""
    taken: list[bool] = []
    lock = HeldFile.lock

    def delete_first(self: HeldFile) -> bool:
        if not taken:
            shutil.rmtree(directory)
        taken.append(lock(self))
        return taken[-1]

    monkeypatch.setattr(HeldFile, "lock", delete_first)
    registration = registry.registration(ONE)
    registration.register(soon())
    assert taken == [True, True, True]  # the lock file that was gone, the new one, and the instance's file
    assert listed(registry) == ["one"]
    registration.on_shutdown(soon())


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    """A path that is a file is a mistake of the caller, not an outage to be retried."""
    path = tmp_path / "file"
    path.touch()
    for url in (f"local://{path}", f"local://{path}/below"):
        registry = open_registry(url)
        with pytest.raises(ConfigurationError, match="directory"):
            registry.registration(ONE).register(soon())
        with pytest.raises(ConfigurationError, match="directory"):
            registry.entries("calculator", soon())


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.EACCES, PermissionRefusedError),
        (errno.EROFS, PermissionRefusedError),
        (errno.ENOSPC, RegistryUnavailableError),
        (errno.EMFILE, RegistryUnavailableError),
        (errno.EIO, RegistryUnavailableError),
    ],
)
def test_disk_errors_are_translated(
    registry: Registry, directory: Path, monkeypatch: pytest.MonkeyPatch, number: int, expected: type[Exception]
) -> None:
    """What open(2) says while registering becomes an error of our tree, says why, and leaves no file."""
    original = os.open

    def fail(path: str | Path, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if flags & os.O_EXCL:
            raise OSError(number, os.strerror(number))
        return original(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(expected, match=os.strerror(number)):
        registry.registration(ONE).register(soon())
    assert files(directory) == []


@pytest.mark.parametrize("step", ["lock", "rename", "write"])
def test_register_that_fails_leaves_nothing(
    registry: Registry, directory: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Whatever step fails: no file, no descriptor, nothing listed; and the next try works."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    before = descriptors()
    with monkeypatch.context() as patch:
        if step == "lock":
            patch.setattr(fcntl, "flock", fail)
        elif step == "rename":
            patch.setattr(Path, "rename", fail)
        else:
            patch.setattr("builtins.open", fail)
        registration = registry.registration(ONE)
        with pytest.raises(RegistryUnavailableError, match="no locks available"):
            registration.register(soon())
        assert not registration.is_registered
    assert files(directory) == []
    # What others had open may be closed by now.
    assert descriptors() <= before
    registration.register(soon())
    assert listed(registry) == ["one"]
    registration.on_shutdown(soon())


def test_watch_keeps_its_list_while_the_directory_cannot_be_read(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Stale beats empty: too many open files is logged once, and the list stays until it is over."""
    registration = registry.registration(ONE)
    registration.register(soon())
    watch = registry.watch("calculator", soon())
    failures = []

    def fail(*_: object) -> int:
        failures.append(1)
        raise OSError(errno.EMFILE, "Too many open files")

    with caplog.at_level(logging.INFO), monkeypatch.context() as patch:
        patch.setattr(local_directory.InstanceDirectory, "_open", fail)
        until(lambda: len(failures) > 3, 10, "the watch goes on looking")
        assert watch.instances == (ONE,)
        assert sum("Too many" in message for message in caplog.messages) == 1
    registration.on_shutdown(soon())
    until(lambda: watch.instances == (), 10, "the watch goes on when it is over")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("local://tmp/instances", "three slashes"),
        ("local://", "names no directory"),
        ("local:///", "names no directory"),
        ("local:///x%00y", "control"),
        ("local:///x?poll_s=0", "positive"),
        ("local:///x?poll_s=nan", "positive"),
        ("local:///x?poll_s=often", "poll_s"),
        ("local:///x?pol_s=1", "knows: poll_s"),
    ],
)
def test_bad_urls_are_one_clear_line(url: str, reason: str) -> None:
    """A URL that cannot work is refused when it is opened, before any file is touched."""
    with pytest.raises(ConfigurationError, match=reason) as caught:
        open_registry(url)
    assert "\n" not in str(caught.value)


def test_repr_shows_the_state(registry: Registry) -> None:
    """A debugger's view says what is registered, fenced and followed."""
    registration = registry.registration(ONE)
    assert repr(registration) == "<LocalRegistration one (192.0.2.7:9090) not registered>"
    registration.register(soon())
    assert repr(registration) == "<LocalRegistration one (192.0.2.7:9090) registered>"
    watch = registry.watch("calculator", soon())
    assert repr(watch) == "<LocalWatch calculator following instances=1>"
    registration.on_shutdown(soon())
    assert repr(registration) == "<LocalRegistration one (192.0.2.7:9090) fenced>"
    registry.close()
    assert repr(watch) == "<LocalWatch calculator closed instances=1>"
    assert repr(registry) == f"<LocalRegistry {registry.url} watches=0>"
