"""kazoo's errors, and its silence, in our words: translated here, once, for every session."""

from __future__ import annotations

from typing import Any

from kazoo.exceptions import (
    AuthFailedError,
    BadVersionError,
    InvalidACLError,
    KazooException,
    NoAuthError,
    NodeExistsError,
    NoNodeError,
    NotEmptyError,
)
from kazoo.handlers.threading import KazooTimeoutError

from registry_drain.clock import Deadline
from registry_drain.errors import (
    PermissionRefusedError,
    RegistryError,
    RegistryTimeoutError,
    RegistryUnavailableError,
)
from registry_drain.registries.zookeeper.client import SessionClient
from registry_drain.registries.zookeeper.credentials import Credential
from registry_drain.registries.zookeeper.refusal import Need, refusal_text
from registry_drain.registries.zookeeper.settings import CancelledSessionCallError, SessionSettings

ANSWERS = (NoNodeError, NodeExistsError, BadVersionError, NotEmptyError)
"""What a healthy ZooKeeper may answer, and the callers here handle; everything else is translated."""

_REQUIRES_AUTHENTICATION = -124
"""SESSIONCLOSEDREQUIRESASLAUTH: the server has ``enforce.auth.enabled`` or ``sessionRequireClientSASLAuth``."""


class RefusedRequestError(PermissionRefusedError):
    """One request was refused by an access list; ``need`` is what it takes, if that is known."""

    def __init__(self, message: str, need: Need | None) -> None:
        super().__init__(message)
        self.need = need


class SessionErrors:
    """What goes wrong in one session, as its callers are told. Stateless but for what it is given."""

    def __init__(self, settings: SessionSettings, credential: Credential | None, client: SessionClient) -> None:
        self._settings = settings
        self._url = settings.url
        self._credential = credential
        self._client = client

    def answer(self, result: Any, need: Need | None, deadline: Deadline) -> Any:
        """Return what kazoo's ``result`` holds by the deadline: a value, or an error that concerns this request only.

        Raises:
            RegistryError: no answer, or one that concerns the whole session.
        """
        try:
            return result.get(timeout=deadline.remaining())
        except ANSWERS as answer:
            return answer
        except NoAuthError:
            doing = f" to {self._who}: {need.doing}" if need else ""
            return RefusedRequestError(f"{self._url}: refused by an access list (NoAuth){doing}", need)
        except InvalidACLError as error:
            # "auth" in a list stands for the creator, who is nobody to this server.
            raise PermissionRefusedError(
                f"{self._url}: ZooKeeper takes no access list for the creator, because it does not know {self._who}: "
                "is the scheme enabled there?"
            ) from error
        except CancelledSessionCallError:
            raise
        except KazooTimeoutError as error:
            raise RegistryTimeoutError(f"{self._url}: ZooKeeper did not answer in time{self._hint}") from error
        except AuthFailedError as error:
            if self._client.was_hung_up_on:
                raise RegistryUnavailableError(f"{self._url}: the connection broke{self._hint}") from error
            raise self.credentials_refused() from error
        except KazooException as error:
            if getattr(error, "code", 0) == _REQUIRES_AUTHENTICATION:
                raise PermissionRefusedError(
                    f"{self._url}: ZooKeeper serves no client that has not proven who it is, which {self._who} "
                    "has not: name credentials (sasl) as auth_file"
                ) from error
            raise RegistryUnavailableError(f"{self._url}: the request failed ({type(error).__name__})") from error

    def refused(self, need: Need | None, acls: list[Any] | None) -> RefusedRequestError:
        """Return an error that says who lacks ``need``, and who has it; ``acls`` is None if that is not to be known."""
        if need is None:
            return RefusedRequestError(f"{self._url}: ZooKeeper's access list refuses this (NoAuth)", None)
        text = refusal_text(need, self._who, self._credential, acls)
        return RefusedRequestError(f"{self._url}: NoAuth: {text}", need)

    def credentials_refused(self) -> PermissionRefusedError:
        """Return what the server's refusal of our credentials is."""
        return PermissionRefusedError(
            f"{self._url}: ZooKeeper refused the credentials of {self._who}: look at auth_file"
        )

    def unreachable(self, failure: str, *, is_connected: bool) -> RegistryError:
        """Return what it is that a request could not be sent; ``failure`` is that of the last attempt to connect."""
        if is_connected:
            return RegistryTimeoutError(f"{self._url}: ZooKeeper does not answer; earlier requests still wait")
        reason = f" ({failure})" if failure else ""
        return RegistryUnavailableError(f"{self._url}: no connection to ZooKeeper in the time allowed{reason}")

    def over(self) -> RegistryUnavailableError:
        """Return what the use of a session is that has ended."""
        return RegistryUnavailableError(f"{self._url}: the session is over; it is being replaced{self._hint}")

    @property
    def _who(self) -> str:
        names = [self._credential.identity] if self._credential else []
        if self._settings.tls and self._settings.tls.cert_file:
            names.append(f"the holder of {self._settings.tls.cert_file}")
        return " or ".join(names) or "an anonymous client"

    @property
    def _hint(self) -> str:
        if self._client.was_hung_up_on:
            return ": ZooKeeper hung up during SASL; is auth_file right?"
        # A server without SASL's provider answers nothing at all.
        return ": it does not finish SASL; is that enabled there?" if self._client.is_proving else ""
