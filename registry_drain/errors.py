"""The error tree: one root, and whether a retry can help is part of the type.

Native exceptions (kazoo's, requests', sockets') are translated once, at a backend's edge, with ``from exc``. Every
message says which instance or setting, which registry, and what to do; no message ever holds a token.

====================================  =========  ==============================================
class                                 retryable  meaning
====================================  =========  ==============================================
:class:`ConfigurationError`           no         the caller's input is wrong; nothing was done
:class:`MissingExtraError`            no         an optional library is not installed
:class:`RegistryUnavailableError`     yes        the registry could not be reached or answered 5xx
:class:`RegistryTimeoutError`         yes        no answer inside the time limit
:class:`PermissionRefusedError`       no         the registry refused our credentials
:class:`InstanceNotFoundError`        no         no such instance is listed
:class:`LiveOwnerError`               no         somebody alive owns the entry
:class:`RemovedByOperatorError`       no         somebody took it out, and it was not told to rejoin
:class:`RegistryDataError`            no         an entry is not in the form its layout promises
:class:`ServerError`                  no         a server adapter cannot do what was asked
====================================  =========  ==============================================
"""

from __future__ import annotations

from typing import ClassVar


class RegistryDrainError(Exception):
    """The root of every error this package raises on purpose.

    ``retryable`` is a fact of the type: the same call may succeed later without anybody changing anything.
    """

    retryable: ClassVar[bool] = False


class ConfigurationError(RegistryDrainError, ValueError):
    """The caller's input cannot work: a URL, an instance, a budget. Nothing was sent or changed."""


class MissingExtraError(ConfigurationError):
    """An optional library is missing; the message names the extra to install."""

    def __init__(self, needed_by: str, library: str, extra: str) -> None:
        """Say that ``needed_by`` cannot work without ``library``, which the extra ``extra`` brings."""
        super().__init__(f"{needed_by} needs {library}: install it with: pip install 'registry-drain[{extra}]'")
        self.extra = extra


class RegistryError(RegistryDrainError):
    """The registry, or the way to it, did not do what was asked."""


class RegistryUnavailableError(RegistryError):
    """The registry could not be reached, reset the connection, or failed by itself (HTTP 5xx). Retryable."""

    retryable: ClassVar[bool] = True


class RegistryTimeoutError(RegistryUnavailableError):
    """No answer inside the time limit; whether the request took effect is unknown. Retryable."""


class PermissionRefusedError(RegistryError):
    """The registry refused the credentials. Retrying with the same ones cannot help."""


class InstanceNotFoundError(RegistryError):
    """No such instance is listed, by a read with the right to see it."""


class LiveOwnerError(RegistryError):
    """The entry belongs to a live owner (a successor, or the instance itself) and was left alone.

    Attributes:
        yields_to_force: whether the same call with ``force`` would have done it. The message does not mention force:
            who asked knows how it is spelled there.
    """

    def __init__(self, message: str, *, yields_to_force: bool = False) -> None:
        """Say who owns it."""
        super().__init__(message)
        self.yields_to_force = yields_to_force


class RemovedByOperatorError(RegistryError):
    """Somebody removed our instance on purpose: it stays out until it is told to rejoin, or restarted."""


class RegistryDataError(RegistryError):
    """What stands in the registry is not in the form its layout promises."""


class ServerError(RegistryDrainError):
    """A server adapter cannot do what was asked, e.g. start a server that was stopped."""
