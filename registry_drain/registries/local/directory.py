"""A directory of instances: one file each, and the instance is alive while somebody holds a lock on its file.

Theory of operation. The kernel drops a lock when its holder dies, however it dies, so there is nothing to renew and
nothing to expire. Rules:

1. An owner locks its file while the file still has a private name, and then renames it to its public one. So a public
   file that nobody has locked is dead, and an owner never waits for, or fails because of, somebody who looks.
2. Who looks asks for a *shared* lock, without waiting: granted means dead. Lookers do not disturb each other, and as
   nobody ever asks for an exclusive lock on a public file (rule 1), they disturb nobody else.
3. Creating, renaming and unlinking is done under the directory's own lock, ``.lock``. Otherwise a process could find
   its own file at a path, a successor rename another one over it, and the unlink hit the successor's.
4. A file is never changed after its rename: a re-registration is another file, with another incarnation in it.
5. Reading needs no lock. A reader may open a file just before a successor's replaces it and find it dead just
   afterwards; it must then look again, for at no instant was nobody there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

from registry_drain.clock import Deadline
from registry_drain.errors import (
    ConfigurationError,
    LiveOwnerError,
    PermissionRefusedError,
    RegistryDataError,
    RegistryTimeoutError,
    RegistryUnavailableError,
)
from registry_drain.instance import ServiceInstance
from registry_drain.registries.local import file as local_file
from registry_drain.registries.local.file import InstanceFile
from registry_drain.registries.local.lock import HeldFile, is_locked

LOCK_POLL = 0.001
"""Seconds between two tries for the directory's lock, which is held for a fraction of this."""
MAX_FILE_SIZE = 1 << 20
"""Bytes; an instance has some hundred."""
_LOCK_NAME = ".lock"
_PRIVATE_PREFIX = ".registering-"
_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW
_NEVER = threading.Event()


class _NoRegularFileError(Exception):
    """What has this name cannot be opened as a file: nothing of ours."""


class InstanceDirectory:
    """The directory. Thread-safe; its only state is a cache of parsed files."""

    def __init__(self, path: str) -> None:
        """Touch nothing yet."""
        self.path = Path(path)
        self._parsed: dict[str, tuple[bytes, InstanceFile]] = {}  # by name

    def __str__(self) -> str:
        """Name it as error messages do."""
        return f"local registry {self.path}"

    @contextlib.contextmanager
    def locked(self, deadline: Deadline, cancelled: threading.Event = _NEVER) -> Iterator[None]:
        """Hold the directory's lock; the directory is made if there is none.

        Raises:
            RegistryTimeoutError: somebody else holds it at the deadline.
            LiveOwnerError: ``cancelled`` was set.
        """
        while (held := self._try_lock()) is None:
            if deadline.is_past:
                raise RegistryTimeoutError(f"{self}: another process holds {_LOCK_NAME}; lslocks(8) shows which")
            if deadline.clock.wait(cancelled, min(LOCK_POLL, deadline.remaining())):
                raise LiveOwnerError(f"{self}: the registration was cancelled by its stop")
        try:
            yield
        finally:
            held.release()

    def _try_lock(self) -> HeldFile | None:
        with self._translated("lock"):
            path, flags = self.path / _LOCK_NAME, os.O_RDONLY | os.O_CREAT | _FLAGS
            try:
                held = HeldFile(os.open(path, flags, 0o644))
            except FileNotFoundError:
                self.path.mkdir(parents=True, exist_ok=True)
                held = HeldFile(os.open(path, flags, 0o644))
            try:
                # Whoever deletes the directory takes the lock file along: then this is a lock on nothing.
                is_mine = held.lock() and self._is_at(path, os.fstat(held.fd))
            except BaseException:
                held.release()
                raise
            if is_mine:
                return held
            held.release()
            return None

    def create(self, instance: ServiceInstance, incarnation: str, owner: str, registered_at: float) -> HeldFile:
        """Write the instance under its private name, locked. Under the directory's lock."""
        data = local_file.to_json(instance, incarnation=incarnation, owner=owner, registered_at=registered_at)
        with self._translated("write to"):
            path = self.path / (_PRIVATE_PREFIX + incarnation)
            held = HeldFile(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _FLAGS, 0o644))
            try:
                held.lock()  # nobody else knows the name: this cannot fail for want of the lock
                with open(held.fd, "wb", closefd=False) as file:
                    file.write(data)
            except BaseException:
                held.release()
                self.discard(incarnation)
                raise
        return held

    def publish(self, name: str, incarnation: str) -> None:
        """Rename the file to its public name, over whatever is there. Under the directory's lock."""
        with self._translated("write to"):
            (self.path / (_PRIVATE_PREFIX + incarnation)).rename(self.path / name)

    def discard(self, incarnation: str) -> None:
        """Remove the file of this private name, if it is there."""
        with contextlib.suppress(OSError):
            (self.path / (_PRIVATE_PREFIX + incarnation)).unlink()

    def unlink(self, name: str) -> None:
        """Remove a file. Under the directory's lock.

        Raises:
            RegistryDataError: it is a directory.
            PermissionRefusedError: this user may not.
        """
        path = self.path / name
        with self._translated("remove from"):
            if path.is_dir() and not path.is_symlink():
                raise RegistryDataError(f"{path} is a directory and no instance: remove it by hand")
            path.unlink(missing_ok=True)

    def unlink_if_dead(self, name: str) -> None:
        """Remove a file of our naming that nobody has locked. Under the directory's lock: nobody replaces it."""
        if not local_file.is_public_name(name):
            return
        with self._translated("read"):
            try:
                fd = self._open(name)
            except _NoRegularFileError:
                return
            if fd is None:
                return
            try:
                is_dead = stat.S_ISREG(os.fstat(fd).st_mode) and not is_locked(fd)
            finally:
                os.close(fd)
        if is_dead:
            self.unlink(name)

    def sweep(self) -> None:
        """Remove what dead owners left behind. Under the directory's lock: nobody is half way through registering."""
        for name in self._names():
            if name.startswith(_PRIVATE_PREFIX):
                self.unlink(name)
            else:
                self.unlink_if_dead(name)

    def scan(self, service: str | None = None) -> list[InstanceFile]:
        """Return what is alive, and what is not ours to judge, of one service or of all, sorted by service and id.

        A directory that does not exist is empty.

        Raises:
            RegistryUnavailableError, PermissionRefusedError: it could not be read in full.
        """
        prefix = "" if service is None else local_file.service_prefix(service)
        names = self._names()
        if len(self._parsed) > 2 * len(names):
            self._parsed.clear()  # most of it is gone; what is not is parsed once more
        found = [self.read(name) for name in names if name.startswith(prefix) and not name.startswith(".")]
        listed = [
            file
            for file in found
            if file is not None and file.is_live is not False and service in {None, file.entry.service}
        ]
        return sorted(listed, key=lambda file: (file.entry.service, file.entry.id))

    def _names(self) -> list[str]:
        with self._translated("list"):
            try:
                return os.listdir(self.path)  # noqa: PTH208 -- a watch does this all the time: no Path per file
            except FileNotFoundError:
                return []

    def read(self, name: str) -> InstanceFile | None:
        """Return what is under ``name`` now; None if nothing is.

        Raises:
            RegistryUnavailableError: this process cannot open files, or the file changes faster than it can be read.
        """
        for _ in range(100):
            with self._translated("read"):
                try:
                    fd = self._open(name)
                except PermissionError:
                    return self._foreign(name, "this user may not read it")
                except _NoRegularFileError:
                    return self._foreign(name, "it is no regular file")
                if fd is None:
                    return None
                try:
                    found = self._read_open(name, fd)
                finally:
                    os.close(fd)
            if found is not None:
                return found
        raise RegistryUnavailableError(f"{self}: {name} is replaced again and again")

    def _open(self, name: str) -> int | None:
        try:
            # O_NONBLOCK: the open of a FIFO waits for a writer otherwise. No Path: a watch does this all the time.
            return os.open(f"{self.path}/{name}", os.O_RDONLY | os.O_NONBLOCK | _FLAGS)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno in {errno.ELOOP, errno.ENXIO}:  # a symbolic link, a socket
                raise _NoRegularFileError from error
            raise

    def _read_open(self, name: str, fd: int) -> InstanceFile | None:
        """Return what the open file says; None if it was replaced meanwhile (rule 5)."""
        status = os.fstat(fd)
        version = f"{status.st_ino}:{status.st_mtime_ns}:{status.st_size}"
        if not stat.S_ISREG(status.st_mode):
            return self._foreign(name, "it is no regular file", version)
        if not local_file.is_public_name(name):
            return self._foreign(name, "its name is not one that this registry gives", version)
        is_live = is_locked(fd)
        if not is_live and not self._is_at(self.path / name, status):
            return None
        data = os.read(fd, MAX_FILE_SIZE)
        # Not by inode and times: a file that replaces another within one tick may have the same ones.
        if is_live and (cached := self._parsed.get(name)) is not None and cached[0] == data:
            return cached[1]
        found = local_file.parse(name, data, is_live=is_live, locator=str(self.path / name), version=version)
        if is_live:
            self._parsed[name] = data, found
        return found

    def _foreign(self, name: str, problem: str, version: str = "") -> InstanceFile:
        return local_file.foreign(name, problem, locator=str(self.path / name), version=version)

    @staticmethod
    def _is_at(path: Path, status: os.stat_result) -> bool:
        """Return whether the file of ``status``, which is open, still has this name."""
        try:
            now = path.stat(follow_symlinks=False)
        except FileNotFoundError:
            return False
        return (now.st_dev, now.st_ino) == (status.st_dev, status.st_ino)

    @contextlib.contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        """Translate the operating system's errors."""
        try:
            yield
        except OSError as error:
            message = f"{self}: cannot {what} it: {error.strerror}"
            if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
                raise PermissionRefusedError(f"{message}; give this user the rights to the directory") from error
            if error.errno in {errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP}:
                raise ConfigurationError(f"{message}; name a directory on a local disk") from error
            raise RegistryUnavailableError(message) from error
