"""What makes a connection idle and quiet, by the socket."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest

from registry_drain.clock import Deadline
from registry_drain.errors import ConfigurationError
from registry_drain.servers.connections import SPREAD, Connection, Connections, Pace, tcp
from registry_drain.servers.connections import connection as connection_module
from registry_drain.servers.connections import drain as drain_module
from registry_drain.servers.stop_state import StopState
from registry_drain.testing.bench import Call
from registry_drain.testing.clock import FakeClock
from tests.support.processes import eventually

TIMEOUT = 10.0
QUIET = 0.02


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, Connection]]:
    """Give a client, and the server's end of its connection, idle."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        server_side, _ = listener.accept()
        with server_side:
            connection = Connection(Connections(), server_side)
            connection.is_waiting = True
            yield client, connection


def is_closed_when_quiet(connection: Connection) -> bool:
    """Look once, as the drain does."""
    connection.close_if_quiet(QUIET)
    return connection.is_half_closed


def stays_open(connection: Connection) -> bool:
    """Tell whether it stays open for five times as long as quiet lasts."""
    with pytest.raises(AssertionError):
        eventually(lambda: is_closed_when_quiet(connection), timeout=5 * QUIET, interval=0.001)
    return not connection.is_half_closed


def test_an_idle_connection_is_closed_when_quiet(pair: tuple[socket.socket, Connection]) -> None:
    """The client reads our end, and may still end its own side in its own time."""
    client, connection = pair
    eventually(lambda: is_closed_when_quiet(connection), interval=0.001)
    assert client.recv(1) == b""
    assert not connection.may_serve()
    assert "half-closed" in repr(connection)


def test_bytes_in_the_kernel_are_a_request(pair: tuple[socket.socket, Connection]) -> None:
    """They have come, though nobody has read them yet."""
    client, connection = pair
    client.sendall(b"request")
    assert stays_open(connection)


def test_bytes_in_the_hands_of_the_serving_thread_are_a_request(
    pair: tuple[socket.socket, Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has them from the kernel, and waits for the interpreter lock: only the count of bytes shows that."""
    monkeypatch.setattr(connection_module, "UNSURE_QUIET", TIMEOUT)
    client, connection = pair
    client.sendall(b"request")
    data = connection.sock.recv(16)
    assert stays_open(connection)
    connection.received += len(data)
    connection.begin_request()
    assert connection.is_busy
    assert stays_open(connection)
    connection.end_request()
    eventually(lambda: is_closed_when_quiet(connection), interval=0.001)


def test_bytes_that_were_never_counted_delay_the_close_only(pair: tuple[socket.socket, Connection]) -> None:
    """A handler that reads around the socket object is not kept open for ever."""
    client, connection = pair
    client.sendall(b"request")
    assert connection.sock.recv(16) == b"request"
    eventually(lambda: is_closed_when_quiet(connection), interval=0.001)


def test_a_connection_whose_thread_does_not_wait_is_busy(pair: tuple[socket.socket, Connection]) -> None:
    """Whatever the bytes say: the handler may be at work."""
    _, connection = pair
    connection.is_waiting = False
    assert connection.is_busy
    assert stays_open(connection)


@pytest.mark.parametrize("is_unix", [True, False])
def test_without_the_kernels_help_it_takes_two_looks(is_unix: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no TCP_INFO, what counts is that nothing was read since the first look."""
    if not is_unix:
        monkeypatch.setattr(tcp, "_TCP_INFO", None)
    ends = socket.socketpair() if is_unix else _tcp_pair()
    with ends[0] as client, ends[1] as server_side:
        connection = Connection(Connections(), server_side)
        connection.is_waiting = True
        assert not is_closed_when_quiet(connection)
        client.sendall(b"request")
        assert stays_open(connection)
        connection.received += len(server_side.recv(16))
        connection.end_request()
        assert not is_closed_when_quiet(connection)
        eventually(lambda: is_closed_when_quiet(connection), interval=0.001)
        assert client.recv(1) == b""


def _tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        return client, listener.accept()[0]


def test_a_closed_connection_is_left_alone(pair: tuple[socket.socket, Connection]) -> None:
    """Its descriptor may be another socket's by now."""
    _, connection = pair
    descriptor = connection.sock.fileno()
    connection.close()
    connection.end_lingering()
    connection.cut()
    connection.close_if_quiet(0.0)
    assert connection.sock.fileno() == descriptor
    connection.sock.sendall(b"still open")


def test_the_drain_keeps_to_the_deadlines_clock(pair: tuple[socket.socket, Connection]) -> None:
    """On a fake clock, whose time passes only by waiting on it, the deadline comes."""
    _, connection = pair
    everything = Connections()
    connection.is_waiting = False
    everything.add(connection)
    clock = FakeClock()
    draining = Call(lambda: everything.drain(Deadline.after(1.0, clock)))
    assert not draining.result(TIMEOUT, "drain")
    assert clock.now() >= 1001.0
    assert repr(everything) == "<Connections open=1 busy=1 lingering=0>"


def test_who_has_just_connected_is_given_time(
    pair: tuple[socket.socket, Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client connects in order to send; one that has been served may have nothing more to say."""
    monkeypatch.setattr(connection_module, "UNSURE_QUIET", 0.0)
    monkeypatch.setattr(connection_module, "NEW_QUIET", TIMEOUT)
    client, connection = pair
    assert stays_open(connection)
    client.sendall(b"x")
    connection.sock.recv(1)
    connection.received = connection.boundary = connection.served = 1
    assert connection.close_if_quiet(0.0)


def test_time_in_a_backlog_is_not_held_against_a_client(
    pair: tuple[socket.socket, Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody could have answered it there; what counts is how long it has been idle in the drain's eyes."""
    _, connection = pair
    monkeypatch.setattr(connection_module, "NEW_QUIET", QUIET)
    info = tcp.tcp_info(connection.sock)
    assert info is not None
    long_ago = info._replace(last_sent_ms=60_000, last_received_ms=60_000)
    monkeypatch.setattr(connection_module, "tcp_info", lambda _: long_ago)
    assert not is_closed_when_quiet(connection)
    eventually(lambda: is_closed_when_quiet(connection), interval=0.001)


class IdleConnections(Connections):
    """Some that are idle and quiet, and when each is closed, on a clock that passes only while the drain waits."""

    def __init__(self, count: int, *, spread: float, hurried_after: int = 0) -> None:
        """Open them; the stop is hurried when so many were closed."""
        self.clock = FakeClock()
        super().__init__(clock=self.clock, idle_quiet=0.0, spread=spread)
        self.closed_at: list[float] = []
        self._began_at = self.clock.now()
        self._hurried_after = hurried_after
        self.socks: list[socket.socket] = []
        for _ in range(count):
            client, server_side = socket.socketpair()
            self.socks += [client, server_side]
            connection = Connection(self, server_side)
            connection.is_waiting = True
            connection.received = connection.boundary = connection.served = 1
            self.add(connection)

    def linger(self, connection: Connection) -> None:
        """Hear that one was closed."""
        self.closed_at.append(self.clock.now() - self._began_at)
        self.remove(connection)
        if len(self.closed_at) == self._hurried_after:
            self.stop_state.hurry(self.clock.now())

    def most_within(self, seconds: float) -> int:
        """Return how many were closed in the worst such time."""
        return max(sum(at <= other < at + seconds for other in self.closed_at) for at in self.closed_at)


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., IdleConnections]]:
    """Give a factory."""
    made: list[IdleConnections] = []

    def new(count: int, *, spread: float, hurried_after: int = 0) -> IdleConnections:
        made.append(IdleConnections(count, spread=spread, hurried_after=hurried_after))
        # By real time a look that the machine held up would have the drain skip the next ones, of virtual time.
        monkeypatch.setattr(drain_module, "time", SimpleNamespace(monotonic=made[-1].clock.now))
        return made[-1]

    yield new
    for connections in made:
        for sock in connections.socks:
            sock.close()


def test_idle_connections_are_closed_at_an_even_pace(idle: Callable[..., IdleConnections]) -> None:
    """Their clients reconnect at that pace, and not all at once."""
    connections = idle(200, spread=0.1)
    assert connections.drain(Deadline.after(TIMEOUT, connections.clock))
    assert len(connections.closed_at) == 200
    assert connections.most_within(0.01) <= 2 * 200 * 0.01 / 0.1
    assert 0.09 <= max(connections.closed_at) <= 0.12


@pytest.mark.parametrize(
    ("count", "spread", "left", "seconds"),
    [
        pytest.param(100, 0.0, TIMEOUT, 0.0, id="not wanted"),
        pytest.param(20, SPREAD, TIMEOUT, 0.02, id="a few need none"),
        pytest.param(200, 0.2, 0.1, 0.05, id="half of what is left at most"),
    ],
)
def test_spreading_takes_no_longer_than_it_must(
    idle: Callable[..., IdleConnections], count: int, spread: float, left: float, seconds: float
) -> None:
    """Every limit of it is kept."""
    connections = idle(count, spread=spread)
    assert connections.drain(Deadline.after(left, connections.clock))
    assert len(connections.closed_at) == count
    assert connections.most_within(0.01) <= 2 * count * 0.01 / max(seconds, 0.01)
    assert seconds * 0.8 <= max(connections.closed_at) <= seconds * 1.2 + 0.006


def test_a_hurry_ends_the_spreading(idle: Callable[..., IdleConnections]) -> None:
    """What is left is closed at the next look."""
    connections = idle(200, spread=0.2, hurried_after=50)
    assert connections.drain(Deadline.after(TIMEOUT, connections.clock))
    assert len(connections.closed_at) == 200
    assert max(connections.closed_at) <= connections.closed_at[49] + 0.006


def test_a_stalled_drain_does_not_make_up_for_it() -> None:
    """Closing in one go what was missed would be the very burst to avoid."""
    clock = FakeClock()
    pace = Pace(1000, 1.0, Deadline.after(TIMEOUT, clock), StopState(clock.now))
    clock.sleep(0.5)
    assert pace.allows() == 10
    for _ in range(10):
        pace.closed()
    assert pace.allows() == 0
    clock.sleep(0.0055)
    assert pace.allows() == 5
    clock.sleep(TIMEOUT / 2)  # But then half of the time is over, and what is not closed in the end is cut off.
    assert pace.allows() == 1000


@pytest.mark.parametrize("spread", [-1.0, float("nan"), float("inf")])
def test_a_spread_that_is_no_time_is_refused(spread: float) -> None:
    """At construction, not when the service stops."""
    with pytest.raises(ConfigurationError, match="spread"):
        Connections(spread=spread)
