"""Connections that end when they must: pooled per process, bounded by a deadline, and cut off from another thread.

Theory of operation. They are ``http.client``'s, which is the layer below ``requests`` and urllib3 as well: it looks at
no environment, keeps no cookies, follows no redirect and knows no proxy; and loading requests would take longer than
all the rest of a command that removes one instance. Ours do three things more:

- every read asks what is left until the deadline of the call it belongs to. A socket's own time limit counts anew with
  each byte, so that a server which drips would never run into it;
- they are remembered by the :class:`Connections` they were opened for, so that ``abort`` can shut them down under a
  thread that waits for an answer;
- one that was kept is used again only if the other side has said nothing since: what an idle connection has to say is
  that it was closed.

What a call belongs to is kept per thread while it lasts, because a socket has no room for it.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import select
import socket
import ssl
import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from registry_drain.clock import Deadline
from registry_drain.errors import ConfigurationError

_MOST_KEPT = 10
"""Idle connections of one owner; it seldom has more than two threads."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Where connections lead to, and how.

    Attributes:
        host: name or IP, without brackets.
        port: of TCP.
        is_tls: whether by TLS.
        verify: a file of CA certificates, or True for the well-known ones.
        cert: client certificate and key.
    """

    host: str
    port: int
    is_tls: bool = False
    verify: str | bool = True
    cert: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class RawAnswer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)


class _CallsOfThread(threading.local):
    """What the call of the current thread belongs to."""

    deadline: Deadline | None = None

    def limit(self, sock: socket.socket) -> None:
        # A read time limit counts anew with every byte that arrives; the deadline does not.
        if self.deadline is not None:
            remaining = self.deadline.remaining()
            if remaining <= 0:
                raise TimeoutError("the deadline came before the whole answer")
            sock.settimeout(remaining)


_calls = _CallsOfThread()


class _BoundedSocket(socket.socket):
    __slots__ = ()

    def recv_into(self, *args: Any) -> int:
        _calls.limit(self)
        return super().recv_into(*args)


class _BoundedTLSSocket(ssl.SSLSocket):
    def recv_into(self, *args: Any) -> int:
        _calls.limit(self)
        return super().recv_into(*args)


class Connections:
    """The connections of one owner to one peer. Thread-safe; the lock guards state only."""

    def __init__(self, peer: Peer) -> None:
        """Make an empty set; connects to nothing."""
        self._peer = peer
        self._lock = threading.Lock()
        # By process: a forked child must not talk into its parent's connections.
        self._idle: dict[int, list[http.client.HTTPConnection]] = {}
        self._open: weakref.WeakSet[http.client.HTTPConnection] = weakref.WeakSet()
        self._is_aborted = False
        self._opened = 0

    @property
    def opened(self) -> int:
        """How many connections were ever opened. While it stays the same, the other side's process does so, too."""
        return self._opened

    @property
    def is_aborted(self) -> bool:
        """Whether :meth:`abort` was called."""
        return self._is_aborted

    def exchange(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes | None, deadline: Deadline
    ) -> RawAnswer:
        """Send one request and return the whole answer by ``deadline``. One attempt.

        Raises:
            ConnectionAbortedError: after :meth:`abort`.
            TimeoutError: the deadline came first.
            OSError, http.client.HTTPException: no connection, no TLS, or no answer of HTTP.
        """
        _calls.deadline = deadline
        try:
            connection = self._kept() or self._connected(deadline)
            try:
                _calls.limit(connection.sock)
                connection.request(method, path, body=body, headers=dict(headers))
                with connection.getresponse() as response:
                    answer = RawAnswer(response.status, dict(response.headers.items()), response.read())
            except BaseException:
                connection.close()
                raise
        finally:
            _calls.deadline = None
        self._keep(connection)
        return answer

    def abort(self) -> None:
        """Cut off whatever waits for an answer, and refuse every later call: no byte leaves any more. Idempotent.

        What the other side has received already may still take effect.
        """
        with self._lock:
            self._is_aborted = True
            connections = list(self._open)
        for connection in connections:
            _cut(connection)
        self.close()

    def close(self) -> None:
        """Close idle connections. Later calls open new ones. Idempotent."""
        with self._lock:
            idle = self._idle.pop(os.getpid(), [])
        for connection in idle:
            connection.close()

    def _kept(self) -> http.client.HTTPConnection | None:
        """Return an idle connection that is still good, if there is one."""
        while True:
            with self._lock:
                if self._is_aborted:
                    raise ConnectionAbortedError("the client is closed")
                idle = self._idle.get(os.getpid())
                if not idle:
                    return None
                connection = idle.pop()
            if connection.sock is not None and not _has_something_to_say(connection.sock):
                return connection
            connection.close()

    def _keep(self, connection: http.client.HTTPConnection) -> None:
        with self._lock:
            idle = self._idle.setdefault(os.getpid(), [])
            if connection.sock is not None and not self._is_aborted and len(idle) < _MOST_KEPT:
                idle.append(connection)
                return
        connection.close()

    def _connected(self, deadline: Deadline) -> http.client.HTTPConnection:
        peer, seconds = self._peer, deadline.remaining()
        connection: http.client.HTTPConnection
        bounded: type[socket.socket]
        if peer.is_tls:
            connection = http.client.HTTPSConnection(peer.host, peer.port, timeout=seconds, context=_tls_context(peer))
            bounded = _BoundedTLSSocket
        else:
            connection, bounded = http.client.HTTPConnection(peer.host, peer.port, timeout=seconds), _BoundedSocket
        try:
            connection.connect()
        except BaseException:
            connection.close()
            raise
        # Never by itself: a connection that is not tracked could not be cut off.
        connection.auto_open = 0
        # By class, not by wrapper: whoever holds the socket already keeps a real one. Sockets of another kind refuse
        # (gevent's), and then only each single read has a limit.
        with contextlib.suppress(TypeError):
            connection.sock.__class__ = bounded
        with self._lock:
            self._opened += 1
            self._open.add(connection)
            if not self._is_aborted:
                return connection
        connection.close()
        raise ConnectionAbortedError("the client was closed while it connected")


def _tls_context(peer: Peer) -> ssl.SSLContext:
    if isinstance(peer.verify, str):
        context = ssl.create_default_context(cafile=peer.verify)
    else:
        # What requests trusts, too, and it comes with it. The system's own would depend on the environment.
        import certifi

        context = ssl.create_default_context(cafile=certifi.where())
    context.hostname_checks_common_name = False
    if peer.cert is not None:
        context.load_cert_chain(*peer.cert, password=_no_password)
    return context


def _no_password() -> str:
    """Refuse, instead of asking whoever sits at the terminal, as OpenSSL would."""
    raise ConfigurationError("key_file is encrypted, and there is nobody to ask for the password: give one that is not")


def _has_something_to_say(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


def _cut(connection: http.client.HTTPConnection) -> None:
    sock = connection.sock
    if sock is not None:
        try:
            # Of the plain socket, also under TLS: the reader must see the end of the stream, not half a close-notify.
            socket.socket.shutdown(sock, socket.SHUT_RDWR)
        except OSError:
            return  # it has ended by itself
