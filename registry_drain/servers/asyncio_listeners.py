"""Closing the listeners of asyncio servers without resetting a connection.

Theory of operation: asyncio accepts by itself, in its loop, so that all that is left to do is to hold new connections
off, let the loop go on accepting for one round trip and until nothing waits, and close then.

Rules:

1. A connection that asyncio has accepted becomes a transport some turns of the loop later; a server that is closed in
   between fails to attach it (cpython#109564). So the loop turns a few times between the last look at the backlog and
   the close.
2. The descriptors that are held off and looked at are duplicates of our own: the server's may be closed meanwhile. They
   keep the kernel listening, so they are shut down, not only closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Sequence

from registry_drain.clock import Deadline
from registry_drain.servers.base import ListenerClosure
from registry_drain.servers.listener import ROUND_TRIP, has_backlog, hold_off
from registry_drain.servers.listener.listening_socket import keeper_of, leave

_LOOK_EVERY = 0.002
"""Seconds between two looks at the backlog; the loop accepts meanwhile."""
_OVERTIME_S = 0.050
"""A stop that has no time left (a second signal) still takes what the kernel has accepted: a matter of microseconds."""
_TURNS = 10
"""Loop turns from an accepted socket to a protocol that knows of it: four in CPython 3.13; twice that, and two."""


def duplicates(descriptors: Sequence[int]) -> list[socket.socket]:
    """Return socket objects of our own for ``descriptors``; the caller closes them."""
    return [socket.fromfd(each, *_family_and_kind(each)) for each in descriptors]


def _family_and_kind(descriptor: int) -> tuple[int, int]:
    with socket.socket(fileno=socket.dup(descriptor)) as sock:
        return sock.family, sock.type


async def close_listeners(
    listeners: Sequence[socket.socket],
    close: Callable[[], object],
    deadline: Deadline,
    *,
    is_last: Callable[[], bool] = lambda: True,
) -> ListenerClosure:
    """Hold clients off, let the running loop accept what waits, call ``close``, and end the listening.

    One that is cancelled, because the loop was late, closes at once.

    Args:
        listeners: duplicates of the listening sockets; closed when this returns.
        close: closes the servers (``asyncio.Server.close``); called in the loop.
        deadline: what waits longer is reset, and the closure is not clean.
        is_last: asked after that: whether no other process accepts from the same sockets any more. Only then they are
            shut down.
    """
    # Not one that was shut meanwhile, because the loop was late: it might listen again.
    held = [hold_off(each) for each in listeners if _listens(each)]
    try:
        is_clean = await _until_empty(listeners, deadline)
        await _turns()
    finally:
        close()
        ends_listening = is_last()
        for each in listeners:
            if ends_listening:
                shut(each)
            each.close()
        for hold in held:
            hold.close()
    return ListenerClosure(", ".join(dict.fromkeys(hold.method for hold in held)) or "close", is_clean=is_clean)


def shut(listener: socket.socket) -> None:
    """End the listening, for all descriptors of the socket; unless somebody keeps it. Never raises."""
    if not keeper_of(listener):
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)


async def leave_listeners(descriptors: Sequence[int], close: Callable[[], object]) -> None:
    """Stop accepting from listeners that other processes go on serving; what the loop has accepted is served.

    Args:
        descriptors: the servers' own.
        close: closes the servers; called in the loop.
    """
    loop = asyncio.get_running_loop()
    for each in descriptors:
        # Clients go on connecting, so there would always be one that was accepted a turn ago. uvloop watches listeners
        # in its own way, and has no such turns.
        with contextlib.suppress(RuntimeError, ValueError, OSError, NotImplementedError):
            loop.remove_reader(each)
    await close_later(close)


async def close_later(close: Callable[[], object]) -> None:
    """Call ``close`` when everything that the loop has accepted so far is known to its protocols.

    Only where nothing more is accepted meanwhile.
    """
    await _turns()
    close()


def _listens(sock: socket.socket) -> bool:
    try:
        return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except OSError:  # closed
        return False


async def _turns() -> None:
    for _ in range(_TURNS):
        await asyncio.sleep(0)


async def _until_empty(listeners: Sequence[socket.socket], deadline: Deadline) -> bool:
    ours = [each for each in listeners if not leave(each)]  # What waits at others is another process' to accept.
    began_at = time.monotonic()
    # Real time besides the deadline's: this waits for packets on a wire, and they do not jump.
    while (elapsed := time.monotonic() - began_at) < ROUND_TRIP or has_backlog(*ours):
        if deadline.is_past and elapsed >= _OVERTIME_S:
            return False
        await asyncio.sleep(_LOOK_EVERY)
    return True
