"""The same for a listening socket that was wrapped by ``ssl``: its handshakes are no part of accepting.

Theory of operation: ``SSLSocket.accept`` shakes hands before it returns, without a time limit, so a client that
connects and says nothing holds up the accept loop, and everybody behind it. The listening socket is therefore told not
to (``do_handshake_on_connect``), and the thread that serves a connection shakes hands before it runs the handler.

Rules:

1. An ``SSLSocket`` cannot be made from outside but by its context, whose class is the user's to choose. So one that was
   accepted is turned into ours by its ``__class__``: both have the same memory layout.
2. What TLS has decrypted and nobody has read is part of the next request, though the kernel knows nothing of it.
3. ``close_notify`` is sent by the thread that serves, before our FIN, without waiting for the client's. A connection
   that is idle is closed by the drain, which may not touch the TLS object while its thread sleeps in a read: its client
   sees a plain end. (HTTP clients have been told by ``Connection: close`` before that, most of them.)
"""

from __future__ import annotations

import logging
import socket
import ssl
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from registry_drain.servers.connections import Connections
from registry_drain.servers.connections.handshake import shake_hands_first
from registry_drain.servers.socket_server.tracked_socket import TrackedSocket

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

logger = logging.getLogger(__name__)

HANDSHAKE_TIMEOUT = 10.0
"""Seconds; a handshake is two round trips and some milliseconds of computing."""


class TrackedTlsSocket(TrackedSocket, ssl.SSLSocket):  # type: ignore[misc]  # typeshed names parameters differently
    """The handler's ``self.request`` over TLS."""

    @classmethod
    def adopt_tls(cls, sock: Any, connections: Connections) -> TrackedTlsSocket:
        """Take over ``sock``, an ``SSLSocket``, which becomes what this returns."""
        sock.__class__ = cls
        tracked: TrackedTlsSocket = sock
        tracked.begin(connections)
        return tracked

    def shake_hands(self, timeout: float) -> bool:
        """Shake hands, in the serving thread; return whether there is anything to serve.

        Args:
            timeout: seconds, for the client's first byte and for the rest.
        """
        wanted = self.gettimeout()
        connection = self.connection
        try:
            self.settimeout(timeout)
            connection.is_waiting = True
            shake_hands_first(connection, self.do_handshake)
            connection.is_waiting = False
            self.settimeout(wanted)
        except EOFError:
            return False
        except (OSError, ValueError) as error:  # SSLError is an OSError; ValueError: closed meanwhile
            # A client that the drain closed meanwhile is no news.
            if not connection.is_half_closed:
                logger.warning("no TLS with %s: %s", connection.peer, error)
            return False
        return True

    def say_goodbye(self) -> None:
        """Send ``close_notify``, in the serving thread; the client's own is not waited for. The last thing to send."""
        if self.connection.is_half_closed:
            return
        with suppress(OSError, ValueError):  # wants to read: the client's; or there is no TLS, or nobody any more
            self.settimeout(0.0)
            self.unwrap()

    def at_read(self) -> None:
        """See the base class; what is decrypted already begins the next request."""
        connection = self.connection
        if connection.has_answered and not connection.is_marked and self.read_ahead():
            connection.has_answered = False
            connection.begin_request()
            return
        super().at_read()

    def read_ahead(self) -> int:
        """Return how many bytes are decrypted and not read."""
        try:
            return self.pending()
        except (OSError, ValueError):
            return 0

    def recv_into(self, buffer: WriteableBuffer, nbytes: int | None = 0, flags: int = 0) -> int:
        """Read; see :meth:`socket.socket.recv_into`, whose 0 means all, while TLS would read nothing."""
        return super().recv_into(buffer, nbytes or memoryview(buffer).nbytes, flags)


def shake_hands_later(listener: socket.socket) -> None:
    """Keep a listening socket, if it was wrapped by ``ssl``, from shaking hands while it accepts."""
    if isinstance(listener, ssl.SSLSocket):
        listener.do_handshake_on_connect = False  # type: ignore[attr-defined]  # where its accept looks
