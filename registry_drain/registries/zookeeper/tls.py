"""TLS to ZooKeeper, made here and not by kazoo.

kazoo before 2.11 never compares the host name, and later ones only if told; each trusts every well-known authority
beside the one it is given; and an encrypted key without a password makes it ask at the terminal. So our own handler
makes the connection (see :mod:`registry_drain.registries.zookeeper.handler`), and this is its context. Certificates are
always checked, and so are names: what a cluster's common certificate is called can be said with ``tls_server_name``.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from registry_drain.errors import ConfigurationError, PermissionRefusedError, RegistryError


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """Files, read again for each new session, so that what was renewed counts.

    Attributes:
        ca_file: of the authorities that may have signed the servers' certificates; None: the well-known ones.
        cert_file: our own certificate, with what leads from it to its authority; None: we show none.
        key_file: its key; None: it is in ``cert_file``.
        key_password_file: holds the key's password; None: it has none.
        server_name: what the servers' certificates must be for; empty: the host name of the URL.
    """

    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    key_password_file: Path | None = None
    server_name: str = ""

    def check(self, url: str) -> None:
        """Raise ConfigurationError if the options cannot work together, or a file cannot be used."""
        if self.cert_file is None and (self.key_file or self.key_password_file):
            raise ConfigurationError(f"{url}: key_file and key_password_file belong to a cert_file")
        self.context(url)

    def context(self, url: str) -> ssl.SSLContext:
        """Return a context that checks certificates and names.

        Raises:
            ConfigurationError: a file cannot be used; no message repeats a content.
        """
        if self.ca_file is not None:
            _check_readable("ca_file", self.ca_file, url)
        try:
            context = ssl.create_default_context(cafile=str(self.ca_file) if self.ca_file else None)
        except ssl.SSLError:
            raise ConfigurationError(f"{url}: ca_file {self.ca_file}: not a certificate in PEM form") from None
        if self.cert_file is not None:
            self._load_own(context, self.cert_file, url)
        return context

    def _load_own(self, context: ssl.SSLContext, cert_file: Path, url: str) -> None:
        key_file = self.key_file or cert_file
        _check_readable("cert_file", cert_file, url)
        _check_readable("key_file", key_file, url)
        was_asked = False

        def password() -> str:
            # Without this OpenSSL asks at the terminal.
            nonlocal was_asked
            was_asked = True
            return self._key_password(url)

        try:
            context.load_cert_chain(cert_file, key_file, password)
        except ssl.SSLError:
            if was_asked and self.key_password_file is None:
                reason = "the key is encrypted: name the file with its password as key_password_file"
            elif was_asked:
                reason = f"the password in key_password_file {self.key_password_file} does not open it"
            else:
                reason = "certificate and key must be in PEM form, and belong together"
            raise ConfigurationError(f"{url}: cert_file {cert_file}, key_file {key_file}: {reason}") from None

    def _key_password(self, url: str) -> str:
        if self.key_password_file is None:
            return ""
        _check_readable("key_password_file", self.key_password_file, url)
        return self.key_password_file.read_text(encoding="utf-8").rstrip("\r\n")


def _check_readable(option: str, file: Path, url: str) -> None:
    """Raise ConfigurationError if ``file`` cannot be opened: OpenSSL does not say which file it was."""
    try:
        with file.open("rb"):
            pass
    except OSError as error:
        raise ConfigurationError(f"{url}: {option} {file}: {error.strerror}") from None


def refusal_of(error: ssl.SSLError, host: str) -> RegistryError | None:
    """Return why a TLS connection to ``host`` can never come about, or None if that is not sure.

    An alert is the other side's word; a failed verification is ours. What *we* do not trust is, as far as we are
    concerned, not there; who does not take our certificate refuses our credentials. An end of the connection is
    neither: it also is how a server stops, and how one answers that speaks no TLS.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        said = error.verify_message or error
        return RegistryError(f"TLS: the certificate of {host} is not to be trusted: {said}: check ca_file and the name")
    reason = (error.reason or "").replace("_", " ").lower()
    if "alert" in reason and "internal error" not in reason:
        return PermissionRefusedError(f"TLS: {host} refused us ({reason}): check cert_file, and what the server trusts")
    return None
