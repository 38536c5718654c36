"""Where the Consul token comes from: a file that may be rotated, a variable of the environment, or the caller.

The token itself is only ever handed to the transport. Nothing here shows it: not ``repr``, not an error.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping
from pathlib import Path

from registry_drain.errors import ConfigurationError

_log = logging.getLogger(__name__)


class TokenSource:
    """Gives the current token; empty means that none is sent. Thread-safe."""

    def __init__(self, token: str = "", file: Path | None = None, origin: str = "no token") -> None:
        """Take a fixed token, or a file to read it from.

        Raises:
            ConfigurationError: the file cannot be read, or holds something that cannot be a token.
        """
        self._origin = f"token file {file}" if file else origin
        self._file = file
        self._lock = threading.Lock()
        self._stamp: tuple[int, int, int] | None = None
        self._trouble = ""  # what was said last of a file that cannot be read
        self._token = _checked(token, self._origin)
        if file is not None:
            try:
                self._stamp, self._token = self._read(file)
            except OSError as error:
                raise ConfigurationError(f"{self._origin} cannot be read: {error.strerror}") from error

    @classmethod
    def choose(cls, token: str | None, token_file: str | None, environ: Mapping[str, str] = os.environ) -> TokenSource:
        """Return the first that is given: the argument, the file, CONSUL_HTTP_TOKEN_FILE, CONSUL_HTTP_TOKEN.

        Raises:
            ConfigurationError: it cannot be read, or cannot be a token.
        """
        if token is not None:
            return cls(token, origin="token given by the program")
        if file := token_file or environ.get("CONSUL_HTTP_TOKEN_FILE"):
            return cls(file=Path(file))
        if from_environment := environ.get("CONSUL_HTTP_TOKEN"):
            return cls(from_environment, origin="token of CONSUL_HTTP_TOKEN")
        return cls()

    def current(self) -> str:
        """Return the token, read again if its file has changed. A file that is gone for a moment changes nothing."""
        file = self._file
        if file is None:
            return self._token
        try:
            status = file.stat()
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
            with self._lock:
                if stamp == self._stamp:
                    self._trouble = ""
                    return self._token
            stamp, token = self._read(file)
        except (OSError, ConfigurationError) as error:
            # Rotation replaces the file; a stop must not fail because it looked in between.
            self._say(str(error))
            return self._token
        with self._lock:
            self._stamp, self._token, self._trouble = stamp, token, ""
        return token

    def _say(self, trouble: str) -> None:
        """Log it once: the token is asked for several times with each heartbeat."""
        with self._lock:
            is_news = trouble != self._trouble
            self._trouble = trouble
        if is_news:
            _log.warning("%s cannot be read again, the last token stays: %s", self._origin, trouble)

    def _read(self, file: Path) -> tuple[tuple[int, int, int], str]:
        # The stamp is taken first: a file that is replaced in between is read once too often, never too seldom.
        status = file.stat()
        token = file.read_bytes().decode("utf-8", "replace").strip()
        if not token:
            raise ConfigurationError(f"{self._origin} is empty")
        return (status.st_mtime_ns, status.st_size, status.st_ino), _checked(token, self._origin)

    def __repr__(self) -> str:
        """Name the origin, never the token."""
        return f"<TokenSource {self._origin}>"


def _checked(token: str, origin: str) -> str:
    # It becomes the value of an HTTP header: a line break in it would smuggle in another header.
    if any(not 0x21 <= ord(letter) <= 0x7E for letter in token):
        raise ConfigurationError(
            f"{origin} holds a space, a line break or a letter outside ASCII: it cannot be a token"
        )
    return token
