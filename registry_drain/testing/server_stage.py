"""What a test of a server plays on: one server, its handler, its clients, and what it leaves behind."""

from __future__ import annotations

import contextlib
import multiprocessing
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Protocol

from registry_drain.clock import Deadline
from registry_drain.servers.base import DrainableServer, ListenerClosure
from registry_drain.servers.in_flight import InFlightRequest
from registry_drain.testing.bench import Call, promise, until

LARGE = 8 << 20
"""Bytes of an answer that fits no socket buffer: some of it is still to be written when the drain begins.

A loopback connection of Linux takes a little over 4 MiB that nobody reads (``tcp_wmem``, ``tcp(7)``).
"""

REPLY = b"done"


class ContractClient(Protocol):
    """One persistent connection of a client, with a time limit on every operation.

    One whose ``send`` leaves the sending to a thread says in an attribute ``sent_at`` when it had sent
    (:func:`time.monotonic`): a client that is late may be closed as idle.
    """

    def send(self, payload: bytes) -> None:
        """Send one request; do not wait for its answer."""
        ...

    def receive(self) -> bytes:
        """Return the next answer.

        Raises:
            EOFError: the server has closed the connection, politely and between messages.
            OSError: anything else, e.g. a reset.
        """
        ...

    def close(self) -> None:
        """Hang up. Idempotent."""
        ...


class _Semaphore(Protocol):
    """A semaphore, of threads or of processes."""

    def acquire(self, *, timeout: float) -> bool:
        """Take one; False if there was none for so long."""
        ...

    def release(self) -> None:
        """Give one."""
        ...


class _Gate:
    """Opens once, for all. Unlike multiprocessing's events it does not mind waiters that are killed."""

    def __init__(self, semaphore: _Semaphore) -> None:
        """Begin closed."""
        self._semaphore = semaphore

    def set(self) -> None:
        """Open it."""
        self._semaphore.release()

    def wait(self, timeout: float) -> bool:
        """Wait until it is open, at most ``timeout`` seconds."""
        is_open = self._semaphore.acquire(timeout=timeout)
        if is_open:
            self._semaphore.release()  # for the next one
        return is_open


class Stage:
    """One server and its clients. As a context it ends both, and fails if anything is left of the server."""

    def __init__(
        self,
        new_server: Callable[[Callable[[bytes], bytes]], DrainableServer],
        connect: Callable[[tuple[str, int]], ContractClient],
        *,
        patience: float,
        serves_in_processes: bool,
    ) -> None:
        """Make the server; it is not started."""
        self._connect = connect
        self._threads_before = set(threading.enumerate())
        self._sockets_before = _open_sockets()
        self._exits = contextlib.ExitStack()
        self.patience = patience
        # The handler may run in a child process, by fork: it works with what it was given before.
        new_semaphore: Callable[[int], _Semaphore] = threading.Semaphore
        if serves_in_processes:
            new_semaphore = multiprocessing.get_context("fork").Semaphore
        self.entered = new_semaphore(0)
        self.gate = _Gate(new_semaphore(0))
        self.server = new_server(self._serve)
        self.address = ("", 0)

    def _serve(self, payload: bytes) -> bytes:
        """Serve a request: its payload says how."""
        if payload == b"wait":
            self.entered.release()
            self.gate.wait(self.patience)
            return REPLY
        if payload == b"large":
            self.entered.release()
            return b"x" * LARGE
        if payload == b"inside":
            return str(self.server.in_flight.holds_current_thread()).encode()
        return payload

    def deadline(self, seconds: float | None = None) -> Deadline:
        """Return the deadline of one call."""
        return Deadline.after(self.patience if seconds is None else seconds)

    def start(self) -> Stage:
        """Start the server."""
        self.address = self.server.start()
        return self

    def client(self) -> ContractClient:
        """Return a connected client, that hangs up in the end."""
        client = self._connect(self.address)
        self._exits.callback(client.close)
        return client

    def served_client(self) -> ContractClient:
        """Return a client that has been served once, so that its connection is known to be idle."""
        client = self.client()
        client.send(b"hello")
        promise(client.receive() == b"hello", "a request is answered")
        return client

    def waiting_client(self) -> ContractClient:
        """Return a client whose request is being served, until the gate opens."""
        client = self.client()
        client.send(b"wait")
        promise(self.entered.acquire(timeout=self.patience), "a request reaches its handler")
        return client

    def close_listener(self) -> ListenerClosure:
        """Close the listener, in time."""
        closing = Call(lambda: self.server.close_listener(self.deadline()))
        return closing.result(self.patience, "close_listener")

    def draining(self) -> Call[bool]:
        """Begin to drain."""
        return Call(lambda: self.server.drain(self.deadline()))

    def drained(self, draining: Call[bool]) -> None:
        """Wait for the drain, and for nothing to be left to cut off."""
        promise(draining.result(self.patience, "drain"), "drain returns True once everything has finished")
        promise(self.cut_off() == (), "nothing is left to cut off after a drain that finished")

    def cut_off(self) -> tuple[InFlightRequest, ...]:
        """Cut off what is left, in time."""
        return Call(self.server.cut_off).result(self.patience, "cut_off")

    def left_behind(self) -> list[str]:
        """Return the threads and sockets that are there now and were not before."""
        threads = [thread.name for thread in set(threading.enumerate()) - self._threads_before if thread.is_alive()]
        return threads + sorted(_open_sockets() - self._sockets_before)

    def __enter__(self) -> Stage:
        """Begin."""
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it. A test that failed already keeps its own error."""
        self.gate.set()
        self._exits.close()
        if error is not None:
            with contextlib.suppress(Exception):
                self.cut_off()
            return
        self.cut_off()
        until(lambda: not self.left_behind(), self.patience, "no thread or socket outlives cut_off()", self.left_behind)


def _open_sockets() -> set[str]:
    """Return the sockets of this process, by inode; nothing where there is no /proc."""
    sockets: set[str] = set()
    with contextlib.suppress(FileNotFoundError):
        for descriptor in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(OSError):
                target = str(descriptor.readlink())
                if target.startswith("socket:"):
                    sockets.add(target)
    return sockets
