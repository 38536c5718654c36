"""The new process, as the old one sees it: how it is started, and how it is ended.

Theory of operation: between us and the new program stands a tiny one that becomes it. ``LISTEN_PID`` must hold the new
process' own id, which nobody knows before it exists, and nothing else may be done between fork and exec of a process
with threads. It also closes every descriptor but those that are meant for the new program.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import sys
from collections.abc import Sequence

from registry_drain.clock import Deadline
from registry_drain.handover.settings import Handover
from registry_drain.servers.listener.activation import FIRST_DESCRIPTOR, KEPT_VARIABLE, SUPERVISOR
from registry_drain.servers.listener.listening_socket import ListeningSocket

PREDECESSOR_VARIABLE = "REGISTRY_DRAIN_PREDECESSOR"
"""``pid:descriptor``: whom the channel to the old process is meant for, and where it is."""

_BECOME = """
import json, os, sys
first, channel, cwd, argv = json.loads(sys.argv[1])
for name in os.listdir("/dev/fd"):
    if int(name) >= first:
        try:
            os.close(int(name))
        except OSError:
            pass
os.environ["LISTEN_PID"] = str(os.getpid())
os.environ["REGISTRY_DRAIN_PREDECESSOR"] = f"{os.getpid()}:{channel}"
try:
    if cwd:
        os.chdir(cwd)
    os.execvp(argv[0], argv)
except OSError as error:
    sys.exit(f"registry_drain: cannot execute {argv[0]} in {cwd or 'the same directory'}: {error}")
"""
_POLL_S = 0.02


class Successor:
    """A process that was started to replace this one. Not thread-safe: one thread has it.

    Args:
        settings: what is started.
        sockets: which listening sockets it inherits, in this order.
        channel: its end of the channel; the caller closes it.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(self, settings: Handover, sockets: Sequence[ListeningSocket], channel: socket.socket) -> None:
        env = dict(os.environ if settings.env is None else settings.env)
        env["LISTEN_FDS"] = str(len(sockets))
        env["LISTEN_FDNAMES"] = ":".join(sock.name.replace(":", "-") for sock in sockets)
        env[KEPT_VARIABLE] = ",".join(str(index) for index, sock in enumerate(sockets) if sock.keeper == SUPERVISOR)
        first_unused = FIRST_DESCRIPTOR + len(sockets) + 1
        with contextlib.ExitStack() as copies:
            actions: list[tuple[int, int, int]] = []
            for index, sock in enumerate([*sockets, channel]):
                # Copied out of the way first: a target may be another one's source.
                copy = fcntl.fcntl(sock.fileno(), fcntl.F_DUPFD_CLOEXEC, first_unused)
                copies.callback(os.close, copy)
                actions.append((os.POSIX_SPAWN_DUP2, copy, FIRST_DESCRIPTOR + index))
            told = json.dumps([first_unused, first_unused - 1, settings.cwd, list(settings.argv)])
            self.pid = os.posix_spawn(
                sys.executable,
                [sys.executable, "-I", "-S", "-c", _BECOME, told],
                env,
                file_actions=actions,
                setsigmask=[],
                setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],  # which Python ignores, and other programs do not
            )
        self._status: int | None = None

    @property
    def has_ended(self) -> bool:
        """Whether it is gone; it is reaped then."""
        if self._status is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:  # somebody else of this process waits for every child
                self._status = -1 if not _exists(self.pid) else None
            else:
                self._status = status if pid else None
        return self._status is not None

    @property
    def how_it_ended(self) -> str:
        """How, as a person says it; empty while it runs."""
        if not self.has_ended or self._status is None:
            return ""
        if self._status == -1:
            return "ended"
        code = os.waitstatus_to_exitcode(self._status)
        return f"ended with status {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if it still runs: it is our child, so its id cannot be another's before it was reaped."""
        if not self.has_ended:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def wait(self, deadline: Deadline) -> bool:
        """Wait until it has ended, at most until ``deadline``; return whether it has."""
        while not self.has_ended:
            if deadline.is_past:
                return False
            deadline.clock.sleep(min(_POLL_S, deadline.remaining()))
        return True

    def __repr__(self) -> str:
        """Show the id and the state."""
        return f"<Successor pid={self.pid} {self.how_it_ended or 'running'}>"


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
