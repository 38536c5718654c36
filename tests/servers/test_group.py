"""Several servers stopped as one: the contract for two of them, and that none keeps another."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from registry_drain.clock import Deadline
from registry_drain.errors import ConfigurationError, ServerError
from registry_drain.phases import Outcome, Phase
from registry_drain.servers.base import DrainableServer, ListenerClosure
from registry_drain.servers.group import ServerGroup
from registry_drain.servers.in_flight import InFlight, InFlightRequest
from registry_drain.servers.socket_server import SocketServer
from registry_drain.shutdown.budget import StopBudget
from registry_drain.shutdown.routine import StopRoutine
from registry_drain.testing.bench import Call
from registry_drain.testing.server_contract import ContractClient, ServerContract
from tests.servers.test_socket_server import LineClient, LineHandler, LineServer
from tests.support.processes import eventually

TIMEOUT = 30.0
SHORT = 0.5
BUDGET = StopBudget(grace_period=60.0, closing=10.0)
"""Of a stop that ends as soon as it can."""
CUT_SHORT = StopBudget(grace_period=6.5, deregister=0, floor=0, quiet_period=0, ceiling=0, closing=4, notify=0.5)
"""Of a stop that cuts off what does not end."""


def echo(payload: bytes) -> bytes:
    """Serve."""
    return payload


def line_server(serve: Callable[[bytes], bytes] = echo) -> SocketServer:
    """Return a server of lines."""
    return SocketServer(LineServer(LineHandler, serve))


class TestGroup(ServerContract):
    """Two servers together keep every promise of one."""

    def new_server(self, serve: Callable[[bytes], bytes]) -> DrainableServer:
        """Return a group; the first one's address is the group's."""
        return ServerGroup({"rpc": line_server(serve), "admin": line_server()})

    def connect(self, address: tuple[str, int]) -> ContractClient:
        """Connect to the first one."""
        return LineClient(address)


class Broken:
    """A server that fails, or hangs, in the steps it is told to."""

    def __init__(self, *steps: str, hangs: bool = False) -> None:
        """Be fine in all other steps."""
        self.in_flight = InFlight()
        self.freed = threading.Event()
        self._steps = steps
        self._hangs = hangs

    def _enter(self, step: str) -> None:
        if step not in self._steps:
            return
        if self._hangs:
            self.freed.wait(TIMEOUT)
        raise OSError(f"no {step} today")

    def start(self) -> tuple[str, int]:
        """Start, or not."""
        self._enter("start")
        return "127.0.0.1", 1

    def close_listener(self, deadline: Deadline) -> ListenerClosure:
        """Close, or not."""
        del deadline
        self._enter("close_listener")
        return ListenerClosure("none")

    def drain(self, deadline: Deadline) -> bool:
        """Drain, or not."""
        del deadline
        self._enter("drain")
        return True

    def cut_off(self) -> tuple[InFlightRequest, ...]:
        """Cut off, or not."""
        self._enter("cut_off")
        return ()


def test_an_empty_group_is_refused() -> None:
    """There would be no address to register."""
    with pytest.raises(ConfigurationError, match="at least one server"):
        ServerGroup({})


def test_a_start_that_fails_leaves_nothing_listening() -> None:
    """The servers before the one that fails are stopped again, and its error comes out."""
    first = line_server()
    with pytest.raises(OSError, match="no start today"):
        ServerGroup({"rpc": first, "admin": Broken("start")}).start()
    with pytest.raises(ServerError):
        first.start()
    assert not first.connections.threads()


@pytest.mark.parametrize("step", ["close_listener", "drain"])
def test_one_that_fails_does_not_keep_the_others(step: str) -> None:
    """The other server is closed, drained, its busy client answered; the report names the one that failed."""
    gate, entered = threading.Event(), threading.Event()

    def serve(payload: bytes) -> bytes:
        entered.set()
        assert gate.wait(TIMEOUT)
        return payload

    group = ServerGroup({"rpc": line_server(serve), "admin": Broken(step)})
    client = LineClient(group.start())
    routine = StopRoutine(group, budget=BUDGET)
    try:
        client.send(b"busy")
        assert entered.wait(TIMEOUT)
        stopping = Call(routine.stop)
        gate.set()
        assert client.receive() == b"busy"
        report = stopping.result(TIMEOUT, "the stop")
    finally:
        client.close()
    phase = {"close_listener": Phase.CLOSING, "drain": Phase.DRAINING}[step]
    (failed,) = (each for each in report.phases if each.phase is phase)
    assert failed.outcome is Outcome.FAILED
    assert "admin: " in failed.detail
    assert f"no {step} today" in failed.detail
    assert not report.cut_off


def refuses(address: tuple[str, int]) -> bool:
    """Tell whether nobody listens there."""
    try:
        LineClient(address).close()
    except ConnectionRefusedError:
        return True
    return False


@pytest.mark.parametrize("step", ["close_listener", "drain"])
def test_one_that_hangs_does_not_keep_the_others(step: str) -> None:
    """The other server is closed, or its busy client answered and closed behind it; the error names who hangs."""
    gate, entered = threading.Event(), threading.Event()

    def serve(payload: bytes) -> bytes:
        entered.set()
        assert gate.wait(TIMEOUT)
        return payload

    rpc, broken = line_server(serve), Broken(step, hangs=True)
    group = ServerGroup({"rpc": rpc, "admin": broken})
    address = group.start()
    client = LineClient(address)
    # The group's own steps, and not a whole stop: its limit lies just behind the group's, and might come first.
    steps = {"close_listener": group.close_listener, "drain": group.drain}
    try:
        client.send(b"busy")
        assert entered.wait(TIMEOUT)
        hanging = Call(lambda: steps[step](Deadline.after(SHORT)))
        if step == "drain":
            eventually(lambda: rpc.connections.is_draining)
        gate.set()
        assert client.receive() == b"busy"
        if step == "drain":
            with pytest.raises(EOFError):
                client.receive()
        else:
            eventually(lambda: refuses(address))
        with pytest.raises(ServerError, match="admin: did not return"):
            hanging.result(TIMEOUT, "the step")
    finally:
        gate.set()
        broken.freed.set()
        client.close()
        group.cut_off()


def test_one_report_for_all() -> None:
    """Each listener's closing is said by name; requests of all count, and what is cut off is named."""
    entered = threading.Semaphore(0)
    forever = threading.Event()

    def hang(payload: bytes) -> bytes:
        entered.release()
        forever.wait(TIMEOUT)
        return payload

    admin = LineServer(LineHandler, hang)
    group = ServerGroup({"rpc": line_server(hang), "admin": SocketServer(admin)})
    clients = [LineClient(group.start()), LineClient(("127.0.0.1", admin.server_address[1]))]
    try:
        for client in clients:
            client.send(b"hang")
            assert entered.acquire(timeout=TIMEOUT)
        assert group.in_flight.count == group.in_flight.total == 2
        report = StopRoutine(group, budget=CUT_SHORT).stop()
    finally:
        forever.set()
        for client in clients:
            client.close()
    assert len(report.cut_off) == 2
    assert report.listener.startswith("rpc: ")
    assert ", admin: " in report.listener


def test_every_server_knows_of_the_stop() -> None:
    """The phase reaches the servers' own handlers, and so does a hurry."""
    rpc, admin = line_server(), line_server()
    group = ServerGroup({"rpc": rpc, "admin": admin})
    state = group.in_flight.stop_state
    state.enter(Phase.DEREGISTERING, 100.0)
    assert [(each.in_flight.stop_state.phase, each.in_flight.stop_state.cut_off_at) for each in (rpc, admin)] == [
        (Phase.DEREGISTERING, 100.0)
    ] * 2
    state.hurry(7.0)
    assert [each.in_flight.stop_state.cut_off_at for each in (rpc, admin)] == [7.0, 7.0]
    group.cut_off()
