"""The rules in ``{interface}/configurators`` by which Dubbo's consumers leave providers out, on the server.

Theory of operation. A rule of ours is a persistent node, because whoever takes an instance out of rotation does not
stay connected until it is put back. So it could outlive its provider, and disable the one that is started next on the
same address. Against that each of ours says for which session it was written, and is deleted as soon as we notice that
no provider of that session is at its address any more: by removing the instance, and whenever anything is taken out of
rotation or put back in the same interface. Rules of others are never touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from kazoo.exceptions import NodeExistsError, NoNodeError

from registry_drain.clock import Deadline
from registry_drain.errors import PermissionRefusedError, RegistryError, RegistryUnavailableError
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
from registry_drain.registries.zookeeper.node_stat import owner_of
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
        access = self.settings.access.node
        acl = None if access is None else list(access)
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
        _, answer = session.call_each([_sync(self._folder), _children(self._folder)], deadline=deadline)
        found = [rule for rule in _rules(answer) if rule.port]
        paths = [join(self._folder, rule.node) for rule in found]
        owners = {
            path: (rule.address, rule.port, owner_in(answer[0] or b""))
            for rule, path, answer in zip(
                found, paths, session.call_each([_get(path) for path in paths], deadline=deadline), strict=True
            )
            if not isinstance(answer, Exception)
        }
        ours = {path: owner for path, owner in owners.items() if owner[2] is not None}
        if ours:
            alive = self._alive(session, deadline)
            self._delete_ours(session, {path for path, owner in ours.items() if owner not in alive}, deadline)

    def _alive(self, session: ZooKeeperSession, deadline: Deadline) -> set[tuple[str, int, str | None]]:
        """Return address, port and session of every provider of the interface."""
        folder = parent_of(self.entry.locator)
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
