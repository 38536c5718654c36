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
from registry_drain.servers.thrift_server.shared_table import NOTED_ALWAYS, Slot

_DRAIN_STEP = 0.005
_LOOK_EVERY_WHILE_STOPPING_S = 0.100
"""Seconds between two looks when a call came: the stop waits for a second without any."""


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
            is_stopping = self._connections.stop_state.is_stopping
            poller.poll(1000 * (_LOOK_EVERY_WHILE_STOPPING_S if is_stopping else LOOK_EVERY))
            self._note_arrival()
            if is_set(self._controls.cut) or os.getppid() != self._parent_pid:
                self._cut_off()
            if not is_draining and is_set(self._controls.drain):
                is_draining = True
                poller.unregister(self._controls.drain)  # It stays readable.
                threading.Thread(target=self._drain, name="registry-drain-thrift-drain", daemon=True).start()

    def _note_arrival(self) -> None:
        """Ask the kernel when the last request came, if one has come since it was last asked."""
        served = self._slot.served
        if self._slot.noted not in {NOTED_ALWAYS, served}:
            self._slot.note(self._connections.last_arrival_at, served)

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
