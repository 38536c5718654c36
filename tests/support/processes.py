"""Child processes that never outlive their parent, and waiting without sleeping.

Theory: every process here leads a session (and process group) of its own, so that Ctrl-C in a terminal reaches pytest
alone, and so that one signal reaches whatever a server may have started itself. It is ended in three ways, each
covering for the one before: by its owner (``stop``, or the ``with`` block); by ``atexit``; and, when this process was
killed, by the *undertaker*, a tiny process which learns of our death by the end of file on a pipe. PR_SET_PDEATHSIG was
rejected: it fires when the *thread* that forked dies, and tests restart servers from threads.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, TypeVar

T = TypeVar("T")

REPOSITORY = Path(__file__).resolve().parents[2]
"""The root of the work tree: where ``python -m`` finds the package, the examples and the benchmarks."""

SERVERS_BIN = REPOSITORY / ".cache" / "servers" / "bin"
"""Where ``.ci/servers`` leaves what is not installed."""

# The machine is shared and slow at times. A deadline is there to end a hang, not to measure, so it is generous.
READY_TIMEOUT = 60.0
STOP_TIMEOUT = 15.0


def eventually(
    probe: Callable[[], T], *, timeout: float = 30.0, interval: float = 0.02, because: str = "the condition"
) -> T:
    """Return the first truthy result of ``probe``, which is asked every ``interval`` seconds.

    AssertionError and OSError of the probe mean "not yet", so a probe may assert, or call a server that is still
    starting. Raises AssertionError, with the last result or error, ``timeout`` seconds after the call.
    """
    deadline = time.monotonic() + timeout
    never_set = threading.Event()
    while True:
        error: Exception | None = None
        result: T | None = None
        try:
            result = probe()
        except (AssertionError, OSError) as caught:
            error = caught
        if result:
            return result
        if time.monotonic() >= deadline:
            last = f"the last error was {error!r}" if error else f"the last result was {result!r}"
            raise AssertionError(f"{because}: not within {timeout:g} s; {last}") from error
        never_set.wait(interval)


PORTS = range(15_000, 32_000)
"""Below the ephemeral range (32768 and up on Linux): a port of ``bind(0)`` can be grabbed by any outgoing connection
while the server that it was meant for is starting, or is being restarted.
"""

_ports_lock = threading.Lock()
_ports_given: set[int] = set()


def ports_of_worker(environ: Mapping[str, str]) -> range:
    """Return the part of :data:`PORTS` that is this process': xdist's workers know nothing of each other's servers."""
    worker = environ.get("PYTEST_XDIST_WORKER", "")
    if not worker.startswith("gw"):
        return PORTS
    count = int(environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    # A worker that crashed is replaced by one with the next number.
    return PORTS[int(worker.removeprefix("gw")) % count :: count]


def free_port() -> int:
    """Return a port that nobody uses on 127.0.0.1, for TCP and UDP, and that this process has not given away before.

    No other worker of the same run gives it away, either.
    """
    while True:
        port = random.choice(ports_of_worker(os.environ))
        with _ports_lock:
            if port in _ports_given:
                continue
            _ports_given.add(port)
        if _is_free(port, socket.SOCK_STREAM) and _is_free(port, socket.SOCK_DGRAM):
            return port


def await_connection(port: int) -> None:
    """Wait until somebody has connected to ``port`` of this machine, and stays."""
    suffix = f":{port:04X}"

    def is_connected() -> bool:
        for table in ("/proc/net/tcp", "/proc/net/tcp6"):
            with contextlib.suppress(FileNotFoundError):
                # proc(5): a number, the local address, the remote address, the state (1: established).
                for line in Path(table).read_text().splitlines()[1:]:
                    _, local, _, state = line.split()[:4]
                    if local.endswith(suffix) and state == "01":
                        return True
        return False

    eventually(is_connected, timeout=READY_TIMEOUT, because=f"somebody is connected to port {port}")


def _is_free(port: int, kind: socket.SocketKind) -> bool:
    with socket.socket(socket.AF_INET, kind) as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


class ManagedProcess:
    """A running child process: started by the constructor, and ended, whatever happens, by ``stop``.

    Its standard output and error go to ``log`` (appended, so that a restart keeps the history); its standard input is
    empty. Methods may be called from any thread.
    """

    def __init__(
        self, argv: Sequence[str | Path], *, log: Path, env: Mapping[str, str] | None = None, cwd: Path = REPOSITORY
    ) -> None:
        self.argv = [str(each) for each in argv]
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            self._popen = subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=None if env is None else dict(env),
                cwd=cwd,
                start_new_session=True,
            )
        _undertaker.watch(self)

    @classmethod
    def python(cls, *arguments: str | Path, log: Path, env: Mapping[str, str] | None = None) -> ManagedProcess:
        """Start this Python with ``arguments``, from the root of the work tree and with unbuffered output."""
        return cls([sys.executable, "-u", *arguments], log=log, env=env)

    def __repr__(self) -> str:
        """Name the program, the pid and the state."""
        state = "running" if self.is_running else f"exited {self.returncode}"
        return f"<ManagedProcess {Path(self.argv[0]).name} pid={self.pid} {state}>"

    def __enter__(self) -> ManagedProcess:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process."""
        self.stop()

    @property
    def pid(self) -> int:
        """The process id, which is the id of its process group too."""
        return self._popen.pid

    @property
    def returncode(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        return self._popen.poll()

    @property
    def is_running(self) -> bool:
        """Whether it has not exited yet (a frozen process is running)."""
        return self._popen.poll() is None

    def output(self) -> str:
        """Return all that it, and whatever ran with the same log before, has written so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def output_tail(self, lines: int = 30) -> str:
        """Return the last ``lines`` of the output, for error messages."""
        return "\n".join(self.output().splitlines()[-lines:])

    def wait_output(self, text: str, *, timeout: float = READY_TIMEOUT) -> str:
        """Wait until the output contains ``text`` and return the output; AssertionError when it exits without."""

        def probe() -> str:
            running = self.is_running
            output = self.output()
            if text not in output and not running:
                # Not an AssertionError, which `eventually` would take for "not yet".
                raise RuntimeError(f"{self!r} ended without saying {text!r}:\n{self.output_tail()}")
            return output if text in output else ""

        return eventually(probe, timeout=timeout, because=f"{text!r} in the output of {self!r}")

    def signal(self, number: int) -> None:
        """Send a signal to the process alone; does nothing when it has exited."""
        with contextlib.suppress(ProcessLookupError):
            self._popen.send_signal(number)

    def freeze(self) -> None:
        """SIGSTOP: it keeps its sockets, accepts by the kernel, and answers nothing.

        Returns when every thread stands still. The signal alone does not do that: a JVM has answered a request since.
        """
        self.signal(signal.SIGSTOP)

        def stands_still() -> bool:
            return not self.is_running or bool(
                os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT)  # WNOWAIT: for Popen to see too
            )

        eventually(stands_still, interval=0.001, because=f"{self!r} is frozen")

    def thaw(self) -> None:
        """SIGCONT."""
        self.signal(signal.SIGCONT)

    def kill(self) -> int:
        """SIGKILL, to the whole group, and wait; works on a frozen process. Returns the exit status."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if self.is_running:
                os.killpg(self.pid, signal.SIGKILL)
        return self.wait(timeout=STOP_TIMEOUT)

    def stop(self, *, timeout: float = STOP_TIMEOUT) -> int:
        """SIGTERM, and SIGKILL after ``timeout`` seconds. Idempotent. Returns the exit status."""
        self.signal(signal.SIGTERM)
        self.thaw()  # a frozen process gets its SIGTERM only when it goes on
        try:
            return self.wait(timeout=timeout)
        except AssertionError:
            return self.kill()

    def wait(self, *, timeout: float = 30.0) -> int:
        """Wait for its own exit and return the status; AssertionError after ``timeout`` seconds."""
        try:
            status = self._popen.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"{self!r} did not exit within {timeout:g} s:\n{self.output_tail()}") from error
        _undertaker.forget(self)
        return status


_UNDERTAKER_PROGRAM = """
import os, signal, sys
alive = set()
for line in sys.stdin:
    verb, pid = line.split()
    (alive.add if verb == "+" else alive.discard)(int(pid))
for pid in alive:
    try:
        os.killpg(pid, signal.SIGKILL)
    except OSError:
        pass
"""


class _Undertaker:
    """Ends every process that is still alive when this process exits or is killed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._popen: subprocess.Popen[str] | None = None
        self._alive: dict[int, ManagedProcess] = {}

    @property
    def pid(self) -> int | None:
        """The undertaker's own process id, once there is one."""
        return self._popen.pid if self._popen else None

    def watch(self, process: ManagedProcess) -> None:
        """End this process if we die."""
        with self._lock:
            self._alive[process.pid] = process
            if self._popen is None:
                self._popen = subprocess.Popen(
                    [sys.executable, "-S", "-E", "-c", _UNDERTAKER_PROGRAM],
                    stdin=subprocess.PIPE,
                    text=True,
                    start_new_session=True,
                )
                atexit.register(self._end, os.getpid())
            self._tell(f"+ {process.pid}")

    def forget(self, process: ManagedProcess) -> None:
        """This process has been reaped: its pid may soon be somebody else's."""
        with self._lock:
            if self._alive.pop(process.pid, None):
                self._tell(f"- {process.pid}")

    def _tell(self, line: str) -> None:
        assert self._popen is not None
        pipe: IO[str] | None = self._popen.stdin
        assert pipe is not None
        with contextlib.suppress(BrokenPipeError):
            pipe.write(line + "\n")
            pipe.flush()

    def _end(self, owner: int) -> None:
        # A forked child inherits the exit handler but not the processes.
        if os.getpid() != owner or self._popen is None:
            return
        for process in list(self._alive.values()):
            process.kill()
        self._popen.communicate()


_undertaker = _Undertaker()


def undertaker_pid() -> int | None:
    """Return the pid of the helper process that outlives us for a moment; leak checks must not count it."""
    return _undertaker.pid
