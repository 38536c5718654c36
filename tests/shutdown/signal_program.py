"""A process to send signals to: ``python -m tests.shutdown.signal_program [OPTION ...]``.

It serves nothing, is registered in a registry in memory, prints each event of its stop, and exits with the report's
code.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import os
import signal
import sys
import termios
import threading
import time
from types import FrameType

from registry_drain.clock import Deadline
from registry_drain.servers.base import ListenerClosure
from registry_drain.servers.in_flight import InFlight, InFlightRequest
from registry_drain.service import Service
from registry_drain.shutdown.budget import StopBudget
from registry_drain.shutdown.routine import StopRoutine
from registry_drain.testing.faulty_registry import FaultyRegistry


class NoServer:
    """A server without sockets."""

    def __init__(self) -> None:
        """Nothing is in flight."""
        self.in_flight = InFlight()

    def start(self) -> tuple[str, int]:
        """Do nothing."""
        return "127.0.0.1", 9090

    def close_listener(self, deadline: Deadline) -> ListenerClosure:
        """Do nothing."""
        del deadline
        return ListenerClosure("nothing to close")

    def drain(self, deadline: Deadline) -> bool:
        """Wait for what is in flight."""
        return self.in_flight.wait_until_idle(deadline)

    def cut_off(self) -> tuple[InFlightRequest, ...]:
        """Say what is left."""
        return self.in_flight.snapshot()


def say(what: object) -> None:
    """Print a line; one write, so that lines of several threads do not mix."""
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


def linger() -> None:
    """Be an observer that says so after a while, well apart from the signal before it, and then hangs."""
    threading.Event().wait(0.4)
    say("lingering")
    threading.Event().wait()


def hold_the_interpreter() -> None:
    """Be an observer in a C function that does not give the interpreter's lock back."""
    say("holding")
    ctypes.PyDLL(None).sleep(100)


def deadlock() -> None:
    """Leave a thread behind that keeps the process alive."""
    lock = threading.Lock()

    def lock_twice() -> None:
        with lock, lock:
            pass

    threading.Thread(target=lock_twice, name="deadlocked").start()


def fill_stderr(*, but_for: int) -> None:
    """Fill the pipe behind stderr, but for so many pages, which somebody reads again through /proc."""
    flags = fcntl.fcntl(2, fcntl.F_GETFL)
    fcntl.fcntl(2, fcntl.F_SETFL, flags | os.O_NONBLOCK)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(2, b"." * 4096)
    fcntl.fcntl(2, fcntl.F_SETFL, flags)
    if but_for:
        reader = os.open("/proc/self/fd/2", os.O_RDONLY | os.O_NONBLOCK)
        os.read(reader, 4096 * but_for)
        os.close(reader)


def main() -> int:  # noqa: C901 - one line for each option
    """Do as told."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--grace", type=float, default=60.0)
    parser.add_argument("--margin", type=float)
    parser.add_argument("--floor", type=float, default=0.0)
    parser.add_argument("--ceiling", type=float)
    for flag in ("request", "linger", "deadlock", "gil", "chain", "terminal", "closed-stderr", "early", "threads"):
        parser.add_argument(f"--{flag}", action="store_true")
    parser.add_argument("--fill-stderr", type=int, metavar="FREE_PAGES")
    options = parser.parse_args()

    budget = StopBudget(
        grace_period=options.grace,
        margin=options.margin,
        floor=options.floor,
        ceiling=options.ceiling,
        quiet_period=0,
        hurried_notify=30.0,
    )
    server = NoServer()
    if options.early:
        StopRoutine(server, budget=budget, sinks=[say]).request_stop("early")
        say("main is over")
        return 0
    if options.terminal:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    if options.request:
        server.in_flight.begin("endless", peer="10.0.0.9:5000")
    if options.chain:
        signal.signal(signal.SIGTERM, previous_handler)
    if options.closed_stderr:
        os.close(2)
    if options.fill_stderr is not None:
        fill_stderr(but_for=options.fill_stderr)
    for _ in range(40 if options.threads else 0):
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    if options.deadlock:
        deadlock()
    service = Service(server, FaultyRegistry(), service="calculator", budget=budget, sinks=[say])
    service.notifier.add(lambda: say("observer told"))
    if options.linger:
        service.notifier.add(linger)
    if options.gil:
        service.notifier.add(hold_the_interpreter)

    def say_when_ready() -> None:
        service.started.wait()
        while not service.is_ready:  # it registers in the background
            time.sleep(0.005)
        say("ready")

    threading.Thread(target=say_when_ready, daemon=True).start()
    report = service.run()
    say("run returned")
    return report.exit_code


def previous_handler(number: int, frame: FrameType | None) -> None:
    """Stand there before."""
    del frame
    say(f"previous handler: {signal.Signals(number).name}")


if __name__ == "__main__":
    sys.exit(main())
