"""Sockets from outside: systemd's protocol, and sockets that two processes share."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from registry_drain.clock import Deadline
from registry_drain.errors import ConfigurationError
from registry_drain.servers.listener import DrainableListener, ListenerStoppedError, activation, hold_off
from registry_drain.servers.listener.activation import KEPT_VARIABLE, SUPERVISOR, ListeningSockets
from registry_drain.servers.listener.listening_socket import ListeningSocket, keeper_of
from registry_drain.testing.bench import Call
from tests.support.processes import REPOSITORY, eventually, free_port

PROGRAM = """
import os, socket, sys
from registry_drain.servers.listener.activation import inherited_socket, listening_socket, process_sockets
by_name = listening_socket("127.0.0.1", 0, name="admin")
by_port = inherited_socket(int(sys.argv[1]))
print("PORTS", by_name.getsockname()[1], by_port.getsockname()[1], by_port.name, by_port.keeper, sep=",")
print("AGAIN", inherited_socket(int(sys.argv[1])), "LISTEN_FDS" in os.environ, os.get_inheritable(3))
process_sockets().close_unused()
print("DONE", flush=True)
"""
ACTIVATE = """
import os, sys
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


@pytest.fixture
def sockets() -> Iterator[ExitStack]:
    """Close what a test opens."""
    with ExitStack() as stack:
        yield stack


def listening(stack: ExitStack, *, name: str = "rpc") -> ListeningSocket:
    """Return a listening socket of ours."""
    return stack.enter_context(ListeningSockets({}).open("127.0.0.1", 0, name=name, backlog=16))


def waits_in_accept(thread: threading.Thread) -> bool:
    """Tell whether a thread has found nothing to accept, and waits for it."""
    frame = sys._current_frames().get(thread.ident or 0)
    return frame is not None and frame.f_code is ListeningSocket._wait.__code__


def connect(stack: ExitStack, sock: socket.socket) -> socket.socket:
    """Return a client's connection."""
    return stack.enter_context(socket.create_connection(sock.getsockname(), timeout=20))


def test_a_process_takes_its_sockets_by_name_and_by_port(sockets: ExitStack, tmp_path: Path) -> None:
    """LISTEN_FDS, LISTEN_PID and LISTEN_FDNAMES are read as systemd sets them, once, and removed."""
    rpc, admin = listening(sockets), listening(sockets)
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    # Two descriptors, at 3 and 4, as systemd passes them; the shell puts them there.
    script = 'exec 3<&"$0" 4<&"$1"; export LISTEN_FDS=2 LISTEN_FDNAMES=calc.socket:admin; exec "${@:2}"'
    shell = ["bash", "-c", script, str(rpc.fileno()), str(admin.fileno())]
    run = subprocess.run(
        [*shell, sys.executable, "-c", ACTIVATE, str(program), str(rpc.getsockname()[1])],
        pass_fds=[rpc.fileno(), admin.fileno()],
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        check=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    ports = f"{admin.getsockname()[1]},{rpc.getsockname()[1]}"
    assert run.stdout.splitlines() == [f"PORTS,{ports},calc.socket,{SUPERVISOR}", "AGAIN None False False", "DONE"]


def test_sockets_meant_for_another_process_are_left_alone() -> None:
    """LISTEN_PID is somebody else's: nothing is inherited, and the variables stay for whom they may concern."""
    environ = {"LISTEN_PID": "1", "LISTEN_FDS": "1"}
    assert ListeningSockets(environ).inherit(9090) is None
    assert environ == {"LISTEN_PID": "1", "LISTEN_FDS": "1"}


def test_variables_that_make_no_sense_are_one_clear_line() -> None:
    """What cannot be a number is said."""
    with pytest.raises(ConfigurationError, match=r"LISTEN_PID, LISTEN_FDS: .*'many'"):
        ListeningSockets({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "many"}).inherit(9090)


def test_without_inheritance_a_socket_is_bound(sockets: ExitStack) -> None:
    """Named after its port unless it has a name; an address in use is an OSError."""
    owner = ListeningSockets({KEPT_VARIABLE: ""})
    port = free_port()
    sock = sockets.enter_context(owner.open("127.0.0.1", port, name="", backlog=16))
    assert sock.name == f"port-{port}"
    assert owner.in_use == [sock]
    with pytest.raises(OSError, match="in use"):
        owner.open("127.0.0.1", port, name="", backlog=16)
    sock.close()
    assert owner.in_use == []


def test_an_empty_host_means_every_address_in_one_socket(sockets: ExitStack) -> None:
    """IPv6 and IPv4 where there are both."""
    sock = sockets.enter_context(ListeningSockets({}).open("", 0, name="", backlog=16))
    port = sock.getsockname()[1]
    sockets.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
    client = sock.accept()[0]
    client.close()


def test_accept_keeps_to_its_mode_although_the_kernel_never_blocks(sockets: ExitStack) -> None:
    """Blocking waits, a timeout ends, non-blocking raises at once."""
    sock = listening(sockets)
    assert (sock.gettimeout(), sock.getblocking()) == (None, True)
    sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        sock.accept()
    sock.settimeout(0.05)
    with pytest.raises(TimeoutError):
        sock.accept()
    sock.settimeout(None)
    accepted: list[socket.socket] = []
    thread = threading.Thread(target=lambda: accepted.append(sock.accept()[0]))
    thread.start()
    connect(sockets, sock)
    thread.join(30)
    assert accepted[0].gettimeout() is None
    accepted[0].close()


def test_accept_waits_on_when_another_process_was_faster(sockets: ExitStack) -> None:
    """Both are woken by one connection; the slower one goes on waiting, and gets the next."""
    sock = listening(sockets)
    other = sockets.enter_context(sock.dup())
    other.setblocking(False)
    for _ in range(100):  # until the other one was faster
        accepting = Call(lambda: sockets.enter_context(sock.accept()[0]))
        eventually(partial(waits_in_accept, accepting), interval=0.001)
        connect(sockets, sock)
        try:
            sockets.enter_context(other.accept()[0])
        except BlockingIOError:
            accepting.result(30, "accept, which was faster")
            continue
        connect(sockets, sock)
        accepting.result(30, "accept, which was slower and waited on")
        return
    raise AssertionError("the other one was never faster")


@pytest.mark.parametrize("end", ["shutdown", "close", "detach"])
def test_every_end_wakes_whoever_waits_in_accept(end: str, sockets: ExitStack) -> None:
    """An accept that waits ends with an OSError."""
    sock = listening(sockets)
    errors: list[OSError] = []

    def accept() -> None:
        try:
            sock.accept()
        except OSError as error:
            errors.append(error)

    thread = threading.Thread(target=accept)
    thread.start()
    eventually(lambda: waits_in_accept(thread), because="it waits")
    if end == "shutdown":
        sock.shutdown(socket.SHUT_RDWR)
    elif end == "close":
        sock.close()
    else:
        os.close(sock.detach())
    thread.join(30)
    assert errors


def test_a_kept_socket_listens_on_after_everything_that_usually_ends_it(sockets: ExitStack) -> None:
    """shutdown, listen(0), hold_off, a drained stop and close: the other process' backlog is as it was."""
    sock = listening(sockets)
    other = sockets.enter_context(sock.dup())
    accepted: list[socket.socket] = []

    def accept_one() -> socket.socket:
        connection = sock.accept()[0]
        accepted.append(connection)
        return connection

    listener = DrainableListener(sock, accept_one)

    def serve() -> None:
        try:
            while True:
                listener.accept()
        except ListenerStoppedError:
            pass

    thread = threading.Thread(target=serve)
    thread.start()
    sock.keep_for("handed over")
    assert keeper_of(other) == "handed over", "a duplicate is the same socket"
    sock.listen(0)
    assert hold_off(other).method == "handed over"
    closure = listener.stop(Deadline.after(20))
    assert (closure.method, closure.accepted, closure.is_clean) == ("handed over", 0, True)
    thread.join(30)
    sock.close()
    for client in [connect(sockets, other) for _ in range(5)]:
        served = sockets.enter_context(other.accept()[0])
        served.sendall(b"x")
        assert client.recv(1) == b"x"
    assert not accepted
    other.keep_for("")
    assert keeper_of(other) == ""


def test_what_nobody_asked_for_is_closed(
    sockets: ExitStack, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients would wait in it for ever; but only where somebody asks for sockets at all."""
    unused = listening(sockets, name="old-port")
    monkeypatch.setattr(activation, "_take", lambda _environ: [unused])
    silent = ListeningSockets({})
    silent.close_unused()
    assert unused.fileno() >= 0, "another library of this process may know what it is for"
    owner = ListeningSockets({})
    assert owner.inherit("another") is None
    owner.close_unused()
    assert unused.fileno() == -1
    assert "old-port" in caplog.text


def test_port_0_is_the_inherited_one_if_there_is_one(sockets: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Among several it cannot be said which."""
    one, two = listening(sockets, name="one"), listening(sockets, name="two")
    monkeypatch.setattr(activation, "_take", lambda _environ: [one])
    assert ListeningSockets({}).open("127.0.0.1", 0, name="", backlog=1) is one
    monkeypatch.setattr(activation, "_take", lambda _environ: [one, two])
    with pytest.raises(ConfigurationError, match="port 0 could be any of the inherited sockets"):
        ListeningSockets({}).open("127.0.0.1", 0, name="", backlog=1)
    assert ListeningSockets({}).open("127.0.0.1", 0, name="two", backlog=1) is two
