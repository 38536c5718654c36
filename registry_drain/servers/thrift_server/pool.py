"""Serves a ``TProcessPoolServer``: forks its workers, who accept.

While the listener is being closed they take the connections that the service's process hands over instead.
"""

from __future__ import annotations

import logging
import os
from typing import Any

from registry_drain.servers.listener.listening_socket import ListeningSocket
from registry_drain.servers.thrift_server.child import exit_now, flush
from registry_drain.servers.thrift_server.supervisor import Supervisor
from registry_drain.servers.thrift_server.tls import client_of

logger = logging.getLogger(__name__)

_LOOK_WHETHER_CLOSING_EVERY = 0.200
"""Seconds between two looks of a pool's worker that waits for connections on a socket which may be handed over."""


class PoolSupervisor(Supervisor):
    """Runs the user's ``TProcessPoolServer``. Make it in the forked process."""

    def _serve(self) -> None:
        self._server.isRunning.value = True
        for _ in range(self._server.numWorkers):
            index = self._reserve()
            flush()
            pid = os.fork()
            if pid == 0:
                self._work(index)
            self._children[pid] = index
            self._table.slots[index].pid = pid
        self._transport.handle.close()  # The workers have theirs.

    def _work(self, index: int) -> None:
        try:
            self._become_child(index)
            self._transport.accept = self._accept_in_worker
            if isinstance(self._transport.handle, ListeningSocket):
                # It may be another process', and is not shut then, which would wake us: see is_closing by ourselves.
                self._transport.handle.settimeout(_LOOK_WHETHER_CLOSING_EVERY)
            self._server.workerProcess()
        except BaseException:
            logger.exception("a worker has failed")
        finally:
            exit_now()

    def _accept_in_worker(self) -> Any:
        slot = self._tracking.slot
        while True:
            slot.is_accepting = 1
            try:
                if not self._head.is_closing:
                    client = client_of(self._transport, self._transport.handle.accept()[0])
                    if client is not None:
                        self._tracking.adopt(client)
                    return client
            except TimeoutError:
                continue
            except OSError:
                if not self._head.is_closing:
                    raise
            finally:
                slot.is_accepting = 0
            plain = self._controls.take(is_blocking=True)
            if plain is None:
                raise SystemExit  # workerProcess returns
            client = client_of(self._transport, plain)
            if client is not None:
                self._tracking.adopt(client)
            slot.taken += 1
            return client
