"""What is special about stopping a ``grpc.server``: health, streams, ages, and whom the C core listens to."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from registry_drain import Deadline, StopBudget
from registry_drain.errors import ConfigurationError
from registry_drain.phases import Phase
from registry_drain.servers.current_request import is_draining, time_left
from registry_drain.servers.grpc_server import (
    DrainInterceptor,
    GrpcServer,
    adapter,
    age_misfits,
    connection_age_options,
    counting,
    departure,
)
from registry_drain.testing.bench import Call
from tests.servers.grpc_wire import (
    IgnoringClient,
    WireClient,
    assert_a_request_that_arrives_slowly_is_served,
    channel_to,
    echo_service,
)
from tests.servers.test_grpc_server import EchoServer, new_server
from tests.support.processes import eventually
from tests.support.tls_files import TlsFiles

PATIENCE = 20.0
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


def soon() -> Deadline:
    """Return a deadline that nothing here comes near."""
    return Deadline.after(PATIENCE)


@contextmanager
def started(server: EchoServer) -> Iterator[tuple[str, int]]:
    """Serve for the length of the block."""
    address = server.start()
    try:
        yield address
    finally:
        server.cut_off()


def echo(payload: bytes) -> bytes:
    """Serve."""
    return payload


class Gate:
    """A handler that waits; how many are in it can be waited for."""

    def __init__(self) -> None:
        """Shut."""
        self.entered = threading.Semaphore(0)
        self._open = threading.Event()

    def __call__(self, payload: bytes) -> bytes:
        """Wait for the gate, then answer."""
        self.entered.release()
        self._open.wait(PATIENCE)
        return payload

    def await_entered(self) -> None:
        """Wait until one more is in it."""
        assert self.entered.acquire(timeout=PATIENCE)

    def open(self) -> None:
        """Let all through, now and later."""
        self._open.set()


def test_all_four_kinds_are_counted_and_named() -> None:
    """Unary or streaming, in or out, a call is one request in flight from its handler's begin to its end."""
    gate = Gate()
    server = new_server(gate)
    with started(server) as address, channel_to(address) as channel:
        calls = [
            channel.unary_unary("/echo.Echo/Call").future(b"1"),
            channel.unary_stream("/echo.Echo/Count")(b"1"),
            channel.stream_unary("/echo.Echo/Join").future(iter([b"1", b"2"])),
            channel.stream_stream("/echo.Echo/Chat")(iter([b"1"])),
        ]
        for _ in calls:
            gate.await_entered()
        names = sorted(request.name for request in server.in_flight.snapshot())
        assert names == ["/echo.Echo/Call", "/echo.Echo/Chat", "/echo.Echo/Count", "/echo.Echo/Join"]
        gate.open()
        assert (calls[0].result(), list(calls[1]), calls[2].result(), list(calls[3])) == (b"1", [b"0"], b"12", [b"1"])
        eventually(lambda: not server.in_flight.count)
        assert server.in_flight.total == 4


@pytest.mark.parametrize("is_given", [False, True])
def test_health_says_not_serving_from_the_beginning_of_the_stop(*, is_given: bool) -> None:
    """Who asks and who watches is told before anything else happens; neither counts as a request."""
    servicer = health.HealthServicer() if is_given else None
    server = new_server(echo, health=servicer)
    if servicer is not None:
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server.grpc_server)
        servicer.set("echo.Echo", SERVING)
    with started(server) as address, channel_to(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service="echo.Echo" if is_given else "")
        watch = stub.Watch(request, timeout=PATIENCE)
        assert stub.Check(request).status == next(watch).status == SERVING
        server.in_flight.stop_state.enter(Phase.DEREGISTERING, None)
        assert stub.Check(request).status == next(watch).status == NOT_SERVING
        assert channel.unary_unary("/echo.Echo/Call")(b"still served") == b"still served"
        server.close_listener(soon())
        assert server.drain(soon())
        assert list(watch) == []
        assert watch.code() is grpc.StatusCode.OK, "a watch ends politely"
    assert server.in_flight.total == 1


def test_a_watch_that_blocks_a_thread_is_ended_too() -> None:
    """A HealthServicer may be made to keep a thread of the pool for each watch."""
    servicer = health.HealthServicer(experimental_non_blocking=False)
    try:
        server = new_server(echo, health=servicer)
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server.grpc_server)
        with started(server) as address, channel_to(address) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=PATIENCE)
            assert next(watch).status == SERVING
            assert server.drain(soon())
    finally:
        health.HealthServicer()  # The setting is the class', not the object's.


def test_clients_that_ignore_the_registry_lose_nothing_with_a_connection_age(monkeypatch: pytest.MonkeyPatch) -> None:
    """Told by their connection's age, while calls are served, they find the listener closed; no call is cancelled."""
    # With time for it the drain ends when the clients have left, however long the last goodbye is under way.
    monkeypatch.setattr(departure, "_AGE_SLACK", 5.0)
    server = new_server(lambda payload: payload, options=[("grpc.max_connection_age_ms", 300)])
    with started(server) as address:
        clients = [IgnoringClient(address) for _ in range(6)]
        eventually(lambda: all(client.answered > 5 for client in clients))
        assert server.close_listener(soon()).is_clean
        assert server.drain(soon())
        for client in clients:
            client.join(PATIENCE)
            assert not client.is_alive()
        assert [failure for client in clients for failure in client.failures] == []
        assert server.cut_off() == ()


def test_without_an_age_clients_that_never_pause_do_not_keep_the_server(caplog: pytest.LogCaptureFixture) -> None:
    """They would call for ever: the drain goes on after a while, and says what to set."""
    server = new_server(echo, idle_quiet=PATIENCE)  # longer than any pause that a busy machine makes
    with started(server) as address:
        client = IgnoringClient(address)
        eventually(lambda: client.answered > 5)
        server.close_listener(soon())
        assert server.drain(soon())
        client.join(PATIENCE)
        assert not client.is_alive()
    assert "ignore the registry" in caplog.text
    assert "grpc.max_connection_age_ms" in caplog.text


def test_an_age_that_does_not_fit_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """A drain that is shorter than the age does not wait for it in vain."""
    server = new_server(echo, options=[("grpc.max_connection_age_ms", 60_000)])
    with started(server) as address:
        client = WireClient(address)
        server.close_listener(soon())
        assert server.drain(soon())
        client.close()
    assert "grpc.max_connection_age_ms=60000 does not fit a drain of" in caplog.text


def test_a_client_that_does_not_read_does_not_hold_up_the_stop() -> None:
    """The core waits 20 s for an answer to the PING behind its GOAWAY; a frozen client gives none."""
    server = new_server(echo)
    with started(server) as address:
        client = WireClient(address, reads=False)
        eventually(lambda: server.connections == 1)
        server.close_listener(soon())
        draining = Call(lambda: server.drain(Deadline.after(10.0)))
        assert draining.result(PATIENCE, "drain"), "nothing was in flight, so the drain is complete"
        client.close()


def test_a_request_that_arrives_slowly_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """GRPC has taken the call, and no handler runs yet: that is not a server at rest."""
    monkeypatch.setattr(adapter, "ANSWER_PATIENCE", 0.0)
    server = new_server(echo)
    with started(server) as address:
        assert_a_request_that_arrives_slowly_is_served(server, address)


def test_a_stream_learns_that_the_server_drains() -> None:
    """A handler may ask, and come to an end by itself."""
    gate = Gate()
    seen: list[tuple[bool, float | None]] = []

    def serve(payload: bytes) -> bytes:
        seen.append((is_draining(), time_left()))
        return gate(payload)

    server = new_server(serve)
    with started(server) as address, channel_to(address) as channel:
        stream = channel.unary_stream("/echo.Echo/Count")(b"2")
        gate.await_entered()
        server.close_listener(soon())
        draining = Call(lambda: server.drain(soon()))
        eventually(lambda: server.in_flight.stop_state.is_draining)
        gate.open()
        assert list(stream) == [b"0", b"1"], "a stream that is in flight is finished"
        assert draining.result(PATIENCE, "drain")
    assert seen[0] == (False, None)
    assert seen[1][0]
    assert 0 < (seen[1][1] or 0) <= PATIENCE


@pytest.mark.parametrize("pause", [0.0, 0.3], ids=["never-pausing", "pausing"])
def test_streams_may_be_ended_between_two_messages(pause: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a status that says why, even if the next message comes a little later; and what has been sent arrives."""
    monkeypatch.setattr(counting, "WAITING_STREAM_PATIENCE", PATIENCE)  # a busy machine is late with the next one

    def serve(payload: bytes) -> bytes:
        if payload != b"0":
            time.sleep(pause)
        return payload

    server = new_server(serve, end_streams_after=0.2)
    with started(server) as address, channel_to(address) as channel:
        stream = channel.unary_stream("/echo.Echo/Count")(b"1000000000")
        assert next(stream) == b"0"
        server.close_listener(soon())
        draining = Call(lambda: server.drain(soon()))
        with pytest.raises(grpc.RpcError) as caught:
            for _ in stream:
                pass
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "draining" in caught.value.details()
        assert ("registry-drain", "draining") in caught.value.trailing_metadata()
        assert draining.result(PATIENCE, "drain")
        assert server.cut_off() == ()


def test_a_stream_that_waits_is_cancelled_when_it_must_end() -> None:
    """A handler that reads its client's next message finds no more."""
    server = new_server(echo, end_streams_after=0.2)
    hold = threading.Event()

    def requests() -> Iterator[bytes]:
        yield b"one"
        hold.wait(PATIENCE)

    with started(server) as address, channel_to(address) as channel:
        stream = channel.stream_stream("/echo.Echo/Chat")(requests())
        assert next(stream) == b"one"
        server.close_listener(soon())
        draining = Call(lambda: server.drain(soon()))
        with pytest.raises(grpc.RpcError):
            next(stream)
        hold.set()
        assert draining.result(PATIENCE, "drain")


@pytest.mark.parametrize("must_end", [False, True])
def test_a_stream_that_is_pushed_is_in_flight_until_its_end(must_end: bool) -> None:
    """Its handler has returned long ago: ``experimental_non_blocking``, as grpc's own health service has it."""
    pushing: list[Callable[[bytes | None], None]] = []

    def feed(_request: bytes, _context: Any, send: Callable[[bytes | None], None]) -> None:
        pushing.append(send)

    feed.experimental_non_blocking = True  # type: ignore[attr-defined]
    server = new_server(echo, end_streams_after=0.2 if must_end else None)
    handlers = {"Feed": grpc.unary_stream_rpc_method_handler(feed)}
    server.grpc_server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("push.Push", handlers)])
    with started(server) as address, channel_to(address) as channel:
        stream = channel.unary_stream("/push.Push/Feed")(b"")
        eventually(lambda: pushing)
        pushing[0](b"one")
        assert next(stream) == b"one"
        assert [request.name for request in server.in_flight.snapshot()] == ["/push.Push/Feed"]
        server.close_listener(soon())
        draining = Call(lambda: server.drain(soon()))
        if must_end:
            with pytest.raises(grpc.RpcError):
                next(stream)
        else:
            draining.join(0.3)
            assert draining.is_alive(), "it waits for the stream"
            pushing[0](b"two")
            pushing[0](None)
            assert list(stream) == [b"two"]
        assert draining.result(PATIENCE, "drain")
        assert not server.in_flight.count


def test_a_unix_socket(tmp_path: Path) -> None:
    """It is found by its path, and closed like any other."""
    interceptor, pool, path = DrainInterceptor(), ThreadPoolExecutor(4), f"{tmp_path}/socket"
    grpc_server = grpc.server(pool, interceptors=[interceptor])
    grpc_server.add_generic_rpc_handlers([echo_service(echo)])
    grpc_server.add_insecure_port(f"unix:{path}")
    server = GrpcServer(grpc_server, interceptor, port=f"unix:{path}")
    try:
        assert server.start() == (path, 0)
        with grpc.insecure_channel(f"unix:{path}") as channel:
            call = channel.unary_unary("/echo.Echo/Call")
            assert call(b"1") == b"1"
            assert server.connections == 1
            assert server.close_listener(soon()).is_clean
            assert call(b"2") == b"2"
            assert server.drain(soon())
            with pytest.raises(grpc.RpcError, match="UNAVAILABLE"):
                call(b"3")
    finally:
        server.cut_off()
        pool.shutdown()


def test_tls(tls_files: TlsFiles) -> None:
    """Nothing here looks into what is sent."""
    interceptor, pool = DrainInterceptor(), ThreadPoolExecutor(4)
    grpc_server = grpc.server(pool, interceptors=[interceptor], options=[("grpc.max_connection_age_ms", 200)])
    grpc_server.add_generic_rpc_handlers([echo_service(echo)])
    key, chain = tls_files.server_key.read_bytes(), tls_files.server_cert.read_bytes()
    port = grpc_server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, chain)]))
    server = GrpcServer(grpc_server, interceptor, port=port, options=[("grpc.max_connection_age_ms", 200)])
    try:
        server.start()
        credentials = grpc.ssl_channel_credentials(tls_files.ca.read_bytes())
        with grpc.secure_channel(f"localhost:{port}", credentials) as channel:
            assert channel.unary_unary("/echo.Echo/Call")(b"1", timeout=PATIENCE) == b"1"
            server.close_listener(soon())
            assert server.drain(soon())
    finally:
        server.cut_off()
        pool.shutdown()


def test_the_options_fit_the_budget() -> None:
    """Half of what the drain has at least, so that calls made last still have the other half."""
    budget = StopBudget(grace_period=30)
    ((name, milliseconds),) = connection_age_options(budget)
    assert name == "grpc.max_connection_age_ms"
    assert 4000 < milliseconds < 4200
    assert age_misfits(connection_age_options(budget), budget) == ()
    assert connection_age_options(budget, 1.5) == [(name, 1500)]
    with pytest.raises(ConfigurationError, match=r"a connection age of 9 s does not fit.* at most 4\.1 s"):
        connection_age_options(budget, 9.0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "is not set"),
        ([("grpc.max_connection_age_ms", 2**31 - 1)], "is not set"),
        ([("grpc.max_connection_age_ms", 60_000)], "clients leave within 66.0 s"),
        ([("grpc.max_connection_age_ms", 1000), ("grpc.max_connection_age_grace_ms", 500)], "cuts calls off"),
    ],
)
def test_what_does_not_fit_is_said(options: list[tuple[str, int]], said: str) -> None:
    """One line for each."""
    (line,) = age_misfits(options, StopBudget())
    assert said in line


@pytest.mark.parametrize("port", [0, 1, "", [], [50051, 0]])
def test_a_port_that_is_none_is_refused(port: Any) -> None:
    """``add_insecure_port`` returns 1 for a Unix socket, whose path is needed."""
    with pytest.raises(ConfigurationError, match="give what add_insecure_port"):
        GrpcServer(grpc.server(ThreadPoolExecutor(1)), DrainInterceptor(), port=port)


def test_another_kind_of_server_is_refused() -> None:
    """In one line."""
    with pytest.raises(ConfigurationError, match=r"list is no grpc\.server"):
        GrpcServer([], DrainInterceptor(), port=50051)
    interceptor: Any = object()
    with pytest.raises(ConfigurationError, match="object is no DrainInterceptor"):
        GrpcServer(grpc.server(ThreadPoolExecutor(1)), interceptor, port=50051)
