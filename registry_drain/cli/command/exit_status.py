"""What the commands exit with, and the one place that says which error or outcome means which status.

The numbers are part of the interface: scripts and runbooks branch on them.
"""

from __future__ import annotations

from enum import IntEnum

from registry_drain.errors import (
    ConfigurationError,
    InstanceNotFoundError,
    LiveOwnerError,
    PermissionRefusedError,
    RegistryDrainError,
    RegistryError,
    ServerError,
)

TYPE_CHECKING = False
if TYPE_CHECKING:  # spelled out, because a start-up that only prints the help imports neither this nor typing
    from collections.abc import Iterable

    from registry_drain.registries.base import RemovalOutcome


class ExitStatus(IntEnum):
    """How a command ended. ``word`` is its name in JSON."""

    DONE = 0
    """What was asked is done; of ``deregister``: gone, and proven to be."""
    FAILED = 1
    """The command worked and its answer is no: the demo's drained side lost a request."""
    BAD_USAGE = 2
    """The arguments cannot work, or fit several instances. Nothing was done."""
    UNREACHABLE = 3
    """The registry could not be reached, or not in time. Whether something was done is in the message."""
    NOT_FOUND = 4
    """No such instance is listed."""
    CAME_BACK = 5
    """It was gone, and somebody registered it again."""
    UNVERIFIABLE = 6
    """The registry accepted the removal, but we may not look whether it took place."""
    REFUSED = 7
    """The registry refused our credentials, or somebody alive owns the instance. It is still there."""
    INTERNAL_ERROR = 70
    """A bug, ours or a plug-in's (``EX_SOFTWARE`` of sysexits(3))."""
    INTERRUPTED = 130
    """Ctrl-C: 128 + SIGINT, as shells have it."""

    @property
    def word(self) -> str:
        """The name in lower case, which does not change either."""
        return self.name.lower()


_OF_ERRORS: tuple[tuple[type[RegistryDrainError], ExitStatus], ...] = (
    (ConfigurationError, ExitStatus.BAD_USAGE),
    (InstanceNotFoundError, ExitStatus.NOT_FOUND),
    (LiveOwnerError, ExitStatus.REFUSED),
    (PermissionRefusedError, ExitStatus.REFUSED),
    # Unavailable, timed out, or an answer that makes no sense: the registry, as far as we are concerned, is not there.
    (RegistryError, ExitStatus.UNREACHABLE),
    (ServerError, ExitStatus.FAILED),
)


def status_of_error(error: RegistryDrainError) -> ExitStatus:
    """Return what to exit with when ``error`` ended the command."""
    for kind, status in _OF_ERRORS:
        if isinstance(error, kind):
            return status
    return ExitStatus.INTERNAL_ERROR


_WORST_FIRST = (
    ExitStatus.INTERNAL_ERROR,
    ExitStatus.INTERRUPTED,
    ExitStatus.BAD_USAGE,
    ExitStatus.FAILED,
    ExitStatus.UNREACHABLE,
    ExitStatus.REFUSED,
    ExitStatus.CAME_BACK,
    ExitStatus.UNVERIFIABLE,
    ExitStatus.NOT_FOUND,
    ExitStatus.DONE,
)
"""From what may have left anything behind to what is as it should be."""


def worst(statuses: Iterable[ExitStatus]) -> ExitStatus:
    """Return what a command exits with that did several things; done if there are none."""
    return min(statuses, key=_WORST_FIRST.index, default=ExitStatus.DONE)


def status_of_removal(outcome: RemovalOutcome) -> ExitStatus:
    """Return what to exit with after a removal that ended with ``outcome``."""
    from registry_drain.registries.base import RemovalOutcome

    return {
        RemovalOutcome.CONFIRMED: ExitStatus.DONE,
        RemovalOutcome.UNVERIFIABLE: ExitStatus.UNVERIFIABLE,
        RemovalOutcome.UNCONFIRMED: ExitStatus.UNREACHABLE,
        # What was shown is gone, and before anybody could look it had been registered anew.
        RemovalOutcome.SUCCESSOR: ExitStatus.CAME_BACK,
        RemovalOutcome.NOT_REGISTERED: ExitStatus.NOT_FOUND,
        RemovalOutcome.REFUSED: ExitStatus.REFUSED,
        RemovalOutcome.HANDED_OVER: ExitStatus.CAME_BACK,  # a registration's outcome, never a removal's
    }[outcome]
