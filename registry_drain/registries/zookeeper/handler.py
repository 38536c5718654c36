"""kazoo's handler, with TLS of our own, and with notes of why no connection comes about.

Theory of operation. kazoo tells nobody why it cannot connect: it logs, and tries the next server, for ever. All its
connections are made through its handler, which is documented as replaceable. Ours writes down how each attempt ended.
A *refusal* is an end that repeating cannot change (a certificate, on either side). It becomes the verdict once a whole
round of the servers has passed without a connection: another server may have another certificate. A round has passed
when an address is tried that had been tried already.

With TLS 1.3 a server that refuses our certificate says so only after the handshake, to our first read. Hence the socket
that notes errors, too.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable
from typing import Any

from kazoo.handlers.threading import SequentialThreadingHandler

from registry_drain.errors import RegistryError
from registry_drain.instance import format_endpoint
from registry_drain.registries.zookeeper.tls import refusal_of


class ConnectionNotes:
    """How the attempts to connect ended, since the last that worked. Thread-safe.

    Args:
        on_refusal: called from kazoo's thread when :attr:`refusal` has been set.
    """

    def __init__(self, on_refusal: Callable[[], None]) -> None:
        self._on_refusal = on_refusal
        self._lock = threading.Lock()
        self._tried: set[object] = set()
        self._refusal_of_round: RegistryError | None = None
        self._refusal: RegistryError | None = None
        self._failure = ""
        self._server = ""

    @property
    def server(self) -> str:
        """The ``host:port`` that was tried last: while there is a connection, the one that it leads to."""
        return self._server

    @property
    def refusal(self) -> RegistryError | None:
        """Why there is no server for us, or None."""
        return self._refusal

    @property
    def failure(self) -> str:
        """What the last attempt failed with, or empty."""
        return self._failure

    def begin(self, address: object, server: str = "") -> None:
        """Note that ``address`` is being tried, which ``server`` has been looked up to."""
        is_verdict = False
        with self._lock:
            self._server = server
            if address in self._tried:
                is_verdict = self._refusal_of_round is not None
                self._refusal, self._refusal_of_round = self._refusal_of_round, None
                self._tried.clear()
            self._tried.add(address)
        if is_verdict:
            self._on_refusal()

    def fail(self, text: str, refusal: RegistryError | None = None) -> None:
        """Note how the attempt ended."""
        with self._lock:
            self._failure = text
            if refusal is not None:
                self._refusal_of_round = refusal

    def connected(self) -> None:
        """Forget: a session was granted."""
        with self._lock:
            self._tried.clear()
            self._refusal = self._refusal_of_round = None
            self._failure = ""


class NotingHandler(SequentialThreadingHandler):  # type: ignore[misc] # kazoo has no annotations
    """See the module.

    Args:
        notes: where each attempt is written down.
        tls: the context of encrypted connections; None: they are plain.
        server_name: what the servers' certificates must be for; empty: the host name.
    """

    def __init__(self, notes: ConnectionNotes, tls: ssl.SSLContext | None, server_name: str = "") -> None:
        super().__init__()
        self._notes = notes
        self._tls = tls
        self._server_name = server_name

    def create_connection(
        self, address: tuple[str, int], hostname: str | None = None, timeout: float | None = None, **_kazoos_tls: object
    ) -> Any:
        """Connect, and do the TLS handshake; kazoo's own TLS settings are not looked at."""
        host = format_endpoint(hostname or address[0], address[1])
        self._notes.begin((hostname, address), host)
        try:
            plain = socket.create_connection(address, timeout)
        except OSError as error:
            self._notes.fail(f"{host}: {error.strerror or error}")
            raise
        try:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as kazoo has it: requests are small
            if self._tls is None:
                self._notes.fail(f"{host} grants no session: has it no quorum, or is it a TLS port (zookeeper+tls)?")
                return plain
            return self._encrypted(plain, self._tls, host, self._server_name or hostname or address[0])
        except BaseException:
            plain.close()
            raise

    def _encrypted(self, plain: socket.socket, context: ssl.SSLContext, host: str, server_name: str) -> ssl.SSLSocket:
        try:
            encrypted = context.wrap_socket(plain, server_hostname=server_name)
        except ssl.SSLError as error:
            self._note(error, host)
            raise
        except OSError as error:
            self._notes.fail(f"TLS: {host}: {error.strerror or error}: is that its secureClientPort?")
            raise
        if isinstance(encrypted, _NotingSocket):
            encrypted.on_error = lambda error: self._note(error, host)
        self._notes.fail(f"{host} grants no session: has it no quorum, or does it want a cert_file?")
        return encrypted

    def _note(self, error: ssl.SSLError, host: str) -> None:
        refusal = refusal_of(error, host)
        text = str(refusal) if refusal else f"TLS: {host}: {error.reason or error}: is that its secureClientPort?"
        self._notes.fail(text, refusal)

    def select(self, readers: Any, writers: Any, others: Any, timeout: float | None = None) -> Any:
        """Wait as ``select`` does, and also see what TLS has decrypted already, which no file descriptor tells."""
        pending = [each for each in readers if isinstance(each, ssl.SSLSocket) and each.pending()]
        return (pending, [], []) if pending else super().select(readers, writers, others, timeout)


class _NotingSocket(ssl.SSLSocket):
    """Tells of the error that ends it."""

    on_error: Callable[[ssl.SSLError], None] | None = None

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        """Receive; see the module."""
        try:
            return super().recv(buflen, flags)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            if self.on_error is not None:
                self.on_error(error)
            raise


def noting(context: ssl.SSLContext) -> ssl.SSLContext:
    """Return ``context``, whose sockets from now on can tell of their errors."""
    context.sslsocket_class = _NotingSocket
    return context
