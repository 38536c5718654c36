"""The registry object: opens, lists, watches and removes, and makes registrations.

Each registration has a session of its own, whose end removes its node; everything else of one registry object shares a
second one. A process that registers one instance and watches any number of services has two connections.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kazoo.exceptions import NoNodeError

from registry_drain.clock import SYSTEM_CLOCK, Clock, Deadline
from registry_drain.errors import ConfigurationError, InstanceNotFoundError, PermissionRefusedError
from registry_drain.instance import ServiceInstance, format_endpoint
from registry_drain.registries.base import RegistryEntry, Removal, WatchCallback
from registry_drain.registries.url import RegistryURL, seconds
from registry_drain.registries.zookeeper.layouts import DEFAULT_LAYOUT, LAYOUTS, NodeTree
from registry_drain.registries.zookeeper.layouts.base import Layout, join
from registry_drain.registries.zookeeper.registration import ZooKeeperRegistration
from registry_drain.registries.zookeeper.removal import EntryRemoval, version_of
from registry_drain.registries.zookeeper.session import Request, ZooKeeperSession, session_text
from registry_drain.registries.zookeeper.settings import SessionSettings
from registry_drain.registries.zookeeper.shared import SharedSession
from registry_drain.registries.zookeeper.watch import ZooKeeperWatch

DEFAULT_PORT = 2181
DEFAULT_BASE = "/services"
"""Where Spring Cloud looks, and Dubbo's application mode."""
DEFAULT_SESSION_TIMEOUT = 10.0
"""Seconds; kazoo's default, and inside what a server with the usual tick of 2 s grants (4 to 40 s)."""
DEFAULT_TIMEOUT = 5.0
"""Seconds for one answer; a leader election of a healthy ensemble takes less."""
_CLOSE_TIMEOUT = 1.0
"""Seconds that close() waits for its session's goodbye, which a healthy server answers in milliseconds."""
_OPTIONS = frozenset({"layout", "session_timeout_s", "timeout_s", "auth_file"})
_SYSTEM_NODE = "zookeeper"
"""ZooKeeper's own subtree of the root."""


def open_zookeeper(url: RegistryURL, clock: Clock = SYSTEM_CLOCK) -> ZooKeeperRegistry:
    """Return the registry at ``url``. Connects to nothing.

    Raises:
        ConfigurationError: no host, a path or an option that cannot work, an unreadable auth_file.
    """
    url.check_options(_OPTIONS)
    if not url.hosts:
        raise ConfigurationError(f"{url}: name at least one server, as in zookeeper://host:{DEFAULT_PORT}/services")
    tree = NodeTree.at(url.path if url.path.strip("/") else DEFAULT_BASE, url.option("layout", _layout, _default()))
    settings = SessionSettings(
        url=str(url),
        hosts=",".join(format_endpoint(host, port or DEFAULT_PORT) for host, port in url.hosts),
        session_timeout=url.option("session_timeout_s", seconds, DEFAULT_SESSION_TIMEOUT),
        call_timeout=url.option("timeout_s", seconds, DEFAULT_TIMEOUT),
        auth_file=url.option("auth_file", _file, None),
    )
    settings.read_auth()
    return ZooKeeperRegistry(tree, settings, clock)


def _default() -> Layout:
    return LAYOUTS[DEFAULT_LAYOUT]


def _layout(name: str) -> Layout:
    if name not in LAYOUTS:
        raise ValueError(f"must be one of: {', '.join(sorted(LAYOUTS))}")
    return LAYOUTS[name]


def _file(text: str) -> Path | None:
    if not text:
        raise ValueError("must be the path of a file")
    return Path(text)


class ZooKeeperRegistry:
    """See the module, and :class:`registry_drain.registries.base.Registry` for what each method promises."""

    def __init__(self, tree: NodeTree, settings: SessionSettings, clock: Clock) -> None:
        self._tree = tree
        self._settings = settings
        self._clock = clock
        self._shared = SharedSession(settings, clock)
        self._lock = threading.Lock()
        self._watches: set[ZooKeeperWatch] = set()

    def __repr__(self) -> str:
        """Show the URL and how many watches are open."""
        with self._lock:
            return f"<ZooKeeperRegistry {self.url} watches={len(self._watches)}>"

    @property
    def url(self) -> str:
        """The URL in its normal form."""
        return self._settings.url

    def registration(self, instance: ServiceInstance) -> ZooKeeperRegistration:
        """Return the membership of ``instance``.

        Raises:
            ConfigurationError: ZooKeeper refuses its name or id as part of a path, or it has too much metadata.
        """
        return ZooKeeperRegistration(instance, self._tree, self._settings, self._shared, self._clock)

    def entries(self, service: str | None, deadline: Deadline) -> Sequence[RegistryEntry]:
        """Return what lies in the folder of ``service``, or of every service.

        ``is_live`` is True for every ephemeral node: its session is alive as far as the servers know, which for a
        killed owner is true until the session's time-out. It is None for persistent nodes, whose owner nobody knows.

        Raises:
            RegistryUnavailableError: retryable.
            PermissionRefusedError: the access lists do not let us list a folder.
            ConfigurationError: ``service`` cannot be part of a path.
        """
        with self._shared.borrow() as session:
            session.call(lambda client: client.sync_async(self._tree.base), deadline=deadline)
            services = [service] if service is not None else self._services(session, deadline)
            folders = [self._tree.folder(each) for each in services]
            listings = session.call_each([_listing(folder) for folder in folders], deadline=deadline)
            found: list[tuple[str, str, str]] = []
            for name, folder, listing in zip(services, folders, listings, strict=True):
                found += [(name, node, join(folder, node)) for node in _checked(listing)]
            entries = self._read(session, found, deadline)
        return sorted(entries, key=lambda entry: (entry.service, entry.id))

    def _services(self, session: ZooKeeperSession, deadline: Deadline) -> list[str]:
        [listing] = session.call_each([_listing(self._tree.base)], deadline=deadline)
        names = _checked(listing)
        return [name for name in names if self._tree.base != "/" or name != _SYSTEM_NODE]

    def _read(
        self, session: ZooKeeperSession, found: Sequence[tuple[str, str, str]], deadline: Deadline
    ) -> list[RegistryEntry]:
        entries: list[RegistryEntry] = []
        answers = session.call_each([_reading(path) for _, _, path in found], deadline=deadline)
        for (service, node, path), answer in zip(found, answers, strict=True):
            if isinstance(answer, NoNodeError):
                continue  # it has left since the folder was listed
            if isinstance(answer, PermissionRefusedError):
                # exists() needs no permission: who and since when can be told all the same.
                [stat] = session.call(_looking(path), deadline=deadline)
                if stat is not None:
                    entries.append(self._entry(service, node, path, None, stat))
            elif isinstance(answer, Exception):
                raise answer
            else:
                data, stat = answer
                entries.append(self._entry(service, node, path, data or b"", stat))
        return entries

    def _entry(self, service: str, node: str, path: str, data: bytes | None, stat: Any) -> RegistryEntry:
        content = self._tree.layout.decode(node, data or b"")
        return RegistryEntry(
            service=service,
            id=content.id,
            address=content.address,
            port=content.port,
            tags=content.tags,
            metadata=content.metadata,
            owner=session_text(stat.ephemeralOwner) if stat.ephemeralOwner else "",
            is_live=True if stat.ephemeralOwner else None,
            health=content.health,
            registered_at=content.registered_at or stat.ctime / 1000,
            is_ephemeral=bool(stat.ephemeralOwner),
            problem=content.problem if data is not None else "the credentials may not read it",
            locator=path,
            version=version_of(stat),
        )

    def remove(self, entry: RegistryEntry, deadline: Deadline, *, force: bool = False) -> Removal:
        """Remove ``entry`` if it still is what was listed; see the protocol.

        A live owner of this package puts its node back within milliseconds, one of Curator's at its next reconnect:
        stop the process instead where that is possible.

        Raises:
            LiveOwnerError: an ephemeral node, without ``force``; or registered anew.
            InstanceNotFoundError: gone already, or not of this registry.
            RegistryDataError: it has children.
            RegistryUnavailableError: before anything was sent.
            PermissionRefusedError: deleting needs the DELETE permission on the *folder*.
        """
        if not entry.locator.startswith(join(self._tree.base, "")):
            raise InstanceNotFoundError(f"{entry} at {entry.locator!r} was not listed by {self.url}")
        return EntryRemoval(entry, self._settings, self._shared).run(deadline, force=force)

    def watch(self, service: str, deadline: Deadline, on_change: WatchCallback | None = None) -> ZooKeeperWatch:
        """Follow the callable instances of ``service``, which need not exist yet; see the protocol.

        Left out are nodes that cannot be read and those that are out of service. A killed process stays listed until
        its session times out.
        """
        watch = ZooKeeperWatch(
            service, self._tree, self._settings, self._shared, self._clock, on_change, self._forget_watch
        )
        with self._lock:
            self._watches.add(watch)
        watch.begin(deadline)
        return watch

    def _forget_watch(self, watch: ZooKeeperWatch) -> None:
        with self._lock:
            self._watches.discard(watch)

    def close(self) -> None:
        """Close watches and the shared session; registrations stay. Takes a second at most for each."""
        with self._lock:
            watches = list(self._watches)
        for watch in watches:
            watch.close()
        self._shared.close(Deadline.after(_CLOSE_TIMEOUT, self._clock))


def _listing(folder: str) -> Request:
    return lambda client: client.get_children_async(folder)


def _reading(path: str) -> Request:
    return lambda client: client.get_async(path)


def _looking(path: str) -> Request:
    return lambda client: client.exists_async(path)


def _checked(listing: Any) -> list[str]:
    """Return the names of a listing; a folder that does not exist has none."""
    if isinstance(listing, NoNodeError):
        return []
    if isinstance(listing, Exception):
        raise listing
    return list(listing)
