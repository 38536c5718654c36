"""The protocols of a registry backend, and what its calls return. No client library is imported here.

Rules every backend keeps (the contract suite in :mod:`registry_drain.testing.registry_contract` tests them):

1. **Never resurrect.** After :meth:`Registration.fence` has returned, no thread of the backend registers or renews the
   instance.
2. **Never remove a successor.** Ownership is proven before anything is removed.
3. **Never trust an acknowledgement.** :attr:`RemovalOutcome.CONFIRMED` means: looked for by a consistent read with the
   right to see it, and not found.
4. **Never hang.** Every call ends by its deadline, with an error of :mod:`registry_drain.errors` at the latest.
5. **Never leak.** Tokens and passwords stay out of URLs, logs, exceptions and every ``repr``.
6. **Stop during start-up works.** A :meth:`Registration.register` in another thread is cancelled or awaited by
   ``fence``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal, Protocol

from registry_drain.clock import Deadline
from registry_drain.instance import ServiceInstance, format_endpoint


class RemovalOutcome(Enum):
    """How a removal ended."""

    CONFIRMED = "confirmed"
    """Gone: looked for by a consistent read with the right to see it, and not found."""
    UNVERIFIABLE = "unverifiable"
    """The registry accepted the removal, but no read available to us could have shown the instance."""
    UNCONFIRMED = "unconfirmed"
    """Time ran out or the registry was out of reach. What is left behind expires by itself."""
    SUCCESSOR = "successor"
    """Ours is gone already; a successor holds the id, path or address and was left alone."""
    NOT_REGISTERED = "not registered"
    """Nothing of ours ever reached the registry."""
    REFUSED = "refused"
    """The registry refused the credentials; the instance is still listed."""
    HANDED_OVER = "handed over"
    """Never removed: another process keeps the entry. See
    :class:`~registry_drain.registries.abilities.HandoverRegistration`.
    """


@dataclass(frozen=True, slots=True)
class Removal:
    """What became of one removal.

    Attributes:
        subject: the instance, as ``id (host:port)``.
        registry: the registry's URL, without secrets.
        outcome: see :class:`RemovalOutcome`.
        detail: one line for the operator: what was seen, why it is unconfirmed, what to do.
        attempts: how often the removal was tried.
        confirmed_at: the clock's instant of the read that proved absence; None unless proven.
    """

    subject: str
    registry: str
    outcome: RemovalOutcome
    detail: str = ""
    attempts: int = 0
    confirmed_at: float | None = None

    @property
    def is_gone(self) -> bool:
        """Whether nothing of ours is left in the cluster: removed, or somebody else's by now."""
        return self.outcome in {
            RemovalOutcome.CONFIRMED,
            RemovalOutcome.SUCCESSOR,
            RemovalOutcome.HANDED_OVER,
            RemovalOutcome.NOT_REGISTERED,
        }


@dataclass(frozen=True, slots=True)
class EntryCheck:
    """One health check of an entry.

    Attributes:
        id: unique among the entry's checks.
        status: ``passing``, ``warning``, ``critical`` or ``maintenance``.
        is_own: whether it checks this instance; else the host or agent that it is on.
        output: what the check last said, for a person.
        version: opaque; the same for as long as nothing about the check has changed.
        kind: how it comes about, in the registry's words (``ttl``, ``http``); empty if that is not known.
    """

    id: str
    status: str
    is_own: bool = True
    output: str = ""
    version: str = ""
    kind: str = ""


@dataclass(frozen=True, slots=True)
class RegistryEntry:
    """One entry as it stands in a registry, whoever wrote it. Fields it does not have are empty.

    It is not a :class:`ServiceInstance`: other systems write ports of 0, odd ids and bytes that are no JSON, and an
    operator must still see and remove them.

    Attributes:
        service: the cluster's name.
        id: unique inside the service.
        address: host name or IP; empty if unreadable.
        port: 0 if unknown.
        tags: labels.
        metadata: what callers are shown.
        owner: who keeps it: a session, an agent's node, a process.
        is_live: whether somebody keeps it alive right now; None if the registry cannot tell.
        health: ``passing``, ``warning``, ``critical``, ``maintenance``, or empty if the registry does not check.
        registered_at: UNIX seconds, if known.
        is_ephemeral: whether it goes when its owner does; None if unknown.
        problem: why it could not be read in full; empty if it could.
        locator: where it stands, for a person: a znode path, ``node/service id``, a file.
        version: opaque; differs after any re-registration, so that :meth:`Registry.remove` never removes what was not
            shown.
        endpoints: further addresses and ports at which the same process is reached.
        node: the host or agent that it is registered on, where the registry has such; else empty.
        managed_by: the name of a system that registers again what it misses (Nomad, Kubernetes); empty if none shows.
        checks: what the health is made of.
        layout: the form in which it is written, where a registry knows several; else empty.
        refused: what the credentials may not read of it: its ``data``, or, of a place that may hold instances, its
            ``children``; else empty. Beyond what its name tells it may be, or hold, any instance.
    """

    service: str
    id: str
    address: str = ""
    port: int = 0
    tags: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict, hash=False)
    owner: str = ""
    is_live: bool | None = None
    health: str = ""
    registered_at: float | None = None
    is_ephemeral: bool | None = None
    problem: str = ""
    locator: str = ""
    version: str = ""
    endpoints: tuple[tuple[str, int], ...] = ()
    node: str = ""
    managed_by: str = ""
    checks: tuple[EntryCheck, ...] = ()
    layout: str = ""
    refused: Literal["", "data", "children"] = ""

    @property
    def endpoint(self) -> str:
        """``address:port``, or a question mark if the address is unknown."""
        return format_endpoint(self.address, self.port) if self.address else "?"

    def __str__(self) -> str:
        """Name the entry the way instances are named: ``id (host:port)``."""
        return f"{self.id} ({self.endpoint})"


class Registration(Protocol):
    """One instance's membership of one cluster. It is a first shutdown observer: the stop routine calls the last two
    methods.

    Thread rules: every method may be called from any thread, at any time, concurrently; ``fence`` and ``on_shutdown``
    are idempotent. None of them calls back into the caller.
    """

    @property
    def instance(self) -> ServiceInstance:
        """What is, or will be, registered."""
        ...

    @property
    def is_registered(self) -> bool:
        """Whether the registry acknowledged the instance and nothing since says that it was lost. Sends nothing."""
        ...

    def register(self, deadline: Deadline) -> None:
        """Put the instance into the registry, callable by everybody when this returns, and keep it there until fenced.

        One attempt. A predecessor's dead entry is taken over. From then on the backend's own threads renew it, and
        register again what the registry lost (a restarted agent, an expired session). Calling it again when registered
        does nothing.

        Raises:
            RegistryUnavailableError: retryable; a later call may succeed. Something may have been written:
                ``on_shutdown`` cleans up.
            PermissionRefusedError: not retryable.
            LiveOwnerError: fenced already, or a live owner that cannot be taken over has the id.
            RemovedByOperatorError: of a backend that can tell: see
                :class:`~registry_drain.registries.abilities.RejoinableRegistration`.
        """
        ...

    def fence(self, deadline: Deadline) -> None:
        """Make sure that no thread of ours registers or renews from now on: stopped *and joined* when this returns.

        A ``register`` under way in another thread is cancelled or awaited. Nothing is removed yet. If the deadline
        comes first the fence is up all the same (late threads find it and do nothing), only not joined. Never raises a
        RegistryError.
        """
        ...

    def on_shutdown(self, deadline: Deadline) -> Removal:
        """Fence, remove our own instance and nobody else's, read the registry back, and say what was found.

        Retries inside the deadline. Registry failures are an outcome, not an exception.
        """
        ...


class Watch(Protocol):
    """A live list of one service's healthy instances."""

    @property
    def instances(self) -> tuple[ServiceInstance, ...]:
        """The last known list, sorted by id. While the registry is out of reach it stays as it was: stale beats
        empty.
        """
        ...

    def close(self) -> None:
        """Stop following; joins the watch's thread unless called from it. Idempotent."""
        ...


WatchCallback = Callable[[tuple[ServiceInstance, ...]], None]


class Registry(Protocol):
    """One cluster's registry. Cheap to make: nothing is connected before the first call. Thread-safe."""

    @property
    def url(self) -> str:
        """Where it is, for logs and reports; holds no secret."""
        ...

    def registration(self, instance: ServiceInstance) -> Registration:
        """Return the (not yet registered) membership of ``instance``. Sends nothing."""
        ...

    def entries(self, service: str | None, deadline: Deadline) -> Sequence[RegistryEntry]:
        """Return what is listed by a consistent read, healthy or not, of one service or (None) of all, sorted by
        service and id.

        Entries that cannot be read are returned with their ``problem``, never hidden and never an exception.

        Raises:
            RegistryUnavailableError: retryable.
            PermissionRefusedError: the credentials may not read, so that an empty list would prove nothing.
        """
        ...

    def remove(self, entry: RegistryEntry, deadline: Deadline, *, force: bool = False) -> Removal:
        """Remove somebody else's instance, exactly as ``entries`` showed it, and prove it gone.

        Args:
            entry: from :meth:`entries`; if its ``version`` no longer matches, nothing is removed.
            deadline: bounds retries and proof together.
            force: remove it although its owner is alive, or a system manages it, and may put it back.

        Raises:
            LiveOwnerError: its owner is alive, or a system manages it (without ``force``); or it was registered anew
                since it was shown.
            InstanceNotFoundError: it is gone already.
            RegistryUnavailableError: before anything was sent. Afterwards the outcome is UNCONFIRMED instead.
            PermissionRefusedError: the registry refused.
        """
        ...

    def watch(self, service: str, deadline: Deadline, on_change: WatchCallback | None = None) -> Watch:
        """Follow the healthy instances of ``service``; returns when the first list is known.

        ``on_change`` is called with each new list (the first one included) from the watch's thread, one call at a time.
        An exception from it is logged, and the watch goes on. Outages are survived by reconnecting for ever, until
        closed.

        Raises:
            RegistryUnavailableError: no first list by the deadline; nothing is left running.
        """
        ...

    def close(self) -> None:
        """Close watches and connections. Registrations are not removed: that is what ``on_shutdown`` is for.
        Idempotent.
        """
        ...
