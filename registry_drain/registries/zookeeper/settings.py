"""What every ZooKeeper session of one registry has in common, and what ends its waits."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from registry_drain.errors import ConfigurationError, RegistryUnavailableError
from registry_drain.instance import format_endpoint
from registry_drain.registries.url import RegistryURL, seconds
from registry_drain.registries.zookeeper.access_list import ACCESS_LISTS, AccessLists, read_access_lists
from registry_drain.registries.zookeeper.credentials import Credential, read_credential
from registry_drain.registries.zookeeper.tls import TlsSettings

SESSION_OPTIONS = frozenset(
    {
        "session_timeout_s",
        "timeout_s",
        "auth_file",
        "acl",
        "acl_file",
        "ca_file",
        "cert_file",
        "key_file",
        "key_password_file",
        "tls_server_name",
    }
)
"""Of a registry's URL, those that concern its sessions."""
TLS_SCHEME = "zookeeper+tls"
DEFAULT_PORT = 2181
DEFAULT_TLS_PORT = 2281
"""ZooKeeper has none; this is the ``secureClientPort`` of its own documentation."""
DEFAULT_SESSION_TIMEOUT = 10.0
"""Seconds; kazoo's default, and inside what a server with the usual tick of 2 s grants (4 to 40 s)."""
DEFAULT_TIMEOUT = 5.0
"""Seconds for one answer; a leader election of a healthy ensemble takes less."""
_LONGEST_GRANT = 1.5
"""Seconds that a server may take to grant a session, for whoever has lost time on another one already."""
_TLS_OPTIONS = frozenset({"ca_file", "cert_file", "key_file", "key_password_file", "tls_server_name"})


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """What every session of one registry has in common.

    Attributes:
        url: the registry's, for messages; holds no secret.
        hosts: ``host:port,host:port``, as kazoo takes it.
        session_timeout: seconds after which the server ends a session it does not hear from; it may clamp the value.
        call_timeout: the most seconds one answer may take.
        auth_file: holds ``scheme:credential``, or None.
        tls: how connections are encrypted, or None.
        access: who may do what with what we create.
        is_ordered: whether the first of ``hosts`` is tried first, instead of any.
    """

    url: str
    hosts: str
    session_timeout: float
    call_timeout: float
    auth_file: Path | None = None
    tls: TlsSettings | None = None
    access: AccessLists = field(default_factory=AccessLists)
    is_ordered: bool = False

    @classmethod
    def of(cls, url: RegistryURL) -> SessionSettings:
        """Return what ``url`` says; its hosts are there.

        Raises:
            ConfigurationError: an option that cannot work, a file that cannot be read.
            MissingExtraError: an option needs a library that is not installed.
        """
        is_tls = url.scheme == TLS_SCHEME
        default_port = DEFAULT_TLS_PORT if is_tls else DEFAULT_PORT
        settings = cls(
            url=str(url),
            hosts=",".join(format_endpoint(host, port or default_port) for host, port in url.hosts),
            session_timeout=url.option("session_timeout_s", seconds, DEFAULT_SESSION_TIMEOUT),
            call_timeout=url.option("timeout_s", seconds, DEFAULT_TIMEOUT),
            auth_file=url.option("auth_file", _file, None),
            tls=_tls(url) if is_tls else None,
            access=_access(url),
        )
        for option in _TLS_OPTIONS & url.options.keys():
            if not is_tls:
                raise ConfigurationError(f"{url}: {option} belongs to TLS: write {TLS_SCHEME}://")
        settings.read_credential()
        if settings.tls is not None:
            settings.tls.check(settings.url)
        if settings.access.needs_identity and not settings.identities:
            raise ConfigurationError(f"{url}: an access list for the creator needs an auth_file or a cert_file")
        return settings

    def avoiding(self, server: str) -> SessionSettings:
        """Return the same for a session that tries every server but ``server``, a ``host:port``; all, if it is alone.

        kazoo gives each of its hosts an equal part of the session's time-out to grant a session. Naming them more than
        once makes the parts small: the next one may hang, too.
        """
        others = [host for host in self.hosts.split(",") if host != server]
        if not others:
            return self
        times = max(int(self.session_timeout / _LONGEST_GRANT / len(others)), 1)
        random.shuffle(others)  # a whole fleet may have lost the same server
        return replace(self, hosts=",".join(others * times), is_ordered=True)

    def read_credential(self) -> Credential | None:
        """Return who we are. Read for each new session, so that a rotated secret counts.

        Raises:
            ConfigurationError: the file cannot be read, or is not of the form; the message never repeats its content.
        """
        return None if self.auth_file is None else read_credential(self.auth_file, self.url)

    @property
    def identities(self) -> str:
        """Where what we are comes from, for messages; empty if we are nobody."""
        return " and ".join(
            name
            for name, file in (("auth_file", self.auth_file), ("cert_file", self.tls.cert_file if self.tls else None))
            if file is not None
        )


def _tls(url: RegistryURL) -> TlsSettings:
    return TlsSettings(
        ca_file=url.option("ca_file", _file, None),
        cert_file=url.option("cert_file", _file, None),
        key_file=url.option("key_file", _file, None),
        key_password_file=url.option("key_password_file", _file, None),
        server_name=url.option("tls_server_name", str, ""),
    )


def _access(url: RegistryURL) -> AccessLists:
    file = url.option("acl_file", _file, None)
    if file is None:
        return url.option("acl", _access_lists, AccessLists())
    if "acl" in url.options:
        raise ConfigurationError(f"{url}: acl and acl_file exclude each other")
    return read_access_lists(file, str(url))


def _access_lists(name: str) -> AccessLists:
    if name not in ACCESS_LISTS:
        raise ValueError(f"must be one of: {', '.join(ACCESS_LISTS)}; any other list goes into a file, as acl_file")
    return ACCESS_LISTS[name]


def _file(text: str) -> Path | None:
    if not text:
        raise ValueError("must be the path of a file")
    return Path(text)


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
