"""A process that serves: one thread in it waits for the parent's commands, and drains or ends what it serves."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import threading
import time

from registry_drain.clock import Deadline
from registry_drain.servers.connections import Connections
from registry_drain.servers.thrift_server.controls import LOOK_EVERY, Controls, is_set
from registry_drain.servers.thrift_server.shared_table import Slot

_DRAIN_STEP = 0.005


class Child:
    """Obeys, in the process that was just forked. Make it there, and :meth:`start` it.

    Args:
        connections: the process' own.
        slot: where it writes what it does.
        controls: the commands of the service's process.
        parent_pid: the process that has forked this one, and without which it must not go on.
    """

    def __init__(self, connections: Connections, slot: Slot, controls: Controls, parent_pid: int) -> None:
        self._connections = connections
        self._slot = slot
        self._controls = controls
        self._parent_pid = parent_pid

    def start(self) -> None:
        """Make the slot this process', and wait for commands in a thread."""
        self._slot.pid = os.getpid()
        threading.Thread(target=self._obey, name="registry-drain-thrift-control", daemon=True).start()

    def _obey(self) -> None:
        poller = select.poll()
        poller.register(self._controls.cut, select.POLLIN)
        poller.register(self._controls.drain, select.POLLIN)
        is_draining = False
        while True:
            poller.poll(LOOK_EVERY * 1000)
            if is_set(self._controls.cut) or os.getppid() != self._parent_pid:
                self._cut_off()
            if not is_draining and is_set(self._controls.drain):
                is_draining = True
                poller.unregister(self._controls.drain)  # It stays readable.
                threading.Thread(target=self._drain, name="registry-drain-thrift-drain", daemon=True).start()

    def _drain(self) -> None:
        # Until the process ends: a pool's worker may be given further connections.
        while True:
            self._connections.drain(Deadline.after(LOOK_EVERY))
            time.sleep(_DRAIN_STEP)

    def _cut_off(self) -> None:
        for request in self._connections.cut_off():
            self._slot.rename(request.name)
            self._slot.is_cut = 1
        exit_now()


def flush() -> None:
    """Write what this process has printed; before a fork, or the child writes it once more."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # closed, or somebody's own
            stream.flush()


def exit_now(status: int = 0) -> None:
    """End the process, without the exit handlers: those are the service's."""
    flush()
    os._exit(status)
