"""Who may hold the path of a node, and the one transaction that takes it over.

Rules, numbered as in :mod:`registry_drain.registries.zookeeper.registration.node`:

2. *The newest wins.* A node in our way is replaced, in one transaction, if it is left over from a session of our own,
   or if we never held the path: then we are the restarted process, and it is our predecessor's whose session has yet to
   time out. Once we held the path whoever stands there came later (until then it was ours): we yield, for good. One
   exception protects a successor from an elder that was late: if the node says that its instance started after we did,
   and not in the future, then *we* are the elder and refuse. A start in the future only tells that a clock was set
   back.
3. *Take-over is guarded by the version*, which helps because consecutive holders never have the same one: whoever takes
   a node over writes its data as often as it takes to be one ahead, modulo ``_VERSIONS``. What remains is a predecessor
   that expires *and* a rival that registers plainly between our look and our transaction, about 1 ms.
"""

from __future__ import annotations

from typing import Any

from kazoo.exceptions import NoAuthError, RolledBackError, RuntimeInconsistency

from registry_drain.errors import RegistryUnavailableError
from registry_drain.registries.zookeeper.refusal import Need, folder_of
from registry_drain.registries.zookeeper.session import ANSWERS, Request

_VERSIONS = 8
"""See rule 3. A take-over costs at most so many tiny writes; eight take-overs within 1 ms do not happen."""


def may_take_over(theirs: float | None, ours: float, now: float, *, held_before: bool, is_own: bool) -> bool:
    """Return whether a node in our way may be replaced; see rule 2.

    Args:
        theirs: when its instance started, in UNIX seconds; None if it does not say.
        ours: when we started.
        now: the same clock, now.
        held_before: whether our node has stood on this path.
        is_own: whether it belongs to an earlier session of ours.
    """
    if is_own:
        return True
    if held_before:
        return False
    is_younger = theirs is not None and ours < theirs <= now
    return not is_younger


def taking_over(path: str, version: int, data: bytes) -> Request:
    """Return the request that replaces the node of this ``version`` by an ephemeral one of ours, with ``data``."""

    def take_over(client: Any) -> Any:
        transaction = client.transaction()
        transaction.delete(path, version=version)
        transaction.create(path, data, ephemeral=True)
        for _ in range((version + 1) % _VERSIONS):
            transaction.set_data(path, data)
        return transaction.commit_async()

    return take_over


def is_applied(results: Any) -> bool:
    """Whether the transaction took effect."""
    return isinstance(results, list) and not any(isinstance(result, Exception) for result in results)


def refused_need(path: str, results: Any, url: str) -> Need | None:
    """Return the permission that the transaction lacked; None if it was applied, or met one of ``ANSWERS``.

    Raises:
        RegistryUnavailableError: it failed for another reason.
    """
    for index, result in enumerate(results if isinstance(results, list) else [results]):
        # The operations that were not at fault are answered with these two.
        is_bystander = isinstance(result, (RolledBackError, RuntimeInconsistency))
        if is_bystander or not isinstance(result, Exception) or isinstance(result, ANSWERS):
            continue
        if isinstance(result, NoAuthError):
            permission = ("DELETE", "CREATE")[index] if index < 2 else "WRITE"
            return Need(f"taking {path} over", folder_of(path) if index < 2 else path, permission)
        raise RegistryUnavailableError(f"{url}: the transaction failed ({type(result).__name__})")
    return None
