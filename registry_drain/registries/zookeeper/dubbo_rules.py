"""The rules in ``{interface}/configurators`` by which Dubbo's consumers leave providers out, on the server.

Theory of operation. A rule of ours is a persistent node, because whoever takes an instance out of rotation does not
stay connected until it is put back. So it could outlive its provider, and disable the one that is started next on the
same address. Against that each of ours says for which session it was written, and is deleted as soon as we notice that
no provider of that session is at its address any more: by removing the instance, whenever anything is taken out of
rotation or put back in the same interface, and by a sweep. Rules of others are never touched.

A provider that takes *itself* out, before it stops, writes an ephemeral rule with the session that holds its own node:
the two go together, at one moment, however it ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from kazoo.exceptions import NodeExistsError, NoNodeError
from kazoo.security import ACL

from registry_drain.clock import Deadline
from registry_drain.errors import (
    LiveOwnerError,
    PermissionRefusedError,
    RegistryDataError,
    RegistryError,
    RegistryUnavailableError,
)
from registry_drain.instance import format_endpoint
from registry_drain.registries.abilities import Leftover
from registry_drain.registries.base import RegistryEntry
from registry_drain.registries.zookeeper.layouts.base import join
from registry_drain.registries.zookeeper.layouts.dubbo_override import (
    Override,
    override_data,
    override_name,
    owner_in,
    read_override,
)
from registry_drain.registries.zookeeper.layouts.url_named import Provider, read_provider
from registry_drain.registries.zookeeper.listing import parent_of
from registry_drain.registries.zookeeper.node_stat import owner_of, version_of
from registry_drain.registries.zookeeper.session import Request, ZooKeeperSession, session_text
from registry_drain.registries.zookeeper.settings import SessionSettings

DUBBO = "dubbo"


def show_rules(session: ZooKeeperSession, entries: Sequence[RegistryEntry], deadline: Deadline) -> list[RegistryEntry]:
    """Return ``entries`` with the health ``maintenance`` where a rule keeps consumers from calling a provider of Dubbo.

    Raises:
        RegistryUnavailableError: retryable.
    """
    folders = sorted({_rules_folder(entry) for entry in entries if entry.layout == DUBBO})
    answers = session.call_each([_children(folder) for folder in folders], deadline=deadline)
    rules = {folder: _rules(answer) for folder, answer in zip(folders, answers, strict=True)}
    return [_shown(entry, rules) for entry in entries]


def _shown(entry: RegistryEntry, rules: dict[str, list[Override]]) -> RegistryEntry:
    provider = provider_of(entry) if entry.layout == DUBBO and not entry.health else None
    if provider is not None and any(rule.disables(provider) for rule in rules[_rules_folder(entry)]):
        return replace(entry, health="maintenance")
    return entry


def has_rules(entry: RegistryEntry) -> bool:
    """Return whether rules keep consumers from calling an entry, as it was listed."""
    return entry.layout == DUBBO and bool(entry.health)


def provider_of(entry: RegistryEntry) -> Provider | None:
    """Return whom the name of an entry's node tells of."""
    return read_provider(entry.locator.rpartition("/")[2])


def _rules_folder(entry: RegistryEntry) -> str:
    """Return the folder beside the one in which the providers of an interface stand."""
    return join(parent_of(parent_of(entry.locator)), "configurators")


def _rules(answer: Any) -> list[Override]:
    """Return the rules of a listing; what may not be read, or does not exist, has none that we know of."""
    if isinstance(answer, Exception):
        return []
    found = (read_override(name) for name in answer)
    return [rule for rule in found if rule is not None]


@dataclass(frozen=True, slots=True)
class DubboRules:
    """The rules of one interface, as seen from one of its providers.

    Args:
        entry: the provider.
        provider: whom its name tells of.
        settings: whose access lists what we create gets.
    """

    entry: RegistryEntry
    provider: Provider
    settings: SessionSettings

    @property
    def _folder(self) -> str:
        return _rules_folder(self.entry)

    @property
    def path(self) -> str:
        """Where our rule stands."""
        return join(self._folder, override_name(self.provider))

    def read(self, session: ZooKeeperSession, deadline: Deadline) -> list[Override]:
        """Return the rules that disable the provider, by a consistent read.

        Raises:
            PermissionRefusedError: the folder may not be listed.
            RegistryUnavailableError: retryable.
        """
        _, answer = session.call_each([_sync(self._folder), _children(self._folder)], deadline=deadline)
        if isinstance(answer, PermissionRefusedError):
            raise answer
        return [rule for rule in _rules(answer) if rule.disables(self.provider)]

    def disable(self, session: ZooKeeperSession, stat: Any, reason: str, deadline: Deadline) -> None:
        """Write our rule, if the provider's node still has ``stat``'s version.

        Raises:
            PermissionRefusedError: likewise.
            RegistryUnavailableError: retryable, also if the node has changed.
        """
        acl = _access(self.settings)
        data = override_data(session_text(owner_of(stat)) if owner_of(stat) else "", reason)
        [made] = _write(session, [lambda client: client.create_async(self._folder, acl=acl)], deadline)
        if isinstance(made, PermissionRefusedError):
            raise made

        def write_rule(client: Any) -> Any:
            transaction = client.transaction()
            transaction.check(self.entry.locator, stat.version)
            transaction.create(self.path, data, acl=acl)
            return transaction.commit_async()

        [results] = _write(session, [write_rule], deadline)
        if isinstance(results, list) and any(isinstance(result, NodeExistsError) for result in results):
            return  # somebody else's, or ours of before: what counts is that there is one
        for result in results if isinstance(results, list) else [results]:
            if isinstance(result, PermissionRefusedError):
                raise result
        if not isinstance(results, list) or any(isinstance(result, Exception) for result in results):
            raise RegistryUnavailableError(f"{self.settings.url}: {self.entry.locator} changed just now")

    def enable(self, session: ZooKeeperSession, deadline: Deadline) -> None:
        """Delete our rule for the provider, if it is one of ours."""
        self._delete_ours(session, {self.path}, deadline)

    def clear_stale(self, session: ZooKeeperSession, deadline: Deadline) -> None:
        """Delete the rules of ours whose provider has left: whoever comes next to its address must not inherit them."""
        stale = stale_rules(session, parent_of(self._folder), deadline)
        self._delete_ours(session, {each.locator for each in stale}, deadline)

    def _delete_ours(self, session: ZooKeeperSession, paths: set[str], deadline: Deadline) -> None:
        ordered = sorted(paths)
        answers = session.call_each([_get(path) for path in ordered], deadline=deadline)
        deletions: list[Request] = []
        for path, answer in zip(ordered, answers, strict=True):
            if isinstance(answer, PermissionRefusedError):
                raise answer
            if not isinstance(answer, Exception) and owner_in(answer[0] or b"") is not None:
                deletions.append(_deletion(path, answer[1].version))
        for answer in _write(session, deletions, deadline):
            if isinstance(answer, PermissionRefusedError):
                raise answer


def stale_rules(session: ZooKeeperSession, interface: str, deadline: Deadline) -> list[Leftover]:
    """Return the rules of ours in the folder ``interface`` whose provider has left, by a consistent read.

    Raises:
        PermissionRefusedError: the providers may not be listed.
        RegistryUnavailableError: retryable.
    """
    folder = join(interface, "configurators")
    _, answer = session.call_each([_sync(folder), _children(folder)], deadline=deadline)
    found = [rule for rule in _rules(answer) if rule.port]
    paths = [join(folder, rule.node) for rule in found]
    answers = session.call_each([_get(path) for path in paths], deadline=deadline)
    ours = [
        (rule, path, answer[1], owner)
        for rule, path, answer in zip(found, paths, answers, strict=True)
        if not isinstance(answer, Exception) and (owner := owner_in(answer[0] or b"")) is not None
    ]
    if not ours:
        return []
    alive = _alive(session, join(interface, "providers"), deadline)
    return [
        Leftover(
            f"a rule keeps callers from {format_endpoint(rule.address, rule.port)}, whose provider is gone",
            path,
            f"{version_of(stat)}-{stat.version}",
        )
        for rule, path, stat, owner in ours
        if (rule.address, rule.port, owner) not in alive
    ]


def _alive(session: ZooKeeperSession, folder: str, deadline: Deadline) -> set[tuple[str, int, str]]:
    """Return address, port and session of every provider of an interface."""
    [names] = session.call_each([_children(folder)], deadline=deadline)
    if isinstance(names, NoNodeError):
        return set()
    if isinstance(names, Exception):
        raise names
    stats = session.call_each([_stat(join(folder, name)) for name in names], deadline=deadline)
    return {
        (who.address, who.port, session_text(owner_of(stat)) if owner_of(stat) else "")
        for name, stat in zip(names, stats, strict=True)
        if stat is not None and not isinstance(stat, Exception) and (who := read_provider(name)) is not None
    }


def delete_rule(session: ZooKeeperSession, leftover: Leftover, deadline: Deadline) -> bool:
    """Delete a rule exactly as it was shown; return whether it is gone.

    Raises:
        PermissionRefusedError: deleting takes the folder's permission.
        RegistryUnavailableError: it may be there or not.
    """
    _, stat = session.call_each([_sync(leftover.locator), _stat(leftover.locator)], deadline=deadline)
    if stat is None:
        return True
    if isinstance(stat, Exception):
        raise stat
    if f"{version_of(stat)}-{stat.version}" != leftover.version:
        return False
    [answer] = _write(session, [_deletion(leftover.locator, stat.version)], deadline)
    if isinstance(answer, PermissionRefusedError):
        raise answer
    return not isinstance(answer, Exception) or isinstance(answer, NoNodeError)


def disable_own(session: ZooKeeperSession, path: str, settings: SessionSettings, deadline: Deadline) -> None:
    """Write a rule that disables the provider whose node at ``path`` is ``session``'s, and that goes with it.

    Raises:
        LiveOwnerError: the node is another session's.
        PermissionRefusedError: nothing may be written where rules are.
        RegistryUnavailableError: retryable.
    """
    provider = read_provider(path.rpartition("/")[2])
    if provider is None:
        raise RegistryDataError(f"{path} is no provider that a rule could name")
    folder = join(parent_of(parent_of(path)), "configurators")
    [stat, made] = session.call_each(
        [_stat(path), lambda client: client.create_async(folder, acl=_access(settings))], deadline=deadline
    )
    if isinstance(made, PermissionRefusedError):
        raise made
    if stat is None or isinstance(stat, Exception):
        raise RegistryUnavailableError(f"{settings.url}: {path} is gone")
    if owner_of(stat) != session.id:
        raise LiveOwnerError(f"{path} belongs to another session now")

    def write(client: Any) -> Any:
        name = join(folder, override_name(provider, is_dynamic=True))
        data = override_data(session_text(owner_of(stat)), "it stops")
        return client.create_async(name, data, acl=_access(settings), ephemeral=True)

    [written] = session.call_each([write], deadline=deadline)
    if isinstance(written, PermissionRefusedError):
        raise written
    if isinstance(written, Exception) and not isinstance(written, NodeExistsError):
        raise RegistryUnavailableError(f"{settings.url}: no rule could be written in {folder}") from written


def _access(settings: SessionSettings) -> list[ACL] | None:
    return None if settings.access.node is None else list(settings.access.node)


def clear_after_removal(
    session: ZooKeeperSession, entry: RegistryEntry, settings: SessionSettings, deadline: Deadline
) -> str:
    """Delete the rules that an entry which is gone left behind; return what to add to the detail of its removal."""
    provider = provider_of(entry)
    if provider is None:
        return ""
    rules = DubboRules(entry, provider, settings)
    try:
        rules.clear_stale(session, deadline)
        left = rules.read(session, deadline)
    except RegistryError as error:
        return f"; the rule at {rules.path} may still disable its successor: {error}"
    if left:
        return f"; a rule that is not ours still disables its address: {left[0].node}"
    return ""


def _write(session: ZooKeeperSession, requests: Sequence[Request], deadline: Deadline) -> list[Any]:
    if not requests:
        return []
    session.wait_connected(deadline)
    try:
        return session.call_each(requests, deadline=deadline)
    except BaseException:  # Ctrl-C too: what was not answered must not run later
        session.begin_end()
        raise


def _sync(path: str) -> Request:
    return lambda client: client.sync_async(path)


def _children(path: str) -> Request:
    return lambda client: client.get_children_async(path)


def _get(path: str) -> Request:
    return lambda client: client.get_async(path)


def _stat(path: str) -> Request:
    return lambda client: client.exists_async(path)


def _deletion(path: str, version: int) -> Request:
    return lambda client: client.delete_async(path, version)
