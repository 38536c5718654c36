"""What workers tell each other of an operator's removal: that it was one, that it is over, and what became of it.

Theory of operation: the keeper notes in the agreement what its registrations have found out. A worker that is told to
rejoin marks it there; the keeper does it, and takes the note away, or writes beside it why it could not. A keeper that
dies meanwhile leaves the mark to the next one.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace

from registry_drain.clock import Deadline
from registry_drain.errors import (
    LiveOwnerError,
    PermissionRefusedError,
    RegistryError,
    RegistryTimeoutError,
    RegistryUnavailableError,
)
from registry_drain.hosted.kept import KeptRegistrations
from registry_drain.hosted.workers import Agreement, OperatorsRemoval, Workers
from registry_drain.persistent_registration import REGISTER_TIMEOUT

logger = logging.getLogger(__name__)

_LOOK_EVERY = 0.01
_ERRORS: dict[str, type[RegistryError]] = {each.__name__: each for each in (LiveOwnerError, PermissionRefusedError)}
"""What another worker's failure to rejoin is raised as; else it is one that may be tried again."""


def note_removed(agreed: Agreement, removed: Mapping[str, str]) -> None:
    """Write into the agreement what an operator has removed: by URL, how that is known."""
    for url, how in removed.items():
        if url not in agreed.removed:
            agreed.removed[url] = OperatorsRemoval(how)


def ask_to_rejoin(workers: Workers, subject: str, deadline: Deadline) -> tuple[str, ...]:
    """Have the keeper register ``subject`` again wherever an operator has removed it; return those URLs. Blocks.

    Raises:
        RegistryError: of the first registry that could not be rejoined; the others were tried, too.
    """
    try:
        with workers.agreement() as agreed:
            asked = tuple(agreed.removed)
            for url in asked:
                agreed.removed[url] = replace(agreed.removed[url], is_rejoin_asked=True, failure=None)
        left = _answered(workers, subject, asked, deadline)
    except TimeoutError as error:
        raise RegistryTimeoutError(f"{subject} could not be told to rejoin: {error}") from error
    for each in left.values():
        kind, message = each.failure or ("", f"{subject} was removed again meanwhile: {each.how}")
        raise _ERRORS.get(kind, RegistryUnavailableError)(message)
    return asked


def _answered(
    workers: Workers, subject: str, asked: tuple[str, ...], deadline: Deadline
) -> dict[str, OperatorsRemoval]:
    """Wait until the keeper has tried each; return what is out still."""
    while True:
        with workers.agreement() as agreed:
            left = {url: agreed.removed[url] for url in asked if url in agreed.removed}
            if not any(each.is_rejoin_asked for each in left.values()):
                return left
            is_late = deadline.is_past
            if is_late:
                for url, each in left.items():
                    agreed.removed[url] = replace(each, is_rejoin_asked=False)
        if is_late:  # out here: what an exception ends is not agreed
            raise RegistryTimeoutError(f"{subject}: no worker has rejoined {', '.join(left)} in time")
        deadline.clock.sleep(_LOOK_EVERY)


def rejoin_kept(workers: Workers, kept: KeptRegistrations, urls: Iterable[str]) -> None:
    """Do, in the keeper, what was asked for; for one thread."""
    for url in urls:
        failure = None
        try:
            kept.rejoin(url, Deadline.after(REGISTER_TIMEOUT, kept.clock))
        except RegistryError as error:
            failure = (type(error).__name__, str(error))
            logger.warning("%s was told to rejoin %s, and could not: %s", kept.instance, url, error)
        else:
            logger.info("%s: told to rejoin, and registered at %s", kept.instance, url)
        with workers.agreement() as agreed:
            found = agreed.removed.pop(url, None)
            if found is not None and failure is not None:
                agreed.removed[url] = replace(found, is_rejoin_asked=False, failure=failure)
