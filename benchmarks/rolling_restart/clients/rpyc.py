"""RPyC's own client, for a service with the method ``echo``."""

from __future__ import annotations

import socket

import rpyc

TIMEOUT_S = 10.0


class Client:
    """One connection. For one thread."""

    def __init__(self, address: tuple[str, int]) -> None:
        """Connect.

        Raises:
            OSError: nobody listens, or not in time.
        """
        # Not by rpyc.connect, which tries again and again.
        sock = socket.create_connection(address, timeout=TIMEOUT_S)
        sock.settimeout(None)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        config = {"sync_request_timeout": TIMEOUT_S}
        self._connection = rpyc.connect_stream(rpyc.SocketStream(sock), config=config)

    def call(self, payload: bytes) -> bytes:
        """Make one call: a lookup and a call on the wire.

        Raises:
            EOFError: the connection ended instead.
            TimeoutError: no answer in time.
        """
        return bytes(self._connection.root.echo(payload))

    def is_closed(self) -> bool:
        """Whether the server has ended the connection."""
        # Behind answers that nobody waits for: those to the release of proxies.
        try:
            self._connection.poll_all()
        except EOFError:
            return True
        return bool(self._connection.closed)

    def close(self) -> None:
        """Hang up."""
        self._connection.close()
