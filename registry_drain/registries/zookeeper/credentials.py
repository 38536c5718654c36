"""Who we are to ZooKeeper: one line of a file, ``scheme:credential``, that is shown nowhere.

``digest:user:password`` is told to the server with ``addauth``, which never refuses: a wrong password makes us somebody
whom no access list names, and that shows with the first request that needs a right. ``sasl:user:password`` is proven by
SASL DIGEST-MD5, which is refused at once, and which sends no password. Any other scheme (a plug-in of the server's) is
told with ``addauth``, too.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
from dataclasses import dataclass, field
from pathlib import Path

from registry_drain.errors import ConfigurationError, MissingExtraError

_SASL = "sasl"
_WITH_USER = frozenset({"digest", _SASL})


@dataclass(frozen=True, slots=True)
class Credential:
    """What one file holds.

    Attributes:
        scheme: an authentication scheme of ZooKeeper's.
        secret: for ``digest`` and ``sasl`` it is ``user:password``; in no repr.
    """

    scheme: str
    secret: str = field(repr=False)

    @property
    def user(self) -> str:
        """The user's name; empty for schemes of which we do not know what is secret."""
        return self.secret.partition(":")[0] if self.scheme in _WITH_USER else ""

    @property
    def identity(self) -> str:
        """How a person calls us: ``digest:deployer``."""
        return f"{self.scheme}:{self.user}" if self.user else self.scheme

    @property
    def listed_as(self) -> str:
        """What stands in an access list for us; empty if unknown. Of a digest it holds the hash, so do not show it."""
        if self.scheme == "digest":
            # DigestAuthenticationProvider.generateDigest(); the hash is the protocol's and no choice of ours.
            digest = hashlib.sha1(self.secret.encode(), usedforsecurity=False).digest()
            return f"{self.user}:{base64.b64encode(digest).decode()}"
        return self.user

    @property
    def auth_data(self) -> list[tuple[str, str]]:
        """What kazoo takes under this name."""
        return [] if self.scheme == _SASL else [(self.scheme, self.secret)]

    @property
    def sasl_options(self) -> dict[str, str] | None:
        """What kazoo takes under this name; it adds to it, so each client gets its own."""
        if self.scheme != _SASL:
            return None
        user, _, password = self.secret.partition(":")
        return {"mechanism": "DIGEST-MD5", "username": user, "password": password}


def read_credential(file: Path, url: str) -> Credential:
    """Return what ``file`` holds.

    Raises:
        ConfigurationError: it cannot be read, or is not of the form; the message never repeats its content.
        MissingExtraError: it asks for SASL, and pure-sasl is not installed.
    """
    where = f"{url}: auth_file {file}"
    try:
        text = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigurationError(f"{where}: {reason}") from None
    scheme, colon, secret = text.partition(":")
    if not colon or not scheme or not secret or "\n" in text:
        raise ConfigurationError(f"{where} does not hold one line scheme:credential")
    credential = Credential(scheme, secret)
    if scheme in _WITH_USER and not (credential.user and secret.partition(":")[2]):
        raise ConfigurationError(f"{where} does not hold one line {scheme}:user:password")
    if scheme == _SASL and importlib.util.find_spec("puresasl") is None:
        raise MissingExtraError(f"{where} with SASL", "pure-sasl", "zookeeper-sasl")
    return credential
