"""Connections that end when they must: pooled per process, bounded by a deadline, and cut off from another thread.

Theory of operation. ``requests`` takes a pool's classes from its adapter, and the pool makes the connections. Ours do
two things more than urllib3's:

- every read asks what is left until the deadline of the call it belongs to. A socket's own time limit counts anew with
  each byte, so that a server which drips would never run into it;
- they are remembered by the :class:`Connections` they were opened for, so that ``abort`` can shut them down under a
  thread that waits for an answer. Closing a pool does not do that: a connection in use is not in its pool.

What a call belongs to is kept per thread while it lasts, because urllib3 has no way to pass it down.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection

from registry_drain.clock import Deadline


class _CallsOfThread(threading.local):
    """What the call of the current thread belongs to."""

    connections: Connections | None = None
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


class _Connection(HTTPConnection):
    def connect(self) -> None:
        super().connect()
        _opened(self, _BoundedSocket)


class _TLSConnection(HTTPSConnection):
    def connect(self) -> None:
        super().connect()
        _opened(self, _BoundedTLSSocket)


def _opened(connection: HTTPConnection, bounded: type[socket.socket]) -> None:
    # By class, not by wrapper: whoever holds the socket already keeps a real one. Sockets of another kind (gevent's,
    # pyOpenSSL's) refuse, and then only each single read has a limit.
    with contextlib.suppress(TypeError):
        connection.sock.__class__ = bounded
    if _calls.connections is not None:
        _calls.connections.track(connection)


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _TLSPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _TLSConnection


class _Adapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _TLSPool}


class Connections:
    """The connections of one owner. Thread-safe; the lock guards state only."""

    def __init__(self) -> None:
        """Make an empty set; connects to nothing."""
        self._lock = threading.Lock()
        # By process: a forked child must not talk into its parent's connections.
        self._adapters: dict[int, HTTPAdapter] = {}
        self._open: weakref.WeakSet[HTTPConnection] = weakref.WeakSet()
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

    @contextlib.contextmanager
    def call(self, deadline: Deadline) -> Iterator[HTTPAdapter]:
        """Give the adapter for one call, answer included; what it reads is bounded by ``deadline``.

        Raises:
            ConnectionAbortedError: after :meth:`abort`.
        """
        with self._lock:
            if self._is_aborted:
                raise ConnectionAbortedError("the client is closed")
            adapter = self._adapters.get(os.getpid())
            if adapter is None:
                adapter = self._adapters[os.getpid()] = _Adapter(max_retries=0)
        _calls.connections, _calls.deadline = self, deadline
        try:
            yield adapter
        finally:
            _calls.connections = _calls.deadline = None

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
            adapter = self._adapters.pop(os.getpid(), None)
        if adapter is not None:
            adapter.close()

    def track(self, connection: HTTPConnection) -> None:
        """Remember a connection that was just opened."""
        with self._lock:
            self._opened += 1
            self._open.add(connection)
            if not self._is_aborted:
                return
        connection.close()
        raise ConnectionAbortedError("the client was closed while it connected")


def _cut(connection: HTTPConnection) -> None:
    sock = connection.sock
    if sock is not None:
        try:
            # Of the plain socket, also under TLS: the reader must see the end of the stream, not half a close-notify.
            socket.socket.shutdown(sock, socket.SHUT_RDWR)
        except OSError:
            return  # it has ended by itself
