"""Removing many nodes of ZooKeeper at once: the same guards as one by one, in a fraction of the requests."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pytest
from kazoo.security import make_acl

from registry_drain.errors import (
    InstanceNotFoundError,
    LiveOwnerError,
    PermissionRefusedError,
    RegistryDataError,
    RegistryDrainError,
    RegistryUnavailableError,
)
from registry_drain.registries.abilities import BulkRegistry, RemovalResult
from registry_drain.registries.base import RegistryEntry, Removal, RemovalOutcome
from registry_drain.registries.zookeeper import ZooKeeperRegistry, bulk_removal
from registry_drain.registries.zookeeper.session import ZooKeeperSession
from tests.registries.zookeeper_bench import INSTANCE, SERVICE, Background, Stage, never, within
from tests.support.processes import eventually
from tests.support.tcp_proxy import TcpProxy
from tests.support.zookeeper_process import ZooKeeperServer

NewProxy = Callable[[str], TcpProxy]
DATA = b'{"address":"192.0.2.9","port":80}'


@pytest.fixture
def stage(zookeeper_server: ZooKeeperServer, unique: str) -> Iterator[Stage]:
    """Give a base path of the test's own on the shared server."""
    stage = Stage(zookeeper_server, f"/{unique}")
    yield stage
    stage.close()


def plant(client: Any, folder: str, names: Iterable[str]) -> None:
    """Create persistent ghosts."""
    client.ensure_path(folder)
    transaction = client.transaction()
    for name in names:
        transaction.create(f"{folder}/{name}", DATA)
    assert not any(isinstance(result, Exception) for result in transaction.commit())


def numbered(count: int, start: int = 0) -> list[str]:
    """Return that many names."""
    return [f"{number:04}" for number in range(start, start + count)]


class Results:
    """What on_result was told: each entry once."""

    def __init__(self) -> None:
        self.of: dict[str, RemovalResult] = {}

    def __call__(self, entry: RegistryEntry, result: RemovalResult) -> None:
        """Take a note."""
        name = entry.locator.rpartition("/")[2]
        assert name not in self.of, f"{name} has two results"
        self.of[name] = result

    def kinds(self) -> dict[str, object]:
        """Return the outcome or the error's type of each."""
        return {name: _kind(result) for name, result in self.of.items()}


def _kind(result: RemovalResult) -> object:
    if isinstance(result, Removal):
        return result.outcome
    return PermissionRefusedError if isinstance(result, PermissionRefusedError) else type(result)


def remove(registry: ZooKeeperRegistry, entries: Sequence[RegistryEntry], *, force: bool = False) -> Results:
    """Remove them and return the results."""
    results = Results()
    registry.remove_many(entries, within(30.0), results, force=force)
    return results


# --- what becomes of each ---------------------------------------------------------------------------------------------


def test_hundreds_go_and_are_proven_gone_with_few_requests(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder where nothing else happens one look stands for all: chunk by chunk, look, transaction and proof."""
    folder = f"{stage.base}/{SERVICE}"
    registry = stage.registry()
    assert isinstance(registry, BulkRegistry)
    with stage.eyes() as client:
        for start in (0, 250, 500):
            plant(client, folder, numbered(250, start))
        entries = registry.entries(None, within(30.0))
        sent: list[int] = []
        whole = ZooKeeperSession.call_each

        def counted(session: ZooKeeperSession, requests: Sequence[Any], **options: Any) -> list[Any]:
            sent.append(len(requests))
            return whole(session, requests, **options)

        monkeypatch.setattr(ZooKeeperSession, "call_each", counted)
        results = remove(registry, entries)
        assert sum(sent) <= 3 * 3
        assert set(results.kinds().values()) == {RemovalOutcome.CONFIRMED}
        assert sorted(results.of) == numbered(750)
        assert all(isinstance(each, Removal) and each.confirmed_at for each in results.of.values())
        assert client.get_children(folder) == []
        assert client.exists(folder), "the folder stays"


@pytest.mark.parametrize("count", [2, 40])
def test_each_stands_for_itself(stage: Stage, count: int) -> None:
    """Live, registered anew, gone, changed, with children, from elsewhere, twice: each is told apart, others go."""
    folder = f"{stage.base}/{SERVICE}"
    registry = stage.registry()
    with stage.eyes() as client:
        plant(client, folder, [*numbered(count), "anew", "gone", "parent"])
        client.create(f"{folder}/alive", DATA, ephemeral=True)
        entries = list(registry.entries(None, within()))
        elsewhere = stage.registry(options="&layout=plain")
        client.create(f"{stage.base}-other/{SERVICE}/stranger", b"h:1", makepath=True)
        other = Stage(stage.server, f"{stage.base}-other")
        [stranger] = other.registry(options="&layout=plain").entries(None, within())
        other.close()
        client.delete(f"{folder}/anew")
        client.create(f"{folder}/anew", DATA)
        client.delete(f"{folder}/gone")
        client.set(f"{folder}/0000", DATA + b" ")
        client.create(f"{folder}/parent/child", b"")
        results = remove(registry, [*entries, stranger])
        assert results.kinds() == {
            **dict.fromkeys(numbered(count), RemovalOutcome.CONFIRMED),
            "anew": LiveOwnerError,
            "gone": InstanceNotFoundError,
            "parent": RegistryDataError,
            "alive": LiveOwnerError,
            "stranger": InstanceNotFoundError,
        }
        alive = results.of["alive"]
        assert isinstance(alive, LiveOwnerError)
        assert alive.yields_to_force
        assert sorted(client.get_children(folder)) == ["alive", "anew", "parent"]
        left = [entry for entry in elsewhere.entries(None, within()) if entry.locator.endswith("alive")]
        assert remove(registry, left, force=True).kinds() == {"alive": RemovalOutcome.CONFIRMED}


def test_the_same_entry_twice_is_removed_once(stage: Stage) -> None:
    """The second is told that it is gone, and the transaction of the first is not spoilt."""
    registry = stage.registry()
    with stage.eyes() as client:
        plant(client, f"{stage.base}/{SERVICE}", numbered(5))
    entries = registry.entries(None, within())
    told: list[RemovalResult] = []
    registry.remove_many([*entries, entries[0]], within(), lambda _, result: told.append(result))
    assert [isinstance(result, Removal) for result in told] == [True] * 5 + [False]
    assert isinstance(told[-1], InstanceNotFoundError)


def test_a_protected_folder_spares_no_other_one(stage: Stage) -> None:
    """Refused for each in it, removed in the other, though one transaction held both."""
    registry = stage.registry()
    with stage.eyes() as client:
        plant(client, f"{stage.base}/a", ["a1", "a2", "a3"])
        plant(client, f"{stage.base}/b", ["b1", "b2", "b3"])
        client.set_acls(f"{stage.base}/a", [make_acl("world", "anyone", read=True, create=True)])
        kinds = remove(registry, registry.entries(None, within())).kinds()
        assert kinds == {
            **dict.fromkeys(["a1", "a2", "a3"], PermissionRefusedError),
            **dict.fromkeys(["b1", "b2", "b3"], RemovalOutcome.CONFIRMED),
        }
        assert sorted(client.get_children(f"{stage.base}/a")) == ["a1", "a2", "a3"]


# --- successors -------------------------------------------------------------------------------------------------------


def test_what_came_between_the_listing_and_the_removal_stays(stage: Stage) -> None:
    """Plainly re-created nodes have version 0 again, as what was listed had; a new folder counts its changes anew."""
    folder = f"{stage.base}/{SERVICE}"
    registry = stage.registry()
    with stage.eyes() as client:
        plant(client, folder, numbered(6))
        entries = registry.entries(None, within())
        client.delete(folder, recursive=True)
        plant(client, folder, numbered(6))
        assert set(remove(registry, entries, force=True).kinds().values()) == {LiveOwnerError}
        assert sorted(client.get_children(folder)) == numbered(6)


def test_an_older_listing_is_not_taken_for_the_latest(stage: Stage) -> None:
    """The folder is as it was listed last, and what is to be removed was listed before."""
    folder = f"{stage.base}/{SERVICE}"
    registry = stage.registry()
    with stage.eyes() as client:
        plant(client, folder, numbered(6))
        old = registry.entries(None, within())
        client.delete(f"{folder}/0000")
        client.create(f"{folder}/0000", DATA)
        registry.entries(None, within())
        kinds = remove(registry, old).kinds()
        assert kinds.pop("0000") is LiveOwnerError
        assert set(kinds.values()) == {RemovalOutcome.CONFIRMED}
        assert client.get_children(folder) == ["0000"]


def test_a_successor_that_comes_between_two_chunks_stays(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the first ones are being removed, one of the last registers anew: our own deletions hide nobody else's."""
    monkeypatch.setattr(bulk_removal, "_MOST_IN_CHUNK", 5)
    folder = f"{stage.base}/{SERVICE}"
    registry = stage.registry()
    results = Results()
    with stage.eyes() as client:
        plant(client, folder, numbered(20))
        entries = registry.entries(None, within())

        def told(entry: RegistryEntry, result: RemovalResult) -> None:
            if not results.of:
                client.delete(f"{folder}/0017")
                client.create(f"{folder}/0017", DATA)
            results(entry, result)

        registry.remove_many(entries, within(), told)
        kinds = results.kinds()
        assert kinds.pop("0017") is LiveOwnerError
        assert set(kinds.values()) == {RemovalOutcome.CONFIRMED}
        assert len(kinds) == 19
        assert client.get_children(folder) == ["0017"]


def test_a_successor_that_comes_beside_our_own_deletions_stays(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between a transaction and its proof: the folder's count tells ours from others'."""
    monkeypatch.setattr(bulk_removal, "_MOST_IN_CHUNK", 5)
    folder = f"{stage.base}/{SERVICE}"
    registry = stage.registry()
    whole = bulk_removal._ChunkRemoval._prove
    with stage.eyes() as client:
        plant(client, folder, numbered(15))
        entries = registry.entries(None, within())

        def late(chunk: bulk_removal._ChunkRemoval, *arguments: Any) -> None:
            client.delete(f"{folder}/0012")
            client.create(f"{folder}/0012", DATA)
            monkeypatch.setattr(bulk_removal._ChunkRemoval, "_prove", whole)
            whole(chunk, *arguments)

        monkeypatch.setattr(bulk_removal._ChunkRemoval, "_prove", late)
        kinds = remove(registry, entries).kinds()
        assert kinds.pop("0012") is LiveOwnerError
        assert set(kinds.values()) == {RemovalOutcome.CONFIRMED}
        assert client.get_children(folder) == ["0012"]


def test_live_owners_are_spared_without_force(stage: Stage) -> None:
    """Where one look stands for all, too."""
    folder = f"{stage.base}/{SERVICE}"
    registry = stage.registry()
    with stage.eyes() as client:
        client.ensure_path(folder)
        for name in numbered(6):
            client.create(f"{folder}/{name}", DATA, ephemeral=int(name) % 2 == 0)
        kinds = remove(registry, registry.entries(None, within())).kinds()
        assert [kinds[name] for name in numbered(6)] == [LiveOwnerError, RemovalOutcome.CONFIRMED] * 3
        entries = registry.entries(None, within())
        assert set(remove(registry, entries, force=True).kinds().values()) == {RemovalOutcome.CONFIRMED}


def test_who_puts_it_back_at_once_is_reported(stage: Stage) -> None:
    """What was shown is gone, and somebody stands there: told, and left alone."""
    registry = stage.registry()
    with stage.eyes() as client:

        def put_back(_event: object) -> None:
            client.create_async(stage.path, DATA, ephemeral=True)

        plant(client, f"{stage.base}/{SERVICE}", numbered(4))
        client.create(stage.path, DATA, ephemeral=True)
        client.exists(stage.path, put_back)
        results = remove(registry, registry.entries(None, within()), force=True)
        eventually(lambda: client.exists(stage.path))
    kinds = results.kinds()
    assert kinds.pop(INSTANCE.id) in {RemovalOutcome.SUCCESSOR, RemovalOutcome.CONFIRMED}
    assert set(kinds.values()) == {RemovalOutcome.CONFIRMED}


# --- interruptions and faults -----------------------------------------------------------------------------------------


def test_an_interruption_leaves_nothing_half_removed_and_a_second_run_finishes(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole chunks are gone, whole chunks are there; a new listing shows what is left."""
    monkeypatch.setattr(bulk_removal, "_MOST_IN_CHUNK", 10)
    registry = stage.registry()
    results = Results()
    with stage.eyes() as client:
        plant(client, f"{stage.base}/{SERVICE}", numbered(50))

    def interrupted(entry: RegistryEntry, result: RemovalResult) -> None:
        results(entry, result)
        if len(results.of) == 13:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        registry.remove_many(registry.entries(None, within()), within(), interrupted)
    left = registry.entries(None, within())
    assert len(left) == 30
    assert remove(registry, left).kinds() == dict.fromkeys(numbered(30, 20), RemovalOutcome.CONFIRMED)
    assert list(registry.entries(None, within())) == []


def test_an_interrupted_transaction_is_not_made_up_for_later(stage: Stage, tcp_proxy: NewProxy) -> None:
    """Ctrl-C while the answer is awaited ends the session, and with it whatever it still had to send."""
    folder = f"{stage.base}/{SERVICE}"
    proxy = tcp_proxy(stage.server.hosts)
    registry = stage.registry(hosts=proxy.address)
    with stage.eyes() as client:
        plant(client, folder, numbered(6))
        entries = registry.entries(None, within())
        session = registry._shared.get()
        whole = session.call_each

        def interrupted(requests: Sequence[Any], **_options: Any) -> list[Any]:
            proxy.black_hole()
            for request in requests:
                request(session._client)
            raise KeyboardInterrupt

        chunk = bulk_removal._ChunkRemoval(
            entries, registry._settings, registry._shared, registry._listed, Results(), force=False
        )
        _, versions = chunk._look(session, within())
        session.call_each = interrupted  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            chunk._delete_together(session, versions, within())
        session.call_each = whole  # type: ignore[method-assign]
        assert session.is_over
        proxy.drop_connections()
        proxy.pass_through()
        never(lambda: len(client.get_children(folder)) < 6, seconds=1.0, because="the late transaction ran")


def test_what_is_cut_off_is_not_made_up_for_later(stage: Stage, tcp_proxy: NewProxy) -> None:
    """What was not sent before the deadline is never sent: successors on the same paths survive the link's return."""
    folder = f"{stage.base}/{SERVICE}"
    proxy = tcp_proxy(stage.server.hosts)
    registry = stage.registry(hosts=proxy.address)
    with stage.eyes() as client:
        plant(client, folder, numbered(6))
        entries = registry.entries(None, within())
        proxy.refuse()
        proxy.drop_connections()
        results = Results()
        with pytest.raises(RegistryUnavailableError):
            registry.remove_many(entries, within(1.0), results)
        assert results.of == {}
        client.delete(folder, recursive=True)
        plant(client, folder, numbered(6))
        proxy.pass_through()
        eventually(lambda: registry.entries(None, within()))
        never(lambda: len(client.get_children(folder)) < 6, seconds=1.0, because="a late delete removed a successor")


def test_a_transaction_whose_answer_was_lost_is_a_success(stage: Stage, tcp_proxy: NewProxy) -> None:
    """Applied, connection lost: the next attempt finds them gone and proves it."""
    folder = f"{stage.base}/{SERVICE}"
    proxy = tcp_proxy(stage.server.hosts)
    registry = stage.registry(hosts=proxy.address)
    with stage.eyes() as client:
        plant(client, folder, numbered(20))
        entries = registry.entries(None, within())
        proxy.delay_answers(0.5)
        removing = Background(lambda: remove(registry, entries))
        eventually(lambda: client.get_children(folder) == [], interval=0.01, because="the transaction was applied")
        proxy.drop_connections()
        proxy.pass_through()
        assert removing.result().kinds() == dict.fromkeys(numbered(20), RemovalOutcome.CONFIRMED)


def test_no_answer_by_the_deadline_is_unconfirmed(stage: Stage, tcp_proxy: NewProxy) -> None:
    """Sent and never heard of again: said so for each, and told what to do."""
    proxy = tcp_proxy(stage.server.hosts)
    registry = stage.registry(hosts=proxy.address)
    with stage.eyes() as client:
        plant(client, f"{stage.base}/{SERVICE}", numbered(4))
    entries = registry.entries(None, within())
    session = registry._shared.get()
    whole = session.call_each

    def lost(requests: Sequence[Any], **options: Any) -> list[Any]:
        if len(sent) == 1:
            proxy.black_hole()
        sent.append(len(requests))
        return whole(requests, **options)

    sent: list[int] = []
    session.call_each = lost  # type: ignore[method-assign]
    results = Results()
    registry.remove_many(entries, within(2.0), results)
    proxy.pass_through()
    assert results.kinds() == dict.fromkeys(numbered(4), RemovalOutcome.UNCONFIRMED)
    assert all(isinstance(each, Removal) and "look again" in each.detail for each in results.of.values())
    assert not any(isinstance(each, RegistryDrainError) for each in results.of.values())


def test_a_folder_that_may_not_be_listed_is_proven_node_by_node(stage: Stage) -> None:
    """exists() needs no permission: the proof does not need what the listing needed."""
    folder = f"{stage.base}/{SERVICE}"
    registry = stage.registry()
    with stage.eyes() as client:
        plant(client, folder, numbered(6))
        entries = registry.entries(None, within())
        client.set_acls(folder, [make_acl("world", "anyone", delete=True)])
        assert set(remove(registry, entries).kinds().values()) == {RemovalOutcome.CONFIRMED}
