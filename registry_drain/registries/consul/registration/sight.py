"""Reading our own entry, and whether the token that reads could have seen it."""

from __future__ import annotations

from registry_drain.clock import Deadline
from registry_drain.registries.consul.catalog import Listed, require_sight
from registry_drain.registries.consul.registration.standing import Standing


class Sight:
    """Consistent reads of one registration; remembers which token has seen it. Thread-safe."""

    def __init__(self, standing: Standing) -> None:
        self._standing = standing
        self._seen_with: str | None = None

    @property
    def token(self) -> str:
        """The token that reads now."""
        return self._standing.address.tokens.current()

    @property
    def has_seen(self) -> bool:
        """Whether any token has seen us since :meth:`forget`."""
        return self._seen_with is not None

    def forget(self) -> None:
        """A policy may have changed: what was seen before proves nothing."""
        self._seen_with = None

    def read(self, deadline: Deadline) -> list[Listed]:
        """Return what a consistent read lists of this instance id.

        Raises:
            RegistryUnavailableError, PermissionRefusedError, RegistryDataError: see :meth:`ConsulClient.call`.
        """
        token = self.token
        listed = self._standing.own.read(self._standing.reader, deadline)
        if self._standing.own.find(listed) is not None:
            self._seen_with = token
        return listed

    def has_seen_with(self, token: str) -> bool:
        """Whether ``token`` has seen us, so that a later absence proves something."""
        return self._seen_with == token

    def require(self, deadline: Deadline) -> None:
        """Return if an empty list is the truth.

        Raises:
            PermissionRefusedError: the token could not have seen us.
            RegistryUnavailableError, RegistryDataError: see :meth:`ConsulClient.call`.
        """
        require_sight(self._standing.reader, self._standing.membership.instance.service, deadline)
