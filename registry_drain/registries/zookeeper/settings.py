"""What every ZooKeeper session of one registry has in common, and what ends its waits."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from registry_drain.errors import ConfigurationError, RegistryUnavailableError


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """What every session of one registry has in common.

    Attributes:
        url: the registry's, for messages; holds no secret.
        hosts: ``host:port,host:port``, as kazoo takes it.
        session_timeout: seconds after which the server ends a session it does not hear from; it may clamp the value.
        call_timeout: the most seconds one answer may take.
        auth_file: holds ``scheme:credential``, or None.
    """

    url: str
    hosts: str
    session_timeout: float
    call_timeout: float
    auth_file: Path | None = None

    def read_auth(self) -> list[tuple[str, str]]:
        """Return what kazoo takes as ``auth_data``. Read for each new session, so that a rotated secret counts.

        Raises:
            ConfigurationError: the file cannot be read, or is not of the form; the message never repeats its content.
        """
        if self.auth_file is None:
            return []
        try:
            text = self.auth_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
            raise ConfigurationError(f"{self.url}: auth_file {self.auth_file}: {reason}") from None
        scheme, colon, credential = text.partition(":")
        if not colon or not scheme or not credential or "\n" in text:
            raise ConfigurationError(f"{self.url}: auth_file {self.auth_file} does not hold one line scheme:credential")
        return [(scheme, credential)]


class CancelledSessionCallError(RegistryUnavailableError):
    """A call was given up because its :class:`Cancellation` was set, not because anything failed."""


class Cancellation:
    """Ends the waits of one thread from another. Set once, stays set. Thread-safe."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self._lock = threading.Lock()
        self._hooks: list[Callable[[], None]] = []

    def cancel(self) -> None:
        """End every wait that is under way or will begin. Idempotent."""
        self.event.set()
        with self._lock:
            hooks = list(self._hooks)
        for hook in hooks:
            hook()

    @contextmanager
    def hook(self, on_cancel: Callable[[], None]) -> Iterator[None]:
        """Have ``on_cancel`` called, from the cancelling thread, if that happens inside the block or did before."""
        with self._lock:
            self._hooks.append(on_cancel)
        try:
            # Looked at after the hook is in place: a cancel that comes between the two is noticed twice, never missed.
            if self.event.is_set():
                on_cancel()
            yield
        finally:
            with self._lock:
                self._hooks.remove(on_cancel)
