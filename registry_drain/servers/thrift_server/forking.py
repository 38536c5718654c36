"""Serves a ``TForkingServer``: this process accepts, and forks a child for each connection.

While the listener is being closed it takes the connections that the service's process hands over instead.
"""

from __future__ import annotations

import contextlib
import heapq
import logging
import os
import socket
import time
from typing import Any

from registry_drain.servers.listener import ListenerStoppedError
from registry_drain.servers.thrift_server.child import flush
from registry_drain.servers.thrift_server.shared_table import Slot
from registry_drain.servers.thrift_server.supervisor import Supervisor
from registry_drain.servers.thrift_server.tls import client_of

logger = logging.getLogger(__name__)

_PAUSE_S = 0.005
"""Between two attempts to accept when the machine has no room for more."""


class ForkingSupervisor(Supervisor):
    """Runs the user's ``TForkingServer``. Make it in the forked process."""

    _forking: tuple[Any, int] | None = None
    """The client and slot of a fork that has not succeeded yet."""

    def _serve(self) -> None:
        self._transport.handle.settimeout(0.0)  # We poll, with other things.
        self._transport.accept = self._accept_to_fork
        self._server.collect_children = self._note_fork
        with contextlib.suppress(ListenerStoppedError):
            self._server.serve()

    def _accept_to_fork(self) -> Any:
        self._give_up_failed_fork()
        while True:
            index = self._reserve()
            client = self._next_client(index)
            if client is not None:
                self._forking = client, index
                flush()  # or the child writes what is in our buffers once more
                return client
            heapq.heappush(self._free, index)

    def _next_client(self, index: int) -> Any:
        """Return the next client, its slot open; None if there is none after all."""
        listener, slot = self._transport.handle, self._table.slots[index]
        if self._head.is_closing:
            if not self._wait(self._controls.takers.fileno()):
                return None
            plain = self._controls.take(is_blocking=False)
            if plain is None:
                raise ListenerStoppedError
            client = self._open(plain, slot)
            self._my_slot.taken += 1
            return client
        if not self._wait(listener.fileno()):
            return None
        # The parent sets is_closing and then waits until nobody is accepting: either we see it, or it waits for us.
        self._my_slot.is_accepting = 1
        try:
            return None if self._head.is_closing else self._open(listener.accept()[0], slot)
        except BlockingIOError:
            return None  # The client is gone, or the parent was faster.
        except OSError as error:
            if not self._head.is_closing:
                logger.warning("cannot accept: %s", error)  # out of descriptors, until a child exits
                time.sleep(_PAUSE_S)
            return None
        finally:
            self._my_slot.is_accepting = 0

    def _open(self, plain: socket.socket, slot: Slot) -> Any:
        client = client_of(self._transport, plain)
        if client is not None:
            slot.open("")
        return client

    def _note_fork(self) -> None:
        """Stand in for ``collect_children``, which the serve loop calls behind each fork."""
        if self._forking is not None:
            pid, (_, index) = self._server.children[-1], self._forking
            self._children[pid] = index
            self._table.slots[index].pid = pid
            self._forking = None
        self._reap()

    def _give_up_failed_fork(self) -> None:
        if self._forking is not None:
            client, index = self._forking
            client.close()
            self._table.slots[index].free()
            heapq.heappush(self._free, index)
            self._forking = None

    def _get_ready(self, client: Any) -> None:
        """Become a child, if that is where the serve loop asks for the transport."""
        if os.getpid() != self._pid and self._forking is not None:
            (_, index), self._forking = self._forking, None
            self._transport.handle.close()  # Who serves one connection must not keep the port.
            self._controls.takers.close()
            self._become_child(index)
            self._tracking.adopt(client)
