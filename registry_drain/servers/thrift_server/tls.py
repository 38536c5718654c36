"""TLS listeners whose handshakes are no part of accepting.

Theory of operation: ``TSSLServerSocket.accept`` shakes hands before it returns, without a time limit, so a client that
connects and says nothing holds up the accept loop, and everybody behind it. Here the socket is wrapped without a
handshake, which sends and reads nothing; the connection's first read shakes hands, in the thread (or process) that
serves it. A client that says nothing is then a connection that is idle, like any other: it costs its own thread,
and the drain closes it.

Source: ``thrift/transport/TSSLSocket.py`` of Apache Thrift 0.25; :meth:`ssl.SSLContext.wrap_socket`.
"""

from __future__ import annotations

import logging
import socket
import ssl
from collections.abc import Callable
from typing import Any

from thrift.transport.TSocket import TServerSocket, TSocket
from thrift.transport.TSSLSocket import TSSLServerSocket
from thrift.transport.TTransport import TTransportException

from registry_drain.servers.connections import Connection
from registry_drain.servers.connections.handshake import shake_hands_first

logger = logging.getLogger(__name__)


def accept_with(transport: Any) -> Callable[[], Any]:
    """Return what accepts one client of a server transport, without shaking hands.

    A transport whose class has an ``accept`` of its own is left to that, handshake included.
    """
    accept: Callable[[], Any] = transport.accept
    if type(transport).accept is not TSSLServerSocket.accept:
        return accept

    def accept_late() -> Any:
        plain, _ = transport.handle.accept()
        return client_of(transport, plain)

    return accept_late


def has_own_accept(transport: Any) -> bool:
    """Whether the transport's class accepts in a way that :func:`client_of` knows nothing of."""
    return type(transport).accept not in {TServerSocket.accept, TSSLServerSocket.accept}


def client_of(transport: Any, plain: socket.socket) -> Any:
    """Return the TSocket for an accepted connection; None if TLS cannot be set up.

    A TLS client carries ``late_handshake``, to be called before its first read.
    """
    client = TSocket()
    client.setHandle(plain)
    if not isinstance(transport, TSSLServerSocket):
        return client
    if not isinstance(transport._context, _WithoutHandshake):  # noqa: SLF001 - the public property is read-only
        transport._context = _WithoutHandshake(transport._context)  # noqa: SLF001
    try:
        host = plain.getpeername()[0]
        secured = transport._wrap_socket(plain)  # noqa: SLF001 - with the certificates that the user gave
    except OSError as error:
        logger.warning("a connection is refused, TLS cannot be set up: %s", error)
        plain.close()
        return None
    client.setHandle(secured)
    client.late_handshake = lambda: _shake_hands(transport, secured, host)
    return client


def read_behind_handshake(
    client: Any, connection: Connection, shake_hands: Callable[[], None]
) -> Callable[[int], bytes]:
    """Return a ``read`` that shakes hands, puts the client's own in its place, and reads with that."""
    read_as_before: Callable[[int], bytes] = client.read

    def read(size: int) -> bytes:
        try:
            shake_hands_first(connection, shake_hands)
        except EOFError as error:
            raise TTransportException(TTransportException.END_OF_FILE, str(error)) from error
        except Exception as error:
            # Also what a validation callback raises. A client that the drain closed meanwhile is no news.
            if not connection.is_half_closed:
                logger.warning("no TLS with %s: %s", connection.peer, error)
            raise TTransportException(TTransportException.END_OF_FILE, f"no TLS: {error}") from error
        client.read = read_as_before
        return read_as_before(size)

    return read


def _shake_hands(transport: Any, secured: ssl.SSLSocket, host: str) -> None:
    secured.do_handshake()
    if transport._should_verify:  # noqa: SLF001 - what its own accept asks
        transport._validate_callback(secured.getpeercert(), host)  # noqa: SLF001


class _WithoutHandshake:
    """An SSLContext that wraps sockets without shaking hands."""

    def __init__(self, context: ssl.SSLContext) -> None:
        object.__setattr__(self, "_context", context)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._context, name, value)

    def wrap_socket(self, sock: socket.socket, **options: Any) -> Any:
        return self._context.wrap_socket(sock, do_handshake_on_connect=False, **options)
