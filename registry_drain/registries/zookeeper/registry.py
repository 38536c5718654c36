"""The registry object: opens, lists, watches and removes, and makes registrations.

Each registration has a session of its own, whose end removes its node; everything else of one registry object shares a
second one. A process that registers one instance and watches any number of services has two connections.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

from registry_drain.clock import SYSTEM_CLOCK, Clock, Deadline
from registry_drain.errors import ConfigurationError, InstanceNotFoundError
from registry_drain.instance import ServiceInstance
from registry_drain.registries.abilities import (
    BulkRegistry,
    Leftover,
    LeftoverRegistry,
    RemovalResult,
    Rotation,
    RotationRegistry,
)
from registry_drain.registries.base import RegistryEntry, Removal, WatchCallback
from registry_drain.registries.url import RegistryURL
from registry_drain.registries.zookeeper.bulk_removal import BulkRemoval, refuse_strangers
from registry_drain.registries.zookeeper.dubbo_rules import (
    DUBBO,
    clear_after_removal,
    delete_rule,
    has_rules,
    show_rules,
    stale_rules,
)
from registry_drain.registries.zookeeper.layouts import AUTO, DEFAULT_LAYOUT, LAYOUTS, AutoLayout, NodeTree
from registry_drain.registries.zookeeper.layouts.base import Layout, check_path, join
from registry_drain.registries.zookeeper.listing import ListedFolders, list_services, parent_of
from registry_drain.registries.zookeeper.registration import ZooKeeperRegistration
from registry_drain.registries.zookeeper.removal import EntryRemoval
from registry_drain.registries.zookeeper.rotation import EntryRotation
from registry_drain.registries.zookeeper.settings import DEFAULT_PORT, SESSION_OPTIONS, SessionSettings
from registry_drain.registries.zookeeper.shared import SharedSession
from registry_drain.registries.zookeeper.tree_walk import walk
from registry_drain.registries.zookeeper.watch import ZooKeeperWatch

DEFAULT_BASE = "/services"
"""Where Spring Cloud looks, and Dubbo's application mode."""
_CLOSE_TIMEOUT = 1.0
"""Seconds that close() waits for its session's goodbye, which a healthy server answers in milliseconds."""
_OPTIONS = SESSION_OPTIONS | {"layout"}


def open_zookeeper(url: RegistryURL, clock: Clock = SYSTEM_CLOCK) -> ZooKeeperRegistry:
    """Return the registry at ``url``. Connects to nothing.

    Raises:
        ConfigurationError: no host, a path or an option or a file that cannot work.
    """
    url.check_options(_OPTIONS)
    if not url.hosts:
        raise ConfigurationError(f"{url}: name at least one server, as in zookeeper://host:{DEFAULT_PORT}/services")
    layout = url.option("layout", _layout, _default())
    # What is looked for everywhere is looked for from the root.
    default_base = "/" if isinstance(layout, AutoLayout) else DEFAULT_BASE
    tree = NodeTree.at(url.path if url.path.strip("/") else default_base, layout)
    settings = SessionSettings.of(url)
    return ZooKeeperRegistry(tree, settings, clock)


def _default() -> Layout:
    return LAYOUTS[DEFAULT_LAYOUT]


def _layout(name: str) -> Layout:
    known = {**LAYOUTS, AUTO.name: AUTO}
    if name not in known:
        raise ValueError(f"must be one of: {', '.join(sorted(known))}")
    return known[name]


class ZooKeeperRegistry:
    """See the module, and :class:`registry_drain.registries.base.Registry` for what each method promises."""

    def __init__(self, tree: NodeTree, settings: SessionSettings, clock: Clock) -> None:
        self._tree = tree
        self._settings = settings
        self._clock = clock
        self._shared = SharedSession(settings, clock)
        self._lock = threading.Lock()
        self._listed = ListedFolders()
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
            ConfigurationError: ZooKeeper refuses its name or id as part of a path, or it has too much metadata; or
                ``layout=auto``, which registers nothing.
        """
        return ZooKeeperRegistration(instance, self._tree, self._settings, self._shared, self._clock)

    def entries(self, service: str | None, deadline: Deadline) -> Sequence[RegistryEntry]:
        """Return what lies in the folder of ``service``, or of every service; with ``layout=auto``, in the whole tree.

        ``is_live`` is True for every ephemeral node: its session is alive as far as the servers know, which for a
        killed owner is true until the session's time-out. It is None for persistent nodes, whose owner nobody knows.

        Raises:
            RegistryUnavailableError: retryable.
            PermissionRefusedError: the access lists do not let us list a folder.
            RegistryDataError: ``layout=auto``, and the tree is too big; see
                :mod:`registry_drain.registries.zookeeper.tree_walk`.
            ConfigurationError: ``service`` cannot be part of a path.
        """
        layout, base = self._tree.layout, self._tree.base
        with self._shared.borrow() as session:
            if isinstance(layout, AutoLayout):
                check_path("service", service or "")
                listing = walk(session, base, layout, self.url, service, deadline)
            else:
                listing = list_services(session, self._tree, service, deadline)
            listing.entries = show_rules(session, listing.entries, deadline)
        self._listed.note(listing, is_all=service is None)
        return sorted(listing.entries, key=lambda entry: (entry.service, entry.id))

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
        self._check_listed(entry)
        removal = EntryRemoval(entry, self._settings, self._shared).run(deadline, force=force)
        return self._with_rules_cleared(entry, removal, deadline)

    def remove_many(
        self,
        entries: Sequence[RegistryEntry],
        deadline: Deadline,
        on_result: Callable[[RegistryEntry, RemovalResult], None],
        *,
        force: bool = False,
    ) -> None:
        """Remove each of ``entries`` if it still is what was listed, in transactions; see :class:`BulkRegistry`.

        Raises:
            RegistryUnavailableError: nothing was sent for those without a result.
        """

        def tell(entry: RegistryEntry, result: RemovalResult) -> None:
            if isinstance(result, Removal):
                result = self._with_rules_cleared(entry, result, deadline)
            on_result(entry, result)

        ours = refuse_strangers(entries, self._tree.base, self.url, on_result)
        BulkRemoval(self._settings, self._shared, self._listed, tell, force=force).run(ours, deadline)

    def _check_listed(self, entry: RegistryEntry) -> None:
        if not entry.locator.startswith(join(self._tree.base, "")):
            raise InstanceNotFoundError(f"{entry} at {entry.locator!r} was not listed by {self.url}")

    def _with_rules_cleared(self, entry: RegistryEntry, removal: Removal, deadline: Deadline) -> Removal:
        """Delete what would take the successor of an entry that is gone out of rotation; say so if that failed."""
        if not removal.is_gone or not has_rules(entry):
            return removal
        with self._shared.borrow() as session:
            note = clear_after_removal(session, entry, self._settings, deadline)
        return replace(removal, detail=removal.detail + note)

    def drain(self, entry: RegistryEntry, deadline: Deadline, *, reason: str = "") -> Rotation:
        """Take ``entry`` out of rotation, where its layout has a state for that; see :class:`RotationRegistry`.

        ``reason`` is kept in Dubbo's rule; the others have no place for it. What each layout has is in
        docs/zookeeper.md.
        """
        self._check_listed(entry)
        return EntryRotation(entry, self._settings, self._shared).turn(deadline, is_out=True, reason=reason)

    def undrain(self, entry: RegistryEntry, deadline: Deadline) -> Rotation:
        """Put ``entry`` back into rotation; see :meth:`drain`."""
        self._check_listed(entry)
        return EntryRotation(entry, self._settings, self._shared).turn(deadline, is_out=False)

    def leftovers(self, service: str | None, deadline: Deadline) -> list[Leftover]:
        """Return Dubbo's rules of ours that have outlived their provider; see :class:`LeftoverRegistry`.

        Only ``layout=dubbo`` and ``layout=auto`` have such.
        """
        layout, base = self._tree.layout, self._tree.base
        found: list[Leftover] = []
        with self._shared.borrow() as session:
            if layout.name == DUBBO:
                folders = list(list_services(session, self._tree, service, deadline).folders)
            elif isinstance(layout, AutoLayout):
                folders = list(walk(session, base, layout, self.url, service, deadline).folders)
            else:
                return []
            for folder in sorted(folders):
                if folder.endswith("/providers"):
                    found += stale_rules(session, parent_of(folder), deadline)
        return found

    def clear(self, leftover: Leftover, deadline: Deadline) -> bool:
        """Delete such a rule, if it still is what was shown."""
        with self._shared.borrow() as session:
            return delete_rule(session, leftover, deadline)

    def watch(self, service: str, deadline: Deadline, on_change: WatchCallback | None = None) -> ZooKeeperWatch:
        """Follow the callable instances of ``service``, which need not exist yet; see the protocol.

        Left out are nodes that cannot be read and those that are out of service. A killed process stays listed until
        its session times out. With ``layout=auto`` the service is looked for once, and must lie in one folder.
        """
        folder = self._watched_folder(service, deadline)
        watch = ZooKeeperWatch(
            service.rpartition("/")[2],
            folder,
            self._tree.layout,
            self._settings,
            self._shared,
            self._clock,
            on_change,
            self._forget_watch,
        )
        with self._lock:
            self._watches.add(watch)
        watch.begin(deadline)
        return watch

    def _watched_folder(self, service: str, deadline: Deadline) -> str:
        if not isinstance(self._tree.layout, AutoLayout):
            return self._tree.folder(service)
        found = sorted({parent_of(entry.locator) for entry in self.entries(service, deadline)})
        if len(found) > 1:
            raise ConfigurationError(
                f"{service!r} lies in several folders of {self.url}: watch one: {', '.join(found)}"
            )
        return found[0] if found else join(self._tree.base, service)

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


# A type checker compares it with the protocols here.
_bulk: type[BulkRegistry] = ZooKeeperRegistry
_rotation: type[RotationRegistry] = ZooKeeperRegistry
_leftovers: type[LeftoverRegistry] = ZooKeeperRegistry
