"""Removing many: in transactions or through agents, each for itself, and nothing half removed when interrupted."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from registry_drain.errors import (
    InstanceNotFoundError,
    LiveOwnerError,
    PermissionRefusedError,
    RegistryDrainError,
    RegistryUnavailableError,
)
from registry_drain.registries.abilities import BulkRegistry, RemovalResult
from registry_drain.registries.base import RegistryEntry, Removal, RemovalOutcome
from registry_drain.registries.consul import ConsulRegistry
from registry_drain.registries.consul.removal.transaction import Group, batches
from tests.registries.consul_tools import Liar, Lie, Members, put_ghost, put_service, soon
from tests.support.consul_process import ConsulAgent


@pytest.fixture
def node(consul_agent: ConsulAgent, unique: str) -> Iterator[str]:
    """Give the name of a node without an agent, and remove what is left of it."""
    name = f"ghost-{unique[-8:]}"
    yield name
    consul_agent.put("/v1/catalog/deregister", {"Node": name})


def plant(agent: ConsulAgent, service: str, node: str, count: int) -> None:
    """Write ``count`` ghosts ``g0``, ``g1``, … into the catalog, in transactions."""
    put_ghost(agent, service, "g0", node)
    for first in range(0, count, 64):
        numbers = range(first, min(first + 64, count))
        services = [{"ID": f"g{number}", "Service": service, "Port": 80} for number in numbers]
        agent.put("/v1/txn", [{"Service": {"Verb": "set", "Node": node, "Service": each}} for each in services])


def transactions(front: Liar) -> int:
    """Return how many were sent."""
    return sum(1 for method, path, _ in front.requests if (method, path) == ("PUT", "/v1/txn"))


def remove_all(
    registry: ConsulRegistry, entries: Sequence[RegistryEntry], *, force: bool = False
) -> dict[str, RemovalResult]:
    """Return the results by locator; fail if one is told twice."""
    results: dict[str, RemovalResult] = {}

    def note(entry: RegistryEntry, result: RemovalResult) -> None:
        assert entry.locator not in results, "told twice"
        results[entry.locator] = result

    registry.remove_many(entries, soon(20), note, force=force)
    return results


def kind(result: RemovalResult) -> object:
    """Return the outcome, or the class of the error."""
    return result.outcome if isinstance(result, Removal) else type(result)


def test_two_hundred_ghosts_in_a_few_requests(consul_agent: ConsulAgent, unique: str, node: str) -> None:
    """Transactions of 64; one look before and one as the proof, however many there are."""
    plant(consul_agent, unique, node, 200)
    with Liar(consul_agent) as front, Members() as members:
        registry = members.registry(f"consul://{front.address}")
        assert isinstance(registry, BulkRegistry)
        entries = registry.entries(unique, soon())
        assert len(entries) == 200
        front.requests.clear()
        results = remove_all(registry, entries)
        assert transactions(front) == 4
        assert len(front.requests) < 12, front.requests
    assert {kind(result) for result in results.values()} == {RemovalOutcome.CONFIRMED}
    assert len(results) == 200
    assert all(isinstance(each, Removal) and each.confirmed_at is not None for each in results.values())
    assert not consul_agent.instances(unique)


def test_each_stands_for_itself(consul_agent: ConsulAgent, unique: str, node: str) -> None:
    """What is gone, changed, managed or alive spares no other one, not in its transaction and not in another."""
    plant(consul_agent, unique, node, 100)
    put_service(consul_agent, unique, "alive", Check={"TTL": "60s", "Status": "passing"})
    put_service(consul_agent, unique, "of-an-agent")
    put_ghost(consul_agent, unique, "_nomad-x", node)
    with Members() as members:
        registry = members.registry(consul_agent.url)
        entries = registry.entries(unique, soon())
        put_ghost(consul_agent, unique, "g7", node, Port=81)
        consul_agent.put("/v1/catalog/deregister", {"Node": node, "ServiceID": "g9"})
        results = {locator.partition("/")[2]: kind(each) for locator, each in remove_all(registry, entries).items()}
        expected: dict[str, object] = {f"g{number}": RemovalOutcome.CONFIRMED for number in range(100)}
        expected |= {"g7": LiveOwnerError, "g9": InstanceNotFoundError, "_nomad-x": LiveOwnerError}
        expected |= {"alive": LiveOwnerError, "of-an-agent": RemovalOutcome.CONFIRMED}
        assert results == expected
        assert set(consul_agent.instances(unique)) == {"g7", "_nomad-x", "alive"}
        again = remove_all(registry, registry.entries(unique, soon()), force=True)
        assert {kind(each) for each in again.values()} == {RemovalOutcome.CONFIRMED}
    assert not {"alive", "of-an-agent"} & set(consul_agent.get("/v1/agent/services"))


def test_one_that_changes_in_the_last_moment_is_told_apart(consul_agent: ConsulAgent, unique: str, node: str) -> None:
    """A successor appears between the look and the transaction: it lives, and the others of the transaction go."""
    plant(consul_agent, unique, node, 20)
    changed = False

    def just_before(method: str, path: str) -> Lie | None:
        nonlocal changed
        if (method, path) == ("PUT", "/v1/txn") and not changed:
            changed = True
            put_ghost(consul_agent, unique, "g3", node, Port=81)
            consul_agent.put("/v1/catalog/deregister", {"Node": node, "ServiceID": "g5"})
        return None

    with Liar(consul_agent, just_before) as front, Members() as members:
        registry = members.registry(f"consul://{front.address}")
        results = {
            key.partition("/")[2]: kind(each)
            for key, each in remove_all(registry, registry.entries(unique, soon())).items()
        }
        assert transactions(front) == 2
    assert results.pop("g3") is LiveOwnerError
    assert results.pop("g5") is InstanceNotFoundError
    assert set(results.values()) == {RemovalOutcome.CONFIRMED}
    assert len(results) == 18
    assert set(consul_agent.instances(unique)) == {"g3"}


def test_an_interruption_leaves_nothing_half_removed(consul_agent: ConsulAgent, unique: str, node: str) -> None:
    """Ctrl-C in the callback ends it at once; each instance is there with its twin, or gone with it; then the rest."""
    plant(consul_agent, unique, node, 600)
    for number in (0, 599):
        twin: dict[str, Any] = {
            "Kind": "connect-proxy",
            "Proxy": {"DestinationServiceName": unique, "DestinationServiceID": f"g{number}"},
        }
        put_ghost(consul_agent, f"{unique}-proxy", f"p{number}", node, **twin)
    told = []

    def interrupted(entry: RegistryEntry, result: RemovalResult) -> None:
        told.append((entry, result))
        if len(told) == 100:
            raise KeyboardInterrupt

    with Members() as members:
        registry = members.registry(consul_agent.url)
        entries = sorted(registry.entries(unique, soon()), key=lambda entry: int(entry.id[1:]))
        with pytest.raises(KeyboardInterrupt):
            registry.remove_many(entries, soon(20), interrupted)
        assert len(told) == 100
        left, twins = set(consul_agent.instances(unique)), set(consul_agent.instances(f"{unique}-proxy"))
        assert {f"g{number}" for number in range(512, 600)} <= left, "the next round had begun"
        assert ("p0" in twins, "p599" in twins) == ("g0" in left, "g599" in left)
        assert "g0" not in left
        results = remove_all(registry, registry.entries(unique, soon()))
        assert {kind(each) for each in results.values()} == {RemovalOutcome.CONFIRMED}
    assert not consul_agent.instances(unique)
    assert not consul_agent.instances(f"{unique}-proxy")


def test_an_error_of_the_receiver_is_not_retried(consul_agent: ConsulAgent, unique: str, node: str) -> None:
    """Even one of our own tree, and a retryable one: it passes through, and nobody is told twice."""
    plant(consul_agent, unique, node, 3)
    told = []

    def fails(entry: RegistryEntry, _: RemovalResult) -> None:
        told.append(entry)
        raise RegistryUnavailableError("the receiver's own")

    with Members() as members:
        registry = members.registry(consul_agent.url)
        with pytest.raises(RegistryUnavailableError, match="the receiver's own"):
            registry.remove_many(registry.entries(unique, soon()), soon(), fails)
    assert len(told) == 1


@pytest.mark.parametrize("took_effect", [True, False])
def test_a_lost_transaction_is_no_doubt_for_long(
    consul_agent: ConsulAgent, unique: str, node: str, took_effect: bool
) -> None:
    """Its answer was lost, or it was: the next look tells, and what was settled before is not told again."""
    plant(consul_agent, unique, node, 10)
    put_ghost(consul_agent, unique, "_nomad-x", node)
    lost: list[str] = []

    def loses(method: str, path: str) -> Lie | None:
        if (method, path) != ("PUT", "/v1/txn") or lost:
            return None
        lost.append(path)
        for number in range(10) if took_effect else ():
            consul_agent.put("/v1/catalog/deregister", {"Node": node, "ServiceID": f"g{number}"})
        return 500, b"rpc error: lost"

    with Liar(consul_agent, loses) as front, Members() as members:
        registry = members.registry(f"consul://{front.address}")
        results = remove_all(registry, registry.entries(unique, soon()))
        assert transactions(front) == (1 if took_effect else 2)
    assert kind(results.pop(f"{node}/_nomad-x")) is LiveOwnerError
    assert len(results) == 10
    assert {kind(each) for each in results.values()} == {RemovalOutcome.CONFIRMED}


def test_out_of_reach_before_anything_was_sent(consul_agent: ConsulAgent, unique: str, node: str) -> None:
    """Then it is an error of the whole; after something was sent, an unconfirmed outcome of each."""
    plant(consul_agent, unique, node, 3)
    mode = "look"

    def down(method: str, path: str) -> Lie | None:
        is_txn = (method, path) == ("PUT", "/v1/txn")
        sent = any(each[:2] == ("PUT", "/v1/txn") for each in front.requests[:-1])
        return (500, b"No cluster leader") if (mode == "look" or is_txn or sent) else None

    with Liar(consul_agent, down) as front, Members() as members:
        registry = members.registry(f"consul://{front.address}")
        entries = members.registry(consul_agent.url).entries(unique, soon())
        with pytest.raises(RegistryUnavailableError, match="No cluster leader"):
            registry.remove_many(entries, soon(4), lambda *_: pytest.fail("told"))
        mode = "send"
        results: list[RemovalResult] = []
        registry.remove_many(entries, soon(4), lambda _, result: results.append(result))
    assert [kind(each) for each in results] == [RemovalOutcome.UNCONFIRMED] * 3
    assert len(consul_agent.instances(unique)) == 3


@pytest.mark.parametrize(
    ("answer", "kind_of_error"),
    [
        ({"Errors": [{"OpIndex": 1, "What": "Permission denied"}]}, PermissionRefusedError),
        ({"Errors": [{"OpIndex": 1, "What": "something else"}]}, RegistryDrainError),
    ],
)
def test_a_refused_operation_is_told_apart(
    consul_agent: ConsulAgent, unique: str, node: str, answer: object, kind_of_error: type[Exception]
) -> None:
    """The one that Consul refuses is an error; the others go."""
    plant(consul_agent, unique, node, 3)
    said = False

    def refuses(method: str, path: str) -> Lie | None:
        nonlocal said
        if (method, path) != ("PUT", "/v1/txn") or said:
            return None
        said = True
        return 409, json.dumps(answer).encode()

    with Liar(consul_agent, refuses) as front, Members() as members:
        registry = members.registry(f"consul://{front.address}")
        entries = registry.entries(unique, soon())
        results = remove_all(registry, entries)
    assert isinstance(results[entries[1].locator], kind_of_error)
    assert [kind(results[each.locator]) for each in (entries[0], entries[2])] == [RemovalOutcome.CONFIRMED] * 2
    assert set(consul_agent.instances(unique)) == {entries[1].id}


@pytest.mark.parametrize("data", [None, {}, {"Errors": None}, {"Errors": [{"OpIndex": 99, "What": "x"}, 7]}, []])
def test_a_refusal_that_names_nobody_ends(consul_agent: ConsulAgent, unique: str, node: str, data: object) -> None:
    """An answer that nobody understands is an error of each, and is not asked for again for ever."""
    plant(consul_agent, unique, node, 2)

    def refuses(method: str, path: str) -> Lie | None:
        return (409, json.dumps(data).encode()) if (method, path) == ("PUT", "/v1/txn") else None

    with Liar(consul_agent, refuses) as front, Members() as members:
        registry = members.registry(f"consul://{front.address}")
        results = remove_all(registry, registry.entries(unique, soon()))
        assert transactions(front) == 1
    assert all(isinstance(each, RegistryDrainError) and "without saying why" in str(each) for each in results.values())
    assert len(consul_agent.instances(unique)) == 2


def test_the_same_entry_twice(consul_agent: ConsulAgent, unique: str, node: str) -> None:
    """The second one is gone already when its turn comes."""
    plant(consul_agent, unique, node, 2)
    with Members() as members:
        registry = members.registry(consul_agent.url)
        first, second = registry.entries(unique, soon())
        results: list[object] = []
        registry.remove_many([first, first, second], soon(), lambda _, result: results.append(kind(result)))
    assert results == [RemovalOutcome.CONFIRMED, InstanceNotFoundError, RemovalOutcome.CONFIRMED]


def test_groups_are_never_cut() -> None:
    """What belongs together is in one transaction, and none has more than 64 operations."""
    groups = [Group(number, [{}] * size) for number, size in enumerate([1, 63, 1, 60, 5, 64, 2])]
    found = [[group.owner for group in batch] for batch in batches(groups)]
    assert found == [[0, 1], [2, 3], [4], [5], [6]]
