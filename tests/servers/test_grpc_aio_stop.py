"""What is special about stopping a ``grpc.aio.server``: its loop, its tasks, and each kind of handler."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from registry_drain import Deadline
from registry_drain.errors import ConfigurationError
from registry_drain.phases import Phase
from registry_drain.servers.current_request import is_draining, name_request
from registry_drain.servers.grpc_server import AioDrainInterceptor, AioGrpcServer, DrainInterceptor, adapter, departure
from registry_drain.testing.bench import Call
from tests.servers.grpc_wire import (
    METHOD,
    IgnoringClient,
    assert_a_request_that_arrives_slowly_is_served,
    channel_to,
)
from tests.servers.test_grpc_aio_server import _poller, echo_service, new_server
from tests.support.processes import eventually

__all__ = ["_poller"]

PATIENCE = 20.0
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


def soon() -> Deadline:
    """Return a deadline that nothing here comes near."""
    return Deadline.after(PATIENCE)


@contextmanager
def started(server: AioGrpcServer) -> Iterator[tuple[str, int]]:
    """Serve for the length of the block."""
    address = server.start()
    try:
        yield address
    finally:
        server.cut_off()


async def until_draining() -> None:
    """Wait as a handler that streams would."""
    while not is_draining():  # noqa: ASYNC110 - that is what there is to ask
        await asyncio.sleep(0.005)


def all_kinds() -> Any:
    """Return handlers of every kind that ``grpc.aio`` knows; each waits until the server drains."""

    async def call(request: bytes, _context: Any) -> bytes:
        await until_draining()
        return request

    async def count(request: bytes, _context: Any) -> AsyncIterator[bytes]:
        yield request
        await until_draining()
        yield b"last"

    async def write(request: bytes, context: Any) -> None:
        await context.write(request)
        await until_draining()
        await context.write(b"last")

    async def join(requests: Any, _context: Any) -> bytes:
        await until_draining()
        return b"".join([request async for request in requests])

    async def chat(requests: Any, _context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            yield request
        await until_draining()

    return grpc.method_handlers_generic_handler(
        "echo.Echo",
        {
            "Call": grpc.unary_unary_rpc_method_handler(call),
            "Count": grpc.unary_stream_rpc_method_handler(count),
            "Write": grpc.unary_stream_rpc_method_handler(write),
            "Join": grpc.stream_unary_rpc_method_handler(join),
            "Chat": grpc.stream_stream_rpc_method_handler(chat),
        },
    )


def test_every_kind_of_handler_is_counted_and_finished() -> None:
    """Coroutines, asynchronous generators and writers are what they were, and know that the server drains."""
    server = new_server(all_kinds())
    with started(server) as address, channel_to(address) as channel:
        call = channel.unary_unary("/echo.Echo/Call").future(b"1")
        count = channel.unary_stream("/echo.Echo/Count")(b"1")
        write = channel.unary_stream("/echo.Echo/Write")(b"1")
        join = channel.stream_unary("/echo.Echo/Join").future(iter([b"1", b"2"]))
        chat = channel.stream_stream("/echo.Echo/Chat")(iter([b"1", b"2"]))
        eventually(lambda: server.in_flight.count == 5)
        names = sorted(request.name.rpartition("/")[2] for request in server.in_flight.snapshot())
        assert names == ["Call", "Chat", "Count", "Join", "Write"]
        server.close_listener(soon())
        assert server.drain(soon())
        assert (call.result(), list(count), list(write)) == (b"1", [b"1", b"last"], [b"1", b"last"])
        assert (join.result(), list(chat)) == (b"12", [b"1", b"2"])


def test_a_request_that_arrives_slowly_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with the sync server."""
    monkeypatch.setattr(adapter, "ANSWER_PATIENCE", 0.0)
    server = new_server(echo_service(lambda payload: payload))
    with started(server) as address:
        assert_a_request_that_arrives_slowly_is_served(server, address)


def test_handlers_that_are_no_coroutines_run_in_threads() -> None:
    """As they did before, in the loop's default pool; when they have ended, with an error too, nothing is left."""

    def call(request: bytes, _context: Any) -> bytes:
        name_request(f"call of {request.decode()}")
        return request

    def count(request: bytes, _context: Any) -> Iterator[bytes]:
        for turn in range(int(request)):
            yield str(turn).encode()

    def fail(_request: bytes, _context: Any) -> bytes:
        raise ValueError("on purpose")

    handlers = {
        "Fail": grpc.unary_unary_rpc_method_handler(fail),
        "Call": grpc.unary_unary_rpc_method_handler(call),
        "Count": grpc.unary_stream_rpc_method_handler(count),
    }
    server = new_server(grpc.method_handlers_generic_handler("echo.Echo", handlers))
    with started(server) as address, channel_to(address) as channel:
        assert channel.unary_unary("/echo.Echo/Call")(b"1") == b"1"
        assert list(channel.unary_stream("/echo.Echo/Count")(b"3")) == [b"0", b"1", b"2"]
        with pytest.raises(grpc.RpcError, match="on purpose"):
            channel.unary_unary("/echo.Echo/Fail")(b"1")
        eventually(lambda: not server.in_flight.count)
        assert server.in_flight.total == 3
        eventually(lambda: not server.has_calls())
        server.close_listener(soon())
        assert server.drain(soon())


def test_what_is_cut_off_is_cancelled_awaited_and_named() -> None:
    """A handler can clean up behind itself, and has done so when cut_off returns."""
    cleaned: list[str] = []

    async def call(_request: bytes, _context: Any) -> bytes:
        name_request("export(account=7)")
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
            cleaned.append("cleaned")
        return b""

    service = grpc.method_handlers_generic_handler("echo.Echo", {"Call": grpc.unary_unary_rpc_method_handler(call)})
    server = new_server(service)
    with started(server) as address, channel_to(address) as channel:
        future = channel.unary_unary("/echo.Echo/Call").future(b"1")
        eventually(lambda: [each.name for each in server.in_flight.snapshot()] == ["export(account=7)"])
        server.close_listener(soon())
        assert not server.drain(Deadline.after(0.3))
        assert cleaned == [], "a drain that runs out of time cancels nothing"
        (cut,) = server.cut_off()
        assert cleaned == ["cleaned"]
        assert cut.name == "export(account=7)"
        assert future.exception(PATIENCE) is not None


def test_a_stream_that_waits_is_ended_with_the_protocols_own_word() -> None:
    """It gets a CancelledError where it waits; its client gets UNAVAILABLE, and not CANCELLED."""
    seen: list[str] = []

    async def count(request: bytes, _context: Any) -> AsyncIterator[bytes]:
        yield request
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append("told")
            raise

    service = grpc.method_handlers_generic_handler("echo.Echo", {"Count": grpc.unary_stream_rpc_method_handler(count)})
    server = new_server(service, end_streams_after=0.1)
    with started(server) as address, channel_to(address) as channel:
        stream = channel.unary_stream("/echo.Echo/Count")(b"1")
        assert next(stream) == b"1"
        server.close_listener(soon())
        draining = Call(lambda: server.drain(soon()))
        with pytest.raises(grpc.RpcError) as caught:
            next(stream)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert ("registry-drain", "draining") in caught.value.trailing_metadata()
        assert draining.result(PATIENCE, "drain")
        assert server.cut_off() == ()
    assert seen == ["told"]


def test_health_says_not_serving_from_the_beginning_of_the_stop() -> None:
    """Who asks and who watches is told before anything else happens; neither counts as a request."""
    server = new_server(echo_service(lambda payload: payload))
    with started(server) as address, channel_to(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=PATIENCE)
        assert stub.Check(health_pb2.HealthCheckRequest()).status == next(watch).status == SERVING
        server.in_flight.stop_state.enter(Phase.DEREGISTERING, None)
        assert next(watch).status == NOT_SERVING
        assert stub.Check(health_pb2.HealthCheckRequest()).status == NOT_SERVING
        assert channel.unary_unary(METHOD)(b"still served") == b"still served"
        server.close_listener(soon())
        assert server.drain(soon())
        assert list(watch) == []
        assert watch.code() is grpc.StatusCode.OK, "a watch ends politely"
    assert server.in_flight.total == 1


def test_clients_that_ignore_the_registry_lose_nothing_with_a_connection_age(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with the sync server."""
    # With time for it the drain ends when the clients have left, however long the last goodbye is under way.
    monkeypatch.setattr(departure, "_AGE_SLACK", 5.0)
    options = [("grpc.max_connection_age_ms", 300)]
    server = new_server(echo_service(lambda payload: payload), options=options)
    with started(server) as address:
        clients = [IgnoringClient(address) for _ in range(6)]
        eventually(lambda: all(client.answered > 5 for client in clients))
        server.close_listener(soon())
        assert server.drain(soon())
        for client in clients:
            client.join(PATIENCE)
            assert not client.is_alive()
        assert [failure for client in clients for failure in client.failures] == []
        assert server.cut_off() == ()


def test_in_the_loop_of_the_application() -> None:
    """A server that was made in a running loop is served, drained and ended in it."""

    async def main() -> int:
        interceptor = AioDrainInterceptor()
        grpc_server = grpc.aio.server(interceptors=[interceptor])
        grpc_server.add_generic_rpc_handlers([echo_service(lambda payload: payload)])
        server = AioGrpcServer(grpc_server, interceptor, port=grpc_server.add_insecure_port("127.0.0.1:0"))
        host, port = await asyncio.to_thread(server.start)
        async with grpc.aio.insecure_channel(f"{host}:{port}") as channel:
            assert await channel.unary_unary(METHOD)(b"1") == b"1"
            assert (await asyncio.to_thread(server.close_listener, soon())).is_clean
            assert await asyncio.to_thread(server.drain, soon())
        assert await asyncio.to_thread(server.cut_off) == ()
        return server.in_flight.total

    assert asyncio.run(main()) == 1


def test_what_cannot_work_is_refused() -> None:
    """In one line that says what to do."""
    interceptor = AioDrainInterceptor()
    with pytest.raises(ConfigurationError, match=r"list is no grpc\.aio\.server"):
        AioGrpcServer([], interceptor)
    with pytest.raises(ConfigurationError, match="let it return the port"):
        AioGrpcServer(lambda: (None, 1), interceptor, port=50051)
    wrong: Any = DrainInterceptor()
    with pytest.raises(ConfigurationError, match="is no AioDrainInterceptor"):
        AioGrpcServer(lambda: (None, 1), wrong)
    nothing: Any = lambda: None  # noqa: E731
    server = AioGrpcServer(nothing, interceptor)
    with pytest.raises(ConfigurationError, match=r"let it return the grpc\.aio\.server and its port"):
        server.start()
