"""The sockets that gRPC's C core has opened for a server, which no Python object stands for.

Theory of operation: they are found among the process' own descriptors, by the port (or the path) that they are bound
to. A duplicate shares the socket: what holds clients off it holds them off the core's, and shutting it down ends the
listening, while the core goes on to serve what it has accepted. The core's accept then fails once, with one line on
standard error ("Closing acceptor. Failed accept4: Invalid argument"); it is harmless.

Listening sockets exist from ``add_insecure_port`` on: who connects before ``start()`` waits in the backlog.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections.abc import Iterator, Sequence

from registry_drain.clock import Deadline
from registry_drain.errors import ConfigurationError
from registry_drain.servers.base import ListenerClosure
from registry_drain.servers.listener import ROUND_TRIP, hold_off
from registry_drain.servers.listener.address import own_sockets

_OVERTIME_S = 0.050
"""A close that has no time left (a second signal) still lets the core take what the kernel has accepted."""

_LOOK_EVERY = 0.002

PortOrPath = int | str


class Ports:
    """The ports of one server. Any thread.

    Args:
        ports: what ``add_insecure_port`` or ``add_secure_port`` has returned; for ``unix:`` addresses the path.

    Raises:
        ConfigurationError: there is none.
    """

    def __init__(self, ports: PortOrPath | Sequence[PortOrPath]) -> None:
        listed = [ports] if isinstance(ports, int | str) else list(ports)
        names: list[PortOrPath] = [each.removeprefix("unix:") if isinstance(each, str) else each for each in listed]
        if not names or any(not each or each == 1 for each in names):
            raise ConfigurationError(
                f"port={ports!r}: give what add_insecure_port() or add_secure_port() has returned, "
                "or the path of a unix: address"
            )
        self._names = frozenset(names)
        self._first = names[0]

    def address(self) -> tuple[str, int]:
        """Return where the first port listens; a Unix socket's path, and 0."""
        if isinstance(self._first, str):
            return self._first, 0
        for sock in self._sockets():
            host, port = sock.getsockname()[:2]
            if port == self._first and _is_listening(sock):
                # The core binds IPv4 addresses to dual-stack sockets.
                return str(host).removeprefix("::ffff:"), self._first
        return "", self._first

    def connections(self) -> int:
        """Return how many connections are open."""
        # By inode: a descriptor that is closed meanwhile may come up again as a duplicate of ours.
        return len({_inode(sock) for sock in self._sockets() if not _is_listening(sock) and _has_peer(sock)})

    def close(self, deadline: Deadline) -> ListenerClosure:
        """Stop listening, once the core has accepted what the kernel had."""
        with contextlib.ExitStack() as stack:
            listeners = [stack.enter_context(sock) for sock in self._duplicates() if _is_listening(sock)]
            if not listeners:
                return ListenerClosure("closed already")
            held = [hold_off(sock) for sock in listeners]
            is_clean = _wait_for_backlog(listeners, deadline)
            for sock in listeners:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            for each in held:
                each.close()
            return ListenerClosure(held[0].method, is_clean=is_clean)

    def _duplicates(self) -> list[socket.socket]:
        """Return the listening ones, by inode: a socket may have several descriptors."""
        found: dict[int, socket.socket] = {}
        for sock in self._sockets():
            if _is_listening(sock) and _inode(sock) not in found:
                found[_inode(sock)] = sock.dup()
        return list(found.values())

    def _sockets(self) -> Iterator[socket.socket]:
        """Yield duplicates of the sockets that are bound to one of our ports, and close them again."""
        for sock in own_sockets():
            with sock:
                if _bound_to(sock) in self._names:
                    yield sock

    def __repr__(self) -> str:
        """Show the ports."""
        return f"<Ports {', '.join(str(name) for name in sorted(self._names, key=str))}>"


def _wait_for_backlog(listeners: list[socket.socket], deadline: Deadline) -> bool:
    """Wait for a round trip and until the core has accepted all; return whether it has."""
    # Real time: this waits for packets on a wire, and for somebody else's threads.
    poller = select.poll()
    for sock in listeners:
        # A Unix socket that is held off is always readable: accepting fails once its queue is empty, and a round trip
        # is plenty for the core to get there.
        if sock.family != socket.AF_UNIX:
            poller.register(sock, select.POLLIN)
    round_trip_ends_at = time.monotonic() + ROUND_TRIP
    overtime_ends_at = time.monotonic() + _OVERTIME_S
    while True:
        is_empty = not poller.poll(0)
        now = time.monotonic()
        if is_empty and (now >= round_trip_ends_at or deadline.is_past):
            return True
        if deadline.is_past and now >= overtime_ends_at:
            return False
        time.sleep(_LOOK_EVERY)


def _inode(sock: socket.socket) -> int:
    return os.fstat(sock.fileno()).st_ino


def _bound_to(sock: socket.socket) -> PortOrPath | None:
    try:
        name = sock.getsockname()
    except OSError:
        return None
    if isinstance(name, tuple):
        return int(name[1]) if sock.type == socket.SOCK_STREAM and len(name) > 1 else None
    return name if isinstance(name, str) and name else None


def _is_listening(sock: socket.socket) -> bool:
    try:
        return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except OSError:
        return False


def _has_peer(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True
