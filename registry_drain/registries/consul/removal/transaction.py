"""Removals from the catalog in transactions: many at once, each on condition that it has not changed.

A transaction is all or nothing (``PUT /v1/txn``), so that what belongs together goes together, and one removal that
cannot be done keeps the others of its transaction from being done. It is told apart by the index that Consul's answer
gives, and the others are sent again without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from registry_drain.clock import Deadline
from registry_drain.registries.consul.http import ConsulClient

MOST_OPERATIONS = 64
"""In one transaction; 65 are refused: developer.hashicorp.com/consul/api-docs/txn."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Group(Generic[T]):
    """Operations that are done together or not at all, and whose they are."""

    owner: T
    operations: Sequence[Mapping[str, Any]]


def batches(groups: Sequence[Group[T]]) -> list[list[Group[T]]]:
    """Return the groups in as few transactions as their order allows; no group is cut."""
    found: list[list[Group[T]]] = []
    room = 0
    for group in groups:
        if len(group.operations) > room:
            found.append([])
            room = MOST_OPERATIONS
        found[-1].append(group)
        room -= len(group.operations)
    return found


def submit(
    client: ConsulClient,
    batch: Sequence[Group[T]],
    deadline: Deadline,
    on_refused: Callable[[T, str], None],
) -> None:
    """Carry out one batch; each group that is refused goes to ``on_refused`` with Consul's reason, the others are done.

    Raises:
        RegistryUnavailableError: whether what was not refused is done is unknown.
        PermissionRefusedError, RegistryError: nothing of what was not refused is done.
    """
    remaining = list(batch)
    while remaining:
        operations = [operation for group in remaining for operation in group.operations]
        answer = client.call("PUT", "txn", deadline=deadline, body=operations, accept=frozenset({409}))
        if answer.status != 409:
            return
        refused = _refused(remaining, answer.data)
        for place, reason in refused.items():
            on_refused(remaining[place].owner, reason)
        remaining = [group for place, group in enumerate(remaining) if place not in refused]


def _refused(batch: Sequence[Group[T]], data: object) -> dict[int, str]:
    """Return the reasons by the place of the group in ``batch``."""
    place_of = [place for place, group in enumerate(batch) for _ in group.operations]
    found: dict[int, str] = {}
    errors = data.get("Errors") if isinstance(data, dict) else None
    for error in errors if isinstance(errors, list) else ():
        index = error.get("OpIndex") if isinstance(error, dict) else None
        if isinstance(index, int) and 0 <= index < len(place_of):
            place = place_of[index]
            found[place] = "; ".join(filter(None, [found.get(place), str(error.get("What"))]))
    # Always at least one, or the same would be sent for ever.
    return found or dict.fromkeys(range(len(batch)), "the transaction was refused, without saying why")
