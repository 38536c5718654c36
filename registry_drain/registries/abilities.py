"""What a registry, or a registration, may be able to do beyond the protocols of :mod:`registry_drain.registries.base`.

Each protocol here is optional, all of its members or none; ``isinstance`` tells. Who uses an ability says what happens
without it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Protocol, runtime_checkable

from registry_drain.clock import Deadline
from registry_drain.errors import RegistryDrainError
from registry_drain.registries.base import Registration, Registry, RegistryEntry, Removal

RemovalResult = Removal | RegistryDrainError
"""What became of one entry of many: what :meth:`Registry.remove` would have returned, or raised."""


@runtime_checkable
class BulkRegistry(Registry, Protocol):
    """A registry that removes many entries in far less time than one after the other."""

    def remove_many(
        self,
        entries: Sequence[RegistryEntry],
        deadline: Deadline,
        on_result: Callable[[RegistryEntry, RemovalResult], None],
        *,
        force: bool = False,
    ) -> None:
        """Remove each of ``entries`` as :meth:`Registry.remove` does, with the same guards and the same proof.

        Each entry stands for itself: what is refused, gone or changed spares no other one. ``on_result`` is called once
        for each, from the calling thread, as soon as its result is known. An interruption (any exception from
        ``on_result``, KeyboardInterrupt) leaves no entry half removed; a second call with what a new listing shows goes
        on where the first one ended.

        Raises:
            RegistryUnavailableError: nothing was sent for those without a result.
        """
        ...


@runtime_checkable
class CompanionRegistry(Registry, Protocol):
    """A registry in which other things belong to an entry, and go when it goes."""

    def companions(self, entries: Sequence[RegistryEntry], deadline: Deadline) -> Sequence[Sequence[str]]:
        """Return, for each of ``entries`` in their order, what else :meth:`Registry.remove` takes away: a line each.

        Such as the sidecar proxy or the management endpoint of the same process, or a check that is registered apart.
        Changes nothing. :attr:`Removal.detail` names them again when they are gone.

        Raises:
            RegistryUnavailableError, PermissionRefusedError: as everywhere.
        """
        ...


@dataclass(frozen=True, slots=True)
class Rotation:
    """What became of taking one entry out of rotation, or of putting it back.

    Attributes:
        subject: the instance, as ``id (host:port)``.
        registry: the registry's URL, without secrets.
        is_out: whether callers that follow the registry leave it out now, as a consistent read shows.
        how: the state that was used: ``maintenance mode``, ``instance_status``.
        detail: one line for the operator.
    """

    subject: str
    registry: str
    is_out: bool
    how: str
    detail: str = ""


@runtime_checkable
class RotationRegistry(Registry, Protocol):
    """A registry with a reversible state in which an instance stays listed and is not called."""

    def drain(self, entry: RegistryEntry, deadline: Deadline, *, reason: str = "") -> Rotation:
        """Take ``entry``, exactly as it was shown, out of rotation, and look that it is.

        Doing so twice is no error.

        Args:
            entry: from :meth:`Registry.entries`; if its ``version`` no longer matches, nothing is changed.
            deadline: bounds everything.
            reason: shown beside the state by tools of the registry, where they show one.

        Raises:
            LiveOwnerError: it was registered anew since it was shown.
            InstanceNotFoundError: it is gone.
            RegistryDataError: what is written there has no such state; the message says what has.
            RegistryUnavailableError, PermissionRefusedError: as everywhere.
        """
        ...

    def undrain(self, entry: RegistryEntry, deadline: Deadline) -> Rotation:
        """Put ``entry`` back into rotation, and look that it is; see :meth:`drain`."""
        ...


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something of ours that is no entry, outlived the one that it was for, and harms who comes next.

    Attributes:
        subject: what it does to whom, in words.
        locator: where it stands.
        version: opaque; differs once somebody has written there.
    """

    subject: str
    locator: str
    version: str


@runtime_checkable
class LeftoverRegistry(Registry, Protocol):
    """A registry in which something of ours may be left of instances that are gone."""

    def leftovers(self, service: str | None, deadline: Deadline) -> Sequence[Leftover]:
        """Return what is left of one service, or (None) of all. Of others nothing is shown.

        Raises:
            RegistryUnavailableError, PermissionRefusedError: as everywhere.
        """
        ...

    def clear(self, leftover: Leftover, deadline: Deadline) -> bool:
        """Delete ``leftover`` exactly as it was shown; return whether it is gone, False if somebody wrote there since.

        Raises:
            RegistryUnavailableError, PermissionRefusedError: as everywhere.
        """
        ...


@runtime_checkable
class RotationRegistration(Registration, Protocol):
    """A registration that can leave the rotation before it is removed: a first, reversible step of a stop."""

    def leave_rotation(self, deadline: Deadline) -> None:
        """Stay listed, and be called no more. What ``on_shutdown`` removes later leaves nothing of it to a successor.

        Raises:
            RegistryError: that failed; the stop goes on with the removal.
        """
        ...


@runtime_checkable
class RejoinableRegistration(Registration, Protocol):
    """A registration that tells an operator's removal from a loss, and respects it.

    What the registry merely lost (a restarted agent, an expired session) is registered again. What somebody took out
    on purpose stays out, until :meth:`rejoin` or a restart; ``register`` then raises RemovedByOperatorError. Without
    evidence it counts as lost. A successor's take-over is neither.
    """

    @property
    def removed_by_operator(self) -> str:
        """When and how it is known that somebody removed it on purpose, in one line; empty if nobody did.

        Sends nothing. Once found out it stays until :meth:`rejoin`, also after the stop.
        """
        ...

    def on_removed(self, call: Callable[[str], None]) -> None:
        """Have ``call`` called with the line of :attr:`removed_by_operator`, once for each removal that is found out.

        It is called in whatever thread finds out (the backend's own, or one that asks) and must neither block nor call
        back. It takes the place of an earlier one.
        """
        ...

    def rejoin(self, deadline: Deadline) -> None:
        """Register again although it was removed; otherwise as :meth:`Registration.register`.

        Raises:
            LiveOwnerError: fenced; or a successor has the id by now, and is left alone.
            RegistryUnavailableError, PermissionRefusedError: it stays removed; may be called again.
        """
        ...


@runtime_checkable
class HandoverRegistration(Registration, Protocol):
    """A registration that one process can hand to the one that replaces it: its entry is never missing, never double.

    These members are optional, all of them or none. Without them the new process registers while the old one still is
    registered, and the old one then removes its own: callers may see both for a moment, or, where one id has one entry
    and the later process takes it over, whatever that backend's take-over looks like; a backend that refuses a second
    owner refuses the hand-over, and the old process goes on.

    The course of a hand-over, in the old process and (indented) in the new one::

        offer()
            adopt(offer), register()
        on success:              on failure:
            confirm()            take_back(), also when register() has never been called
        hand_over()                 on_shutdown(), which leaves the entry alone: confirm() was not called
    """

    def offer(self, deadline: Deadline) -> str:
        """Return what the new process needs to take the entry over; from now on write nothing that could overwrite it.

        Renewing goes on. What is returned holds no secret. An empty string means that this registration cannot be
        handed over, after all.

        Raises:
            RegistryUnavailableError: a write under way did not end in time; :meth:`take_back` follows.
            LiveOwnerError: fenced.
        """
        ...

    def adopt(self, offer: str) -> None:
        """Take over, in the next ``register``, the entry that ``offer`` tells of. Sends nothing."""
        ...

    def confirm(self) -> None:
        """The entry is ours for good: from now on ``on_shutdown`` removes it. Sends nothing."""
        ...

    def hand_over(self, deadline: Deadline) -> Removal:
        """Fence, remove nothing, and look that the entry is the new process'. In place of ``on_shutdown``."""
        ...

    def take_back(self, deadline: Deadline) -> None:
        """Put back what the new process may have overwritten, and go on as before :meth:`offer`. May be repeated.

        Raises:
            RegistryError: that failed; the registration goes on trying where its backend does so by itself.
            LiveOwnerError: fenced.
        """
        ...


def removal_line(at: float, how: str) -> str:
    """Return what :attr:`RejoinableRegistration.removed_by_operator` says; ``at`` is UNIX seconds of finding it out."""
    when = datetime.fromtimestamp(at, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    return f"removed by an operator, found out at {when}: {how}"
