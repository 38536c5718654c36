"""Starting on a listening socket that somebody else has opened: systemd, or the process that this one replaces.

Theory of operation: both use the protocol of ``sd_listen_fds(3)``: the descriptors begin at 3, ``LISTEN_FDS`` says how
many there are, ``LISTEN_PID`` whom they are meant for, and ``LISTEN_FDNAMES`` what they are called. They are read when
somebody first asks, and the variables are removed, so that children do not take them for theirs. A program asks for
each socket by its port, or by its name, and binds itself where it has inherited nothing; so the same program
starts by hand, from a unit, and from its predecessor::

    transport = TServerSocket("0.0.0.0", 9090)
    transport.handle = listening_socket("0.0.0.0", 9090)

    server = ThreadingTCPServer(("0.0.0.0", 9090), Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = listening_socket("0.0.0.0", 9090)

    await asyncio.start_server(handle, sock=listening_socket("0.0.0.0", 9090))

Anything that takes a listening socket object will do: ``uvicorn.Server.serve(sockets=[…])``, ``aiohttp.web.SockSite``.
A server that opens its port in C (gRPC, granian) takes none, and cannot be handed over.

Rule: a socket of systemd's is kept by systemd whatever we do, and one of our predecessor's by our predecessor, until
it says that it is ours (see :mod:`registry_drain.handover`).
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import MutableMapping

from registry_drain.errors import ConfigurationError
from registry_drain.servers.listener.address import bound_address
from registry_drain.servers.listener.hold_off import prepare
from registry_drain.servers.listener.listening_socket import ListeningSocket

logger = logging.getLogger(__name__)

FIRST_DESCRIPTOR = 3
"""``SD_LISTEN_FDS_START``: behind standard input, output and error."""
BACKLOG = 511
"""Connections that may wait until somebody accepts them: while a process starts, that is a while. The kernel caps it
(``net.core.somaxconn``)."""
SUPERVISOR = "left to systemd"
PREDECESSOR = "left to the predecessor"
KEPT_VARIABLE = "REGISTRY_DRAIN_KEPT_SOCKETS"
"""Set, maybe to nothing, for a process that replaces another one: which of the inherited sockets, counted from 0, are
systemd's all the same. Their keeper outlives every hand-over."""

_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", KEPT_VARIABLE)


class ListeningSockets:
    """The listening sockets of one process: what it inherited, and what it opened to be handed on. Thread-safe.

    Args:
        environ: where the variables are; they are removed from it when read.
    """

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        self._environ = environ
        self._lock = threading.Lock()
        self._inherited: list[ListeningSocket] | None = None
        self._in_use: list[ListeningSocket] = []

    def inherit(self, wanted: int | str, address: str = "") -> ListeningSocket | None:
        """Return the inherited socket of that port, or that name or path; None if there is none (any more).

        Args:
            wanted: a port, the name that the unit or the predecessor gave it, or the path of a Unix socket.
            address: chooses among several sockets of one port.

        Raises:
            ConfigurationError: the variables cannot be read.
        """
        with self._lock:
            inherited = self._read()
            found = [sock for sock in inherited if _is_wanted(sock, wanted)]
            exact = [sock for sock in found if bound_address(sock)[0] == address]
            if not found:
                return None
            sock = (exact or found)[0]
            inherited.remove(sock)
            self._in_use.append(sock)
            return sock

    def open(self, host: str, port: int, *, name: str, backlog: int) -> ListeningSocket:
        """Inherit a socket or bind one; see :func:`listening_socket`."""
        found = self.inherit(name) if name else None
        if found is None:
            found = self._inherit_any() if port == 0 and not name else self.inherit(port, host)
        if found is None:
            found = _bind(host, port, name, backlog)
            with self._lock:
                self._in_use.append(found)
        found.name = name or found.name
        return found

    def _inherit_any(self) -> ListeningSocket | None:
        with self._lock:
            names = [sock.name for sock in self._read()]
        if len(names) > 1:
            raise ConfigurationError(f"port 0 could be any of the inherited sockets {names}: give it a name=")
        return self.inherit(names[0]) if names else None

    @property
    def in_use(self) -> list[ListeningSocket]:
        """Those that this process uses and has not closed; what a hand-over hands over."""
        with self._lock:
            self._in_use = [sock for sock in self._in_use if sock.fileno() >= 0]
            return list(self._in_use)

    def close_unused(self) -> None:
        """Close what was inherited and nobody asked for: clients would be queued there, and never served.

        If nobody has asked for any, another library of this process may know what they are for: they are left alone.
        """
        with self._lock:
            unused, self._inherited = self._inherited or [], [] if self._inherited is not None else None
        for sock in unused:
            logger.warning("%r was inherited, and this program does not ask for it: closed", sock)
            sock.close()

    def _read(self) -> list[ListeningSocket]:
        if self._inherited is None:
            self._inherited = _take(self._environ)
        return self._inherited


_sockets = ListeningSockets(os.environ)


def process_sockets() -> ListeningSockets:
    """Return this process' sockets."""
    return _sockets


def inherited_socket(wanted: int | str) -> ListeningSocket | None:
    """Return the listening socket that this process was given for a port (or by a name); None if there is none.

    For servers that bind by themselves where they are given nothing. Such a socket can be handed on; what the server
    binds then cannot, so :func:`listening_socket` is usually what you want.

    Raises:
        ConfigurationError: the variables of the environment cannot be read.
    """
    return _sockets.inherit(wanted)


def listening_socket(host: str, port: int, *, name: str = "", backlog: int = BACKLOG) -> ListeningSocket:
    """Return the inherited listening socket of this port (or this name), or bind one: it listens when this returns.

    It can be handed to the next process; see :class:`registry_drain.handover.Handover`. In a subprocess or a fork of
    this process it is of no use. For asyncio call it before the loop runs, or in it: resolving ``host`` may block.

    Args:
        host: an address or a name to bind to; empty: all, IPv6 and IPv4 in one socket.
        port: 0: a free one, or the inherited one if there is exactly one.
        name: ``FileDescriptorName=`` of the socket unit; also how the next process finds it, whatever the port.
        backlog: connections that may wait to be accepted.

    Raises:
        ConfigurationError: it cannot be said which of several inherited sockets is meant.
        OSError: the address cannot be bound.
    """
    return _sockets.open(host, port, name=name, backlog=backlog)


def _is_wanted(sock: ListeningSocket, wanted: int | str) -> bool:
    address, port = bound_address(sock)
    return port == wanted if isinstance(wanted, int) else wanted in {sock.name, address if port == 0 else sock.name}


def _bind(host: str, port: int, name: str, backlog: int) -> ListeningSocket:
    is_dual = not host and socket.has_dualstack_ipv6()
    target = "::" if is_dual else host or None
    [family, kind, proto, _, address], *_ = socket.getaddrinfo(
        target, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    sock = ListeningSocket(family, kind, proto, name=name)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not is_dual)
        prepare(sock)
        sock.bind(address)
        sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    sock.name = name or f"port-{sock.getsockname()[1]}"
    return sock


def _take(environ: MutableMapping[str, str]) -> list[ListeningSocket]:
    """Read the variables and make sockets of what they say; what is no listening socket is left alone."""
    given = {variable: environ.get(variable, "") for variable in _VARIABLES}
    try:
        is_ours = int(given["LISTEN_PID"] or 0) == os.getpid()
        count = int(given["LISTEN_FDS"] or 0) if is_ours else 0
        kept = {int(each) for each in given[KEPT_VARIABLE].split(",") if each}
    except ValueError as error:
        raise ConfigurationError(f"LISTEN_PID, LISTEN_FDS: {error}; unset them, or start this from a unit") from error
    if not is_ours:
        return []  # meant for a parent of ours, which did not remove them
    has_predecessor = KEPT_VARIABLE in environ
    for variable in _VARIABLES:
        environ.pop(variable, None)
    names = given["LISTEN_FDNAMES"].split(":")
    taken: list[ListeningSocket] = []
    for index in range(count):
        sock = _adopt(FIRST_DESCRIPTOR + index, names[index] if index < len(names) else "")
        if sock is not None:
            sock.keep_for(PREDECESSOR if has_predecessor and index not in kept else SUPERVISOR)
            taken.append(sock)
    return taken


def _adopt(descriptor: int, name: str) -> ListeningSocket | None:
    try:
        os.set_inheritable(descriptor, False)  # noqa: FBT003 - os' own signature
        probe = socket.socket(fileno=os.dup(descriptor))
    except OSError as error:
        logger.warning("descriptor %d of LISTEN_FDS is no socket, and was left alone: %s", descriptor, error.strerror)
        return None
    with probe:
        is_stream = probe.type == socket.SOCK_STREAM
        if not is_stream or not probe.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            logger.warning("descriptor %d of LISTEN_FDS (%s) is no listening stream socket", descriptor, name)
            return None
        return ListeningSocket(probe.family, probe.type, probe.proto, descriptor, name=name)
